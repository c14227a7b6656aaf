"""Checkpoints are whole or not there, whatever happens while they are written; and a NaN loss ends the run."""

import os
import resource
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from helpers.checkpoints import flip, save
from helpers.toy_run import config, train
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from torch import nn

import mmcasvit.engine.hooks.checkpoint as hook_module
from mmcasvit import RunStopped, StopOnInvalidLossHook, WeightsError
from mmcasvit.engine.compare_runs import differences, outcome
from mmcasvit.engine.hooks.checkpoint import CheckpointHook
from mmcasvit.engine.hooks.invalid_loss import describe_batch
from mmcasvit.weights.integrity import damage, find_whole_checkpoint

CASE = dict(by_epoch=False, interval=3)


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


# Single steps of the hook, with a made-up runner ------------------------------------------------------------------


class Runner(SimpleNamespace):
    """Runner that writes its iteration as a checkpoint."""

    def __init__(self, work_dir, iteration=3, **settings):
        hub = MessageHub('hook')
        hub.runtime_info.update(settings.pop('runtime_info', {}))
        super().__init__(
            work_dir=str(work_dir),
            model=nn.BatchNorm1d(2),
            iter=iteration,
            epoch=0,
            message_hub=hub,
            said=[],
            _resume=False,
            _load_from=None,
            _has_loaded=False,
        )
        self.logger = SimpleNamespace(info=lambda text: None, warning=self.said.append)
        vars(self).update(settings)

    def save_checkpoint(self, out_dir, filename, *args, **kwargs):
        torch.save(dict(iter=self.iter, hub=dict(self.message_hub.runtime_info)), os.path.join(out_dir, filename))


def started(tmp_path, runner=None, **options):
    hook = CheckpointHook(**{'by_epoch': False, 'interval': 1, **options})
    runner = runner or Runner(tmp_path)
    hook.before_train(runner)
    return hook, runner


def files(folder):
    return sorted(path.name for path in folder.iterdir() if '.pth' in path.name)


def test_an_unknown_argument_is_named():
    with pytest.raises(TypeError, match="CheckpointHook has no argument 'intervall', 'x'"):
        CheckpointHook(intervall=1, x=2)


@pytest.mark.parametrize('processes', [1, 2])
def test_gathered_gradients_are_kept_in_runs_of_one_process_only(tmp_path, monkeypatch, processes):
    monkeypatch.setattr(hook_module, 'get_world_size', lambda: processes)
    hook, runner = CheckpointHook(), Runner(tmp_path)
    hook.before_save_checkpoint(runner, without := dict(optimizer={}))
    assert without == dict(optimizer={}), 'no gradients are gathered'
    runner.model.weight.grad = torch.tensor([1.0, 2.0])
    hook.before_save_checkpoint(runner, saved := dict(optimizer={}))
    assert {name: grad.tolist() for name, grad in saved.get('gradients', {}).items()} == (
        dict(weight=[1, 2]) if processes == 1 else {}
    )
    hook.before_save_checkpoint(runner, best := {})
    assert best == {}


@pytest.mark.parametrize('resumed', [True, False])
def test_gathered_gradients_are_restored_in_a_resumed_run_only(tmp_path, resumed):
    runner = Runner(tmp_path, _resume=resumed)
    runner.model.double()
    checkpoint = dict(meta=dict(config='x', cfg='x', iter=3), gradients=dict(weight=torch.tensor([1.0, 2.0])))
    CheckpointHook().after_load_checkpoint(runner, checkpoint)
    assert checkpoint['meta'] == dict(iter=3)
    assert runner.model.bias.grad is None
    assert (runner.model.weight.grad is not None) == resumed
    if resumed:
        torch.testing.assert_close(runner.model.weight.grad, torch.tensor([1.0, 2.0], dtype=torch.float64))
    CheckpointHook().after_load_checkpoint(Runner(tmp_path, _resume=True), {})


@pytest.mark.parametrize(
    'change', [dict(_resume=False), dict(_has_loaded=True), dict(_load_from='missing.pth', _resume=False)]
)
def test_nothing_is_chosen_unless_a_run_is_to_be_resumed(tmp_path, change):
    save(tmp_path, 3)
    runner = Runner(tmp_path, **{'_resume': True, **change})
    CheckpointHook().before_run(runner)
    assert runner._load_from == change.get('_load_from')


@pytest.mark.parametrize('main', [True, False])
def test_the_main_process_chooses_the_checkpoint_to_resume_from(tmp_path, monkeypatch, main):
    def broadcast(found):
        assert found == ([str(tmp_path / 'iter_6.pth')] if main else [None])
        found[0] = str(tmp_path / 'iter_6.pth')

    save(tmp_path, 3, 6)
    monkeypatch.setattr(hook_module, 'is_main_process', lambda: main)
    monkeypatch.setattr(hook_module, 'broadcast_object_list', broadcast)
    runner = Runner(tmp_path, _resume=True)
    CheckpointHook().before_run(runner)
    assert (runner._resume, runner._load_from, runner.said) == (True, str(tmp_path / 'iter_6.pth'), [])


def test_a_run_with_nothing_to_resume_says_that_it_starts(tmp_path):
    runner = Runner(tmp_path, _resume=True)
    CheckpointHook().before_run(runner)
    assert (runner._resume, runner._load_from) == (False, None)
    assert 'has no checkpoint to resume from: the run starts from the beginning' in runner.said[0]


def test_a_damaged_file_to_resume_from_is_named(tmp_path):
    save(tmp_path, 3)
    runner = Runner(tmp_path, _resume=True, _load_from=str(tmp_path / 'iter_3.pth'))
    CheckpointHook().before_run(runner)
    flip(tmp_path / 'iter_3.pth')
    with pytest.raises(WeightsError, match=r'iter_3\.pth is damaged: the checksum'):
        CheckpointHook().before_run(runner)
    (tmp_path / 'iter_3.pth').write_text('not a zip file: the reader names what is wrong')
    CheckpointHook().before_run(runner)


@pytest.mark.parametrize(
    'name, value, written',
    [
        ('weight', 1.0, True),
        ('weight', torch.nan, False),
        ('running_var', torch.inf, False),
        ('bias', -torch.inf, False),
    ],
)
def test_only_finite_weights_and_statistics_are_written(tmp_path, name, value, written):
    hook, runner = started(tmp_path)
    getattr(runner.model, name).data[1] = value
    if written:
        hook._save_checkpoint(runner)
        assert files(tmp_path) == ['iter_4.pth']
        return
    with pytest.raises(RunStopped, match=r'before .*iter_4\.pth was written: .* NaN or infinite\. No checkpoint'):
        hook._save_checkpoint(runner)
    assert files(tmp_path) == []


@pytest.mark.parametrize('folder', [False, True])
def test_a_checkpoint_that_cannot_be_written_or_read_back_leaves_no_file(tmp_path, monkeypatch, folder):
    hook, runner = started(tmp_path)
    monkeypatch.setattr(hook_module, 'damage', lambda path: 'its end is missing')
    if folder:
        monkeypatch.setattr(runner, 'save_checkpoint', lambda out, name, *_, **__: os.mkdir(os.path.join(out, name)))
    with pytest.raises(RunStopped, match=r'iter_4\.pth could not be written: .*read back and its end is missing\. No'):
        hook._save_checkpoint(runner)
    assert files(tmp_path) == (['.iter_4.pth.unfinished'] if folder else [])
    assert not (tmp_path / 'last_checkpoint').exists()

    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    runner.save_checkpoint = full
    with pytest.raises(RunStopped, match=r'could not be written: .*No space left'):
        hook._save_checkpoint(runner)


@pytest.mark.parametrize('main', [True, False])
def test_every_process_writes_and_the_main_one_renames(tmp_path, monkeypatch, main):
    barriers = []
    hook, runner = started(tmp_path)
    monkeypatch.setattr(hook_module, 'is_main_process', lambda: main)
    monkeypatch.setattr(hook_module, 'barrier', lambda: barriers.append(files(tmp_path)))
    hook._save_checkpoint(runner)
    assert files(tmp_path) == (['iter_4.pth'] if main else ['.iter_4.pth.unfinished'])
    assert (tmp_path / 'last_checkpoint').exists() == main
    assert barriers == [], 'a file is written by the main process only'

    def write_part(out_dir, name, *args, **kwargs):
        os.mkdir(os.path.join(out_dir, name))
        torch.save({}, os.path.join(out_dir, name, 'part.pth'))

    runner.save_checkpoint, runner.iter = write_part, 4
    hook._save_checkpoint(runner)
    assert len(barriers) == 1


def test_a_checkpoint_is_deleted_after_the_pointer_leads_to_its_successor(tmp_path):
    hook, runner = started(tmp_path, max_keep_ckpts=2)
    listed = []
    for runner.iter in (3, 4, 4, 5):
        hook._save_checkpoint(runner)
        listed.append(torch.load(tmp_path / f'iter_{runner.iter + 1}.pth')['hub']['keep_ckpt_ids'])
    assert files(tmp_path) == ['iter_5.pth', 'iter_6.pth']
    assert listed == [[4], [4, 5], [4, 5], [4, 5, 6]], 'a run resumed from it deletes what this one did not'
    assert list(hook.keep_ckpt_ids) == runner.message_hub.get_info('keep_ckpt_ids') == [5, 6]
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'iter_6.pth') == hook.last_ckpt
    assert runner.message_hub.get_info('last_ckpt') == hook.last_ckpt


def test_one_checkpoint_or_all_of_them_are_kept(tmp_path):
    both = ['iter_4.pth', 'iter_5.pth']
    for number, kept in ((1, both[1:]), (2, both), (0, both), (-1, both)):
        (tmp_path / str(number)).mkdir()
        hook, runner = started(tmp_path / str(number), Runner(tmp_path / str(number)), max_keep_ckpts=number)
        for runner.iter in (3, 4):
            hook._save_checkpoint(runner)
        assert files(tmp_path / str(number)) == kept
        hook.after_train(runner)


@pytest.mark.parametrize(
    'listed, resumed, kept, left',
    [
        ([3, 6, 9], True, [6, 9], [6, 9]),
        ([9], True, [9], [3, 6, 9]),
        ([3, 6, 9], False, [], [3, 6, 9]),
        ([True, '3', 3.0, 6, 9], True, [6, 9], [3, 6, 9]),
        ('369', True, [], [3, 6, 9]),
    ],
)
def test_a_resumed_run_deletes_the_surplus_that_it_listed_itself(tmp_path, listed, resumed, kept, left):
    save(tmp_path, 3, 6, 9)
    runner = Runner(
        tmp_path,
        _resume=resumed,
        _load_from=str(tmp_path / 'iter_9.pth'),
        runtime_info=dict(keep_ckpt_ids=listed, last_ckpt='x'),
    )
    hook, _ = started(tmp_path, runner, max_keep_ckpts=2)
    assert list(hook.keep_ckpt_ids) == kept
    assert hook.keep_ckpt_ids.maxlen == 2
    assert files(tmp_path) == [f'iter_{step}.pth' for step in left]
    assert hook.last_ckpt == 'x'


def test_other_processes_delete_nothing(tmp_path, monkeypatch):
    save(tmp_path, 3, 6)
    (tmp_path / '.iter_9.pth.unfinished').touch()
    monkeypatch.setattr(hook_module, 'is_main_process', lambda: False)
    runner = Runner(
        tmp_path, _resume=True, _load_from=str(tmp_path / 'iter_6.pth'), runtime_info=dict(keep_ckpt_ids=[3, 6])
    )
    started(tmp_path, runner, max_keep_ckpts=1)
    assert files(tmp_path) == ['.iter_9.pth.unfinished', 'iter_3.pth', 'iter_6.pth']


def test_what_a_killed_run_left_is_removed(tmp_path):
    (tmp_path / '.iter_9.pth.unfinished').touch()
    (tmp_path / '.iter_6.pth.unfinished').mkdir()
    (tmp_path / '.iter_6.pth.unfinished/part').touch()
    started(tmp_path)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    'path, own',
    [
        ('{}/best_score_iter_3.pth', True),
        ('elsewhere/best_score_iter_3.pth', True),
        ('{}/iter_3.pth', False),
        ('{}/best_.pth', False),
        ('{}/best_score_iter_3.pth.bak', False),
        (3, False),
        (None, False),
    ],
)
def test_the_best_checkpoint_is_one_of_this_folder(tmp_path, path, own):
    named = path.format(tmp_path) if isinstance(path, str) else path
    for resumed in (True, False):
        settings = dict(_resume=resumed, _load_from=str(tmp_path / 'iter_6.pth'))
        wanted = str(tmp_path / 'best_score_iter_3.pth') if own and resumed else None
        hook, _ = started(
            tmp_path, Runner(tmp_path, runtime_info=dict(best_ckpt=named), **settings), save_best='score', rule='less'
        )
        assert hook.best_ckpt_path == wanted
        hook._lock.release()
        hook, _ = started(
            tmp_path,
            Runner(tmp_path, runtime_info=dict(best_ckpt_a=named), **settings),
            save_best=['a', 'b'],
            rule='less',
        )
        assert hook.best_ckpt_path_dict == dict(a=wanted, b=None)
        hook._lock.release()


def test_the_last_best_checkpoint_is_deleted_after_the_new_one_is_written(tmp_path, monkeypatch):
    hook, runner = started(tmp_path, save_best='score', rule='greater')
    kept = []
    for runner.iter, score in ((3, 1.0), (4, 2.0), (5, 1.5)):
        hook._save_best_checkpoint(runner, dict(score=score))
        kept.append(files(tmp_path))
    assert kept == [['best_score_iter_3.pth'], *[['best_score_iter_4.pth']] * 2]
    assert hook.best_ckpt_path == str(tmp_path / 'best_score_iter_4.pth')
    monkeypatch.setattr(hook_module, 'is_main_process', lambda: False)
    runner.iter = 6
    hook._save_best_checkpoint(runner, dict(score=9.0))
    assert 'best_score_iter_4.pth' in files(tmp_path)


def test_each_of_several_scores_has_its_best_checkpoint(tmp_path):
    hook, runner = started(tmp_path, save_best=['a', 'b'], rule='greater')
    kept = []
    for runner.iter, a, b in ((3, 1.0, 1.0), (4, 2.0, 0.0), (5, 0.0, 3.0), (6, 0.0, 0.0)):
        hook._save_best_checkpoint(runner, dict(a=a, b=b))
        kept.append(files(tmp_path))
    assert kept == [
        ['best_a_iter_3.pth', 'best_b_iter_3.pth'],
        ['best_a_iter_4.pth', 'best_b_iter_3.pth'],
        *[['best_a_iter_4.pth', 'best_b_iter_5.pth']] * 2,
    ]
    assert hook.best_ckpt_path_dict == {
        'a': str(tmp_path / 'best_a_iter_4.pth'),
        'b': str(tmp_path / 'best_b_iter_5.pth'),
    }


def test_without_save_best_no_score_is_looked_at(tmp_path):
    hook, runner = started(tmp_path)
    hook._save_best_checkpoint(runner, {})
    assert files(tmp_path) == []


def test_checkpoints_in_another_folder_are_those_of_the_run(tmp_path):
    for name in ('run', 'out'):
        (tmp_path / name).mkdir()
    hook, runner = started(tmp_path, Runner(tmp_path / 'run'), out_dir=str(tmp_path / 'out'), max_keep_ckpts=1)
    (tmp_path / 'out/run').mkdir()
    hook._save_checkpoint(runner)
    assert files(tmp_path / 'out/run') == ['iter_4.pth']
    assert files(tmp_path / 'run') == []
    assert (tmp_path / 'run/last_checkpoint').read_text() == str(tmp_path / 'out/run/iter_4.pth')
    for folder, continued in (('out/run', True), ('out/../out/run', True), ('run', False)):
        runner._resume, runner._load_from = True, str(tmp_path / folder / 'iter_4.pth')
        assert hook._continues_in_its_folder(runner) == continued
    for runner._resume, runner._load_from in ((False, str(tmp_path / 'out/run/iter_4.pth')), (True, None)):
        assert not hook._continues_in_its_folder(runner)


def test_remote_storage_is_written_by_mmengine(tmp_path):
    hook, runner = started(tmp_path)
    assert isinstance(hook._whole(runner), hook_module._WholeFiles)
    assert hook._whole(hook._whole(runner))._runner is runner
    hook.file_backend, hook.out_dir = object(), 's3://bucket/run/'
    assert hook._whole(runner) is runner
    for address, continued in (('s3://bucket/run/iter_3.pth', True), ('s3://bucket/iter_3.pth', False)):
        runner._resume, runner._load_from = True, address
        assert hook._continues_in_its_folder(runner) == continued


def test_the_work_dir_is_locked_while_the_run_trains(tmp_path):
    hook, runner = started(tmp_path)
    assert (tmp_path / '.running').exists()
    hook.after_train(runner)
    assert not (tmp_path / '.running').exists()
