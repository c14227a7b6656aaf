"""Time of a pass by groups of operators, next to the limits of the machine."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmcasvit.utils.errors import NotApplicable, UsageError
from mmcasvit.utils.tables import markdown
from mmcasvit.utils.timing import Timer, copy_limit, machine, matmul_limit, spread, timed, use_threads

from .comparison import clock_in_words
from .counts import FLOPS, nbytes
from .preparation import prepare
from .variants import Variant, check_all

_POOLS = ('pool', 'mean', 'sum')
_NORMS = ('norm',)
_ACTIVATIONS = ('gelu', 'relu', 'sigmoid', 'silu', 'hardswish', 'hardtanh', 'softmax', 'leaky')


@dataclass
class Group:
    """Cost of one group of operators in a pass.

    Attributes:
        calls: Number of calls.
        seconds: Time of all calls.
        macs: Multiply-adds.
        traffic: Bytes that the operators read and write, without any fusion.
    """

    calls: int = 0
    seconds: float = 0.0
    macs: float = 0.0
    traffic: float = 0.0


def group_of(name: str, args: tuple) -> str:
    """Return the group of an operator by its name in PyTorch, and of a convolution by the shape of its weights."""
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
    """Mode that times every operator by itself. On a GPU it waits for each operator."""

    def __init__(self, device: str, clock: Callable[[], float]):
        super().__init__()
        self.device, self.clock = device, clock
        self.groups: dict[str, Group] = defaultdict(Group)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func._overloadpacket
        with self:
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:  # composed of operators that were timed one by one
            return parts
        if func.is_view:
            return func(*args, **kwargs)
        result, seconds = timed(lambda: func(*args, **kwargs), self.device, self.clock)
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
    """Time one pass operator by operator; see :class:`mmcasvit.utils.timing.Timer` for the clock."""
    with OperatorTimer(device, clock) as timer:
        run()
    return dict(timer.groups)


def operator_table(passes: list[dict[str, Group]], macs_per_second: float, bytes_per_second: float) -> list[dict]:
    """Return one row per group: its median time over passes, its share, and how near it comes to its limit.

    Args:
        passes: Groups of each pass, see :func:`time_operators`.
        macs_per_second, bytes_per_second: Measured limits of the machine. The larger of the two times counts.
    """
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


def operators_text(variant: Variant, rounds: int, clock: Callable[[], float] = time.perf_counter) -> str:
    """Measure a variant operator by operator, in turns with the limits of the machine, and return the table.

    Args:
        variant: Variant in a form that consists of eager, deploy and channels_last.
        rounds: Number of passes.
        clock: See :class:`mmcasvit.utils.timing.Timer`.

    Raises:
        UsageError: If the variant cannot be measured.
    """
    if any(step not in ('eager', 'deploy', 'channels_last') for step in variant.form.split('+')):
        raise UsageError(f'--form {variant.form}: operators can be told apart only in eager, deploy and channels_last.')
    check_all([variant], {variant.model})
    try:
        prepared = prepare(variant)
    except NotApplicable as reason:
        raise UsageError(f'{variant}: {reason}') from reason
    device, threads = variant.device, variant.threads
    limits = matmul_limit(device, variant.precision), copy_limit(device)
    timers = [Timer(limit.run, device, threads, clock=clock) for limit in limits]
    passes, rates = [], []
    with use_threads(threads):
        prepared.run()
        for _ in range(rounds):
            prepared.run()
            passes.append(time_operators(prepared.run, device, clock))
            rates.append([limit.amount / timer() for limit, timer in zip(limits, timers)])
    macs, moved = (spread(rate).median for rate in zip(*rates))
    return (
        f'{variant}; {clock_in_words(clock)}medians of {rounds} passes on {machine([device])}. Limits in the same '
        f'rounds: {macs / 1e9:.0f} GMAC/s and {moved / 1e9:.1f} GB/s.\n\n'
        + markdown(operator_table(passes, macs, moved))
    )
