"""Runs of a training config that end after a number of steps and leave nothing behind."""

import copy
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmcasvit.apis.runner import build_runner, configs_unformatted
from mmcasvit.utils.errors import Enough, TrainingTooShort, UsageError

T = TypeVar('T')


@contextmanager
def training_runner(cfg: Config) -> Iterator[Runner]:
    """Build a runner that only trains, without validation, checkpoints or figures, in a temporary folder.

    Raises:
        UsageError: If the training inside the context is too short.
    """
    cfg = copy.deepcopy(cfg)
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator', 'test_dataloader', 'test_cfg', 'test_evaluator'):
        cfg[key] = None
    cfg.default_hooks.checkpoint = None  # without this entry, mmengine adds its own hook
    cfg.default_hooks.pop('visualization', None)
    work_dir = tempfile.mkdtemp(prefix='mmcasvit-benchmark-')
    cfg.launcher, cfg.work_dir, cfg.load_from, cfg.resume = 'none', work_dir, None, False
    cfg.experiment_name = cfg.visualizer.name = Path(work_dir).name  # mmengine keeps loggers and visualizers by name
    try:
        with configs_unformatted():
            yield build_runner(cfg)
    except TrainingTooShort as error:
        raise UsageError(f'{Path(cfg.filename).name}: {error}.') from error
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)


class _StepHook(Hook):
    """Hook that records every training step and ends the run after a number of steps."""

    priority = 'LOWEST'  # the work of other hooks after a step belongs to that step

    def __init__(self, steps: int, record: Callable[[dict], object], start: Callable[[], None]):
        self.steps, self.record, self.start = steps, record, start
        self.records = []

    def before_train(self, runner: Runner) -> None:
        self.start()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self.records.append(self.record(outputs))
        if len(self.records) == self.steps:
            raise Enough


def run_steps(
    runner: Runner, steps: int, record: Callable[[dict], T], start: Callable[[], None] = lambda: None
) -> list[T]:
    """Train for a number of steps.

    Args:
        runner: Runner that was built and not trained yet.
        steps: Number of steps.
        record: Function of the outputs of a step, called after each step.
        start: Function called before the first step, when the runner is complete.

    Returns:
        The results of ``record``.

    Raises:
        TrainingTooShort: If the training ends before.
    """
    hook = _StepHook(steps, record, start)
    runner.register_hook(hook)
    try:
        runner.train()
    except Enough:
        return hook.records
    raise TrainingTooShort(len(hook.records), steps)
