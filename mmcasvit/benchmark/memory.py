"""Peak memory of a pass, read from the kernel or from PyTorch's allocator."""

import ctypes
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch

from mmcasvit.utils.timing import use_threads

from .forms import parse_form
from .preparation import Prepared, prepare
from .variants import Variant


@dataclass(frozen=True)
class Memory:
    """Peak memory of one pass in bytes.

    Attributes:
        weights: Parameters and buffers, or None for exported forms, where they cannot be told apart.
        above: Everything else the pass holds: maps, saved tensors of the backward pass, gradients, scratch space.
    """

    weights: int | None
    above: int

    @property
    def total(self) -> int:
        return (self.weights or 0) + self.above


def peak_memory(variant: Variant, prepared: Prepared | None = None, folder: Path | None = None) -> Memory | None:
    """Measure the memory of one pass, after warming up.

    On a GPU, it is the peak of PyTorch's allocations during the pass, minus those before it. On a CPU, a fresh process
    builds the variant, and the kernel tells the peak of the resident set during the pass, minus the one before it. For
    exported forms, it is minus the one before the runtime loaded the graph, since it keeps its memory between passes.

    Args:
        variant: Variant to measure.
        prepared: The same variant as built in this process, to be used on a GPU.
        folder: See :func:`.preparation.prepare`.

    Returns:
        None if it cannot be measured: not on Linux, or the process was killed.
    """
    if variant.device == 'cuda':
        prepared = prepared or prepare(variant)
        prepared.run()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        prepared.run()
        torch.cuda.synchronize()
        return Memory(prepared.weights, torch.cuda.max_memory_allocated() - before)
    if not can_reset_peak():
        return None
    # glibc returns freed blocks of this size or more to the system, so the resident set follows what is in use. By
    # default it raises the threshold at run time and keeps freed blocks.
    environment = dict(MALLOC_MMAP_THRESHOLD_='65536', MALLOC_TRIM_THRESHOLD_='65536')
    before = {key: os.environ.get(key) for key in environment}
    os.environ.update(environment)
    try:
        context = multiprocessing.get_context('forkserver')
        context.set_forkserver_preload([__name__])
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(_quiet_resident_peak, variant, folder).result()
    except BrokenProcessPool:
        return None
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


def can_reset_peak() -> bool:
    """Return whether the peak of the resident set can be reset: on Linux, if the process may."""
    return os.access('/proc/self/clear_refs', os.W_OK)


def reset_peak() -> None:
    """Reset the peak of the resident set of this process, see proc(5)."""
    with open('/proc/self/clear_refs', 'w') as file:
        file.write('5')


def resident(field: str) -> int:
    """Return a size of this process in bytes: ``'VmRSS'``, or ``'VmHWM'`` for its peak. Only Linux has these."""
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f'{field}:'))


def _settle() -> int:
    ctypes.CDLL(None).malloc_trim(0)
    return resident('VmRSS')


def _quiet_resident_peak(variant: Variant, folder: Path | None) -> Memory:
    with redirect_stdout(sys.stderr):
        return _resident_peak(variant, folder)


def _resident_peak(variant: Variant, folder: Path | None) -> Memory:
    exported = any(step.exported for step in parse_form(variant.form))
    before_runtime = []
    prepared = prepare(variant, lambda: before_runtime.append(_settle()), folder)
    with use_threads(variant.threads):
        for _ in range(2):
            prepared.run()
        before = before_runtime[0] if exported else _settle()
        reset_peak()
        prepared.run()
    return Memory(None if exported else prepared.weights, max(0, resident('VmHWM') - before))
