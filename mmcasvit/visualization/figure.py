"""Figure of the feature maps of a model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import mmcv
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.visualization import Visualizer
from torch import Tensor

from .feature_maps import Sight, Stage, half_radius

# Function that draws a panel and returns the note below it.
Panel = Callable[[Axes, Stage, Sight], str]


def draw(sight: Sight, path: str | Path | BinaryIO) -> None:
    """Draw one figure: image and prediction at the top, and below them one row per stage.

    Args:
        sight: Feature maps of :func:`.feature_maps.look_at`.
        path: File to write, in a format of matplotlib.
    """
    columns = columns_of(sight.stages)
    height, width = sight.image.shape[:2]
    cell = 1.75, 1.75 * height / width + 0.28
    figure = Figure(figsize=(cell[0] * len(columns) + 0.5, cell[1] * (len(sight.stages) + 1.6)), layout='constrained')
    above, below = figure.subfigures(2, 1, height_ratios=[1.6, len(sight.stages)])
    titles = 'input of the model', 'prediction'
    for axes, title, image, side in zip(above.subplots(1, 2), titles, (sight.image, sight.prediction), 'EW'):
        axes.imshow(image)
        axes.set_anchor(side)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    grid = below.subplots(len(sight.stages), len(columns), squeeze=False)
    for number, (stage, row) in enumerate(zip(sight.stages, grid)):
        for axes, (title, panel) in zip(row, columns.items()):
            note = panel(axes, stage, sight)
            axes.set_xticks([])
            axes.set_xlabel(note, fontsize=7, labelpad=2)
            if panel is not _channel_gates:
                axes.set_yticks([])
                axes.spines[:].set_visible(False)
            if number == 0:
                axes.set_title(title.format(sight=sight), fontsize=9)
        channels, height, width = stage.output.shape
        row[0].set_ylabel(f'stage {number + 1}\n{channels} x {height} x {width}', fontsize=8)
    figure.savefig(path, dpi=130)


def columns_of(stages: Sequence[Stage]) -> dict[str, Panel]:
    """Return the title of each column that has data, with the function that draws its panels."""

    def gate(letter):
        return lambda axes, stage, sight: _map(axes, stage.spatial_gates[letter])

    columns = {
        'strongest channels': _channels,
        'output, norm': lambda axes, stage, sight: _map(axes, stage.output.norm(dim=0)),
    }
    if all(stage.spatial_gates for stage in stages):
        columns |= {'spatial gate of q': gate('q'), 'spatial gate of k': gate('k')}
    if all(stage.channel_gates for stage in stages):
        columns['channel gates'] = _channel_gates
    columns['context, norm'] = lambda axes, stage, sight: _map(axes, stage.context.norm(dim=0))
    columns['receptive field'] = _field
    if all(stage.activation is not None for stage in stages):
        columns['{sight.method}: {sight.category}'] = _activation
    return columns


def _map(axes: Axes, values: Tensor) -> str:
    values = values.float().cpu().numpy()
    axes.imshow(values, cmap='viridis')
    return f'{_short(values.min())} to {_short(values.max())}'


def _short(number: float) -> str:
    return f'{number:.0f}' if abs(number) >= 10 else '0' if abs(number) < 1e-5 else f'{number:.2g}'


def _channels(axes: Axes, stage: Stage, sight: Sight) -> str:
    """Draw the four channels that vary most, each in its own range."""
    indices = stage.output.flatten(1).std(dim=1).topk(min(4, len(stage.output))).indices.sort().values
    maps = stage.output[indices].float().cpu()
    low, high = (f(maps.flatten(1), dim=1).values[:, None, None] for f in (torch.min, torch.max))
    maps = ((maps - low) / (high - low).clamp_min(1e-12)).numpy()
    # At one size, the white lines between the maps are equally wide in all stages.
    maps = [mmcv.imresize(x, (120, round(120 * x.shape[0] / x.shape[1])), interpolation='nearest') for x in maps]
    maps = [np.pad(x, 1, constant_values=np.nan) for x in maps] * (4 // len(maps))
    axes.imshow(np.vstack([np.hstack(maps[:2]), np.hstack(maps[2:4])]), cmap='viridis')
    return 'no. ' + ', '.join(str(int(index)) for index in indices)


def _channel_gates(axes: Axes, stage: Stage, sight: Sight) -> str:
    for (letter, gates), color in zip(stage.channel_gates.items(), ('#0072b2', '#d55e00')):
        axes.plot(np.sort(gates.float().cpu().numpy()), color=color, linewidth=1.2, label=letter)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ['0', '', '1'], fontsize=6)
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='y', linewidth=0.4)
    axes.set_box_aspect(sight.image.shape[0] / sight.image.shape[1])
    axes.legend(fontsize=6, frameon=False, loc='upper left', handlelength=1, borderaxespad=0.2)
    return 'channels, sorted by gate'


def _field(axes: Axes, stage: Stage, sight: Sight) -> str:
    field: Tensor = stage.receptive_field
    # Few pixels hold most of the field, and the square root shows the others too.
    axes.imshow((field / field.max()).sqrt().cpu().numpy(), cmap='magma')
    return f'half within {half_radius(field, stage.stride):.0f} px'


def _activation(axes: Axes, stage: Stage, sight: Sight) -> str:
    activation: Tensor = stage.activation
    shown = F.interpolate(
        activation[None, None].float().cpu(), sight.image.shape[:2], mode='bilinear', align_corners=False
    )[0]
    axes.imshow(Visualizer.draw_featmap(shown, sight.image, alpha=0.5))
    return f'0 to {_short(float(activation.max()))}'
