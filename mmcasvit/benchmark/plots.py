"""Plots of measurements."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.ticker import LogLocator, NullLocator

from mmcasvit.utils.plots import COLORS, STYLE

from .published import CASVIT_FAMILY, METRICS, PUBLISHED, settings_of

_COLORS = (*COLORS[:6], '#000000')


@contextmanager
def _figure(path: str | Path, title: str = '', **settings) -> Iterator[Figure]:
    """Yield an empty figure and write it to a file at the end."""
    with rc_context(STYLE):
        figure = Figure(**settings)
        yield figure
        if title:
            figure.suptitle(title, fontsize=9, x=0.01, ha='left')
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, bbox_inches='tight')


def plot_times(path: str | Path, rows: Sequence[Mapping[str, Any]], labels: Sequence[str], title: str) -> None:
    """Plot one bar per row: the median with whiskers at the quartiles, and a tick at the limit of the machine.

    Args:
        path: Image file to write.
        rows: Rows of :func:`.comparison.measure`.
        labels: One label per row.
        title: Title of the figure.
    """
    with _figure(path, figsize=(7.5, 0.8 + 0.27 * len(rows))) as figure:
        axes = figure.subplots()
        places = range(len(rows))
        medians = [row['seconds'].median * 1000 for row in rows]
        whiskers = [
            [(row['seconds'].median - row['seconds'].low) * 1000 for row in rows],
            [(row['seconds'].high - row['seconds'].median) * 1000 for row in rows],
        ]
        one_model = len({row['model'] for row in rows}) == 1
        colors = [_COLORS[0] if one_model or row['library'] == 'mmcasvit' else '#999999' for row in rows]
        axes.barh(places, medians, color=colors, height=0.7)
        axes.errorbar(medians, places, xerr=whiskers, fmt='none', ecolor='#333333', elinewidth=0.8, capsize=2)
        axes.plot(
            [row['bound_ms'] for row in rows],
            places,
            '|',
            color='#d55e00',
            markersize=10,
            markeredgewidth=2,
            label='the largest of the limits',
        )
        axes.set_yticks(places, labels)
        axes.invert_yaxis()
        axes.set_xlim(0)
        axes.set_xlabel('ms per pass')
        axes.set_title(title, loc='left', fontsize=9, pad=24)
        axes.grid(axis='x')
        axes.legend(loc='lower left', bbox_to_anchor=(0, 1), borderaxespad=0.2)


def plot_accuracy(path: str | Path, rows: Sequence[Mapping[str, Any]], varying: Sequence[str], title: str) -> None:
    """Plot published accuracy against measured time, with one row of panels per setting and one column per metric.

    Args:
        path: Image file to write.
        rows: Rows of :func:`.comparison.measure`.
        varying: Fields of the rows that make a setting, such as the form.
        title: Title of the figure.
    """
    panels = settings_of(rows, varying)
    size = 6.4 * len(METRICS), 5.2 * len(panels)
    with _figure(path, title, figsize=size, layout='constrained') as figure:
        grid = figure.subplots(len(panels), len(METRICS), squeeze=False)
        for (setting, measured), line in zip(panels.items(), grid):
            for (metric, name), axes in zip(METRICS.items(), line):
                _draw_accuracy(axes, measured, metric)
                axes.set_xlabel(f'ms per pass, measured{setting and f" ({setting})"}')
                axes.set_ylabel(f'{name}, published', fontsize=8)
        grid[0][0].legend(loc='lower left', bbox_to_anchor=(0, 1), ncols=3)
        for axes in grid.flat:
            place_labels(axes)


def _draw_accuracy(axes: Axes, rows: Sequence[Mapping[str, Any]], metric: str) -> None:
    """Draw a panel, with the labels still on their points."""
    found = sorted(
        (row['seconds'].median * 1000, value, row['model'])
        for row in rows
        if (value := getattr(PUBLISHED[row['model']], metric)) is not None
    )
    groups: dict[str, list] = {'CAS-ViT': [], 'others, plain pretraining': [], 'others, distilled': []}
    for point in found:
        distilled = 'distilled' in PUBLISHED[point[2]].pretraining
        family = 'CAS-ViT' if point[2] in CASVIT_FAMILY else 'others, distilled' if distilled else list(groups)[1]
        groups[family].append(point)
    for (label, points), style, color, fill in zip(
        groups.items(), ('o-', 'o', 'o'), (_COLORS[0], '#888888', '#888888'), ('full', 'full', 'none')
    ):
        x, y = ([point[i] for point in points] for i in (0, 1))
        axes.plot(x, y, style, color=color, fillstyle=fill, markersize=5, label=label)
        for a, b, model in points:
            axes.annotate(
                model,
                (a, b),
                textcoords='offset points',
                xytext=(0, 0),
                fontsize=7,
                color=color if label == 'CAS-ViT' else '#444444',
                arrowprops=dict(arrowstyle='-', color='#bbbbbb', linewidth=0.5, shrinkA=0, shrinkB=2),
            ).set_in_layout(False)
    axes.set_xscale('log')
    axes.margins(0.12)
    axes.grid(which='both')
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter('{x:g}')


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the areas that boxes ``(..., 4)`` of left, bottom, right and top share with others."""
    sides = np.minimum(boxes[..., 2:], others[..., 2:]) - np.maximum(boxes[..., :2], others[..., :2])
    return np.prod(np.clip(sides, 0, None), -1)


def place_labels(axes: Axes) -> None:
    """Move each annotation next to its point, to where it covers least of the points and of earlier labels."""
    axes.figure.draw_without_rendering()  # gives the axes and the labels their places
    labels = [child for child in axes.get_children() if isinstance(child, Annotation)]
    points = [axes.transData.transform(label.xy) for label in labels]
    taken = [np.hstack([point - 3, point + 3]) for point in points]
    for label, point in zip(labels, points):
        half = np.array(Text.get_window_extent(label).size) / 2
        shifts = np.array(
            [
                (x * (half[0] + gap), y * (half[1] + gap))
                for gap in (5, 12, 22, 36, 52, 70)
                for x in (1, -1, 0, 0.5, -0.5)
                for y in (0, 1, -1)
                if x in (1, -1) or y
            ]
        )
        boxes = np.hstack([point + shifts - half, point + shifts + half])
        covered = _overlap(boxes[:, None], np.array(taken)).sum(1)
        outside = 4 * half.prod() - _overlap(boxes, np.array(axes.bbox.extents))
        best = np.argmin(10 * (covered + outside) + np.hypot(*shifts.T))
        label.set(ha='center', va='center', position=tuple(shifts[best] * 72 / axes.figure.dpi))
        taken.append(boxes[best])


def plot_seeds(path: str | Path, rows: Sequence[Mapping[str, Any]], metric: str) -> None:
    """Plot a metric of each variant by seed with its mean, and the means against the time.

    Args:
        path: Image file to write.
        rows: Rows with ``variant``, ``values`` (one per seed), ``mean`` and ``seconds`` (a :class:`Spread`).
        metric: Name of the metric.
    """
    with _figure(path, figsize=(9, 1 + 0.35 * max(5, len(rows))), layout='constrained') as figure:
        left, right = figure.subplots(1, 2)
        places = range(len(rows))
        for place, row in zip(places, rows):
            color = f'C{place}'  # labels next to the points on the right would overlap
            left.plot(row['values'], [place] * len(row['values']), 'o', color=color, alpha=0.5, markersize=5)
            left.plot([row['mean']] * 2, [place - 0.3, place + 0.3], color=color, linewidth=2)
            right.plot(row['seconds'].median * 1000, row['mean'], 'o', color=color, markersize=7)
        left.set_yticks(places, [row['variant'] for row in rows])
        for place, name in zip(places, left.get_yticklabels()):
            name.set_color(f'C{place}')
        left.invert_yaxis()
        left.set_xlabel(f'{metric}: every seed (dots) and their mean (line)')
        left.grid(axis='x')
        right.set_xscale('log')
        right.minorticks_off()
        right.set_xticks(*_round_ticks([row['seconds'].median * 1000 for row in rows]))
        right.margins(0.15)
        right.set_xlabel('ms of the backbone')
        right.set_ylabel(f'mean {metric}')
        right.grid()


def _round_ticks(values: Sequence[float]) -> tuple[list[float], list[str]]:
    """Return numbers that begin with 1, 2 or 5 around positive values, and their labels."""
    powers = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    ticks = [tick for tick in ticks if min(values) / 2 < tick < max(values) * 2]
    return ticks, [f'{tick:g}' for tick in ticks]


def plot_scaling(
    path: str | Path,
    curves: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    exponents: Mapping[str, Mapping[str, float]],
    title: str,
) -> None:
    """Plot quantities against the number of pixels, with one panel per quantity and logarithmic axes.

    Args:
        path: Image file to write.
        curves: Points of each quantity and model.
        exponents: Fitted exponent of each quantity and model.
        title: Title of the figure.
    """
    with _figure(path, title, figsize=(3.4 * len(curves), 3.3), layout='constrained') as figure:
        panels = figure.subplots(1, len(curves), squeeze=False)
        for (quantity, models), axes in zip(curves.items(), panels[0]):
            for color, (model, points) in zip(_COLORS, models.items()):
                axes.plot(
                    *zip(*points),
                    'o-',
                    color=color,
                    markersize=4,
                    label=f'{model}: pixels^{exponents[quantity][model]:.2f}',
                )
            axes.set_xscale('log')
            axes.set_yscale('log')
            sides = sorted({round(x**0.5) for points in models.values() for x, _ in points})
            axes.set_xticks([side**2 for side in sides], [str(side) for side in sides], fontsize=7, rotation=45)
            axes.minorticks_off()
            axes.yaxis.set_major_formatter('{x:g}')
            axes.grid()
            axes.set_xlabel('side of the square image, pixels')
            axes.set_title(quantity, fontsize=9)
            axes.legend(fontsize=7)


def plot_losses(
    path: str | Path, curves: Mapping[str, Mapping[str, Sequence[float]]], title: str, smooth: int = 10
) -> None:
    """Plot losses by step, with one panel per recipe and one line per variant.

    Args:
        path: Image file to write.
        curves: Losses of every step of each recipe and variant.
        title: Title of the figure.
        smooth: Number of steps over which each point is averaged.
    """
    columns = min(2, len(curves))
    rows = -(-len(curves) // columns)
    with _figure(path, title, figsize=(4.6 * columns, 3 * rows), layout='constrained') as figure:
        _draw_losses(figure.subplots(rows, columns, squeeze=False), curves, smooth)


def _draw_losses(panels, curves: Mapping[str, Mapping[str, Sequence[float]]], smooth: int) -> None:
    for (recipe, variants), axes in zip(curves.items(), panels.flat):
        for color, (variant, losses) in zip(_COLORS, variants.items()):
            width = min(smooth, len(losses))
            means = np.convolve(losses, np.ones(width) / width, mode='valid')
            axes.plot(range(width, len(losses) + 1), means, color=color, linewidth=1.2, label=variant)
        axes.set_title(recipe, fontsize=9)
        axes.set_xlabel('step')
        axes.set_ylabel(f'loss, mean of {smooth} steps')
        axes.set_ylim(0)
        axes.grid()
    for axes in panels.flat[len(curves) :]:
        axes.remove()
    if curves:
        panels.flat[0].legend()


def plot_gpu_check(
    path: str | Path, times: Mapping[str, float], curves: Mapping[str, Mapping[str, Sequence[float]]], title: str
) -> None:
    """Plot bars of the time per image next to loss curves.

    Args:
        path: Image file to write.
        times: Milliseconds per image of each measured model.
        curves: Losses of every step of each recipe and variant.
        title: Title of the figure.
    """
    with _figure(path, title, figsize=(13, 2 + 0.16 * max(20, len(times))), layout='constrained') as figure:
        left, right = figure.subfigures(1, 2)
        axes = left.subplots()
        axes.barh(range(len(times)), list(times.values()), color=_COLORS[0], height=0.7)
        axes.set_yticks(range(len(times)), list(times), fontsize=7)
        axes.invert_yaxis()
        if times:
            axes.set_xscale('log')
            axes.minorticks_off()
            axes.set_xticks(*_round_ticks(list(times.values())))
        axes.set_xlabel('ms per image')
        axes.grid(axis='x')
        _draw_losses(right.subplots(2, max(1, -(-len(curves) // 2)), squeeze=False), curves, 10)
