"""Timing that favours nobody: all variants take turns, next to the machine's own limits measured in the same run."""

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16, int8=torch.int8)
# What PyTorch itself computes a model in; int8 is for exported forms.
FLOATS = [name for name, dtype in DTYPES.items() if dtype.is_floating_point]
# Large enough to run at the machine's best rate, small enough to take its turn among the variants.
_MATMUL_SIZE = dict(cpu=1024, cuda=8192)
# Larger than any cache of its device.
_COPY_BYTES = dict(cpu=96 * 2**20, cuda=2**30)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some samples."""

    median: float
    low: float
    high: float


def spread(samples: Sequence[float]) -> Spread:
    """The median and the quartiles; with one sample all three are that sample."""
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0])
    low, median, high = statistics.quantiles(samples, n=4, method='inclusive')
    return Spread(median, low, high)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """The ratio of two things measured in the same rounds: a slow round slows both, so each round is divided first."""
    return spread([a / b for a, b in zip(numerators, denominators)])


def fit_exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent ``a`` of ``y = c * x^a`` by least squares of the logarithms.

    Raises:
        ValueError: fewer than two different x.
    """
    if len(set(x)) < 2:
        raise ValueError(f'an exponent needs at least two different sizes, got {sorted(set(x))}')
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def interleave(
    runs: Mapping[Hashable, Callable[[], float]], rounds: int, after_round: Callable[[int], None] = lambda done: None
) -> dict[Hashable, list[float]]:
    """Calls every run once a round, so that noise of the machine hits all alike.

    Every other round goes backwards: who follows whom differs then, and a machine that drifts within a round favours
    neither end.

    Args:
        runs: what to call; each returns the seconds it measured.
        rounds: how often.
        after_round: called with the number of finished rounds.
    """
    samples = {key: [] for key in runs}
    for done in range(rounds):
        for key in runs if done % 2 == 0 else reversed(runs):
            samples[key].append(runs[key]())
        after_round(done + 1)
    return samples


@contextmanager
def use_threads(count: int):
    """PyTorch computes with so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synchronize(device: str) -> None:
    """Waits until a device has done what was asked of it; a CPU always has."""
    if device == 'cuda':
        torch.cuda.synchronize()


class Timer:
    """Measures the seconds of one pass, each time it is called.

    A call first runs one pass that is not measured, since the variant before has filled the caches with its own data,
    and then as many as make up ``least_seconds``. Passes on a GPU are measured between two events of its stream.

    Args:
        run: one pass.
        device: ``'cpu'`` or ``'cuda'``.
        threads: of PyTorch, while it runs.
        warmup: passes before anything is measured: compiling, packing of weights, first touch of memory.
        least_seconds: how long a sample lasts at least.
        clock: seconds on a CPU. The processor time of this process is not lengthened by other programs of a busy
            machine; with one thread it is on an idle machine the same as the time on the wall.
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

    def _seconds(self, passes: int) -> float:
        if self.device == 'cuda':
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            for _ in range(passes):
                self.run()
            end.record()
            torch.cuda.synchronize()
            return start.elapsed_time(end) / 1000 / passes
        start = self.clock()
        for _ in range(passes):
            self.run()
        return (self.clock() - start) / passes

    def __call__(self) -> float:
        with use_threads(self.threads):
            self.run()
            return self._seconds(self.passes)


@dataclass(frozen=True)
class Limit:
    """A limit of the machine: a pass that comes as close to it as PyTorch does, and what that pass gets done.

    Attributes:
        amount: of one pass, multiply-adds of the matrix multiplication, bytes read and written of the copy.
    """

    run: Callable[[], Tensor]
    amount: float


def matmul_limit(device: str, precision: str) -> Limit:
    """The product of two large square matrices."""
    size = _MATMUL_SIZE[device]
    if precision == 'int8':  # PyTorch multiplies such matrices, summed up in int32, under this name alone
        a, b = (torch.randint(-128, 128, (size, size), device=device, dtype=torch.int8) for _ in range(2))
        return Limit(lambda: torch._int_mm(a, b), float(size) ** 3)
    a, b = (torch.randn(size, size, device=device, dtype=DTYPES[precision]) for _ in range(2))
    out = torch.empty_like(a)
    return Limit(lambda: torch.mm(a, b, out=out), float(size) ** 3)


def copy_limit(device: str) -> Limit:
    """A copy of a block larger than the caches; every byte is read once and written once."""
    source = torch.ones(_COPY_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return Limit(lambda: target.copy_(source), 2.0 * _COPY_BYTES[device])


def machine(devices: Sequence[str]) -> str:
    """The processors in words, with the versions that decide how fast they compute."""
    name = platform.processor() or platform.machine()
    if os.path.exists('/proc/cpuinfo'):
        with open('/proc/cpuinfo') as file:
            name = next((line.split(':', 1)[1].strip() for line in file if line.startswith('model name')), name)
    parts = [
        f'{len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()} CPU cores '
        f'({name}, {torch.backends.cpu.get_cpu_capability()})'
    ]
    if 'cuda' in devices:
        parts.append(torch.cuda.get_device_name())
    return ', '.join([*parts, f'PyTorch {torch.__version__}'])
