"""Figures of a report as PNG bytes. Names come from datasets, so they are never parsed as formulas."""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmcasvit.utils.plots import COLORS, STYLE

_MAX_ANNOTATED = 16  # number of classes up to which the cells of a confusion matrix show their values
_MAX_DIFFERENCES = 40  # classes, of which the lowest and the highest differences are drawn
# Not pyplot, since the process that writes a report may have windows and settings of its own.
_styled = rc_context(STYLE | {'text.parse_math': False})


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=150, bbox_inches='tight')
    return buffer.getvalue()


def _mark_resumed(axes: Axes, resumed: Sequence[int]) -> None:
    for number, step in enumerate(resumed):
        axes.axvline(step, color='#999999', linestyle=':', linewidth=1, label='resumed' if not number else None)


def plot_training(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], resumed: Sequence[int]) -> bytes:
    """Plot losses, training accuracy, gradient norm and learning rate, each in a panel of its own.

    Args:
        curves: Steps and values of each scalar.
        resumed: Steps at which a run was resumed.
    """
    groups = {
        'loss': [name for name in curves if 'loss' in name],
        'training accuracy, %': [name for name in curves if 'acc' in name and 'loss' not in name],
        'gradient norm': [name for name in curves if name == 'grad_norm'],
        'learning rate': [name for name in curves if name == 'lr'],
    }
    groups = {title: names for title, names in groups.items() if names}
    return _panels(groups, curves, resumed, 'iteration')


def plot_stages(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], resumed: Sequence[int]) -> bytes:
    """Plot what :class:`mmcasvit.StageHealthHook` measured, with a panel for each quantity and a line for each stage.

    Args:
        curves: Steps and values of each scalar, by names such as ``stages/spread_1``.
        resumed: Steps at which a run was resumed.
    """
    titles = dict(
        spread='spread of activations',
        dead_channels='share of dead channels',
        variance_ratio='batch / running variance',
    )
    curves = {name.rpartition('/')[2]: points for name, points in curves.items()}
    groups = {title: [name for name in curves if name.startswith(kind)] for kind, title in titles.items()}
    groups = {title: names for title, names in groups.items() if names}
    return _panels(groups, curves, resumed, 'iteration', [titles['spread'], titles['variance_ratio']])


def plot_validation(
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], resumed: Sequence[int], by_epoch: bool
) -> bytes:
    """Plot validation metrics, with a panel for each prefix, such as those of boxes and masks.

    Args:
        curves: Steps and values of each metric.
        resumed: Iterations at which a run was resumed; they are not drawn if the steps are epochs.
        by_epoch: Whether the steps are epochs.
    """
    groups = {}
    for name in curves:
        prefix, found, _ = name.rpartition('_mAP')
        groups.setdefault(f'{prefix}_mAP' if found else 'validation metrics', []).append(name)
    return _panels(groups, curves, () if by_epoch else resumed, 'epoch' if by_epoch else 'iteration')


@_styled
def _panels(
    groups: Mapping[str, Sequence[str]],
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    resumed: Sequence[int],
    label: str,
    logarithmic: Sequence[str] = (),
) -> bytes:
    columns = min(2, len(groups))
    rows = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.1 * rows), layout='constrained')
    panels = figure.subplots(rows, columns, squeeze=False)
    for (title, names), axes in zip(groups.items(), panels.flat):
        for number, name in enumerate(names):
            steps, values = curves[name]
            axes.plot(
                steps,
                values,
                marker='o' if len(steps) < 30 else '',
                color=COLORS[number % len(COLORS)],
                linestyle=('-', '--', '-.')[number // len(COLORS) % 3],
                markersize=3,
                linewidth=1.2,
                label=name,
            )
        _mark_resumed(axes, resumed)
        if title in logarithmic:
            axes.set_yscale('log')
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid()
        if len(names) > 1 or resumed:
            axes.legend(fontsize=7, ncols=1 + len(names) // 9)
    for axes in panels.flat[len(groups) :]:
        axes.remove()
    return _png(figure)


def shares(matrix: np.ndarray) -> np.ndarray:
    """Divide each row of counts by its sum, except rows of zeros."""
    return matrix / np.maximum(matrix.sum(1, keepdims=True), 1)


@_styled
def plot_confusion(matrix: np.ndarray, names: Sequence[str]) -> bytes:
    """Plot a confusion matrix normalized by rows; cells show their values if there are few classes.

    Args:
        matrix: Counts, ``(len(names), len(names))``, with a row for each true class.
        names: Names of the rows and columns.
    """
    number, part = len(names), shares(matrix)
    side = min(12.0, max(4.0, 2 + 0.45 * number))
    font = min(8.0, max(2.5, 0.75 * 72 * (side - 2) / number))
    figure = Figure(figsize=(side + 0.8, side), layout='constrained')
    axes = figure.subplots()
    # The square root makes rare confusions visible.
    image = axes.imshow(np.sqrt(part), cmap='Blues', vmin=0, vmax=1)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, ticks=np.sqrt([0, 0.01, 0.05, 0.1, 0.25, 0.5, 1]))
    bar.ax.set_yticklabels(['0', '1 %', '5 %', '10 %', '25 %', '50 %', '100 %'], fontsize=7)
    short = [name if len(name) <= 24 else f'{name[:23]}\u2026' for name in names]
    axes.set_xticks(range(number), short, fontsize=font, rotation=90)
    axes.set_yticks(range(number), short, fontsize=font)
    axes.tick_params(length=2 if number <= _MAX_ANNOTATED else 0)
    axes.set_xlabel('prediction')
    axes.set_ylabel('ground truth')
    if number <= _MAX_ANNOTATED:
        for row in range(number):
            for column in range(number):
                if matrix[row, column]:
                    axes.text(
                        column,
                        row,
                        f'{100 * part[row, column]:.{0 if part[row, column] >= 0.1 else 1}f}',
                        ha='center',
                        va='center',
                        fontsize=7,
                        color='white' if part[row, column] > 0.4 else 'black',
                    )
    for spine in axes.spines.values():
        spine.set_visible(False)
    return _png(figure)


@_styled
def plot_scores(scores: Sequence[float]) -> bytes:
    """Plot a histogram of image scores."""
    figure = Figure(figsize=(6, 2.2), layout='constrained')
    axes = figure.subplots()
    axes.hist(scores, bins=np.linspace(0, 1, 21), color=COLORS[0], edgecolor='white')
    axes.axvline(float(np.mean(scores)), color=COLORS[1], label=f'mean {np.mean(scores):.3f}')
    axes.set_xlim(0, 1)
    axes.set_xlabel('score')
    axes.set_ylabel('images')
    axes.grid(axis='y')
    axes.legend(fontsize=8)
    return _png(figure)


@_styled
def plot_phases(runs: Mapping[str, Mapping[str, int]]) -> bytes:
    """Plot a bar for each run, divided into phases.

    Args:
        runs: Seconds of each phase of each run.
    """
    phases = list(dict.fromkeys(phase for seconds in runs.values() for phase in seconds))
    most = max(sum(seconds.values()) for seconds in runs.values())
    unit, length = ('h', 3600) if most > 7200 else ('min', 60) if most > 180 else ('s', 1)
    figure = Figure(figsize=(7.5, 1.1 + 0.32 * len(runs)), layout='constrained')
    axes = figure.subplots()
    left = np.zeros(len(runs))
    for number, phase in enumerate(phases):
        widths = np.array([seconds.get(phase, 0) / length for seconds in runs.values()])
        axes.barh(range(len(runs)), widths, left=left, color=COLORS[number % len(COLORS)], label=phase, height=0.7)
        left += widths
    axes.set_yticks(range(len(runs)), list(runs))
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.grid(axis='x')
    figure.legend(loc='outside upper left', ncols=5, fontsize=8)
    return _png(figure)


@_styled
def plot_differences(differences: Mapping[str, tuple[float, float, float]]) -> bytes:
    """Plot differences with their intervals, those that exclude zero in color.

    Args:
        differences: Value, lower and upper end of each difference, from the lowest to the highest.
    """
    names = list(differences)
    if len(names) > _MAX_DIFFERENCES:
        names = names[: _MAX_DIFFERENCES // 2] + names[-_MAX_DIFFERENCES // 2 :]
    figure = Figure(figsize=(7, 0.9 + 0.21 * len(names)))
    axes = figure.add_subplot()
    for place, name in enumerate(names):
        value, low, high = differences[name]
        color = COLORS[0] if low > 0 else COLORS[1] if high < 0 else '#999999'
        axes.plot([low, high], [place, place], color=color, linewidth=1.5)
        axes.plot(value, place, 'o', color=color, markersize=4)
    axes.axvline(0, color='#222222', linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis='x')
    axes.set_xlabel('difference')
    return _png(figure)
