"""Ranges of activations over images: what overflows in fp16, and what int8 clips and rounds away."""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from mmcasvit.export.half import LARGEST, NetworkMode, attach
from mmcasvit.utils.plots import COLORS
from mmcasvit.utils.tables import markdown

from .predictions import batch_of

_COLORS = COLORS[:7]


class _Extremes(NetworkMode):
    """Mode that keeps the lowest and the highest value of each operator in each image."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[tuple[str, str], Tensor]] = []

    def seen(self, operator: str, x: Tensor) -> None:
        if x.numel():
            key, ends = (self.inside[-1], operator), torch.stack(x.aminmax())
            before = self.found[-1].get(key, ends)
            self.found[-1][key] = torch.stack([torch.minimum(before[0], ends[0]), torch.maximum(before[1], ends[1])])


class _Losses(NetworkMode):
    """Mode that counts what fp16 and int8 do to the results of each operator.

    Args:
        ranges: Lowest and highest value that int8 represents, by operator.
    """

    def __init__(self, ranges: dict[tuple[str, str], tuple[float, float]]) -> None:
        super().__init__()
        self.ranges = ranges
        # Values, those that overflow, those that are clipped, squared errors, sum, sum of squares.
        self.sums: dict[tuple[str, str], Tensor] = {key: torch.zeros(6, dtype=torch.double) for key in ranges}

    def seen(self, operator: str, x: Tensor) -> None:
        key = self.inside[-1], operator
        low, high = self.ranges.get(key, (0.0, 0.0))
        if not x.numel() or key not in self.ranges:
            return
        over = ~(x.abs() <= LARGEST)  # NaN is not comparable
        x = x[~over].double()
        step = (high - low) / 255
        level = ((x - low) / step).round() if step else torch.zeros_like(x)
        error = x - (low + level.clamp(0, 255) * step)
        clipped = (level < 0) | (level > 255)
        self.sums[key] += torch.stack(
            [x.new_tensor(over.numel()), over.sum(), clipped.sum(), (error**2).sum(), x.sum(), (x**2).sum()]
        ).cpu()


@torch.no_grad()
def measure_ranges(model: nn.Module, images: Sequence[str | Path]) -> list[dict]:
    """Measure the ranges of all operators of a network over images.

    int8 has one range for each operator: the mean over the images of the lowest and of the highest value, as in NNCF.
    What lies outside is clipped.

    Args:
        model: Model of :func:`mmcasvit.get_model`, or its deploy form. It is left as it is.
        images: Image files, loaded by the test pipeline of the model's config.

    Returns:
        A row for each operator of each module, in the order in which they run first: ``layer`` and ``operator``,
        ``lowest`` and ``highest`` over all images, the shares ``fp16_overflow`` of values beyond 65504 and
        ``int8_clipped``, and ``int8_error``, the root of the mean squared error of int8, divided by the standard
        deviation of the values.
    """
    extremes = _Extremes()
    _run(model, extremes, images, before=lambda: extremes.found.append({}))
    keys = dict.fromkeys(key for found in extremes.found for key in found)
    ends = {key: torch.stack([found[key] for found in extremes.found if key in found]).double() for key in keys}
    finite = {key: x[x.isfinite().all(1)] for key, x in ends.items()}
    losses = _Losses({key: tuple(x.mean(0).tolist()) for key, x in finite.items() if len(x)})
    _run(model, losses, images)
    rows = []
    for (layer, operator), x in ends.items():
        row = dict(layer=layer, operator=operator, lowest=float(x[:, 0].min()), highest=float(x[:, 1].max()))
        count, over, clipped, error, total, squares = losses.sums.get(
            (layer, operator), torch.tensor([1.0, 1] + 4 * [0.0])
        ).tolist()
        kept = max(count - over, 1)
        spread = squares / kept - (total / kept) ** 2
        row |= dict(
            fp16_overflow=over / count,
            int8_clipped=clipped / kept,
            int8_error=(error / kept / spread) ** 0.5 if spread > 0 else 0.0,
        )
        rows.append(row)
    return rows


def _run(model: nn.Module, mode: NetworkMode, images: Iterable[str | Path], before=lambda: None) -> None:
    watched = copy.deepcopy(model)
    attach(watched, mode)
    for image in images:
        before()
        watched(**batch_of(watched, image), mode='predict')


def part_of(layer: str) -> str:
    """Return the part of the model that a layer belongs to: a stage of the backbone, the neck, or a head."""
    depth = dict(backbone=3, roi_head=2).get(layer.partition('.')[0], 1)
    return '.'.join(layer.split('.')[:depth])


def summarize(rows: Sequence[dict], most: int = 10) -> str:
    """Return a table with a row for each part of the model, and the worst operators of those that overflow."""
    parts: dict[str, list[dict]] = {}
    for row in rows:
        parts.setdefault(part_of(row['layer']), []).append(row)
    table = [
        {
            'part': part,
            'operators': len(own),
            'lowest': min(row['lowest'] for row in own),
            'highest': max(row['highest'] for row in own),
            'overflow in fp16': sum(row['fp16_overflow'] > 0 for row in own),
            'clipped by int8, %': 100 * max(row['int8_clipped'] for row in own),
            'error of int8, %': 100 * (worst := max(own, key=lambda row: row['int8_error']))['int8_error'],
            'largest error in': f'{worst["layer"].removeprefix(part).strip(".")} {worst["operator"]}'.strip(),
        }
        for part, own in parts.items()
    ]
    over = sorted((row for row in rows if row['fp16_overflow']), key=lambda row: -row['fp16_overflow'])
    lines = [
        f'{row["layer"]} {row["operator"]}: {row["lowest"]:.3g} to {row["highest"]:.3g}, '
        f'{100 * row["fp16_overflow"]:.2g} % beyond fp16'
        for row in over[:most]
    ]
    left = [f'and {len(over) - most} more'] if len(over) > most else []
    return '\n'.join([markdown(table), *(lines + left or ['nothing overflows in fp16'])])


def draw_ranges(rows: Sequence[dict], path: str | Path) -> None:
    """Draw the largest absolute value and the error of int8 of each operator, in the order in which they run."""
    figure = Figure(figsize=(max(7.0, 2 + 0.018 * len(rows)), 5.5), layout='constrained')
    above, below = figure.subplots(2, 1, sharex=True)
    size = np.array([max(-row['lowest'], row['highest'], 1e-8) for row in rows])
    finite = np.where(np.isfinite(size), size, 10 * np.nanmax(size[np.isfinite(size)], initial=LARGEST))
    error = np.array([100 * row['int8_error'] for row in rows])
    parts = [part_of(row['layer']) for row in rows]
    names = list(dict.fromkeys(parts))
    for number, name in enumerate(names):
        place = [i for i, part in enumerate(parts) if part == name]
        for axes, values in ((above, finite), (below, error)):
            axes.plot(place, values[place], '.', color=_COLORS[number % len(_COLORS)], markersize=4, label=name)
    above.axhline(LARGEST, color='#222222', linewidth=0.8)
    above.text(0, LARGEST * 1.3, 'largest number of fp16', fontsize=7)
    above.set_yscale('log')
    above.set_ylabel('largest absolute value')
    below.set_ylabel('error of int8, % of the spread')
    below.set_xlabel('operators, in the order in which they run')
    for axes in (above, below):
        axes.grid(color='#dddddd', linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[['top', 'right']].set_visible(False)
    figure.legend(*above.get_legend_handles_labels(), loc='outside right upper', fontsize=7, frameon=False)
    figure.savefig(path, dpi=130)
