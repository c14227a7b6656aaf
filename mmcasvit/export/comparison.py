"""Comparison of an exported model with the PyTorch model it was made from, run image by image by mmdet or mmseg."""

import functools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmcasvit.datasets.shapes import draw_scene
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.timing import Timer, interleave

from .formats import Exported
from .graphs import converts_to_rgb
from .signature import Signature

# Largest accepted difference from PyTorch. Continuous outputs: relative to the largest value of the output. Classes of
# pixels and detections: share of those that differ.
TOLERANCES = dict(fp32=1e-3, fp16=0.15, bf16=0.15, int8=0.5)
# Two detections are the same if they have the same label and at least this IoU.
SAME_IOU = 0.8


def synthetic_images(count: int, size: tuple[int, int]) -> list[np.ndarray]:
    """Draw images ``(H, W, 3)`` in uint8 BGR, the same in every call."""
    return [draw_scene(np.random.default_rng([0, i]), *size).image for i in range(count)]


def pad_to_size(image: np.ndarray, preprocessor: nn.Module, signature: Signature) -> np.ndarray:
    """Pad an image ``(H, W, 3)`` with the mean color, on the right and at the bottom, to the fixed size of a graph.

    Raises:
        UsageError: If the image is larger than that.
    """
    if signature.free_size:
        return image
    height, width = signature.size
    if image.shape[0] > height or image.shape[1] > width:
        raise UsageError(
            f'an image of {image.shape[0]}x{image.shape[1]} does not fit into the exported size {height}x{width}.'
        )
    mean = preprocessor.mean.flatten().round().byte().tolist()
    padded = np.empty((height, width, 3), np.uint8)
    padded[:] = mean[::-1] if converts_to_rgb(preprocessor) else mean
    padded[: image.shape[0], : image.shape[1]] = image
    return padded


def _to_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]


def graph_input(image: np.ndarray, preprocessor: nn.Module, signature: Signature) -> Tensor:
    """Convert an image ``(H, W, 3)`` in uint8 BGR to the input of a graph, padded to its fixed size."""
    image = pad_to_size(image, preprocessor, signature)
    if signature.pixels is not None:
        ordered = image[..., ::-1] if signature.pixels == 'rgb' else image
        return torch.from_numpy(np.ascontiguousarray(ordered))[None]
    return normalize(_to_tensor(image), preprocessor)


def normalize(image: Tensor, preprocessor: nn.Module) -> Tensor:
    """Normalize an image ``(1, 3, H, W)`` in BGR by the data preprocessor of a model, without its padding."""
    data = preprocessor(dict(inputs=[image[0]], data_samples=[BaseDataElement()]), False)
    return data['inputs'][..., : image.shape[2], : image.shape[3]]


class Reference:
    """PyTorch model, run on one image as its framework does, with outputs named as in the graph.

    Args:
        model: Model with its data preprocessor, in eval mode.
        signature: Signature of the graph to compare with.
    """

    def __init__(self, model: nn.Module, signature: Signature):
        self.model, self.signature = model, signature

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> dict[str, Tensor]:
        x = _to_tensor(image)
        if self.signature.resize:
            x = F.interpolate(x.float(), self.signature.size, mode='bilinear', align_corners=False)
        if self.signature.what == 'detector':
            return self._detect(x, image.shape[:2])
        names, x = self.signature.outputs, normalize(x, self.model.data_preprocessor)
        if self.signature.what == 'backbone':
            return dict(zip(names, self.model.backbone(x)))
        logits = self.model.encode_decode(x, [dict(img_shape=x.shape[2:])])
        return {names[0]: logits.argmax(1) if self.signature.argmax else logits}

    def _detect(self, x: Tensor, original: tuple[int, int]) -> dict[str, Tensor]:
        from mmdet.structures import DetDataSample

        size = tuple(x.shape[2:])
        scale = tuple(new / old for new, old in zip(size[::-1], original[::-1]))
        sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=original, scale_factor=scale))
        data = self.model.data_preprocessor(dict(inputs=[x[0]], data_samples=[sample]), False)
        found = self.model.predict(data['inputs'], data['data_samples'])[0].pred_instances
        result = dict(boxes=found.bboxes, scores=found.scores, labels=found.labels)
        if 'masks' in found:
            result['masks'] = found.masks
        return result


def detect(exported: Exported, model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Run an exported detector. If its file ends at the head, decode and select the boxes as mmdet does.

    Args:
        exported: Exported detector.
        model: Detector of mmdet it was made from.
        x: Input of the graph.

    Returns:
        The outputs of :class:`~mmcasvit.export.graphs.DetectorGraph`, whose D may be smaller.
    """
    signature = exported.signature
    if not signature.ends_at_head:
        return exported(x)
    size = tuple(x.shape[2:] if signature.pixels is None else x.shape[1:3])
    if signature.dynamic_size:
        bottom, right = (-side % model.data_preprocessor.pad_size_divisor for side in size)
        x = F.pad(x, (0, right, 0, bottom))
    outputs: dict[str, list[Tensor]] = {}
    for name, maps in exported(x).items():
        outputs.setdefault(name.rsplit('_', 1)[0], []).append(maps)
    metas = [dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))] * len(x)
    with torch.no_grad():
        found = model.bbox_head.predict_by_feat(*outputs.values(), batch_img_metas=metas, rescale=False)
    return {
        name: pad_sequence([one[key] for one in found], batch_first=True, padding_value=value)
        for name, key, value in (('boxes', 'bboxes', 0), ('scores', 'scores', 0), ('labels', 'labels', -1))
    }


def detections_of(
    found: dict[str, Tensor],
    index: int,
    size: tuple[int, int] | None,
    model: nn.Module,
    scale: tuple[float, float] = (1.0, 1.0),
) -> dict[str, Tensor]:
    """Return the detections of one image, without empty rows and with full-size masks.

    Args:
        found: Outputs of a graph.
        index: Index of the image in the batch.
        size: Size ``(height, width)`` of the masks. If None, they stay as the graph returns them.
        model, scale: See :func:`paste_masks`.
    """
    one = {name: out[index][found['scores'][index] > 0] for name, out in found.items()}
    if 'masks' in one and size is not None:
        one['masks'] = paste_masks(one['masks'], one['boxes'], size, model, scale)
    return one


def paste_masks(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], model: nn.Module, scale: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """Bring masks to the size of an image as mmdet does: ``(D, H, W)``, boolean.

    Args:
        masks: ``(D, 28, 28)`` or ``(D, H_1, W_1)``, as :class:`~mmcasvit.export.graphs.DetectorGraph` returns them.
        boxes: ``(D, 4)`` in pixels of the image.
        size: Size ``(height, width)`` of the image.
        model: Detector of mmdet, whose mask head and threshold are used.
        scale: Factors ``(width, height)`` by which the image was resized for the graph.
    """
    if not len(masks):
        return torch.zeros(0, *size, dtype=torch.bool)
    if not hasattr(model, 'roi_head'):  # RTMDet-Ins, whose masks cover the padded input of the graph
        logits = F.interpolate(masks[None], scale_factor=model.bbox_head.prior_generator.strides[0][0], mode='bilinear')
        enlarged = [math.ceil(side * (1 / factor)) for side, factor in zip(logits.shape[2:], reversed(scale))]
        logits = F.interpolate(logits, enlarged, mode='bilinear', align_corners=False)
        return logits[0, :, : size[0], : size[1]].sigmoid() > model.bbox_head.test_cfg.mask_thr_binary
    # A graph outputs one mask per box, that of its class. To the mask head all boxes get the first class.
    return model.roi_head.mask_head._predict_by_feat_single(
        masks[:, None].logit(),
        boxes.clone(),
        torch.zeros(len(masks), dtype=torch.long),
        dict(scale_factor=(1.0, 1.0), ori_shape=size),
        ConfigDict(mask_thr_binary=model.roi_head.test_cfg.mask_thr_binary),
        rescale=True,
    )


@dataclass
class Difference:
    """Largest difference between an exported model and PyTorch so far, by name of the output."""

    by_output: dict[str, float] = field(default_factory=dict)

    def note(self, name: str, value: float) -> None:
        value = math.inf if math.isnan(value) else value
        self.by_output[name] = max(value, self.by_output.get(name, 0.0))

    @property
    def largest(self) -> float:
        return max(self.by_output.values())

    def add(self, found: dict[str, Tensor], expected: dict[str, Tensor], diagonal: float) -> None:
        """Add the outputs for one image; those of a detector as :func:`detections_of` returns them."""
        if 'boxes' in expected:
            self._add_detections(found, expected, diagonal)
            return
        for name, right in expected.items():
            if right.is_floating_point():
                self.note(name, _relative(found[name], right))
            else:
                self.note(name, float((found[name] != right).float().mean()))

    def _add_detections(self, found: dict[str, Tensor], expected: dict[str, Tensor], diagonal: float) -> None:
        from mmdet.structures.bbox import bbox_overlaps

        overlap = bbox_overlaps(found['boxes'], expected['boxes'])
        overlap[found['labels'][:, None] != expected['labels'][None]] = 0
        pairs, free = [], torch.ones(len(expected['scores']), dtype=torch.bool)
        for i, row in enumerate(overlap):
            row = row * free
            if len(row) and row.max() >= SAME_IOU:
                j = int(row.argmax())
                free[j] = False
                pairs.append((i, j))
        left, right = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
        total = float(found['scores'].sum() + expected['scores'].sum())
        matched = float(found['scores'][left].sum() + expected['scores'][right].sum())
        self.note('detections', (total - matched) / total if total else 0.0)
        for name, scale in (('boxes', diagonal), ('scores', 1.0)):
            gap = (found[name][left] - expected[name][right]).abs()
            self.note(name, float(gap.max()) / scale if len(pairs) else 0.0)
        if 'masks' in expected:
            union = (found['masks'][left] | expected['masks'][right]).sum()
            self.note('masks', float((found['masks'][left] ^ expected['masks'][right]).sum() / union.clamp(min=1)))


def _relative(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest expected value."""
    if found.shape != expected.shape:
        return math.inf
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def compare(exported: Exported, model: nn.Module, images: Sequence[np.ndarray]) -> Difference:
    """Run an exported model and PyTorch on the same images and compare the outputs.

    Args:
        exported: Exported model.
        model: Model it was made from, with its data preprocessor, in eval mode.
        images: Images ``(H, W, 3)`` in uint8 BGR.
    """
    difference, reference = Difference(), Reference(model, exported.signature)
    for image in images:
        image = pad_to_size(image, model.data_preprocessor, exported.signature)
        expected = reference(image)
        x = graph_input(image, model.data_preprocessor, exported.signature)
        if exported.signature.what == 'detector':
            found = detections_of(detect(exported, model, x), 0, image.shape[:2], model)
        else:
            found = exported(x)
        difference.add(found, expected, math.hypot(*image.shape[:2]))
    return difference


def measure_latency(exported: Exported, model: nn.Module, image: np.ndarray, threads: int) -> tuple[float, float]:
    """Return the median milliseconds of an exported model and of PyTorch on one image, measured in turns."""
    image = pad_to_size(image, model.data_preprocessor, exported.signature)
    x, reference = graph_input(image, model.data_preprocessor, exported.signature), Reference(model, exported.signature)
    run = functools.partial(detect, exported, model) if exported.signature.what == 'detector' else exported
    runs = dict(exported=lambda: run(x), pytorch=lambda: reference(image))
    samples = interleave({name: Timer(run, 'cpu', threads) for name, run in runs.items()}, rounds=5)
    return 1000 * statistics.median(samples['exported']), 1000 * statistics.median(samples['pytorch'])


def report(
    exported: Exported, model: nn.Module, images: Sequence[np.ndarray], tolerance: float | None, threads: int
) -> tuple[dict[str, object], str]:
    """Compare outputs and latency of an exported model with PyTorch's.

    Args:
        exported: Exported model.
        model: Model it was made from, with its data preprocessor, in eval mode.
        images: Images ``(H, W, 3)`` in uint8 BGR.
        tolerance: Largest accepted difference. Defaults to that of the precision.
        threads: Number of threads of both.

    Returns:
        A row for a table, and what differs by more than the tolerance, or an empty string.
    """
    difference, precision = compare(exported, model, images), exported.signature.precision
    tolerance = TOLERANCES[precision] if tolerance is None else tolerance
    milliseconds, pytorch = measure_latency(exported, model, images[0], threads)
    row = {
        'file': exported.path.name,
        'precision': precision,
        'MiB': f'{exported.bytes / 2**20:.2f}',
        'images': len(images),
        **{f'difference of {name}': f'{value:.1e}' for name, value in difference.by_output.items()},
        'tolerance': f'{tolerance:g}',
        'ms': milliseconds,
        'PyTorch, ms': pytorch,
    }
    if difference.largest <= tolerance:
        return row, ''
    name = max(difference.by_output, key=difference.by_output.__getitem__)
    return row, (
        f'{exported.path} differs from PyTorch by {difference.largest:.2g} in {name}, and the tolerance is '
        f'{tolerance:g}'
    )
