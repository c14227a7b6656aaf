"""Tests of what a run shows on the console."""

import logging
import sys
import sysconfig
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.toy_run import Classifier, Pictures
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmcasvit.cli import exits_cleanly
from mmcasvit.engine.console import QuietRunner
from mmcasvit.engine.hooks.run_summary import RunSummaryHook
from mmcasvit.registry import HOOKS


@HOOKS.register_module()
class _TalkingHook(Hook):
    def before_train_epoch(self, runner):
        print('loading annotations into memory')
        print_log('a setting of a package', logger='current')
        print_log('"FileClient" will be deprecated in future', logger='current', level=logging.WARNING)
        print_log('this matters', logger='current', level=logging.WARNING)
        print_log('The testing results of the whole dataset is empty.', logger='current', level=logging.ERROR)


@pytest.fixture
def output(request, tmp_path, monkeypatch, capsys):
    """Train with a kind of runner, and return what the console showed, and the log file."""
    monkeypatch.chdir(tmp_path)
    loader = dict(dataset=Pictures(), batch_size=7, sampler=dict(type='DefaultSampler', shuffle=False))
    loader['collate_fn'] = dict(type='default_collate')
    request.param(
        model=Classifier(),
        work_dir='run',
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=5),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.25)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=[dict(type='mmcasvit._TalkingHook'), dict(type='mmcasvit.RunSummaryHook')],
        experiment_name=request.node.name,
        cfg=dict(model=dict(type='Classifier')),
    ).train()
    return capsys.readouterr().out, next(Path('run').rglob('*.log')).read_text()


@pytest.mark.parametrize('epochs, words', [(2, 'this run had already ended after 2 epochs'), (3, '')])
def test_a_run_that_had_ended_says_so(epochs, words, caplog):
    hook, loop = RunSummaryHook(), SimpleNamespace()
    logger = logging.getLogger('summary')
    runner = SimpleNamespace(train_loop=loop, epoch=2, max_epochs=epochs, logger=logger)
    hook.say_if_ended(runner)
    assert (words in caplog.text) if words else not caplog.text


@pytest.mark.parametrize('output', [QuietRunner], indirect=True)
def test_console_shows_progress_and_the_log_file_everything(output):
    shown, logged = output
    for text in ('Epoch(train) [1][1/2]', 'Epoch(train) [2][2/2]', 'warning: this matters'):
        assert text in shown
    assert 'warning: nothing was detected in any image' in shown
    assert 'The testing results' not in shown
    assert 'The testing results' in logged
    for text in ('System environment', 'Hooks will be executed', 'Exp name', 'loading annotations', 'FileClient'):
        assert text not in shown
        assert text in logged
    assert 'Epoch(train) [1][1/2]' in logged
    assert len(shown.splitlines()) < 25


def test_a_missing_compiler_is_only_noted_in_the_log_file(tmp_path, monkeypatch, capfd):
    compiler = 'no-such-compiler -pthread'
    monkeypatch.setitem(sysconfig.get_config_vars(), 'CC', compiler)
    QuietRunner(Classifier(), str(tmp_path), experiment_name='no-compiler', cfg=dict(model=dict(type='Classifier')))
    assert 'no-such-compiler' not in ''.join(capfd.readouterr())
    assert 'GCC: n/a' in next(tmp_path.rglob('*.log')).read_text()
    assert sysconfig.get_config_var('CC') == compiler


@pytest.mark.parametrize('output', [QuietRunner], indirect=True)
def test_summary_names_what_runs(output):
    rows = {line[:10].strip(): line[11:] for line in output[0].splitlines()}
    assert rows['model'].startswith('Classifier, 0.00 million')
    assert rows['train data'] == '14 images in batches of 7'
    assert rows['weights'] == 'random'
    assert rows['schedule'] == '2 epochs, validation every 5 epochs, SGD at 0.25'
    assert rows['device'].startswith('cpu (')
    assert rows['operators']
    assert rows['output'].startswith('run, log in run')
    assert 'test data' not in rows


@pytest.mark.parametrize('output', [Runner], indirect=True)
def test_mmengine_s_own_runner_is_left_alone(output):
    shown, _ = output
    assert 'System environment' in shown
    assert 'FileClient' in shown


@pytest.mark.parametrize('verbose', [False, True])
def test_tools_hide_harmless_warnings_unless_verbose(verbose, monkeypatch, capsys, recwarn):
    monkeypatch.setattr(sys, 'argv', ['train.py', *(['--verbose'] if verbose else [])])

    @exits_cleanly
    def main():
        import mmengine.logging
        import mmengine.runner.checkpoint

        mmengine.logging.print_log('Could not import OneDL. Skipping OneDL datasets.')
        mmengine.logging.print_log('a message')
        mmengine.runner.checkpoint.print_log('Loads checkpoint by safe_file backend from path: model.pth')
        warnings.warn('pkg_resources is deprecated as an API.', UserWarning, stacklevel=2)
        warnings.warn('this matters', UserWarning, stacklevel=2)

    main()
    warned = [str(found.message) for found in recwarn]
    assert ('pkg_resources is deprecated as an API.' in warned) == verbose
    assert 'this matters' in warned
    shown = capsys.readouterr().out
    assert ('OneDL' in shown) == ('Loads checkpoint' in shown) == verbose
    import mmengine.logging

    assert mmengine.logging.print_log is mmengine.runner.checkpoint.print_log is print_log
