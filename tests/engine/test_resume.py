"""Runs that are killed by SIGKILL and resumed end as the run that was never stopped, bit for bit."""

import signal

import pytest
from helpers.toy_run import config, train

from mmcasvit.engine.compare_runs import differences, outcome

# Moments in iterations, counted from 0: checkpoints are written after iterations 2, 5, 8 and 11.
CASES = {
    'epochs': (dict(by_epoch=True, interval=3), [('before', 2), ('after', 3), ('validation', 4), ('validation', 12)]),
    'epochs, ends only': (dict(by_epoch=True, interval=4), [('after', 3), ('after', 9)]),
    'iterations': (dict(by_epoch=False, interval=3), [('after', 2), ('before', 7), ('validation', 8)]),
    'epochs, workers, ema': (dict(by_epoch=True, interval=3, workers=2, ema=True), [('after', 6)]),
    'iterations, workers, ema': (dict(by_epoch=False, interval=3, workers=2, ema=True), [('before', 10)]),
    'epochs, amp': (dict(by_epoch=True, interval=3, amp=True), [('after', 7)]),
    'iterations, gathered gradients': (dict(by_epoch=False, interval=3, gather=2), [('before', 5)]),
}


@pytest.mark.parametrize('case, moments', CASES.values(), ids=CASES)
def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path, case, moments):
    assert train(config(tmp_path / 'whole', **case)) == 0
    wanted = outcome(tmp_path / 'whole')
    assert all(f'log/train/{step}/loss' in wanted for step in range(1, 13))
    assert {'checkpoint/message_hub/log_scalars/train/loss', 'files'} <= wanted.keys()
    for number, kill in enumerate(moments):
        work_dir = tmp_path / f'killed_{number}'
        assert train(config(work_dir, **case, kill=kill)) == -signal.SIGKILL, kill
        assert train(config(work_dir, **case, resume=True)) == 0, kill
        assert differences(outcome(work_dir), wanted) == []


def test_a_run_killed_again_and_again_ends_the_same(tmp_path):
    case = dict(by_epoch=True, interval=3, ema=True)
    assert train(config(tmp_path / 'whole', **case)) == 0
    for kill in [('after', 1), ('after', 5), ('validation', 8), ('validation', 12)]:
        assert train(config(tmp_path / 'killed', **case, resume=True, kill=kill)) == -signal.SIGKILL
    assert train(config(tmp_path / 'killed', **case, resume=True)) == 0
    assert differences(outcome(tmp_path / 'killed'), outcome(tmp_path / 'whole')) == []
