"""tools/start.py: from a folder to a config, and to a trained model, with nothing lost on the way."""

import pytest
from helpers import own_data
from mmengine.config import Config

from mmcasvit.benchmark.step_memory import StepMemory
from mmcasvit.start import machine, run
from mmcasvit.start.prepare import Options
from mmcasvit.start.recipe import Choices

QUICK = ('--epochs', 2, '--batch', 4, '--workers', 1)


@pytest.fixture
def data(tmp_path):
    own_data.yolo(tmp_path / 'pets & co')
    return tmp_path / 'pets & co'


def test_a_config_is_written_and_kept(run_tool, data, tmp_path):
    done = run_tool('start.py', data, *QUICK, cwd=tmp_path)
    config = tmp_path / 'work_dirs/start/pets & co/retinanet_casvit-xs_pets---co.py'
    assert 'YOLO, task detect, 3 classes (cat, dog, red fox), images: train 7, val 3' in done.stdout
    assert f"train.py '{config}' --resume auto" in done.stdout
    assert f"'{config.parent}/train/'best_*.pth" in done.stdout
    cfg = Config.fromfile(config)
    assert (cfg.model.bbox_head.num_classes, list(cfg.metainfo.classes)) == (3, list(own_data.NAMES))
    assert cfg.train_dataloader.batch_size == 4
    assert 'GiB' in config.read_text()

    run_tool('start.py', data, *QUICK, cwd=tmp_path)
    config.write_text(config.read_text().replace('weight_decay=0.05', 'weight_decay=0.01'))
    done = run_tool('start.py', data, *QUICK, cwd=tmp_path, expect=2)
    assert done.stderr.splitlines()[-1].startswith('error: ')
    assert 'was edited. Use --force' in done.stderr
    assert 'weight_decay=0.01' in config.read_text()
    run_tool('start.py', data, *QUICK, '--force', cwd=tmp_path)
    assert 'weight_decay=0.05' in config.read_text()


def test_another_task_needs_a_folder_of_its_own(run_tool, data, tmp_path):
    run = tmp_path / 'out' / 'train'
    run.mkdir(parents=True)
    (run / 'mask-rcnn_casvit-xs_pets---co.py').write_text('')
    done = run_tool('start.py', data, *QUICK, '--out-dir', 'out', cwd=tmp_path, expect=2)
    assert 'is the run of mask-rcnn_casvit-xs_pets---co. Give retinanet_casvit-xs_pets---co a folder' in done.stderr
    assert '--out-dir out-detect' in done.stderr
    assert [path.name for path in run.iterdir()] == ['mask-rcnn_casvit-xs_pets---co.py']
    assert not list(run.parent.glob('*.py'))


def test_faults_stop_the_start_and_are_left_out_on_request(run_tool, data, tmp_path):
    image = data / 'images' / 'train' / '3.jpg'
    image.write_bytes(image.read_bytes()[:500])
    done = run_tool('start.py', data, *QUICK, cwd=tmp_path, expect=2)
    assert 'unreadable or truncated images: 1' in done.stderr
    assert '--fix' in done.stderr
    before = {path: path.read_bytes() for path in data.rglob('*') if path.is_file()}
    done = run_tool('start.py', data, *QUICK, '--fix', cwd=tmp_path)
    assert 'images: train 6, val 3' in done.stdout
    assert {path: path.read_bytes() for path in data.rglob('*') if path.is_file()} == before


@pytest.mark.parametrize('limit, built', [(None, [64]), (32, [64, 32])])
def test_memory_is_measured_once_at_the_size_of_the_training(data, tmp_path, monkeypatch, limit, built):
    sizes, measured = [], []

    class Step:
        def __init__(self, cfg):
            sizes.append(cfg.scale[0])

        def seconds_per_image(self, images, seconds):
            return 0.5

        def memory(self):
            measured.append(sizes[-1])
            return StepMemory(2**28, 2**27, (8, 8), (1, 2), 'cpu')

    monkeypatch.setattr(machine, 'TrainingStep', Step)
    monkeypatch.setattr(run, 'affordable_size', lambda *args: limit)
    started = run.start(data, tmp_path / 'out', Options(), Choices('', minutes=2), False, False, 1)
    assert (sizes, measured) == (built, built[-1:])
    assert '(measured: 128 MiB for each image, and 256 MiB for the rest)' in started.text
    assert f'at {built[-1]} pixels' in started.text
    assert '(2 images/s)' in started.text


@pytest.mark.parametrize(
    'options, message',
    [
        (('--size', 8), '--size must be at least 32'),
        (('--epochs', 0), '--epochs must be more than 0'),
        (('--val-share', 1), '--val-share must lie between 0 and 1'),
        (('--classes', 'a', 'a'), '--classes has a name twice'),
        (('--model', 'upernet'), '--model upernet is for semantic'),
        (('--task', 'instances'), 'no outlines'),
        (('--pretrained', 'none.pth'), 'none.pth'),
    ],
)
def test_wrong_options_are_one_line(run_tool, data, tmp_path, options, message):
    done = run_tool('start.py', data, *options, cwd=tmp_path, expect=2)
    assert message in done.stderr.splitlines()[-1]
    assert not list(tmp_path.rglob('*.py'))


MODELS = [(own_data.coco, 'mask-rcnn', 'instances'), (own_data.masks, 'semantic-fpn', 'semantic')]


@pytest.mark.slow
@pytest.mark.parametrize('writer, model, task', MODELS, ids=lambda part: getattr(part, '__name__', part))
def test_every_model_trains(run_tool, tool_server, tmp_path, monkeypatch, writer, model, task):
    monkeypatch.setenv('PYTHON_EXEC', str(tool_server.python))  # the training is forked as well
    writer(tmp_path / 'data')
    options = ('--task', task, '--model', model, '--size', 64, *QUICK, '--out-dir', 'out', '--train')
    done = run_tool('start.py', 'data', *options, cwd=tmp_path)
    assert 'best checkpoint: ' in done.stdout
    assert (tmp_path / 'out' / 'train' / 'report.html').is_file()
    assert list((tmp_path / 'out' / 'predictions').rglob('*.*'))
