"""Compares an exported model with the model in PyTorch, as mmdet and mmseg run it, picture by picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmcasvit.datasets.shapes import draw_scene
from mmcasvit.utils.errors import UsageError

from .formats import Exported
from .graphs import converts_to_rgb
from .signature import Signature

# How far outputs may be from PyTorch's: numbers relative to the largest one of the output, decisions (classes of
# pixels, detections) by the share that is another one.
TOLERANCES = dict(fp32=1e-3, fp16=0.15, bf16=0.15, int8=0.5)
# Two detections are the same if they have the same label and overlap at least so much.
SAME_IOU = 0.8


def drawn_pictures(count: int, size: tuple[int, int]) -> list[np.ndarray]:
    """Made-up pictures, the same every time: ``(H, W, 3)`` in uint8 BGR."""
    return [draw_scene(np.random.default_rng([0, i]), *size).image for i in range(count)]


def fit(picture: np.ndarray, preprocessor: nn.Module, signature: Signature) -> np.ndarray:
    """Pads a picture with the mean colour, on the right and at the bottom, to the fixed size of a graph.

    Raises:
        UsageError: it is larger than that.
    """
    if signature.free_size:
        return picture
    height, width = signature.size
    if picture.shape[0] > height or picture.shape[1] > width:
        raise UsageError(
            f'a picture of {picture.shape[0]}x{picture.shape[1]} does not fit the exported {height}x{width}.'
        )
    mean = preprocessor.mean.flatten().round().byte().tolist()
    fitted = np.empty((height, width, 3), np.uint8)
    fitted[:] = mean[::-1] if converts_to_rgb(preprocessor) else mean
    fitted[: picture.shape[0], : picture.shape[1]] = picture
    return fitted


def feed(picture: np.ndarray, preprocessor: nn.Module, signature: Signature) -> Tensor:
    """A picture ``(H, W, 3)`` in uint8 BGR as the graph of a signature takes it."""
    if signature.pixels is not None:
        ordered = picture[..., ::-1] if signature.pixels == 'rgb' else picture
        return torch.from_numpy(np.ascontiguousarray(ordered))[None]
    return normalised(torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None], preprocessor)


def normalised(image: Tensor, preprocessor: nn.Module) -> Tensor:
    """``(1, 3, H, W)`` in BGR as the data preprocessor of a model normalises it, without its padding."""
    data = preprocessor(dict(inputs=[image[0]], data_samples=[BaseDataElement()]), False)
    return data['inputs'][..., : image.shape[2], : image.shape[3]]


class Reference:
    """A model in PyTorch, run as its framework runs it on one picture, with outputs named as in the graph.

    Args:
        model: with its data preprocessor, in eval mode.
        signature: of the graph it is compared with.
    """

    def __init__(self, model: nn.Module, signature: Signature):
        self.model, self.signature = model, signature

    @torch.no_grad()
    def __call__(self, picture: np.ndarray) -> dict[str, Tensor]:
        image = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]
        if self.signature.resize:
            image = F.interpolate(image.float(), self.signature.size, mode='bilinear', align_corners=False)
        names = self.signature.outputs
        if self.signature.what == 'backbone':
            return dict(zip(names, self.model.backbone(normalised(image, self.model.data_preprocessor))))
        if self.signature.what == 'segmentor':
            logits = self.model.encode_decode(
                normalised(image, self.model.data_preprocessor), [dict(img_shape=image.shape[2:])]
            )
            return {names[0]: logits.argmax(1) if self.signature.argmax else logits}
        return self._detect(image, picture.shape[:2])

    def _detect(self, image: Tensor, given: tuple[int, int]) -> dict[str, Tensor]:
        from mmdet.structures import DetDataSample

        size = tuple(image.shape[2:])
        sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
        data = self.model.data_preprocessor(dict(inputs=[image[0]], data_samples=[sample]), False)
        found = self.model.predict(data['inputs'], data['data_samples'], rescale=False)[0].pred_instances
        ratio = found.bboxes.new_tensor([given[1] / size[1], given[0] / size[0]] * 2)
        result = dict(boxes=found.bboxes * ratio, scores=found.scores, labels=found.labels)
        if 'masks' in found:
            result['masks'] = found.masks
        return result


def detections_of(
    found: dict[str, Tensor],
    number: int,
    size: tuple[int, int] | None = None,
    mask_head: nn.Module | None = None,
    threshold: float = 0.5,
) -> dict[str, Tensor]:
    """The detections of one image without the rows that only fill the table up, masks pasted into the picture.

    Args:
        found: outputs of a graph.
        number: of the image.
        size: ``(height, width)`` of the picture that masks are pasted into.
        mask_head: of mmdet, which pastes them.
        threshold: from which probability on a pixel belongs to a mask.
    """
    one = {name: out[number][found['scores'][number] > 0] for name, out in found.items()}
    if 'masks' in one:
        one['masks'] = paste(one['masks'], one['boxes'], size, mask_head, threshold)
    return one


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int], mask_head: nn.Module, threshold: float) -> Tensor:
    """Masks ``(D, 28, 28)`` in their boxes as mmdet pastes them: ``(D, H, W)``, boolean."""
    from mmengine.config import ConfigDict

    if not len(masks):
        return torch.zeros(0, *size, dtype=torch.bool)
    # As if all had the first class: of a graph only the mask of the right class comes out.
    return mask_head._predict_by_feat_single(
        masks[:, None].logit(),
        boxes.clone(),
        torch.zeros(len(masks), dtype=torch.long),
        dict(scale_factor=(1.0, 1.0), ori_shape=size),
        ConfigDict(mask_thr_binary=threshold),
        rescale=True,
    )


@dataclass
class Difference:
    """The largest difference so far between an exported model and PyTorch, by name of the output."""

    by_output: dict[str, float] = field(default_factory=dict)

    def note(self, name: str, value: float) -> None:
        value = math.inf if math.isnan(value) else value
        self.by_output[name] = max(value, self.by_output.get(name, 0.0))

    @property
    def largest(self) -> float:
        return max(self.by_output.values())

    def add(self, found: dict[str, Tensor], wanted: dict[str, Tensor], diagonal: float) -> None:
        """Compares the outputs for one picture; those of a detector as :func:`detections_of` gives them."""
        if 'boxes' in wanted:
            self._add_detections(found, wanted, diagonal)
            return
        for name, right in wanted.items():
            if right.is_floating_point():
                self.note(name, relative(found[name], right))
            else:
                self.note(name, float((found[name] != right).float().mean()))

    def _add_detections(self, found: dict[str, Tensor], wanted: dict[str, Tensor], diagonal: float) -> None:
        from mmdet.structures.bbox import bbox_overlaps

        overlap = bbox_overlaps(found['boxes'], wanted['boxes'])
        overlap[found['labels'][:, None] != wanted['labels'][None]] = 0
        pairs, free = [], torch.ones(len(wanted['scores']), dtype=torch.bool)
        for i, row in enumerate(overlap):
            row = row * free
            if len(row) and row.max() >= SAME_IOU:
                j = int(row.argmax())
                free[j] = False
                pairs.append((i, j))
        mine, theirs = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
        total = float(found['scores'].sum() + wanted['scores'].sum())
        matched = float(found['scores'][mine].sum() + wanted['scores'][theirs].sum())
        self.note('detections', (total - matched) / total if total else 0.0)
        for name, scale in (('boxes', diagonal), ('scores', 1.0)):
            gap = (found[name][mine] - wanted[name][theirs]).abs()
            self.note(name, float(gap.max()) / scale if len(pairs) else 0.0)
        if 'masks' in wanted:
            union = (found['masks'][mine] | wanted['masks'][theirs]).sum()
            self.note('masks', float((found['masks'][mine] ^ wanted['masks'][theirs]).sum() / union.clamp(min=1)))


def relative(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest number that was wanted."""
    if found.shape != wanted.shape:
        return math.inf
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


def compare(exported: Exported, model: nn.Module, pictures: Sequence[np.ndarray]) -> Difference:
    """Runs both on every picture.

    Args:
        exported: what was exported.
        model: what it was made of, with its data preprocessor, in eval mode.
        pictures: ``(H, W, 3)`` each, in uint8 BGR.
    """
    difference, reference = Difference(), Reference(model, exported.signature)
    for picture in pictures:
        picture = fit(picture, model.data_preprocessor, exported.signature)
        wanted = reference(picture)
        found = exported(feed(picture, model.data_preprocessor, exported.signature))
        size = picture.shape[:2]
        if exported.signature.what == 'detector':
            found = detections_of(found, 0, size, *_masking(model))
        difference.add(found, wanted, math.hypot(*size))
    return difference


def _masking(model: nn.Module) -> tuple[nn.Module | None, float]:
    if not getattr(model, 'with_mask', False):
        return None, 0.5
    return model.roi_head.mask_head, model.roi_head.test_cfg.mask_thr_binary
