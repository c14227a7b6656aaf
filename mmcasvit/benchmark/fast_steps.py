"""Training steps of a config, plain and with ``--fast``, in turns: time, memory, and losses."""

import contextlib
import copy
import functools
import multiprocessing
import random
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS

from mmcasvit.apis.config import load_config
from mmcasvit.apis.fast import HOOKS_OF_FAST, use_fast_training
from mmcasvit.plugin.trial import simulated_run
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.timing import interleave, ratio, spread, timed

from .memory import can_reset_peak, reset_peak, resident
from .models import build_subject
from .variants import Variant, check

FORMS = ('plain', 'fast')


class _Trainee:
    """Model, data and optimizer of a step. The processes of both forms have one each."""

    here: '_Trainee'

    def __init__(self, step: Variant, form: str):
        torch.set_num_threads(step.threads)
        self.device = step.device
        cfg = load_config(step.model)
        cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks') or [] if hook['type'] not in HOOKS_OF_FAST]
        cfg.optim_wrapper.optimizer.pop('fused', None)
        self.choices = use_fast_training(cfg, step.device) if form == 'fast' else []
        subject = build_subject(step.model)
        self.data = subject.example(step.batch, step.size)
        self.model = subject.module.to(step.device).train()
        if cfg.default_scope == 'mmseg':
            self.model.data_preprocessor.size = step.size
        MMLogger.get_current_instance().setLevel('WARNING')  # mmengine lists the options of every parameter
        self.optimizer = build_optim_wrapper(self.model, cfg.optim_wrapper)
        # The learning rate is that of the first iteration, with which the losses of later steps stay comparable.
        warm_up = cfg.param_scheduler[0].get('start_factor', 1.0)
        for group in self.optimizer.optimizer.param_groups:
            group['lr'] *= warm_up
        runner: Any = SimpleNamespace(model=self.model, optim_wrapper=self.optimizer)
        for hook in [HOOKS.build(hook) for hook in cfg.custom_hooks if hook['type'] in HOOKS_OF_FAST]:
            hook.before_run(runner)
            hook.before_train(runner)
        self.steps = 0
        self.step()  # creates gradients and the state of the optimizer
        if self.device == 'cuda':
            torch.cuda.reset_peak_memory_stats()
        elif can_reset_peak():
            reset_peak()

    def step(self) -> tuple[float, float]:
        """Return the loss and the seconds of a step."""
        for seed in (torch.manual_seed, np.random.seed, random.seed):  # detectors draw samples of boxes
            seed(self.steps)
        self.steps += 1
        data = copy.deepcopy(self.data)
        with simulated_run():
            losses, seconds = timed(lambda: self.model.train_step(data, self.optimizer), self.device)
        return losses['loss'].item(), seconds

    def peak(self) -> int | None:
        """Return the bytes at the peak of the steps: of the process on a CPU, of PyTorch's tensors on a GPU."""
        if self.device == 'cuda':
            return torch.cuda.max_memory_allocated()
        return resident('VmHWM') if can_reset_peak() else None


def _prepare(step: Variant, form: str) -> list[str]:
    with contextlib.redirect_stdout(sys.stderr):
        _Trainee.here = _Trainee(step, form)
    return [str(choice) for choice in _Trainee.here.choices]


def _step() -> tuple[float, float]:
    return _Trainee.here.step()


def _peak() -> int | None:
    return _Trainee.here.peak()


def measure_fast(step: Variant, rounds: int, tell: Callable[[str], None]) -> tuple[list[dict[str, object]], list[str]]:
    """Measure a training step plain and with ``--fast``, on random images, from the same random weights.

    Each form has a process of its own, since it changes how that process allocates memory, and they take turns.

    Args:
        step: Step of a detector or segmentor, whose form is ignored.
        rounds: Number of steps of each form.
        tell: Function that shows progress.

    Returns:
        A row for each form, and what was switched on or left out.

    Raises:
        UsageError: If the config is not one of a detector or segmentor, or the device is missing.
    """
    check(step)
    if load_config(step.model).default_scope not in ('mmdet', 'mmseg'):
        raise UsageError(f'fast: {step.model} must be a config of mmdet or mmseg.')
    losses: dict[str, list[float]] = {form: [] for form in FORMS}
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([__name__])
    with contextlib.ExitStack() as stack:
        pools = {form: stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for form in FORMS}
        choices = [pools[form].submit(_prepare, step, form).result() for form in FORMS][-1]

        def run(form: str) -> float:
            loss, seconds = pools[form].submit(_step).result()
            losses[form].append(loss)
            return seconds

        samples = interleave(
            {form: functools.partial(run, form) for form in FORMS},
            rounds,
            lambda done: tell(f'{Path(step.model).stem}: round {done} of {rounds}'),
        )
        peaks = {form: pools[form].submit(_peak).result() for form in FORMS}
    rows = []
    for form in FORMS:
        seconds, faster = spread(samples[form]), ratio(samples['plain'], samples[form])
        difference = max(abs(a - b) / abs(b) for a, b in zip(losses[form], losses['plain']))
        peak, plain = peaks[form], peaks['plain']
        rows.append(
            {
                'config': Path(step.model).stem,
                'size': 'x'.join(map(str, step.size)),
                'batch': step.batch,
                'form': form,
                's': f'{seconds.median:.2f}',
                'speed-up': f'{faster.median:.2f} ({faster.low:.2f} to {faster.high:.2f})',
                'peak MiB': '-' if peak is None or plain is None else f'{peak / 2**20:.0f} ({peak / plain:.2f})',
                'largest difference of losses': f'{difference:.1e}',
            }
        )
    return rows, choices
