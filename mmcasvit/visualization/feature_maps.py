"""Feature maps of a CAS-ViT on an image: gates, context, receptive fields and class activation maps."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from torch import Tensor, nn

from mmcasvit.models.casvit import AdditiveTokenMixer, CASViT, ChannelGate, SpatialGate
from mmcasvit.utils.errors import UsageError

from .predictions import batch_of, draw_prediction


@dataclass
class Stage:
    """Maps of one stage, without the batch dimension.

    Attributes:
        stride: Stride of the maps in pixels.
        output: ``(C, H, W)``, the output of the last block.
        context: ``(C, H, W)``, the additive context map of the last block, which multiplies the values. For another
            token mixer, its output.
        spatial_gates: ``(H, W)`` each, for query ``q`` and key ``k`` of the last block. Empty without such gates.
        channel_gates: ``(C, )`` each, for the same. Empty without such gates.
        receptive_field: ``(H_in, W_in)``, see :func:`receptive_field`.
        activation: ``(H, W)``, see :func:`activation_maps`, or None.
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
    """Yield a dict that records the latest output of each module inside the context."""
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
    """Return the stages of a backbone, each a sequence of blocks."""
    return list(backbone.network[::2])


def _parts(stage: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a stage whose outputs are recorded."""
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
    """Record the maps and the receptive field of every stage for one image.

    Args:
        backbone: Backbone in eval mode.
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
    """Compute the effective receptive field of the center of a map on one image (arXiv 1701.04128, section 3).

    It is the gradient of the sum of all channels at the center. Its absolute values are summed over the channels of the
    input.

    Args:
        x: Input, ``(1, C_in, H_in, W_in)``.
        output: Map computed from it, ``(1, C, H, W)``.

    Returns:
        ``(H_in, W_in)``.
    """
    center = output[0, :, output.shape[2] // 2, output.shape[3] // 2].sum()
    (gradient,) = torch.autograd.grad(center, x, retain_graph=True)
    return gradient[0].abs().sum(0)


def half_radius(field: Tensor, stride: int) -> float:
    """Return the distance in pixels from the center within which half of a receptive field lies.

    Args:
        field: Receptive field, ``(H_in, W_in)``.
        stride: Stride of the map in pixels.
    """
    height, width = field.shape
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing='ij')
    center = [(-(-side // stride) // 2 + 0.5) * stride for side in (height, width)]
    distance = ((y - center[0]) ** 2 + (x - center[1]) ** 2).sqrt().flatten()
    order = distance.argsort()
    held = field.cpu().flatten()[order].double().cumsum(0)
    return float(distance[order][int(torch.searchsorted(held, held[-1] / 2))])


def activation_maps(score: Tensor, maps: Sequence[Tensor], method: str = 'HiResCAM') -> list[Tensor]:
    """Compute how much each position of maps contributes to a score: channels times gradients, summed, above 0.

    HiResCAM (arXiv 2011.08891) uses the gradient at each position. Grad-CAM (arXiv 1610.02391, equations 1 and 2) uses
    the mean gradient over all positions. It was made for classifiers, and loses the place of a box or region.

    Args:
        score: Scalar computed from the maps.
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
    """Feature maps and prediction of a model for one image.

    Attributes:
        image: ``(H, W, 3)`` in uint8 RGB, the size of the model's input, with black padding.
        prediction: ``(H, W, 3)`` in uint8 RGB, drawn by the visualizer of the framework.
        stages: Maps of each stage.
        category: Class of the activation maps. ``''`` if nothing was found, or if the scores of a detector's head have
            no gradient.
        method: Method of the activation maps.
    """

    image: np.ndarray
    prediction: np.ndarray
    stages: list[Stage]
    category: str
    method: str


def look_at(
    model: nn.Module, image: str | Path, category: str | None = None, score_thr: float = 0.3, method: str = 'HiResCAM'
) -> Sight:
    """Record the feature maps and the prediction of a detector or segmentor for an image.

    The activation maps of a detector explain the log-odds of its boxes of one class: of those that reach ``score_thr``,
    or else of the best one. Those of a segmentor explain the sum of the logits where it predicts the class (arXiv
    2002.11434).

    Args:
        model: Model of :func:`mmcasvit.get_model` whose ``backbone`` is a :class:`mmcasvit.CASViT`.
        image: Image file.
        category: Name of a class. The default is the class of the best box, or of the largest area.
        score_thr: Minimum score of boxes.
        method: Method of the activation maps, see :func:`activation_maps`.

    Raises:
        UsageError: If the model is of another kind or has no such class.
    """
    scope, backbone = model.cfg.default_scope, getattr(model, 'backbone', None)
    if scope not in ('mmdet', 'mmseg') or not isinstance(backbone, CASViT):
        raise UsageError('feature maps are shown of detectors and segmentors whose backbone is a CASViT.')
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


def _score(model: nn.Module, scope: str, data: dict, label: int | None, score_thr: float) -> tuple[Tensor | None, int]:
    """Return the score that activation maps explain, and the label of its class."""
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
    else:  # one-stage heads of mmdet detach the boxes they decode
        logits = _dense_logits(model, data, label)
    if not len(logits):
        return None, label
    return logits[logits >= min(math.log(score_thr / (1 - score_thr)), float(logits.detach().max()))].sum(), label


def _dense_logits(model: nn.Module, data: dict, label: int) -> Tensor:
    """Return the logits of a class at all positions of a one-stage head, or an empty tensor for other models.

    With softmax, the logit of a probability is the distance to the logarithm of the sum of the others' exponentials.
    """
    head: Any = getattr(model, 'bbox_head', None)
    if not hasattr(head, 'use_sigmoid_cls'):
        return torch.empty(0)
    maps = [x[0].unflatten(0, (-1, head.cls_out_channels)) for x in model(**data, mode='tensor')[0]]
    if head.use_sigmoid_cls:
        return torch.cat([x[:, label].flatten() for x in maps])
    others = [torch.cat([x[:, :label], x[:, label + 1 :]], 1).logsumexp(1) for x in maps]
    return torch.cat([(x[:, label] - other).flatten() for x, other in zip(maps, others)])
