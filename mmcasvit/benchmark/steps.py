"""Time of a training step of mmengine's runner by its parts."""

import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mmcasvit.utils.timing import spread, synchronize

from .training import run_steps

LOADING, PREPROCESSING, HOOKS, OPTIMIZER = 'data loading', 'preprocessing', 'hooks and logging', 'optimizer'
LOSSES, LOOP = 'rest of the forward pass', 'rest of the loop'
BACKWARD = 'backward'


class Stopwatch:
    """Stopwatch that assigns time to the innermost running part, so that the parts add up to the whole.

    On a GPU, each change of part waits for the device. The parts are right, and the whole is slower than usual.

    Args:
        device: ``'cpu'`` or ``'cuda'``.
        clock: Function that returns seconds.

    Attributes:
        stopped: If True, nothing is counted, and several threads may call what is watched.
    """

    def __init__(self, device: str, clock: Callable[[], float] = time.perf_counter):
        self.device, self.clock = device, clock
        self.stopped = False
        self.running: list[str] = []
        self.seconds: dict[str, float] = defaultdict(float)
        self.last: float | None = None

    def _change(self) -> None:
        synchronize(self.device)
        now = self.clock()
        if self.running and self.last is not None:
            self.seconds[self.running[-1]] += now - self.last
        self.last = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside the context as that of a part."""
        if self.stopped:
            yield
            return
        self._change()
        self.running.append(name)
        try:
            yield
        finally:
            self._change()
            self.running.pop()

    def rename(self, name: str) -> None:
        """Replace the innermost part by another one from now on."""
        self._change()
        self.running[-1] = name

    def take(self) -> dict[str, float]:
        """Return the seconds of each part since the last call."""
        self._change()
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken

    def wrap(self, function: Callable, name: str) -> Callable:
        """Return a function whose calls count as a part."""

        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            with self.part(name):
                return function(*args, **kwargs)

        return wrapped

    def watch_module(self, module: nn.Module, name: str) -> None:
        """Count the forward passes of a module, and its backward pass from the first gradient of an output on."""
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
    """Data loader, or its iterator, whose waiting time is counted."""

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


def instrument(runner: Runner, watch: Stopwatch) -> list[str]:
    """Make a runner count the time of its parts.

    Returns:
        The names of the parts in the order of a step.
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
    """Train for a number of steps and count the seconds of their parts.

    Args:
        runner: Runner that was built and not trained yet.
        steps: Number of steps to count.
        warmup: Number of steps before these.

    Returns:
        The seconds of each part for each step, and the names of the parts in the order of a step.

    Raises:
        TrainingTooShort: If the training has fewer steps.
    """
    watch, order = Stopwatch('cuda' if next(runner.model.parameters()).is_cuda else 'cpu'), []
    with watch.part(LOOP):
        taken = run_steps(
            runner, steps + warmup, lambda outputs: watch.take(), lambda: order.extend(instrument(runner, watch))
        )
    return taken[warmup:], order


def step_table(steps: list[dict[str, float]], order: list[str], whole: str = 'whole step') -> list[dict[str, object]]:
    """Return the mean time and share of each part with quartiles over the steps, and a last row for the whole."""
    total = statistics.mean(sum(step.values()) for step in steps)
    seen = set().union(*steps)
    rows = []
    for part in [*order, *sorted(seen - set(order))]:
        if part in seen:
            rows.append(_row(part, [step.get(part, 0.0) for step in steps], total))
    return [*rows, _row(whole, [sum(step.values()) for step in steps], total)]


def _row(part: str, seconds: list[float], total: float) -> dict[str, object]:
    around, mean = spread(seconds), statistics.mean(seconds)
    return {
        'part': part,
        'ms': mean * 1000,
        'share': f'{100 * mean / total:.1f}%',
        'quartiles, ms': f'{around.low * 1000:.1f} to {around.high * 1000:.1f}',
    }
