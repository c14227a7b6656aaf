"""Which groups of operators a pass spends its time in, and how near each comes to the machine's limits."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmcasvit.utils.timing import spread

from .counts import FLOPS, nbytes

_POOLS = ('pool', 'mean', 'sum')
_NORMS = ('norm',)
_ACTIVATIONS = ('gelu', 'relu', 'sigmoid', 'silu', 'hardswish', 'hardtanh', 'softmax', 'leaky')


@dataclass
class Group:
    """What one group of operators needs in a pass; bytes as every operator reads its inputs and writes its outputs."""

    calls: int = 0
    seconds: float = 0.0
    macs: float = 0.0
    traffic: float = 0.0


def group_of(name: str, args: tuple) -> str:
    """The group of an operator by its name in PyTorch, convolutions by the shape of their weights."""
    if 'convolution' in name or 'conv2d' in name:
        weights = [arg for arg in args if isinstance(arg, Tensor) and arg.dim() == 4]
        if len(weights) < 2:
            return 'convolutions, other'
        _, inputs, height, width = weights[1].shape
        if inputs == 1 and (height, width) != (1, 1):
            return f'convolutions {height}x{width}, depthwise'
        return f'convolutions {height}x{width}'
    if any(word in name for word in ('mm', 'attention', 'linear')):
        return 'matrix products'
    for words, group in ((_NORMS, 'norms'), (_ACTIVATIONS, 'activations'), (_POOLS, 'averages')):
        if any(word in name for word in words):
            return group
    if name in ('add', 'mul', 'add_', 'mul_', 'sub', 'div', 'div_'):
        return 'sums and products'
    return 'copies and the rest'


class OperatorTimer(TorchDispatchMode):
    """Times every operator by itself. What a GPU is asked for is waited for each time."""

    def __init__(self, device: str, clock: Callable[[], float]):
        super().__init__()
        self.device, self.clock = device, clock
        self.groups: dict[str, Group] = defaultdict(Group)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func._overloadpacket
        with self:
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:  # made of others, which were timed by themselves
            return parts
        if func.is_view:
            return func(*args, **kwargs)
        if self.device == 'cuda':
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            result = func(*args, **kwargs)
            end.record()
            end.synchronize()
            seconds = start.elapsed_time(end) / 1000
        else:
            began = self.clock()
            result = func(*args, **kwargs)
            seconds = self.clock() - began
        group = self.groups[group_of(packet.__name__, args)]
        group.calls += 1
        group.seconds += seconds
        group.traffic += nbytes((args, kwargs)) + nbytes(result)
        if packet in FLOPS:
            group.macs += FLOPS[packet](*args, **kwargs, out_val=result) / 2
        return result


def time_operators(
    run: Callable[[], object], device: str, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Group]:
    """One pass, operator by operator; for the clock see :class:`mmcasvit.benchmarking.measuring.Timer`."""
    with OperatorTimer(device, clock) as timer:
        run()
    return dict(timer.groups)


def operator_table(passes: list[dict[str, Group]], macs_per_second: float, bytes_per_second: float) -> list[dict]:
    """Median of each group over some passes, its share, and its time against the larger of its two limits."""
    medians = {}
    for name in dict.fromkeys(name for groups in passes for name in groups):
        medians[name] = spread([groups[name].seconds for groups in passes if name in groups]).median
    total = sum(medians.values())
    rows = []
    for name, seconds in sorted(medians.items(), key=lambda item: -item[1]):
        group = next(groups[name] for groups in passes if name in groups)
        arithmetic, memory = group.macs / macs_per_second, group.traffic / bytes_per_second
        limit = max(arithmetic, memory)
        rows.append(
            {
                'operators': name,
                'calls': group.calls,
                'ms': seconds * 1000,
                'share': f'{100 * seconds / total:.0f}%',
                'GMACs': group.macs / 1e9,
                'MB read and written': group.traffic / 1e6,
                'limit, ms': limit * 1000,
                'limited by': 'arithmetic' if arithmetic > memory else 'memory',
                'reached': f'{100 * limit / seconds:.0f}%',
            }
        )
    return rows
