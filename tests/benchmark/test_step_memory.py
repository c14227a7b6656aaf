"""Memory of a training step: what small batches say about larger ones, and what a process really takes."""

import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.repository import ROOT, write_tiny_config

from mmcasvit.apis.config import load_config
from mmcasvit.benchmark import step_memory
from mmcasvit.benchmark.memory import peak_memory
from mmcasvit.benchmark.step_memory import TrainingStep, memory_in_words, memory_rows
from mmcasvit.benchmark.variants import Variant
from mmcasvit.utils.errors import UsageError

SIZE = (192, 192)


@pytest.fixture(scope='module')
def segmentor(tmp_path_factory):
    config = ROOT / 'configs/segmentation/semantic-fpn_casvit-xs_300i_shapes.py'
    return str(write_tiny_config(tmp_path_factory.mktemp('memory') / 'tiny.py', config))


@pytest.mark.slow
def test_a_larger_batch_needs_what_small_ones_say(segmentor, monkeypatch):
    cfg = load_config(segmentor)
    found = TrainingStep(cfg, SIZE).memory()
    assert (found.batches, found.size) == ((1, 2), SIZE)
    measure = step_memory._measure
    monkeypatch.setattr(step_memory, '_measure', lambda *args: measure(*args[:3], (6, 7), args[-1]))
    assert found.at(6) == pytest.approx(TrainingStep(cfg, SIZE).memory().at(6), rel=0.05)
    larger = TrainingStep(cfg, tuple(2 * side for side in SIZE)).memory()
    assert larger.per_image == pytest.approx(4 * found.per_image, rel=0.1)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='read from the kernel of Linux')
def test_a_process_takes_about_as_much(segmentor):
    found = TrainingStep(load_config(segmentor), SIZE).memory()
    real = peak_memory(Variant(segmentor, mode='train', size=SIZE, batch=6, threads=1))
    moments = 2 * real.weights  # of AdamW, which that pass has not
    assert found.at(6) == pytest.approx(real.total + moments, rel=0.2)


@pytest.mark.slow
def test_the_images_of_the_data_are_used(segmentor, shapes):
    found = TrainingStep(load_config(segmentor, dict(data_root=str(shapes / 'ade')))).memory()
    assert found.size == (64, 96)


@pytest.mark.parametrize('seconds, steps', [(0.5, 3), (5, 2), (0.01, 6)])
def test_the_quickest_of_a_few_steps_counts(monkeypatch, seconds, steps):
    now, taken, losses = [0.0], [], [1.0]

    def train_step(batch, optimizer):
        taken.append(len(batch))
        now[0] += seconds * (2 if len(taken) == 1 else 1)
        return dict(loss=losses[0] if len(taken) == 1 else float('nan'))

    step = step_memory.TrainingStep.__new__(step_memory.TrainingStep)
    step.model, step.optimizer, step.samples = SimpleNamespace(train_step=train_step), None, [1, 2]
    monkeypatch.setattr(step_memory.time, 'perf_counter', lambda: now[0])
    monkeypatch.setattr(step_memory, 'pseudo_collate', list)
    assert step.seconds_per_image(4, 2) == pytest.approx(seconds / 4)
    assert taken == [4] * steps
    taken.clear()
    losses[0] = float('inf')
    with pytest.raises(UsageError, match='loss of the first step is inf'):
        step.seconds_per_image(4, 2)


def test_a_norm_that_needs_two_images_gets_them(monkeypatch):
    tried = []

    def measure(model, optimizer, samples, batches, device):
        tried.append(batches)
        if batches[0] == 1:
            raise ValueError('Expected more than 1 value per channel when training, got input size [1, 8, 1, 1]')
        return step_memory.StepMemory(2**20, 2**30, (8, 8), batches, device)

    monkeypatch.setattr(step_memory, '_measure', measure)
    monkeypatch.setattr(step_memory, 'get_model', lambda cfg: torch.nn.Linear(1, 1))
    monkeypatch.setattr(step_memory, '_random_samples', lambda cfg, size: [])
    cfg = step_memory.Config(
        dict(model={}, default_scope='mmdet', optim_wrapper=dict(optimizer=dict(type='SGD', lr=1)))
    )
    found = TrainingStep(cfg, (8, 8)).memory()
    assert tried == [(1, 2), (2, 3)]
    assert memory_in_words(found).startswith('1 MiB and 1024 MiB for each image of 8x8, from steps with 2 and 3 images')
    assert memory_rows(found, [4])[0]['memory, GiB'] == pytest.approx(4 + 2**-10)


@pytest.mark.parametrize('peaks, fixed, per_image', [((100, 150), 50, 50), ((100, 260), 0, 130), ((100, 90), 100, 0)])
def test_no_part_of_the_memory_is_negative(monkeypatch, peaks, fixed, per_image):
    found = iter(peaks)
    monkeypatch.setattr(step_memory, '_peak', lambda *args: next(found))
    samples = [dict(inputs=torch.zeros(3, 4, 5), data_samples=None)]
    memory = step_memory._measure(None, None, samples, (1, 2), 'cpu')
    assert (memory.fixed, memory.per_image) == (fixed, per_image)
