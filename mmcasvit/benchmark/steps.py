"""Where a training step of mmengine's runner spends its time."""

import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mmcasvit.utils.errors import Enough, TrainingTooShort
from mmcasvit.utils.timing import spread, synchronize

LOADING, PREPROCESSING, HOOKS, OPTIMIZER = 'data loading', 'preprocessing', 'hooks and logging', 'optimizer'
LOSSES, LOOP = 'rest of the forward pass', 'rest of the loop'
BACKWARD = 'backward'


class Stopwatch:
    """Gives every moment to the innermost part that is running then, so that the parts add up to the whole.

    Under CUDA each change of part waits for the device: the parts are right, and the whole is slower than without.
    """

    def __init__(self, device: str, clock: Callable[[], float] = time.perf_counter):
        self.device, self.clock = device, clock
        self.running: list[str] = []
        self.seconds: dict[str, float] = defaultdict(float)
        self.last = None

    def _change(self) -> None:
        synchronize(self.device)
        now = self.clock()
        if self.running and self.last is not None:
            self.seconds[self.running[-1]] += now - self.last
        self.last = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._change()
        self.running.append(name)
        try:
            yield
        finally:
            self._change()
            self.running.pop()

    def rename(self, name: str) -> None:
        """From now on the innermost part is another one."""
        self._change()
        self.running[-1] = name

    def take(self) -> dict[str, float]:
        """What has been counted since the last time."""
        self._change()
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken

    def wrap(self, function: Callable, name: str) -> Callable:
        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            with self.part(name):
                return function(*args, **kwargs)

        return wrapped

    def watch_module(self, module: nn.Module, name: str) -> None:
        """Counts the forward passes of a module, and from its outputs' first gradient on its backward pass."""
        open_parts = []

        def enter(*_):
            part = self.part(name)
            part.__enter__()
            open_parts.append(part)

        def leave(_, __, outputs):
            open_parts.pop().__exit__(None, None, None)
            arrived = []

            def note(_):
                if not arrived and self.running and self.running[-1].startswith(BACKWARD):
                    arrived.append(True)
                    self.rename(f'{BACKWARD}: {name}')

            for output in tree_leaves(outputs):
                if isinstance(output, Tensor) and output.requires_grad:
                    output.register_hook(note)

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)


class _TimedLoader:
    """A data loader, or an iterator of one, whose waiting is counted."""

    def __init__(self, loader, watch: Stopwatch):
        self._loader, self._watch = loader, watch

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def __len__(self):
        return len(self._loader)

    def __iter__(self):
        with self._watch.part(LOADING):
            return _TimedLoader(iter(self._loader), self._watch)

    def __next__(self):
        with self._watch.part(LOADING):
            return next(self._loader)


class _MeasureHook(Hook):
    """Instruments the runner once all of it is built, takes what was counted after each step, and ends the run."""

    priority = 'LOWEST'  # so that what the other hooks do after a step counts to this step

    def __init__(self, watch: Stopwatch, steps: int):
        self.watch, self.steps = watch, steps
        self.taken, self.order = [], []

    def before_train(self, runner: Runner) -> None:
        self.order = instrument(runner, self.watch)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self.taken.append(self.watch.take())
        if len(self.taken) == self.steps:
            raise Enough


def instrument(runner: Runner, watch: Stopwatch) -> list[str]:
    """Has a runner count its parts.

    Returns:
        The parts in the order in which a step comes to them, ``backward: ...`` in reverse.
    """
    model: BaseModel = runner.model
    forward = [PREPROCESSING]
    watch.watch_module(model.data_preprocessor, PREPROCESSING)
    watched = []
    for name, child in model.named_children():
        if child is model.data_preprocessor:
            continue
        losses = [method for method in ('loss', 'loss_and_predict') if callable(getattr(child, method, None))]
        if losses:
            for method in losses:
                setattr(child, method, watch.wrap(getattr(child, method), name))
        elif not isinstance(child, nn.ModuleList):
            watch.watch_module(child, name)
            watched.append(name)
        else:
            for number, part in enumerate(child):
                if callable(getattr(part, 'loss', None)):
                    part.loss = watch.wrap(part.loss, name)
                else:
                    watch.watch_module(part, f'{name}.{number}')
                    watched.append(f'{name}.{number}')
        forward.append(name)
    model._run_forward = watch.wrap(model._run_forward, LOSSES)
    model.parse_losses = watch.wrap(model.parse_losses, LOSSES)
    optim_wrapper = runner.optim_wrapper
    optim_wrapper.backward = watch.wrap(optim_wrapper.backward, f'{BACKWARD}: heads and losses')
    optim_wrapper.step = watch.wrap(optim_wrapper.step, OPTIMIZER)
    optim_wrapper.zero_grad = watch.wrap(optim_wrapper.zero_grad, OPTIMIZER)
    runner.call_hook = watch.wrap(runner.call_hook, HOOKS)
    loop = runner.train_loop
    loop.dataloader = _TimedLoader(loop.dataloader, watch)
    if hasattr(loop, 'dataloader_iterator'):
        loop.dataloader_iterator = _TimedLoader(loop.dataloader_iterator, watch)
    return [
        LOADING,
        *forward,
        LOSSES,
        f'{BACKWARD}: heads and losses',
        *(f'{BACKWARD}: {name}' for name in reversed(watched)),
        OPTIMIZER,
        HOOKS,
        LOOP,
    ]


def measure_steps(runner: Runner, steps: int, warmup: int) -> tuple[list[dict[str, float]], list[str]]:
    """Trains for some steps and counts the seconds of their parts.

    Args:
        runner: built, not yet trained.
        steps: how many to count.
        warmup: how many to leave out before.

    Returns:
        For each step the seconds of each part, and the names of the parts in order.

    Raises:
        TrainingTooShort: as it says.
    """
    watch = Stopwatch('cuda' if next(runner.model.parameters()).is_cuda else 'cpu')
    hook = _MeasureHook(watch, steps + warmup)
    runner.register_hook(hook)
    try:
        with watch.part(LOOP):
            runner.train()
    except Enough:
        return hook.taken[warmup:], hook.order
    raise TrainingTooShort(len(hook.taken), steps + warmup)


def step_table(steps: list[dict[str, float]], order: list[str]) -> list[dict[str, object]]:
    """Mean milliseconds and share of each part, quartiles over the steps, and a line for the whole."""
    total = statistics.mean(sum(step.values()) for step in steps)
    seen = set().union(*steps)
    rows = []
    for part in [*order, *sorted(seen - set(order))]:
        if part in seen:
            rows.append(_line(part, [step.get(part, 0.0) for step in steps], total))
    return [*rows, _line('whole step', [sum(step.values()) for step in steps], total)]


def _line(part, seconds, total) -> dict[str, object]:
    around, mean = spread(seconds), statistics.mean(seconds)
    return {
        'part': part,
        'ms': mean * 1000,
        'share': f'{100 * mean / total:.1f}%',
        'quartiles, ms': f'{around.low * 1000:.1f} to {around.high * 1000:.1f}',
    }
