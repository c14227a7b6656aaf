"""Masks and labels at the size of an uploaded image, computed piece by piece so that memory stays bounded.

Pasting the masks of 100 detections, or scaling the logits of 150 classes, at once takes gigabytes for a large image.
"""

import threading
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn

from mmcasvit.export.comparison import paste_masks
from mmcasvit.utils.errors import Refused
from mmcasvit.utils.masks import encode_mask

# Maximum number of logits at full size at a time, unless a single class has more.
LOGITS_AT_ONCE = 2**24


def check_wanted(gone: threading.Event | None) -> None:
    """End the work on an answer for which nobody waits any more.

    Args:
        gone: Event that is set when the request has ended.

    Raises:
        Refused: If it is set.
    """
    if gone is not None and gone.is_set():
        raise Refused(504, 'nobody waits for this answer any more.')


def encode_masks(
    instances: InstanceData,
    size: tuple[int, int],
    model: nn.Module,
    gone: threading.Event | None,
    scale: tuple[float, float] = (1.0, 1.0),
) -> Iterator[dict]:
    """Yield the mask of each detection in COCO's run-length encoding. One mask at a time has its full size.

    Args:
        instances: Detections with masks as the graph returns them.
        size, model, scale: See :func:`mmcasvit.export.comparison.paste_masks`.
        gone: See :func:`check_wanted`.
    """
    for i in range(len(instances)):
        check_wanted(gone)
        one = slice(i, i + 1)
        yield encode_mask(paste_masks(instances.masks[one], instances.bboxes[one], size, model, scale)[0].numpy())


def keep_logits(logits: Tensor, samples: Sequence[BaseDataElement]) -> list[BaseDataElement]:
    """Replace mmseg's ``postprocess_result``: keep the logits at the size at which they were computed.

    Args:
        logits: ``(N, K, H, W)``.
        samples: Samples of the images, in which the logits are put without padding and flip.
    """
    for one, sample in zip(logits, samples):
        height, width = one.shape[1:]
        left, right, top, bottom = sample.get('img_padding_size', sample.get('padding_size', [0] * 4))
        one = one[:, top : height - bottom, left : width - right]
        if sample.get('flip'):
            one = one.flip(2 if sample.flip_direction == 'horizontal' else 1)
        sample.seg_logits = PixelData(data=one)
    return list(samples)


def labels_of(logits: Tensor, size: tuple[int, int], model: nn.Module, gone: threading.Event | None = None) -> Tensor:
    """Return the label of each pixel, as mmseg computes it from logits scaled to the size of the image.

    Args:
        logits: ``(K, h, w)``.
        size: Size ``(height, width)`` of the image.
        model: Segmentor of mmseg, whose ``align_corners`` and threshold are used.
        gone: As in :func:`check_wanted`.

    Returns:
        ``(height, width)``, in int16 if there are over 256 classes and otherwise in uint8.
    """
    classes, pixels = len(logits), size[0] * size[1]

    def scaled(part: Tensor) -> Tensor:
        check_wanted(gone)
        return F.interpolate(part[None], size, mode='bilinear', align_corners=model.align_corners)[0]

    if classes == 1:
        return (scaled(logits)[0].sigmoid() > model.decode_head.threshold).byte()
    labels = torch.zeros(size, dtype=torch.uint8 if classes <= 256 else torch.int16)
    best = torch.full(size, -torch.inf)
    step = max(1, LOGITS_AT_ONCE // pixels)
    for first in range(0, classes, step):
        values, index = scaled(logits[first : first + step]).max(0)
        better = values > best  # of equal ones the first class stays, as with argmax
        labels = torch.where(better, index.to(labels.dtype).add_(first), labels)
        best = torch.maximum(best, values)
    return labels
