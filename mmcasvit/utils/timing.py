"""Fair timing: variants that take turns, next to the limits of the machine measured in the same run."""

import functools
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar('T')
DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16, int8=torch.int8)
# PyTorch runs models in these; int8 is for exported models.
FLOATS = [name for name, dtype in DTYPES.items() if dtype.is_floating_point]
# Large enough for the best rate of the machine, small enough to take turns with the variants.
_MATMUL_SIZE = dict(cpu=1024, cuda=8192)
# Larger than any cache of the device.
_COPY_BYTES = dict(cpu=96 * 2**20, cuda=2**30)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of samples."""

    median: float
    low: float
    high: float


def spread(samples: Sequence[float]) -> Spread:
    """Return the median and the quartiles of one or more samples."""
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0])
    low, median, high = statistics.quantiles(samples, n=4, method='inclusive')
    return Spread(median, low, high)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Return the ratio of two series of samples from the same rounds.

    Each round is divided first: a slow round slows down both.
    """
    return spread([a / b for a, b in zip(numerators, denominators)])


def fit_exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Fit the exponent ``a`` of ``y = c * x^a`` by least squares of the logarithms.

    Raises:
        ValueError: If there are fewer than two different x.
    """
    if len(set(x)) < 2:
        raise ValueError(f'an exponent needs at least two different sizes, got {sorted(set(x))}')
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def interleave(
    runs: Mapping[T, Callable[[], float]], rounds: int, after_round: Callable[[int], None] = lambda done: None
) -> dict[T, list[float]]:
    """Call every run once per round, which spreads the noise of the machine over all of them.

    Every other round runs in reverse order, so that drift within a round favors neither end.

    Args:
        runs: Functions that return the seconds they measured.
        rounds: Number of rounds.
        after_round: Function called after each round with the number of finished rounds.

    Returns:
        The samples of each run, one per round.
    """
    samples: dict[T, list[float]] = {key: [] for key in runs}
    for done in range(rounds):
        for key in runs if done % 2 == 0 else reversed(list(runs)):
            samples[key].append(runs[key]())
        after_round(done + 1)
    return samples


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Set the number of threads of PyTorch inside the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synchronize(device: str) -> None:
    """Wait for all queued work of a GPU. On a CPU there is nothing to wait for."""
    if device == 'cuda':
        torch.cuda.synchronize()


def timed(run: Callable[[], T], device: str, clock: Callable[[], float] = time.perf_counter) -> tuple[T, float]:
    """Call a function once, and return its result with the seconds it took; see :class:`Timer` for the clock."""
    if device == 'cuda':
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        result = run()
        end.record()
        torch.cuda.synchronize()
        return result, start.elapsed_time(end) / 1000
    began = clock()
    result = run()
    return result, clock() - began


class Timer:
    """Callable that measures the seconds of one pass.

    Each call first runs one pass that is not measured, because the previous variant has filled the caches with its own
    data. Then it runs as many passes as it takes to fill ``least_seconds``. Passes on a GPU are measured between two
    events of its stream.

    Args:
        run: Function that runs one pass.
        device: ``'cpu'`` or ``'cuda'``.
        threads: Number of threads of PyTorch.
        warmup: Number of passes before the first measurement. They compile, pack weights and touch memory.
        least_seconds: Minimum length of a sample in seconds.
        clock: Clock of a CPU, in seconds. Other programs of a busy machine do not lengthen ``time.process_time``. With
            one thread on an idle machine, it agrees with ``time.perf_counter``.
    """

    def __init__(
        self,
        run: Callable[[], object],
        device: str,
        threads: int,
        warmup: int = 2,
        least_seconds: float = 0.02,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.run, self.device, self.threads, self.clock = run, device, threads, clock
        with use_threads(threads):
            for _ in range(max(1, warmup)):
                run()
            self.passes = max(1, math.ceil(least_seconds / max(self._seconds(1), 1e-9)))

    def _run(self, passes: int) -> None:
        for _ in range(passes):
            self.run()

    def _seconds(self, passes: int) -> float:
        return timed(lambda: self._run(passes), self.device, self.clock)[1] / passes

    def __call__(self) -> float:
        with use_threads(self.threads):
            self.run()
            return self._seconds(self.passes)


@dataclass(frozen=True)
class Limit:
    """Limit of the machine: a pass that comes as close to it as PyTorch can.

    Attributes:
        run: Function that runs one pass.
        amount: Work of one pass: multiply-adds of a matrix product, or bytes that a copy reads and writes.
    """

    run: Callable[[], Tensor]
    amount: float


def matmul_limit(device: str, precision: str) -> Limit:
    """Return the limit of arithmetic: the product of two large square matrices."""
    size = _MATMUL_SIZE[device]
    if precision == 'int8':  # the only function of PyTorch that multiplies int8 into int32
        a, b = (torch.randint(-128, 128, (size, size), device=device, dtype=torch.int8) for _ in range(2))
        return Limit(lambda: torch._int_mm(a, b), float(size) ** 3)
    a, b = (torch.randn(size, size, device=device, dtype=DTYPES[precision]) for _ in range(2))
    out = torch.empty_like(a)

    def multiply() -> Tensor:
        # By default, PyTorch lets convolutions in fp32, but not matrix products, use the faster TF32 of a GPU.
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = before or torch.backends.cudnn.allow_tf32
        try:
            return torch.mm(a, b, out=out)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    return Limit(multiply if device == 'cuda' else lambda: torch.mm(a, b, out=out), float(size) ** 3)


@functools.cache
def multiplies_fast(device: str, precision: str) -> bool:
    """Return whether PyTorch's matrix products in a precision are at least as fast as in fp32.

    They are not where the processor has no instructions for the precision, or PyTorch does not use them. Then other
    libraries may be many times as fast, so that the products are not a limit of the machine.
    """
    if precision == 'fp32':
        return True
    full, lower = (matmul_limit(device, name).run for name in ('fp32', precision))
    return min(timed(lower, device)[1] for _ in range(3)) <= min(timed(full, device)[1] for _ in range(3))


def copy_limit(device: str) -> Limit:
    """Return the limit of memory: a copy of a block larger than the caches, which reads and writes each byte once."""
    source = torch.ones(_COPY_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return Limit(lambda: target.copy_(source), 2.0 * _COPY_BYTES[device])


def cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def machine(devices: Sequence[str]) -> str:
    """Describe the processors, with the versions that determine how fast they compute."""
    name = platform.processor() or platform.machine()
    if os.path.exists('/proc/cpuinfo'):
        with open('/proc/cpuinfo') as file:
            name = next((line.split(':', 1)[1].strip() for line in file if line.startswith('model name')), name)
    parts = [f'{cores()} CPU cores ({name}, {torch.backends.cpu.get_cpu_capability()})']
    if 'cuda' in devices:
        parts.append(torch.cuda.get_device_name())
    return ', '.join([*parts, f'PyTorch {torch.__version__}'])
