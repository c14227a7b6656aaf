"""Checkpoints are whole or not there, whatever happens while they are written; and a NaN loss ends the run."""

import multiprocessing
import os
import resource
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.toy_run import config, train
from mmengine.hooks import Hook

import mmcasvit.engine.hooks.checkpoint as hook_module
from mmcasvit import RunStopped, StopOnInvalidLossHook, WeightsError
from mmcasvit.engine.compare_runs import differences, outcome
from mmcasvit.engine.hooks.checkpoint import CheckpointHook
from mmcasvit.engine.hooks.invalid_loss import describe_batch
from mmcasvit.engine.work_dir import WorkDirLock
from mmcasvit.weights.integrity import damage, find_whole_checkpoint

CASE = dict(by_epoch=False, interval=3)


def save(folder, *steps):
    for step in steps:
        torch.save(dict(state_dict=dict(x=torch.full((2000,), float(step)))), folder / f'iter_{step}.pth')
        os.utime(folder / f'iter_{step}.pth', (step, step))


def truncate(file):
    file.write_bytes(file.read_bytes()[:-500])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    'harm',
    [truncate, flip, Path.unlink, lambda file: file.write_bytes(b'')],
    ids=['truncated', 'one bit', 'gone', 'empty'],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(tmp_path, harm, monkeypatch):
    said = []
    monkeypatch.setattr('mmcasvit.weights.integrity.print_log', lambda text, **_: said.append(text))
    save(tmp_path, 3, 6, 9, 12)  # the last one is of an earlier, longer run
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_9.pth'))
    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'iter_9.pth')
    harm(tmp_path / 'iter_9.pth')
    assert damage(tmp_path / 'iter_9.pth')
    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'iter_6.pth')
    [warning] = said
    assert 'iter_9.pth' in warning
    assert 'iter_6.pth' in warning
    truncate(tmp_path / 'iter_6.pth')
    truncate(tmp_path / 'iter_3.pth')
    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'iter_12.pth')
    assert 'iter_3.pth' in said[-1]
    truncate(tmp_path / 'iter_12.pth')
    with pytest.raises(WeightsError, match=r'iter_9.*iter_6.*iter_3.*iter_12'):
        find_whole_checkpoint(tmp_path)


def test_without_a_pointer_the_newest_whole_file_counts_and_an_empty_folder_has_none(tmp_path):
    assert find_whole_checkpoint(tmp_path) is None
    save(tmp_path, 3, 6)
    (tmp_path / '.iter_9.pth.unfinished').write_bytes(b'half')
    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'iter_6.pth')
    moved = tmp_path / 'moved'
    moved.mkdir()
    save(moved, 3)
    (moved / 'last_checkpoint').write_text('elsewhere/iter_3.pth')
    assert find_whole_checkpoint(moved) == str(moved / 'iter_3.pth')


@pytest.mark.parametrize('content', [b'', b'\xff\xfe\x00', b'iter_9\x00.pth', b'nowhere/iter_9.pth'])
def test_a_pointer_that_leads_nowhere_gives_way_to_the_newest_file(tmp_path, content):
    save(tmp_path, 3, 6)
    (tmp_path / 'last_checkpoint').write_bytes(content)
    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'iter_6.pth')


class Die(CheckpointHook):
    """Hook that is killed at the n-th call of one of the functions that write a checkpoint."""

    def __init__(self, function, call, **kwargs):
        super().__init__(**kwargs)
        self.function, self.call = function, call

    def before_train(self, runner):
        super().before_train(runner)
        inner, calls = getattr(hook_module, self.function), []

        def dying(*args):
            calls.append(args)
            if len(calls) == self.call:
                if self.function == 'damage':  # half of the file is on the disk
                    os.truncate(args[0], os.path.getsize(args[0]) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(*args)

        setattr(hook_module, self.function, dying)


@pytest.mark.parametrize(
    'function, call',
    [('damage', 3), ('rename_durably', 3), ('write_text', 3)],
    ids=['while it is written', 'before it is renamed', 'before the pointer'],
)
def test_a_kill_during_a_checkpoint_loses_nothing(tmp_path, function, call):
    assert train(config(tmp_path / 'whole', **CASE)) == 0
    settings = config(tmp_path / 'run', **CASE)
    settings['default_hooks']['checkpoint'].update(type=Die, function=function, call=call, max_keep_ckpts=1)
    assert train(settings) == -signal.SIGKILL
    assert not any(map(damage, (tmp_path / 'run').glob('*.pth')))
    assert find_whole_checkpoint(tmp_path / 'run')
    assert train(config(tmp_path / 'run', **CASE, resume=True)) == 0
    assert not list((tmp_path / 'run').glob('.*'))
    found, wanted = outcome(tmp_path / 'run'), outcome(tmp_path / 'whole')
    # With one checkpoint kept until the kill there may be fewer than in the run that kept two.
    assert [line for line in differences(found, wanted) if 'keep_ckpt_ids' not in line and 'files' not in line] == []


class Full(Hook):
    """From the second checkpoint on no file may be as large as a checkpoint."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 4:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))


def test_a_full_disk_ends_the_run_and_leaves_the_last_good_checkpoint(tmp_path, capfd):
    settings = config(tmp_path, **CASE)
    settings['default_hooks']['checkpoint'].update(max_keep_ckpts=1, save_best=None)
    settings['custom_hooks'].append(dict(type=Full))
    assert train(settings) == 1
    text = ''.join(capfd.readouterr())
    assert 'RunStopped: training stopped: the checkpoint' in text
    assert 'iter_6.pth could not be written' in text
    assert f'The last good checkpoint is {tmp_path}/iter_3.pth' in text
    assert [path.name for path in tmp_path.iterdir() if '.pth' in path.name] == ['iter_3.pth']
    assert damage(tmp_path / 'iter_3.pth') == ''
    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'iter_3.pth')


class Spoil(Hook):
    """Makes a weight NaN behind the step of the fifth iteration, or the inputs of the step."""

    priority = 'HIGHEST'

    def __init__(self, inputs):
        self.inputs = inputs

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.inputs and runner.iter == 4:
            data_batch['inputs'][0] = float('nan')

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if not self.inputs and runner.iter == 5:
            runner.model.layers[0].weight.data[0] = float('inf')


def test_a_nan_loss_stops_the_run_and_keeps_the_batch(tmp_path, capfd):
    settings = config(tmp_path, **CASE)
    settings['default_hooks']['checkpoint']['save_best'] = None
    settings['custom_hooks'].append(dict(type=Spoil, inputs=True))
    assert train(settings) == 1
    text = ''.join(capfd.readouterr())
    assert 'RunStopped: training stopped in iteration 5: loss is nan' in text
    assert f'The last good checkpoint is {tmp_path}/iter_3.pth' in text
    kept = torch.load(tmp_path / 'invalid_loss_iter_5.pth', weights_only=True)
    assert kept['inputs'].shape == (4, 3, 8, 8)
    assert kept['inputs'].isnan().flatten(1).any(1).tolist() == [True, False, False, False]
    assert len(kept['labels']) == 4
    assert kept['iter'] == 5
    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'iter_3.pth')


def test_weights_that_are_no_numbers_are_never_written(tmp_path, capfd):
    settings = config(tmp_path, **CASE)
    settings['default_hooks']['checkpoint']['save_best'] = None
    settings['custom_hooks'].append(dict(type=Spoil, inputs=False))
    assert train(settings) == 1
    assert 'NaN or infinite' in ''.join(capfd.readouterr())
    assert not (tmp_path / 'iter_6.pth').exists()
    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'iter_3.pth')


def test_the_kept_batch_of_a_detector_can_be_read(tmp_path):
    structures = pytest.importorskip('mmdet.structures')
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    masks = BitmapMasks(torch.ones(1, 4, 6, dtype=torch.uint8).numpy(), 4, 6)
    sample = structures.DetDataSample(metainfo=dict(img_path='a.jpg', ori_shape=(4, 6)))
    sample.gt_instances = InstanceData(bboxes=HorizontalBoxes(torch.tensor([[0.0, 1, 2, 3]])), masks=masks)
    runner = SimpleNamespace(work_dir=str(tmp_path), iter=1, epoch=0, rank=1, distributed=True)
    batch = dict(inputs=[torch.zeros(3, 4, 6)], data_samples=[sample])
    hook = StopOnInvalidLossHook()
    hook.after_train_iter(runner, 0, batch, dict(loss=torch.tensor(1.0), acc=float('nan')))
    with pytest.raises(RunStopped, match=r'loss_cls is inf.*Its images: a.jpg\. No'):
        hook.after_train_iter(runner, 0, batch, dict(loss=1.0, loss_cls=torch.tensor(float('inf'))))
    kept = torch.load(tmp_path / 'invalid_loss_iter_2_rank_1.pth', weights_only=True)['data_samples'][0]
    assert kept['img_path'] == 'a.jpg'
    assert kept['gt_instances']['bboxes'].tolist() == [[0, 1, 2, 3]]
    assert kept['gt_instances']['masks'].sum() == 24


def test_the_odd_boxes_of_an_invalid_batch_are_named():
    boxes = torch.tensor([[0.0, 0, 4, 4], [2, 2, 2, 5], [0, 0, 90, 4], [0, float('nan'), 1, 1]])
    batch = dict(
        inputs=[torch.zeros(3, 8, 8), torch.full((3, 8, 8), torch.inf)],
        data_samples=[
            dict(img_path='a.jpg', img_shape=[8, 8], gt_instances=dict(bboxes=boxes)),
            dict(img_path='b.jpg', img_shape=[8, 8], gt_instances=dict(bboxes=boxes[:1])),
        ],
    )
    text = describe_batch(batch)
    assert 'a.jpg (box 1 has no area' in text
    assert 'box 2 leaves the image of 8 x 8 pixels' in text
    assert 'box 3 is [0.0, nan' in text
    assert 'b.jpg, input 1 has NaN or infinite pixels' in text
    assert describe_batch(dict(inputs=torch.zeros(2, 3, 4, 4))) == ''


# What a checkpoint says about files and code ---------------------------------------------------------------------


@pytest.fixture
def half_run(tmp_path):
    """A run of toy_run that ended at iteration 6 of 12, with a best checkpoint."""
    settings = config(tmp_path / 'a', **CASE)
    settings['train_cfg']['max_iters'] = 6
    assert train(settings) == 0
    return tmp_path / 'a'


def change(path, edit):
    content = torch.load(path, weights_only=False)
    edit(content)
    torch.save(content, path)


@pytest.mark.parametrize('key', ['config', 'cfg'])
def test_the_config_in_a_checkpoint_is_not_executed(half_run, tmp_path, key):
    trace = tmp_path / 'was_here'
    change(half_run / 'iter_6.pth', lambda c: c['meta'].update({key: f'import os\nos.mkdir({str(trace)!r})\n'}))
    assert train(config(half_run, **CASE, resume=True)) == 0
    assert not trace.exists()
    assert (half_run / 'iter_12.pth').exists()


@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_what_a_checkpoint_names_outside_of_the_work_dir_is_never_deleted(half_run, tmp_path, kind):
    precious = tmp_path / 'best_precious.pth'
    if kind == 'folder':
        precious.mkdir()
        (precious / 'data').write_text('kept')
    else:
        precious.write_text('kept')
    (half_run / 'iter_').mkdir()

    def harm(content):
        content['message_hub']['runtime_info'].update(
            best_ckpt=str(precious), last_ckpt=str(precious), best_score=-1e9, keep_ckpt_ids=['/../../best_precious', 6]
        )

    change(half_run / 'iter_6.pth', harm)
    assert train(config(half_run, **CASE, resume=True)) == 0
    assert (half_run / 'iter_12.pth').exists()
    assert list(half_run.glob('best_*.pth'))
    assert precious.exists()
    assert kind == 'file' or (precious / 'data').exists()


def test_a_copied_run_leaves_the_original_alone(half_run, tmp_path):
    before = sorted(path.name for path in half_run.iterdir())
    shutil.copytree(half_run, tmp_path / 'b')
    assert train(config(tmp_path / 'b', **CASE, resume=True, load_from=str(tmp_path / 'b/iter_6.pth'))) == 0
    assert sorted(path.name for path in half_run.iterdir()) == before
    assert len(list((tmp_path / 'b').glob('best_*.pth'))) == 1


def test_a_run_resumed_in_another_work_dir_leaves_both_alone(half_run, tmp_path):
    before = sorted(path.name for path in half_run.iterdir())
    (tmp_path / 'c').mkdir()
    others = [tmp_path / 'c' / path.name for path in half_run.glob('*.pth')]  # of an unrelated run
    for file in others:
        file.write_text('kept')
    assert train(config(tmp_path / 'c', **CASE, resume=True, load_from=str(half_run / 'iter_6.pth'))) == 0
    assert sorted(path.name for path in half_run.iterdir()) == before
    assert [file.exists() for file in others if file.name != 'iter_6.pth'] == [True] * (len(others) - 1)
    assert (tmp_path / 'c/iter_12.pth').exists()


def test_two_runs_do_not_train_in_one_work_dir(tmp_path):
    lock = WorkDirLock(tmp_path)
    process = multiprocessing.get_context('fork').Process(target=_refused, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 7
    lock.release()
    assert list(tmp_path.iterdir()) == []
    WorkDirLock(tmp_path).release()


def _refused(folder):
    try:
        WorkDirLock(folder)
    except RunStopped as error:
        os._exit(7 if 'another run is training in it' in str(error) else 8)
    os._exit(0)
