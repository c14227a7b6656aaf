"""What a detector or segmentor with a CAS-ViT sees in an image: gates, context, receptive fields, activation maps.

The file reads: what is recorded of a backbone, gradients towards the input and towards the stages, the model around it,
the figure.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mmcv
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import VISUALIZERS
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from torch import Tensor, nn

from mmcasvit.datasets.config import leaf_datasets
from mmcasvit.models.casvit import AdditiveTokenMixer, CASViT, ChannelGate, SpatialGate
from mmcasvit.utils.errors import UsageError


@dataclass
class Stage:
    """What is recorded of one stage, without the batch dimension.

    Attributes:
        stride: of its maps, in pixels.
        output: ``(C, H, W)``, behind its last block.
        context: ``(C, H, W)`` of the last block: the additive context map, which multiplies the values; for another
            token mixer what it gives.
        spatial_gates: of the last block's query and key, ``(H, W)`` each, or empty without such gates.
        channel_gates: of the same, ``(C, )`` each.
        receptive_field: ``(H_in, W_in)``, how much each pixel of the input moves the middle of the output.
        activation: ``(H, W)``, what speaks for a class, or None.
    """

    stride: int
    output: Tensor
    context: Tensor
    spatial_gates: dict[str, Tensor]
    channel_gates: dict[str, Tensor]
    receptive_field: Tensor | None = None
    activation: Tensor | None = None


@contextmanager
def recorded(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """A dict that is filled with the output of each module whenever it is called inside."""
    outputs = {}
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
        for name, module in modules.items()
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def stages_of(backbone: CASViT) -> list[nn.Module]:
    """The blocks of each stage that the backbone has."""
    return list(backbone.network[::2])


def _parts(stage: nn.Module) -> dict[str, nn.Module]:
    """The modules of a stage whose outputs are shown."""
    mixer = stage[-1].attn
    parts = dict(output=stage, context=mixer.dwc if isinstance(mixer, AdditiveTokenMixer) else mixer)
    if isinstance(mixer, AdditiveTokenMixer):
        for letter, gates in (('q', mixer.oper_q), ('k', mixer.oper_k)):
            parts |= {
                f'{letter} {type(gate).__name__}': gate.block[-1]
                for gate in gates
                if isinstance(gate, (SpatialGate, ChannelGate))
            }
    return parts


def look_inside(backbone: CASViT, x: Tensor) -> list[Stage]:
    """Records every stage of a backbone in eval mode for one image, its receptive field included.

    Args:
        backbone: in eval mode.
        x: ``(1, in_channels, H, W)``.
    """
    parts = {
        f'{i} {name}': module for i, stage in enumerate(stages_of(backbone)) for name, module in _parts(stage).items()
    }
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad(), recorded(parts) as outputs:
        backbone(x)
    stages = []
    for i in range(len(stages_of(backbone))):
        found = {
            name.partition(' ')[2]: output[0].detach() for name, output in outputs.items() if name.startswith(f'{i} ')
        }
        stages.append(
            Stage(
                backbone.strides[i],
                found['output'],
                found['context'],
                {name[0]: gate[0] for name, gate in found.items() if name.endswith('SpatialGate')},
                {name[0]: gate[:, 0, 0] for name, gate in found.items() if name.endswith('ChannelGate')},
                receptive_field(x, outputs[f'{i} output']),
            )
        )
    return stages


def receptive_field(x: Tensor, output: Tensor) -> Tensor:
    """The effective receptive field of the middle of a map, on one image.

    It is the gradient of the sum of all channels there, its absolute value summed over the channels of the input.

    Source: arXiv 1701.04128, section 3.
    Shape: ``(1, C_in, H_in, W_in)`` and ``(1, C, H, W)`` to ``(H_in, W_in)``.
    """
    middle = output[0, :, output.shape[2] // 2, output.shape[3] // 2].sum()
    (gradient,) = torch.autograd.grad(middle, x, retain_graph=True)
    return gradient[0].abs().sum(0)


def half_radius(field: Tensor, stride: int) -> float:
    """The distance in pixels from the middle within which half of a receptive field lies.

    Args:
        field: as :func:`receptive_field` gives it.
        stride: of the map whose middle it belongs to.
    """
    height, width = field.shape
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing='ij')
    middle = [(-(-side // stride) // 2 + 0.5) * stride for side in (height, width)]
    distance = ((y - middle[0]) ** 2 + (x - middle[1]) ** 2).sqrt().flatten()
    order = distance.argsort()
    held = field.cpu().flatten()[order].double().cumsum(0)
    return float(distance[order][int(torch.searchsorted(held, held[-1] / 2))])


def activation_maps(score: Tensor, maps: Sequence[Tensor], method: str = 'HiResCAM') -> list[Tensor]:
    """What speaks for a score in each of some maps: the sum of the channels times their gradients, above 0.

    HiResCAM (arXiv 2011.08891) takes each gradient where it is. Grad-CAM (arXiv 1610.02391, equations 1 and 2) takes
    their mean over all positions, made for classifiers: a box or a region of an image is lost in it.

    Args:
        score: a number computed from the maps.
        maps: ``(1, C, H, W)`` each.
        method: ``'HiResCAM'`` or ``'Grad-CAM'``.

    Returns:
        ``(H, W)`` each.
    """
    gradients = torch.autograd.grad(score, maps)
    if method == 'Grad-CAM':
        gradients = [gradient.mean((2, 3), keepdim=True) for gradient in gradients]
    return [(x * gradient).sum(1)[0].relu().detach() for x, gradient in zip(maps, gradients)]


@dataclass
class Sight:
    """What a model sees in one image.

    Attributes:
        image: ``(H, W, 3)`` in uint8 RGB, as large as the model's input, its padding black.
        prediction: ``(H, W, 3)`` in uint8 RGB, drawn by the framework's visualizer.
        stages: what is inside.
        category: the class of the activation maps, or ``''`` where nothing was found, or a detector's head gives no
            scores from which a gradient leads back.
        method: of these maps.
    """

    image: np.ndarray
    prediction: np.ndarray
    stages: list[Stage]
    category: str
    method: str


def look_at(
    model: nn.Module, image: str | Path, category: str | None = None, score_thr: float = 0.3, method: str = 'HiResCAM'
) -> Sight:
    """Records what a detector or segmentor sees in an image.

    The activation maps explain the log-odds of a detector's boxes of one class, of those from ``score_thr`` on or else
    of the best one; of a segmentor the sum of the logits where it predicts the class (arXiv 2002.11434).

    Args:
        model: as :func:`mmcasvit.get_model` gives it, with a :class:`mmcasvit.CASViT` as its ``backbone``.
        image: the file of an image.
        category: name of a class; by default that of the best box, or of the largest area.
        score_thr: boxes count, and are drawn, from this score on.
        method: of the activation maps, see :func:`activation_maps`.

    Raises:
        UsageError: the model is no such one, or has no such class.
    """
    scope, backbone = model.cfg.default_scope, getattr(model, 'backbone', None)
    if scope not in ('mmdet', 'mmseg') or not isinstance(backbone, CASViT):
        raise UsageError('what a model sees is shown of detectors and segmentors whose backbone is a CASViT.')
    names = list(model.dataset_meta['classes'])
    if category is not None and category not in names:
        raise UsageError(f'the model has no class {category!r}. Valid: {", ".join(names)}.')
    data = batch_of(model, image)
    maps = {str(i): stage for i, stage in enumerate(stages_of(backbone))}
    with torch.enable_grad(), recorded(maps) as outputs:
        score, label = _score(model, scope, data, names.index(category) if category else None, score_thr)
    stages = look_inside(backbone, data['inputs'])
    if score is not None:
        for stage, activation in zip(stages, activation_maps(score, [outputs[name] for name in maps], method)):
            stage.activation = activation
    with torch.no_grad():
        sample = model(**batch_of(model, image), mode='predict')[0]
    pixels = mmcv.imread(str(image), channel_order='rgb')
    height, width = sample.img_shape[:2]
    shown = mmcv.impad(mmcv.imresize(pixels, (width, height)), shape=tuple(data['inputs'].shape[2:]))
    return Sight(
        shown,
        draw_prediction(model, pixels, sample, score_thr),
        stages,
        names[label] if score is not None else '',
        method,
    )


def batch_of(model: nn.Module, image: str | Path) -> dict:
    """The file of an image as the model takes it, by the pipeline of its config, wherever the file lies."""
    steps = [
        step
        for step in next(leaf_datasets(model.cfg.test_dataloader.dataset)).pipeline
        if 'Annotations' not in step['type'] and step['type'] != 'mmcasvit.StayInFolders'
    ]
    return model.data_preprocessor(pseudo_collate([Compose(steps)(dict(img_path=str(image), img_id=0))]), False)


def _score(model: nn.Module, scope: str, data: dict, label: int | None, score_thr: float) -> tuple[Tensor | None, int]:
    """What is to be explained, and the class that it is about."""
    if scope == 'mmseg':
        logits = model(**data, mode='tensor')[0]  # (classes, H, W)
        predicted = logits.argmax(0)
        if label is None:
            label = int(predicted.flatten().bincount().argmax())
        where = predicted == label
        return (logits[label][where].sum() if where.any() else None), label
    found = model(**data, mode='predict')[0].pred_instances
    if label is None:
        if not len(found):
            return None, 0
        label = int(found.labels[found.scores.argmax()])
    if found.scores.requires_grad:
        logits = torch.logit(found.scores[found.labels == label], eps=1e-6)
    else:  # mmdet's one-stage heads detach what they decode
        logits = _dense_logits(model, data, label)
    if not len(logits):
        return None, label
    return logits[logits >= min(math.log(score_thr / (1 - score_thr)), float(logits.max()))].sum(), label


def _dense_logits(model: nn.Module, data: dict, label: int) -> Tensor:
    """What a one-stage head that judges each class by itself gives for one at all positions, or nothing."""
    head = getattr(model, 'bbox_head', None)
    if not getattr(head, 'use_sigmoid_cls', False):
        return torch.empty(0)
    return torch.cat(
        [x[0].unflatten(0, (-1, head.cls_out_channels))[:, label].flatten() for x in model(**data, mode='tensor')[0]]
    )


def draw_prediction(
    model: nn.Module, image: np.ndarray, sample: BaseDataElement, score_thr: float, opacity: float | None = None
) -> np.ndarray:
    """What a detector or segmentor found, drawn over the image by its framework's visualizer.

    Args:
        model: as :func:`mmcasvit.get_model` gives it.
        image: ``(H, W, 3)`` in uint8 RGB.
        sample: what the model gave for it.
        score_thr: boxes and masks are drawn above this score.
        opacity: of boxes, masks and segmentation, from 0 to 1; by default that of the config or its visualizer.

    Returns:
        ``(H, W, 3)`` in uint8 RGB.
    """
    settings = {**model.cfg.visualizer, 'name': 'visualizing', 'vis_backends': None}
    if opacity is not None:
        settings['alpha'] = opacity
    kind, scope = settings.pop('type'), settings.pop('_scope_', model.cfg.default_scope)
    if isinstance(kind, str):
        with VISUALIZERS.switch_scope_and_registry(scope) as registry:
            kind = registry.get(kind)
    visualizer = kind(**settings)  # the registry's build would return the first one of this name, whatever its settings
    visualizer.dataset_meta = model.dataset_meta
    threshold = dict(pred_score_thr=score_thr) if model.cfg.default_scope == 'mmdet' else dict(with_labels=False)
    visualizer.add_datasample('', image, sample, draw_gt=False, **threshold)
    return visualizer.get_image()


def draw(sight: Sight, path: str | Path) -> None:
    """Draws what a model sees as one figure: image and prediction above, a row for each stage below.

    Args:
        sight: of :func:`look_at`.
        path: of the figure; its suffix is one that matplotlib writes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = _columns(sight.stages)
    height, width = sight.image.shape[:2]
    cell = 1.75, 1.75 * height / width + 0.28
    figure = Figure(figsize=(cell[0] * len(columns) + 0.5, cell[1] * (len(sight.stages) + 1.6)), layout='constrained')
    FigureCanvasAgg(figure)
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


def _columns(stages: Sequence[Stage]) -> dict:
    """The columns for which there is something to show: their titles, and what draws a panel of them."""

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


def _map(axes, values: Tensor) -> str:
    values = values.float().cpu().numpy()
    axes.imshow(values, cmap='viridis')
    return f'{_short(values.min())} to {_short(values.max())}'


def _short(number: float) -> str:
    return f'{number:.0f}' if abs(number) >= 10 else '0' if abs(number) < 1e-5 else f'{number:.2g}'


def _channels(axes, stage: Stage, sight: Sight) -> str:
    """The four channels that vary most, each in its own range."""
    indices = stage.output.flatten(1).std(dim=1).topk(min(4, len(stage.output))).indices.sort().values
    maps = stage.output[indices].float().cpu()
    low, high = (f(maps.flatten(1), dim=1).values[:, None, None] for f in (torch.min, torch.max))
    maps = ((maps - low) / (high - low).clamp_min(1e-12)).numpy()
    # A white line between them, as wide at every size of map.
    maps = [mmcv.imresize(x, (120, round(120 * x.shape[0] / x.shape[1])), interpolation='nearest') for x in maps]
    maps = [np.pad(x, 1, constant_values=np.nan) for x in maps] * (4 // len(maps))
    axes.imshow(np.vstack([np.hstack(maps[:2]), np.hstack(maps[2:4])]), cmap='viridis')
    return 'no. ' + ', '.join(str(int(index)) for index in indices)


def _channel_gates(axes, stage: Stage, sight: Sight) -> str:
    for (letter, gates), colour in zip(stage.channel_gates.items(), ('#0072b2', '#d55e00')):
        axes.plot(np.sort(gates.float().cpu().numpy()), color=colour, linewidth=1.2, label=letter)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ['0', '', '1'], fontsize=6)
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis='y', linewidth=0.4)
    axes.set_box_aspect(sight.image.shape[0] / sight.image.shape[1])
    axes.legend(fontsize=6, frameon=False, loc='upper left', handlelength=1, borderaxespad=0.2)
    return 'channels, in order of their gate'


def _field(axes, stage: Stage, sight: Sight) -> str:
    # The square root, since few pixels have most of it.
    axes.imshow((stage.receptive_field / stage.receptive_field.max()).sqrt().cpu().numpy(), cmap='magma')
    return f'half within {half_radius(stage.receptive_field, stage.stride):.0f} px'


def _activation(axes, stage: Stage, sight: Sight) -> str:
    activation = F.interpolate(
        stage.activation[None, None].float().cpu(), sight.image.shape[:2], mode='bilinear', align_corners=False
    )[0]
    axes.imshow(Visualizer.draw_featmap(activation, sight.image, alpha=0.5))
    return f'0 to {_short(float(stage.activation.max()))}'
