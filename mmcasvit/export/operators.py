"""Operators of detectors that PyTorch's exporters cannot trace, with their translations to standard ONNX."""

from collections.abc import Callable

import torch
from torch import Tensor


@torch.library.custom_op('mmcasvit::nms_keep', mutates_args=())
def nms_keep(boxes: Tensor, scores: Tensor, iou_threshold: float, max_num: int) -> Tensor:
    """Select boxes by greedy non-maximum suppression, image by image.

    The result is a mask, not indices: its shape is known in advance, as exporters require.

    Args:
        boxes: ``(N, S, 4)`` as x1, y1, x2, y2.
        scores: ``(N, S)``. Boxes with a score of 0 or less are dropped.
        iou_threshold: Drop a box if its IoU with a better one is larger than this.
        max_num: Maximum number of boxes to keep per image.

    Returns:
        ``(N, S)`` in float32, 1 for boxes that are kept and 0 for the others.
    """
    from mmcv.ops import nms  # lazy: backbones can be exported with an mmcv that has no compiled operators

    keep = torch.zeros_like(scores, dtype=torch.float32)
    for mask, image_boxes, image_scores in zip(keep, boxes, scores):
        valid = (image_scores > 0).nonzero()[:, 0]
        if len(valid):
            left = nms(image_boxes[valid].contiguous(), image_scores[valid].contiguous(), iou_threshold)[1]
            mask[valid[left[:max_num]]] = 1
    return keep


@nms_keep.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, max_num: int) -> Tensor:
    return torch.empty_like(scores, dtype=torch.float32)


@torch.library.custom_op('mmcasvit::roi_align_level', mutates_args=())
def roi_align_level(
    maps: list[Tensor], rois: Tensor, levels: Tensor, side: int, scales: list[float], sampling_ratio: int
) -> Tensor:
    """Compute RoIAlign of each region on the map of its level, as mmdet's ``SingleRoIExtractor`` does.

    Args:
        maps: ``(N, C, H_i, W_i)`` for each level.
        rois: ``(R, 5)`` as image index, x1, y1, x2, y2 in pixels of the input.
        levels: ``(R,)`` in int64.
        side: Height and width of the output, in cells.
        scales: Scale of each map relative to the input.
        sampling_ratio: Sampling points per cell and direction. 0 chooses it by the size of the region.

    Returns:
        ``(R, C, side, side)``.
    """
    from mmcv.ops import roi_align

    cells = rois.new_zeros(len(rois), maps[0].shape[1], side, side)
    for level, (feature, scale) in enumerate(zip(maps, scales)):
        chosen = (levels == level).nonzero()[:, 0]
        if len(chosen):
            cells[chosen] = roi_align(feature.contiguous(), rois[chosen], side, scale, sampling_ratio, 'avg', True)
    return cells


@roi_align_level.register_fake
def _(maps: list[Tensor], rois: Tensor, levels: Tensor, side: int, scales: list[float], sampling_ratio: int) -> Tensor:
    return rois.new_empty(rois.shape[0], maps[0].shape[1], side, side)


def onnx_translations() -> dict[Callable, Callable]:
    """Return both operators in standard ONNX, as the ``custom_translation_table`` of :func:`torch.onnx.export`."""
    from onnxscript import opset18 as op

    def onnx_nms_keep(boxes, scores, iou_threshold: float, max_num: int):
        found = op.NonMaxSuppression(
            boxes,
            op.Unsqueeze(scores, op.Constant(value_ints=[1])),
            op.Constant(value_ints=[max_num]),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[0.0]),
        )  # (M, 3): image, class, box
        places = op.Gather(found, op.Constant(value_ints=[0, 2]), axis=1)
        ones = op.Expand(op.Constant(value_floats=[1.0]), op.Shape(found, start=0, end=1))
        return op.ScatterND(op.Mul(scores, op.Constant(value_float=0.0)), places, ones)

    def onnx_roi_align_level(maps, rois, levels, side: int, scales, sampling_ratio: int):
        count = op.Shape(rois, start=0, end=1)
        channels = op.Shape(maps[0], start=1, end=2)
        cells = op.Expand(
            op.Constant(value_float=0.0), op.Concat(count, channels, op.Constant(value_ints=[side, side]), axis=0)
        )
        images = op.Cast(
            op.Squeeze(
                op.Slice(rois, op.Constant(value_ints=[0]), op.Constant(value_ints=[1]), op.Constant(value_ints=[1])),
                op.Constant(value_ints=[1]),
            ),
            to=7,
        )
        boxes = op.Slice(rois, op.Constant(value_ints=[1]), op.Constant(value_ints=[5]), op.Constant(value_ints=[1]))
        for level, (feature, scale) in enumerate(zip(maps, scales)):
            chosen = op.Transpose(op.NonZero(op.Equal(levels, op.Constant(value_int=level))), perm=[1, 0])  # (M, 1)
            flat = op.Squeeze(chosen, op.Constant(value_ints=[1]))
            aligned = op.RoiAlign(
                feature,
                op.Gather(boxes, flat, axis=0),
                op.Gather(images, flat, axis=0),
                mode='avg',
                coordinate_transformation_mode='half_pixel',
                output_height=side,
                output_width=side,
                sampling_ratio=sampling_ratio,
                spatial_scale=scale,
            )
            cells = op.ScatterND(cells, chosen, aligned)
        return cells

    return {
        torch.ops.mmcasvit.nms_keep.default: onnx_nms_keep,
        torch.ops.mmcasvit.roi_align_level.default: onnx_roi_align_level,
    }
