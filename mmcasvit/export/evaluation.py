"""Evaluation of an exported model: it replaces the PyTorch model, so that the same metrics judge both."""

import copy
import math
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

from .comparison import detect, detections_of
from .formats import Exported
from .signature import Signature


@TRANSFORMS.register_module()
class ResizeInto(BaseTransform):
    """Transform that resizes an image to the largest size that fits, or to exactly that size.

    With the aspect ratio kept, mmcv's ``Resize`` reads its scale as a long and a short side, so a portrait image would
    not fit into a landscape size.

    Args:
        size: Size ``(height, width)`` to fit into.
        keep_ratio: Keep the aspect ratio.
    """

    def __init__(self, size: tuple[int, int], keep_ratio: bool = True):
        self.size, self.keep_ratio = size, keep_ratio

    def transform(self, results: dict) -> dict:
        if not self.keep_ratio:
            return Resize(scale=self.size[::-1]).transform(results)
        factor = min(side / given for side, given in zip(self.size, results['img'].shape))
        return Resize(scale=float(factor), keep_ratio=True).transform(results)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(size={self.size}, keep_ratio={self.keep_ratio})'


def _stretches(step: dict) -> bool:
    """Return whether a step of a pipeline resizes images without keeping their aspect ratio."""
    return step['type'].split('.')[-1] == 'Resize' and bool(step.get('scale')) and not step.get('keep_ratio', False)


def fitted_pipeline(pipeline: Sequence[dict], signature: Signature) -> list[dict]:
    """Return a test pipeline whose images fit a graph.

    To a fixed size they are resized by :class:`ResizeInto`, which keeps the aspect ratio unless the pipeline does not.
    """
    if signature.free_size:
        return list(pipeline)
    resize = dict(type='mmcasvit.ResizeInto', size=signature.size, keep_ratio=not any(map(_stretches, pipeline)))
    fitted = [resize if step['type'].endswith('Resize') else step for step in pipeline]
    return fitted if resize in fitted else [*fitted[:1], resize, *fitted[1:]]


def _begins(step: dict, prefix: str) -> bool:
    return step['type'].split('.')[-1].startswith(prefix)


def _without_annotations(pipeline: Sequence[dict]) -> list[dict]:
    """Return the steps of a pipeline that images without annotations pass."""
    return [step for step in pipeline if not _begins(step, 'Load') or 'Image' in step['type']]


def image_pipeline(cfg: Config, signature: Signature) -> list[dict]:
    """Return the test pipeline of a config, fitted to a graph, for images without annotations."""
    return _without_annotations(fitted_pipeline(cfg.test_dataloader.dataset.pipeline, signature))


def size_in_tests(pipeline: Sequence[dict], path: str | None = None) -> tuple[int, int]:
    """Return the size ``(height, width)`` that a test pipeline gives an image, rounded up to multiples of 32 pixels.

    Args:
        pipeline: Test pipeline of a config.
        path: Image file. By default, an image of 480x640 pixels, a common size in COCO.
    """
    steps = [step for step in _without_annotations(pipeline) if not _begins(step, 'Pack')]
    if path:
        return rounded_up(Compose(steps)(dict(img_path=path))['img'].shape)
    size = (480, 640)
    image = dict(img=np.zeros((*size, 3), np.uint8), img_shape=size, ori_shape=size)
    return rounded_up(Compose([step for step in steps if not _begins(step, 'Load')])(image)['img'].shape)


def rounded_up(shape: Sequence[int]) -> tuple[int, int]:
    """Return the first two sides of a shape, rounded up to multiples of 32."""
    height, width = (math.ceil(side / 32) * 32 for side in shape[:2])
    return height, width


def load_images(paths: Sequence[str], cfg: Config, signature: Signature) -> list[np.ndarray]:
    """Load images ``(H, W, 3)`` in uint8 BGR through the test pipeline of a config."""
    pipeline = Compose(image_pipeline(cfg, signature))
    return [pipeline(dict(img_path=path, img_id=i))['inputs'].permute(1, 2, 0).numpy() for i, path in enumerate(paths)]


class _ExportedBackbone(nn.Module):
    def __init__(self, exported: Exported):
        super().__init__()
        self.exported = exported

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        # mmcv's RoIAlign reads maps in channels_last format, as a runtime may return them, as if they were contiguous.
        return tuple(x.contiguous() for x in self.exported(_padded(image, self.exported.signature)).values())


def _padded(image: Tensor, signature: Signature) -> Tensor:
    """Pad an image ``(N, 3, H, W)`` with zeros, on the right and at the bottom, to a fixed size.

    Raises:
        UsageError: If the image is larger than that.
    """
    if signature.free_size or tuple(image.shape[2:]) == signature.size:
        return image
    bottom, right = (side - given for side, given in zip(signature.size, image.shape[2:]))
    if min(bottom, right) < 0:
        raise UsageError(
            f'an image of {image.shape[2]}x{image.shape[3]} does not fit into the exported size '
            f'{signature.size[0]}x{signature.size[1]}.'
        )
    return F.pad(image, (0, right, 0, bottom))


def _graph_input(image: Tensor, signature: Signature) -> Tensor:
    """Convert the output of a data preprocessor, normalized or BGR pixels, to the input of a graph."""
    image = _padded(image, signature)
    if signature.pixels is None:
        return image
    return (image.flip(1) if signature.pixels == 'rgb' else image).permute(0, 2, 3, 1).byte()


def substitute(model: nn.Module, exported: Exported, paste: bool = True) -> nn.Module:
    """Return a copy of a model in which an exported model does the computation.

    Args:
        model: Model of mmdet or mmseg with its data preprocessor and all parts that were not exported.
        exported: Exported backbone or model.
        paste: Bring the masks of whole detectors to the size of the image. Otherwise they stay as the file returns
            them.

    Raises:
        UsageError: If the two do not belong together.
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
                'a backbone that takes pixels cannot be evaluated: the model around it pads images that are '
                'already normalized. Export it without --preprocess.'
            )
        new.data_preprocessor = copy.copy(model.data_preprocessor)
        new.data_preprocessor._enable_normalize = new.data_preprocessor._channel_conversion = False
    if signature.what == 'backbone':
        _check_outputs(model.backbone, signature, exported.path)
        new.backbone = _ExportedBackbone(exported)
    elif kind == 'segmentor':
        new.encode_decode = lambda inputs, metas: _logits(exported, inputs, model.decode_head.out_channels)
    else:

        def predict(inputs: Sequence[Tensor], samples: list, rescale: bool = True) -> list:
            assert rescale, 'an exported model returns detections in pixels of the original image'
            return _predict(model, exported, inputs, samples, paste)

        new.predict = predict
    return new


def _check_outputs(backbone: nn.Module, signature: Signature, path: Path) -> None:
    expected = [f'stage{i + 1}' for i in backbone.out_indices]
    if list(signature.outputs) != expected:
        raise UsageError(
            f'{path} outputs {", ".join(signature.outputs)}, and the config expects {", ".join(expected)}.'
        )


def _logits(exported: Exported, inputs: Tensor, classes: int) -> Tensor:
    """Return logits ``(N, K, H, W)``. If a graph outputs classes, their logits are 1 and the others 0."""
    [found] = exported(_graph_input(inputs, exported.signature)).values()
    if exported.signature.argmax:
        found = F.one_hot(found.long(), classes).permute(0, 3, 1, 2).float()
    if exported.signature.resize:
        return F.interpolate(found, inputs.shape[2:], mode='bilinear', align_corners=False)
    return found[..., : inputs.shape[2], : inputs.shape[3]]


def _predict(model: nn.Module, exported: Exported, inputs: Tensor, samples: list, paste: bool) -> list:
    """Predict as the detector's own method does. Images of the same size run in one batch."""
    fed = []
    for image, sample in zip(inputs, samples):
        height, width = sample.img_shape[:2]
        fed.append(_graph_input(image[None, :, :height, :width], exported.signature))
    for shape in {image.shape for image in fed}:
        indices = [i for i, image in enumerate(fed) if image.shape == shape]
        found = detect(exported, model, torch.cat([fed[i] for i in indices]))
        for row, i in enumerate(indices):
            samples[i].pred_instances = _instances(model, found, row, samples[i], paste)
    return samples


def _instances(
    model: nn.Module, found: dict[str, Tensor], row: int, sample: BaseDataElement, paste: bool
) -> InstanceData:
    """Return the detections of one image of a batch, in pixels of the original image."""
    height, width = sample.img_shape[:2]
    # If the image was padded to a fixed size, boxes may extend into the padding.
    boxes = torch.minimum(found['boxes'], found['boxes'].new_tensor([width, height, width, height]))
    boxes = boxes / boxes.new_tensor(sample.scale_factor * 2)
    size = tuple(sample.ori_shape[:2]) if paste else None
    one = detections_of({**found, 'boxes': boxes}, row, size, model, sample.scale_factor)
    return InstanceData(bboxes=one.pop('boxes'), **one)
