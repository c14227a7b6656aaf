"""Where a resumed loop continues, and when it validates; test_resume.py compares whole runs."""

import random
from types import SimpleNamespace

import pytest
from mmengine.logging import MessageHub

from mmcasvit.datasets.seeded import STEP, VALIDATION, seed_generators
from mmcasvit.engine import loops
from mmcasvit.engine.loops import ResumableEpochLoop, ResumableIterLoop


class Runner(SimpleNamespace):
    """Runner that writes down its hooks and warnings."""

    def __init__(self, **entries):
        self.message_hub = MessageHub('loop')
        self.message_hub.runtime_info.update(entries)
        self.said, self.hooks, self.seed, self.val_loop = [], [], 5, None
        self.logger = SimpleNamespace(warning=self.said.append)
        self.model = SimpleNamespace(train=lambda: None)

    def call_hook(self, name, **kwargs):
        self.hooks.append(name)


class Batches(list):
    """Data loader whose batches are numbers."""

    def __init__(self, length, **sampler):
        super().__init__(range(length))
        self.calls = []
        self.batch_sampler = SimpleNamespace(
            sampler=SimpleNamespace(**sampler), start=lambda *args, **kwargs: self.calls.append((args, kwargs))
        )


def loop(kind, length, iteration=0, epoch=0, entries=None, sampler=None, **settings):
    made = object.__new__(kind)
    made._runner, made.dataloader = Runner(**entries or {}), Batches(length, **sampler or {})
    made._iter, made._epoch, made._seed = iteration, epoch, 5
    made._max_epochs, made._max_iters, made.val_begin, made.val_interval = 3, 12, 1, 1
    made.stop_training = False
    vars(made).update(settings)
    made.dynamic_milestones, made.dynamic_intervals = [0], [made.val_interval]
    return made


@pytest.mark.parametrize(
    'iteration, epoch, before, now, done',
    [
        (0, 0, None, 4, 0),
        (4, 1, None, 4, 0),
        (6, 1, None, 4, 2),
        (8, 1, 4, 4, 4),  # the last batch of an epoch that had not ended
        (6, 1, 4, 8, 4),
        (6, 1, 4, 3, 1),
        (5, 1, 4, 3, 0),
        (8, 1, 4, 8, 8),
        (8, 1, 4, 2, 2),
        (8, 2, 4, 8, 0),
        (9, 1, 4, 8, 0),  # counters of something else
        (3, 1, 4, 8, 0),
    ],
)
def test_an_epoch_continues_at_its_place_though_its_length_has_changed(iteration, epoch, before, now, done):
    entries = {} if before is None else dict(batches_per_epoch=before)
    resumed = loop(ResumableEpochLoop, now, iteration, epoch, entries)
    assert resumed._batches_done() == done
    assert resumed.runner.message_hub.get_info('batches_per_epoch') == now
    within = before is not None and 0 < iteration - epoch * before <= before
    assert bool(resumed.runner.said) == (within and before != now)
    assert all(f'had {before} batches' in line and f'has {now} now' in line for line in resumed.runner.said)


@pytest.mark.parametrize(
    'entries, sampler, seed',
    [({}, {}, 5), ({}, dict(seed=7), 7), (dict(data_seed=9), dict(seed=7), 9), (dict(data_seed=0), dict(seed=7), 0)],
)
def test_the_seed_is_that_of_the_checkpoint_or_else_of_the_sampler(entries, sampler, seed):
    resumed = loop(ResumableEpochLoop, 4, entries=entries, sampler=sampler)
    resumed._restore_seed()
    assert (resumed._seed, resumed.runner.message_hub.get_info('data_seed')) == (seed, seed)


def validated(made):
    """Let a loop write down when it validates, with the next random number."""
    runs = []
    made.runner.val_loop = SimpleNamespace(run=lambda: runs.append((made._iter, random.random())))
    return runs


def drawn(*entropy):
    seed_generators(*entropy)
    return random.random()


@pytest.mark.parametrize(
    'finished, due', [(1, False), (2, False), (3, True), (4, False), (6, True), (9, True), (10, True), (0, False)]
)
def test_validations_are_at_multiples_of_the_interval_from_the_first_one_on_and_at_the_end(finished, due, monkeypatch):
    monkeypatch.setattr(loops, 'get_rank', lambda: 2)
    made = loop(ResumableIterLoop, 4, iteration=21, val_begin=2, val_interval=3)
    made._validate_if_due(finished, 10)
    runs = validated(made)
    made._validate_if_due(finished, 10)
    assert runs == ([(21, drawn(5, VALIDATION, 2, 21))] if due else [])
    assert made.runner.message_hub.runtime_info.get('iter_of_validation') == (21 if due else None)


def test_the_first_validation_is_in_the_iteration_in_which_it_begins():
    made = loop(ResumableIterLoop, 4, val_begin=3)
    runs = validated(made)
    for finished in (2, 3):
        made._validate_if_due(finished, 10)
    assert len(runs) == 1


@pytest.mark.parametrize(
    'finished, entries, due',
    [(1, {}, True), (1, dict(iter_of_validation=4), False), (1, dict(iter_of_validation=3), True), (0, {}, False)],
)
def test_a_validation_that_was_cut_off_is_made_up(finished, entries, due):
    made = loop(ResumableEpochLoop, 4, iteration=4, epoch=1, entries=entries)
    runs = validated(made)
    made._make_up_validation(finished, 3)
    assert bool(runs) == due


def trained(made):
    """Let a loop write down its iterations instead of training, and stop it in the tenth."""
    runs = []

    def run_iter(*args):
        runs.append(args)
        made._iter += 1
        made.stop_training = made._iter >= 10

    made.run_iter = run_iter
    return runs


def test_a_resumed_epoch_begins_with_its_next_batch_and_the_others_with_the_first():
    made = loop(ResumableEpochLoop, 4, iteration=6, epoch=1, sampler=dict(seed=7), _max_epochs=9)
    runs, checks = trained(made), validated(made)
    made.run()
    # The made-up sampler does not skip.
    assert [number for number, _ in runs] == [2, 3, 4, 5]
    assert made.dataloader.calls == [((7, 1, 2), {})]
    assert made._epoch == 2
    assert [iteration for iteration, _ in checks] == [10]
    hooks = made.runner.hooks
    assert hooks == ['before_train', 'before_train_epoch', 'after_train_epoch', 'after_train']
    made.stop_training, made._iter = False, 12
    made.run_epoch()
    assert made.dataloader.calls[1:] == [((7, 2, 0), {})]


@pytest.mark.parametrize('iteration, validations', [(4, [4, 8, 12]), (5, [9, 13])])
def test_an_epoch_loop_makes_up_a_validation_between_epochs_only(iteration, validations):
    made = loop(ResumableEpochLoop, 4, iteration=iteration, epoch=1)
    trained(made)
    checks = validated(made)
    made.run()
    assert [number for number, _ in checks] == validations


def test_a_validation_is_made_up_at_the_interval_of_its_iteration():
    made = loop(ResumableIterLoop, 4, iteration=6, val_interval=3)
    made.dynamic_milestones, made.dynamic_intervals = [0, 5], [3, 4]
    checks = validated(made)
    made._make_up_validation(6, 12)
    assert checks == []


def test_an_iteration_loop_skips_what_was_trained_on():
    made = loop(ResumableIterLoop, 8, iteration=4, sampler=dict(seed=7), val_interval=4)
    runs, checks = trained(made), validated(made)
    made.run()
    assert runs == [(0,), (1,), (2,), (3,), (4,), (5,)]
    assert made.dataloader.calls == [((7,), dict(skip=4, endless=True))]
    assert [iteration for iteration, _ in checks] == [4, 8]
    assert made.runner.hooks == ['before_train', 'before_train_epoch', 'after_train_epoch', 'after_train']


@pytest.mark.parametrize('kind', [ResumableEpochLoop, ResumableIterLoop])
def test_a_finished_run_trains_no_more(kind):
    made = loop(kind, 4, iteration=12, epoch=3, entries=dict(iter_of_validation=12))
    runs, checks = trained(made), validated(made)
    assert made.run() is made.runner.model
    assert runs == checks == []


@pytest.mark.parametrize('kind', [ResumableEpochLoop, ResumableIterLoop])
def test_the_random_numbers_of_a_step_depend_on_the_seed_the_process_and_the_iteration(kind, monkeypatch):
    monkeypatch.setattr(loops, 'get_rank', lambda: 1)
    made, found = loop(kind, 4, iteration=6), []
    monkeypatch.setattr(kind.__mro__[2], 'run_iter', lambda *args: found.append(random.random()))
    made.run_iter(0, None)
    assert found == [drawn(5, STEP, 1, 6)]
