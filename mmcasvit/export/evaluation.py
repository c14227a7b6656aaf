"""Runs an exported model in the place of the model it was made of, so that the same metrics judge both."""

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.transforms import BaseTransform, Resize
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn

from mmcasvit.registry import TRANSFORMS
from mmcasvit.utils.errors import UsageError

from .comparison import detections_of
from .formats import Exported
from .signature import Signature


@TRANSFORMS.register_module()
class ResizeInto(BaseTransform):
    """Scales a picture in its own proportions until it fills a size in one direction.

    mmcv's ``Resize`` takes its scale for a long and a short side, so that an upright picture would not fit into a size
    that is wider than high.

    Args:
        size: ``(height, width)``.
    """

    def __init__(self, size: tuple[int, int]):
        self.size = size

    def transform(self, results: dict) -> dict:
        factor = min(side / given for side, given in zip(self.size, results['img'].shape))
        return Resize(scale=float(factor), keep_ratio=True).transform(results)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(size={self.size})'


def fitted_pipeline(pipeline: Sequence[dict], signature: Signature) -> list[dict]:
    """A test pipeline whose pictures fit a graph: into a fixed size they are scaled, in their own proportions."""
    if signature.free_size:
        return list(pipeline)
    resize = dict(type='mmcasvit.ResizeInto', size=signature.size)
    fitted = [resize if step['type'].endswith('Resize') else step for step in pipeline]
    return fitted if resize in fitted else [*fitted[:1], resize, *fitted[1:]]


def picture_pipeline(cfg: Config, signature: Signature) -> list[dict]:
    """The test pipeline of a config, fitted to a graph, for pictures without annotations."""
    return [
        step
        for step in fitted_pipeline(cfg.test_dataloader.dataset.pipeline, signature)
        if not step['type'].startswith('Load') or 'Image' in step['type']
    ]


def load_pictures(paths: Sequence[str], cfg: Config, signature: Signature) -> list[np.ndarray]:
    """Reads pictures through the config's own test pipeline: ``(H, W, 3)`` each, in uint8 BGR."""
    pipeline = Compose(picture_pipeline(cfg, signature))
    return [pipeline(dict(img_path=path, img_id=i))['inputs'].permute(1, 2, 0).numpy() for i, path in enumerate(paths)]


class _ExportedBackbone(nn.Module):
    """An exported backbone in the place of one in PyTorch."""

    def __init__(self, exported: Exported):
        super().__init__()
        self.exported = exported

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.exported(_padded(image, self.exported.signature)).values())


def _padded(image: Tensor, signature: Signature) -> Tensor:
    """An image ``(N, 3, H, W)`` with zeros on the right and at the bottom, up to a fixed size.

    Raises:
        UsageError: it is larger than that.
    """
    if signature.free_size or tuple(image.shape[2:]) == signature.size:
        return image
    bottom, right = (side - given for side, given in zip(signature.size, image.shape[2:]))
    if min(bottom, right) < 0:
        raise UsageError(
            f'an image of {image.shape[2]}x{image.shape[3]} does not fit the exported '
            f'{signature.size[0]}x{signature.size[1]}.'
        )
    return F.pad(image, (0, right, 0, bottom))


def _fed(image: Tensor, signature: Signature) -> Tensor:
    """What a data preprocessor gives, as the graph takes it: normalised, or pixels where the graph normalises."""
    image = _padded(image, signature)
    if signature.pixels is None:
        return image
    return (image.flip(1) if signature.pixels == 'rgb' else image).permute(0, 2, 3, 1).byte()


def substitute(model: nn.Module, exported: Exported) -> nn.Module:
    """A copy of a model that lets an exported one compute.

    Args:
        model: of mmdet or mmseg, with its data preprocessor and whatever of it was not exported.
        exported: the backbone or the whole of it.

    Raises:
        UsageError: the two do not belong together.
    """
    signature = exported.signature
    kind = 'segmentor' if hasattr(model, 'encode_decode') else 'detector'
    if signature.what not in ('backbone', kind):
        raise UsageError(f'{exported.path} holds a {signature.what}, and the config has a {kind}.')
    new = copy.copy(model)
    new._modules = dict(model._modules)
    if signature.pixels is not None:
        if signature.what == 'backbone':
            raise UsageError(
                'a backbone that takes pixels cannot be evaluated within a model, which pads what is '
                'normalised already: export it without --preprocess.'
            )
        new.data_preprocessor = copy.copy(model.data_preprocessor)
        new.data_preprocessor._enable_normalize = new.data_preprocessor._channel_conversion = False
    if signature.what == 'backbone':
        _check_outputs(model.backbone, signature, exported.path)
        new.backbone = _ExportedBackbone(exported)
    elif kind == 'segmentor':
        new.encode_decode = lambda inputs, metas: _logits(exported, inputs, model.decode_head.out_channels)
    else:
        new.predict = lambda inputs, samples, rescale=True: _predict(model, exported, inputs, samples, rescale)
    return new


def _check_outputs(backbone: nn.Module, signature: Signature, path: Path) -> None:
    expected = [f'stage{i + 1}' for i in backbone.out_indices]
    if list(signature.outputs) != expected:
        raise UsageError(f'{path} gives {", ".join(signature.outputs)}, and the config wants {", ".join(expected)}.')


def _logits(exported: Exported, inputs: Tensor, classes: int) -> Tensor:
    """Logits ``(N, K, H, W)``; classes of a graph that gives these count as logits of 0 and 1."""
    [found] = exported(_fed(inputs, exported.signature)).values()
    if exported.signature.argmax:
        found = F.one_hot(found.long(), classes).permute(0, 3, 1, 2).float()
    if exported.signature.resize:
        return F.interpolate(found, inputs.shape[2:], mode='bilinear', align_corners=False)
    return found[..., : inputs.shape[2], : inputs.shape[3]]


def _predict(model: nn.Module, exported: Exported, inputs: Tensor, samples: list, rescale: bool) -> list:
    """What a detector's ``predict`` does; each image has its own padding and scale, those of one size run together."""
    assert rescale, 'detections of an exported model are those of the picture as it was read'
    fed = []
    for image, sample in zip(inputs, samples):
        height, width = sample.img_shape[:2]
        fed.append(_fed(image[None, :, :height, :width], exported.signature))
    for shape in {image.shape for image in fed}:
        numbers = [i for i, image in enumerate(fed) if image.shape == shape]
        found = exported(torch.cat([fed[i] for i in numbers]))
        for row, number in enumerate(numbers):
            samples[number].pred_instances = _instances(model, found, row, samples[number])
    return samples


def _instances(model: nn.Module, found: dict[str, Tensor], row: int, sample: BaseDataElement) -> InstanceData:
    """The detections of one image of a batch, in pixels of the picture as it was read."""
    mask_head = model.roi_head.mask_head if getattr(model, 'with_mask', False) else None
    threshold = model.roi_head.test_cfg.mask_thr_binary if mask_head is not None else 0.5
    height, width = sample.img_shape[:2]
    # Of a picture that was padded to a fixed size, boxes may reach into the padding.
    boxes = torch.minimum(found['boxes'], found['boxes'].new_tensor([width, height, width, height]))
    boxes = boxes / boxes.new_tensor(sample.scale_factor * 2)
    one = detections_of({**found, 'boxes': boxes}, row, tuple(sample.ori_shape[:2]), mask_head, threshold)
    return InstanceData(bboxes=one.pop('boxes'), **one)
