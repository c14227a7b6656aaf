"""Time of the operators that stand in for those of mmcv, next to the compiled ones, alone and in training steps."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from mmcasvit.ops import extension
from mmcasvit.ops.install import COMPILED, operators_in_use
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.tables import count_of, markdown
from mmcasvit.utils.timing import Timer, interleave, machine, ratio, spread

from .comparison import clock_in_words
from .preparation import prepare
from .variants import Variant, check_all


@contextmanager
def using(module: ModuleType) -> Iterator[None]:
    """Let the functions of ``mmcv.ops`` call the operators of a module inside the context."""
    users = [vars(user) for name, user in sys.modules.items() if name.startswith('mmcv.ops.')]
    before = [(names, names['ext_module']) for names in users if 'ext_module' in names]
    for names, _ in before:
        names['ext_module'] = module
    try:
        yield
    finally:
        for names, old in before:
            names['ext_module'] = old


def _run_with(module: ModuleType, run: Callable[[], object]) -> None:
    with using(module):
        run()


def _boxes(rng: torch.Generator, count: int, height: int, width: int, largest: float) -> Tensor:
    """Return random boxes in clusters, as a detector predicts them, ``(count, 4)``."""
    size = torch.tensor([width, height])
    clusters = torch.rand(max(1, count // 20), 2, generator=rng) * size
    centers = clusters[torch.randint(len(clusters), (count,), generator=rng)]
    centers = centers + torch.randn(count, 2, generator=rng) * largest / 8
    half = largest * (0.1 + 0.4 * torch.rand(count, 2, generator=rng))
    return torch.cat([centers - half, centers + half], 1).clamp(min=0).minimum(size.repeat(2))


def _passes(function: Callable, inputs: Sequence[Tensor]) -> Callable[[], None]:
    """Return a function that runs the forward and the backward pass."""

    def run():
        function(*inputs).sum().backward()

    return run


def cases(device: str) -> dict[str, Callable[[], object]]:
    """Return calls of the operators, at the sizes of models in docs/reference/plug-table.md, by description."""
    from mmcv.ops import DeformConv2d, ModulatedDeformConv2d, batched_nms, nms_match, roi_align, soft_nms

    rng = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng).to(device).requires_grad_()

    calls: dict[str, Callable[[], object]] = {}
    for name, counts, groups in (
        ('proposals of training, 5 levels, 7,323 boxes', (2000, 2000, 2000, 1050, 273), None),
        ('proposals of a small model, 5 levels, 1,360 boxes', (500, 500, 256, 80, 24), None),
        ('detections of 80 classes, 4,273 boxes', (4273,), 80),
        ('one class, 2,000 boxes', (2000,), None),
    ):
        boxes = torch.cat([_boxes(rng, count, 800, 1216, 100) for count in counts])
        level = torch.repeat_interleave(torch.tensor(counts)) if groups is None else None
        ids = torch.randint(groups, (len(boxes),), generator=rng) if level is None else level
        scores = torch.rand(len(boxes), generator=rng)
        arguments = boxes.to(device), scores.to(device), ids.to(device)
        calls[f'nms, {name}'] = partial(batched_nms, *arguments, dict(type='nms', iou_threshold=0.7))
    few = _boxes(rng, 500, 800, 1216, 200).to(device), torch.rand(500, generator=rng).to(device)
    calls['soft_nms, 500 boxes'] = partial(soft_nms, *few)
    calls['nms_match, 500 boxes'] = partial(nms_match, torch.cat([few[0], few[1][:, None]], 1), 0.7)
    for count, side, batch, channels, height, width, stride in (
        (700, 7, 2, 256, 200, 304, 4),
        (250, 7, 2, 256, 50, 76, 16),
        (180, 14, 2, 256, 200, 304, 4),
        (128, 7, 4, 64, 64, 64, 4),
    ):
        boxes = _boxes(rng, count, height * stride, width * stride, 28 * stride)
        rois = torch.cat([torch.randint(batch, (count, 1), generator=rng), boxes], 1).to(device)
        maps = random(batch, channels, height, width)
        align = partial(roi_align, maps, rois, side, 1 / stride, 0, 'avg', True)
        name = f'roi_align {side}x{side}, {count} regions, {channels} channels of {height}x{width}'
        calls[f'{name}, forward'] = torch.no_grad()(align)
        calls[f'{name}, forward and backward'] = _passes(align, ())
    for layer, mask in ((DeformConv2d, 0), (ModulatedDeformConv2d, 9)):
        conv = layer(256, 256, 3, padding=1).to(device)
        inputs = [random(2, 256, 25, 38), random(2, 18, 25, 38), *([random(2, mask, 25, 38)] if mask else [])]
        name = f'{layer.__name__} 3x3, 256 channels of 25x38'
        calls[f'{name}, forward'] = torch.no_grad()(partial(conv, *inputs))
        calls[f'{name}, forward and backward'] = _passes(conv, inputs)
    return calls


def mmcv_ops_text(
    steps: Sequence[Variant],
    rounds: int,
    device: str,
    threads: int,
    clock: Callable[[], float] = time.perf_counter,
    tell: Callable[[str], None] = lambda text: None,
) -> str:
    """Measure the operators of mmcasvit in turns with those of a compiled mmcv, and return the tables.

    Args:
        steps: Training steps of whole models, to be measured instead of the operators.
        rounds: Number of rounds.
        device: ``'cpu'`` or ``'cuda'``.
        threads: Number of threads of PyTorch.
        clock: See :class:`mmcasvit.utils.timing.Timer`.
        tell: Function that shows progress.

    Raises:
        UsageError: If mmcv was not compiled, or a model cannot be measured.
    """
    if operators_in_use() != COMPILED:
        raise UsageError('mmcv has no compiled operators here to compare with. Compile it: make setup OPS=compiled')
    from mmcv import _ext as compiled

    if steps:
        check_all(steps, set())
    rows = []

    def add_row(name: str, run: Callable[[], object]) -> None:
        timers = {
            module: Timer(partial(_run_with, module, run), device, threads, warmup=1, clock=clock)
            for module in (compiled, extension)
        }
        samples = interleave(timers, rounds)
        ratios = ratio(samples[extension], samples[compiled])
        rows.append(
            {
                'operator or training step': name,
                'compiled, ms': spread(samples[compiled]).median * 1000,
                'mmcasvit, ms': spread(samples[extension]).median * 1000,
                'ratio': f'{ratios.median:.2f} ({ratios.low:.2f} to {ratios.high:.2f})',
            }
        )
        tell(f'{name}: {rows[-1]["ratio"]}')

    for name, call in (cases(device) if not steps else {}).items():
        add_row(name, call)
    for step in steps:
        add_row(f'{Path(step.model).stem}, {step.batch} x {step.size[0]}x{step.size[1]}', prepare(step).run)
    return (
        f'{clock_in_words(clock)}medians of {count_of(rounds, "round")} in alternating order, '
        f'{count_of(threads, "thread")}, on {machine([device])}. A ratio above 1 means that mmcasvit is slower.\n\n'
        f'{markdown(rows)}'
    )
