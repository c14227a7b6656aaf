"""The graphs that are exported: modules that map one tensor to a tuple of tensors, built from a backbone or a model.

The layers, anchors and box coders in them are mmdet's and mmseg's own. Only the parts that a graph cannot represent are
rewritten: the number of boxes is fixed, and a batch is one tensor, not a list of images.
"""

import copy
import inspect
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mmcasvit.models.deploy import deploy, deploy_for_fp16, is_deployable
from mmcasvit.utils.errors import UsageError

from .blocks import separate_blocks
from .operators import nms_keep, roi_align_level
from .signature import DTYPES, Signature

# Options of NMS that the graph supports. split_thr affects memory only.
_NMS_OPTIONS = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}


class AdaptiveAveragePool(nn.Module):
    """Adaptive average pooling as two matrix products, which can be exported with a fixed or a dynamic size.

    Shape: ``(N, C, H, W)`` to ``(N, C, side, side)``.
    """

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def weights(self, length: int, like: Tensor) -> Tensor:
        """Return the weight of each position in the mean of each cell: ``(side, length)``."""
        cell = torch.arange(self.side, device=like.device)[:, None]
        position = torch.arange(length, device=like.device)[None]
        # As in PyTorch, a cell covers floor(cell * length / side) to ceil((cell + 1) * length / side).
        inside = (position >= cell * length // self.side) & (position < -(-(cell + 1) * length // self.side))
        inside = inside.to(like.dtype)
        return inside / inside.sum(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        return self.weights(height, x) @ x @ self.weights(width, x).t()


def replace_adaptive_pooling(model: nn.Module) -> None:
    """Replace the adaptive pooling of a model by :class:`AdaptiveAveragePool`, in place."""
    for part in model.modules():
        for name, child in part.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size not in (1, (1, 1)):
                setattr(part, name, AdaptiveAveragePool(child.output_size))


def replace_upsampling(model: nn.Module) -> None:
    """Replace the upsampling layers of mmseg by those of PyTorch, in place.

    mmseg multiplies sizes by a float, which makes the sizes of the traced image constants of the graph. On images of
    another size, maps would pass through those.
    """
    from mmseg.models.utils import Upsample

    for part in model.modules():
        for name, child in part.named_children():
            if isinstance(child, Upsample) and not child.size:
                setattr(part, name, nn.Upsample(None, child.scale_factor, child.mode, child.align_corners))


class BackboneGraph(nn.Module):
    """Graph of a backbone.

    Shape: ``(N, 3, H, W)`` to a tuple of feature maps.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.output_names = [f'stage{i + 1}' for i in backbone.out_indices]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone(image))


class RawGraph(nn.Module):
    """Graph of a detector or segmentor without post-processing, for measuring it.

    Shape: ``(N, 3, H, W)`` to a tuple of the tensors that the head returns.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(tree_leaves(self.model(image, mode='tensor')))


class SegmentorGraph(nn.Module):
    """Graph of a segmentor of mmseg.

    Shape: ``(N, 3, H, W)`` to a tuple of one tensor: logits ``(N, K, H, W)``, or classes ``(N, H, W)`` in int64.
    """

    def __init__(self, model: nn.Module, argmax: bool):
        super().__init__()
        if argmax and model.decode_head.out_channels == 1:
            raise UsageError(
                '--argmax: the head has a single output, to which a threshold applies. Leave out --argmax.'
            )
        self.model, self.argmax = model, argmax
        self.output_names = ['classes' if argmax else 'logits']

    def forward(self, image: Tensor) -> tuple[Tensor]:
        logits = self.model.encode_decode(image, [dict(img_shape=image.shape[2:])])
        return (logits.argmax(1) if self.argmax else logits,)


class LevelRoIAlign(nn.Module):
    """Replacement for mmdet's ``SingleRoIExtractor`` that can be exported.

    Shape: maps of all levels and regions ``(R, 5)`` to ``(R, C, side, side)``.
    """

    def __init__(self, extractor: nn.Module):
        super().__init__()
        layers = extractor.roi_layers
        if any(
            layer.pool_mode != 'avg' or not layer.aligned or layer.output_size[0] != layer.output_size[1]
            for layer in layers
        ):
            raise UsageError("only RoIAlign with aligned=True, pool_mode='avg' and a square output can be exported.")
        self.map_roi_levels = extractor.map_roi_levels
        self.num_inputs = extractor.num_inputs
        self.side = layers[0].output_size[0]
        self.sampling_ratio = layers[0].sampling_ratio
        self.scales = [float(layer.spatial_scale) for layer in layers]

    def forward(self, maps: tuple[Tensor, ...], rois: Tensor) -> Tensor:
        levels = self.map_roi_levels(rois, len(maps))
        return roi_align_level([x.float() for x in maps], rois, levels, self.side, self.scales, self.sampling_ratio).to(
            maps[0].dtype
        )


def _at_most(count: int, limit: int) -> int:
    """Return the smaller of two numbers. The first may be a symbol of torch.export or a tensor of torch.jit.trace."""
    return count.clamp(max=limit) if isinstance(count, Tensor) else torch.sym_min(count, limit)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Select rows of each image: ``(N, S, ...)`` indexed by ``(N, D)`` to ``(N, D, ...)``."""
    if x.dim() == 3:
        index = index[:, :, None].expand(-1, -1, x.shape[2])
    return x.gather(1, index)


class DetectorGraph(nn.Module):
    """Graph of a detector of mmdet, box decoding and non-maximum suppression included.

    Supports RetinaNet, RTMDet, RTMDet-Ins, SSD and other heads that select anchors or points in the same way, Faster
    R-CNN and Mask R-CNN.

    Shape:
        ``(N, 3, H, W)`` to boxes ``(N, D, 4)`` as x1, y1, x2, y2 in pixels of the input, scores ``(N, D)``, labels
        ``(N, D)`` in int64, and with a mask head masks. Those of Mask R-CNN are ``(N, D, 28, 28)``, probabilities
        within each box; those of RTMDet-Ins ``(N, D, H_1, W_1)``, logits on the map of the first level, which covers
        the padded image. D is ``max_per_img`` of the config. Rows after the last detection have score 0 and label -1.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        from mmdet.models import AnchorHead, RPNHead, StandardRoIHead
        from mmdet.models.dense_heads import RTMDetInsHead
        from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

        self.model = model
        self.two_stage = hasattr(model, 'rpn_head')
        dense = model.rpn_head if self.two_stage else model.bbox_head
        single = type(dense)._predict_by_feat_single
        if not isinstance(dense, AnchorHead) or single not in (
            BaseDenseHead._predict_by_feat_single,
            RPNHead._predict_by_feat_single,
            RTMDetInsHead._predict_by_feat_single,
        ):
            raise UsageError(
                f'the head {type(dense).__name__} cannot be exported: only RPN and heads that select anchors as '
                'RetinaNet does can.'
            )
        if self.two_stage and type(model.roi_head) is not StandardRoIHead:
            raise UsageError(f'{type(model.roi_head).__name__} cannot be exported: only StandardRoIHead can.')
        for cfg in (dense.test_cfg, *([model.roi_head.test_cfg] if self.two_stage else [])):
            if cfg.nms.get('type', 'nms') != 'nms' or set(cfg.nms) - _NMS_OPTIONS:
                raise UsageError(f'only plain non-maximum suppression can be exported, and the config has {cfg.nms}.')
        self.dense = dense
        self.dynamic = isinstance(dense, RTMDetInsHead)
        self.divisor = model.data_preprocessor.pad_size_divisor
        self.output_names = ['boxes', 'scores', 'labels', *(['masks'] if self.dynamic else [])]
        if self.two_stage:
            roi = model.roi_head
            roi.bbox_roi_extractor = LevelRoIAlign(roi.bbox_roi_extractor)
            if roi.with_mask:
                self.output_names.append('masks')
                if not roi.share_roi_extractor:
                    roi.mask_roi_extractor = LevelRoIAlign(roi.mask_roi_extractor)
                else:
                    roi.mask_roi_extractor = roi.bbox_roi_extractor

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        size = image.shape[2:]
        # Pad as the data preprocessor of mmdet does, with zeros on the right and at the bottom.
        bottom, right = (-side % self.divisor for side in size)
        maps = self.model.extract_feat(F.pad(image, (0, right, 0, bottom)))
        outputs = list(self.dense(maps))
        features = outputs.pop() if self.dynamic else None
        boxes, scores, groups, *kernels = self.candidates(outputs, size)
        if not self.two_stage:
            boxes, scores, labels, *kernels = self.select(self.dense.test_cfg, boxes, scores, groups, *kernels)
            return (boxes, scores, labels, *([self.dynamic_masks(features, *kernels)] if self.dynamic else []))
        proposals, *_ = self.select(self.dense.test_cfg, boxes, scores, groups)
        boxes, scores, labels = self.refine(maps, proposals, size)
        found = self.select(self.model.roi_head.test_cfg, boxes, scores, labels)
        return (*found, self.masks(maps, found[0], found[2])) if self.model.roi_head.with_mask else found

    def candidates(self, outputs: list, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Return the best ``nms_pre`` boxes of each level.

        Args:
            outputs: Scores, deltas of boxes, and for RTMDet-Ins kernels, each with one map for each level.
            size: Size of the image before padding.

        Returns:
            Boxes ``(N, S, 4)``, scores ``(N, S)``, and ``(N, S)`` labels, or levels for RPN. For RTMDet-Ins, also the
            kernels ``(N, S, P)`` of their masks, and their points with strides ``(N, S, 4)``.
        """
        head, cfg, (all_logits, *others) = self.dense, self.dense.test_cfg, outputs
        widths = [4, head.num_gen_params] if self.dynamic else [4]
        if len(others) != len(widths):
            raise UsageError(
                f'the head {type(head).__name__} cannot be exported: it does not return scores and boxes only.'
            )
        images = all_logits[0].shape[0]  # len() would make the batch size a constant
        all_priors = head.prior_generator.grid_priors(
            [x.shape[2:] for x in all_logits],
            device=all_logits[0].device,
            **(dict(with_stride=True) if self.dynamic else {}),
        )
        found = []
        for level, (logits, priors, *maps) in enumerate(zip(all_logits, all_priors, *others)):
            logits = logits.float().permute(0, 2, 3, 1).reshape(images, -1, head.cls_out_channels)
            scores = logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[..., :-1]
            classes = scores.shape[2]
            scores = scores.flatten(1)
            count = scores.shape[1]
            if cfg.get('nms_pre', -1) > 0:
                count = _at_most(count, cfg.nms_pre)
            scores, index = scores.topk(count)
            place = index // classes
            groups = torch.full_like(index, level) if self.two_stage else index % classes
            parts = [
                _take(x.float().permute(0, 2, 3, 1).reshape(images, -1, width), place) for x, width in zip(maps, widths)
            ]
            found.append((priors[place], scores, groups, *parts))
        priors, scores, groups, deltas, *kernels = (torch.cat(parts, 1) for parts in zip(*found))
        if not self.dynamic:
            return self.decode(head.bbox_coder, priors, deltas, size), scores, groups
        return self.decode(head.bbox_coder, priors[..., :2], deltas, size), scores, groups, *kernels, priors

    @staticmethod
    def decode(coder, boxes: Tensor, deltas: Tensor, size: tuple[int, int]) -> Tensor:
        # RTMDet decodes distances from points, which are pairs.
        decoded = coder.decode(boxes.flatten(0, 1), deltas.flatten(0, 1)).reshape(deltas.shape)
        if not coder.clip_border:
            return decoded
        x, y = (decoded[..., i::2].clamp(min=0).clamp(max=size[1 - i]) for i in range(2))
        return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1)

    def select(
        self, cfg: ConfigDict, boxes: Tensor, scores: Tensor, groups: Tensor, *more: Tensor
    ) -> tuple[Tensor, ...]:
        """Select the final boxes by the thresholds of a test_cfg.

        Returns:
            Boxes ``(N, D, 4)``, scores and groups ``(N, D)``, and the rows of ``more`` that belong to them.
        """
        valid = scores > cfg.get('score_thr', 0)
        if cfg.get('min_bbox_size', -1) >= 0:
            valid = valid & ((boxes[..., 2:] - boxes[..., :2]) > cfg.min_bbox_size).all(-1)
        scores = torch.where(valid, scores, 0)
        apart = boxes
        if not cfg.nms.get('class_agnostic', False):  # shifted by group, so that different groups do not overlap
            apart = boxes + (groups * (boxes.amax((1, 2))[:, None] + 1))[..., None]
        scores = scores * nms_keep(apart, scores, cfg.nms.iou_threshold, cfg.max_per_img)
        scores, best = scores.topk(_at_most(scores.shape[1], cfg.max_per_img))
        rest = [_take(x, best) for x in more]
        return (_take(boxes, best), scores, torch.where(scores > 0, _take(groups, best), -1), *rest)

    def refine(
        self, maps: tuple[Tensor, ...], proposals: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Classify and refine proposals ``(N, P, 4)``, which yields ``P * K`` candidates per image."""
        head, (images, count, _) = self.model.roi_head.bbox_head, proposals.shape
        result = self.model.roi_head._bbox_forward(maps, self.rois(proposals))
        scores = result['cls_score'].float().softmax(-1)[:, :-1]
        deltas = result['bbox_pred'].float()
        classes = scores.shape[1]
        deltas = deltas.reshape(images, count, -1, 4).expand(-1, -1, classes, -1)
        boxes = proposals[:, :, None].expand(-1, -1, classes, -1)
        boxes = self.decode(head.bbox_coder, boxes, deltas, size).reshape(images, -1, 4)
        labels = torch.arange(classes, device=boxes.device).expand(images, count, -1).reshape(images, -1)
        return boxes, scores.reshape(images, -1), labels

    def masks(self, maps: tuple[Tensor, ...], boxes: Tensor, labels: Tensor) -> Tensor:
        """Predict the mask of each box: ``(N, D, 4)`` to ``(N, D, 28, 28)``."""
        logits = self.model.roi_head._mask_forward(maps, self.rois(boxes))['mask_preds'].float()
        if self.model.roi_head.mask_head.class_agnostic:
            chosen = logits[:, 0]
        else:
            chosen = logits[torch.arange(logits.shape[0], device=logits.device), labels.flatten().clamp(min=0)]
        return chosen.sigmoid().reshape(*labels.shape, *chosen.shape[1:])

    def dynamic_masks(self, features: Tensor, kernels: Tensor, priors: Tensor) -> Tensor:
        """Compute masks by convolutions whose kernels the head predicted, as products of matrices.

        Args:
            features: ``(N, C, H_1, W_1)``.
            kernels: Weights and biases of the layers of each mask: ``(N, D, P)``.
            priors: Points of the masks with their strides: ``(N, D, 4)``.

        Returns:
            Logits ``(N, D, H_1, W_1)``.
        """
        head, size = self.dense, features.shape[2:]
        points = head.prior_generator.single_level_grid_priors(size, level_idx=0, device=features.device)
        offsets = (priors[:, :, None, :2] - points) / (priors[:, :, None, 2:] * 8)
        shared = features.float().flatten(2)[:, None].expand(-1, priors.shape[1], -1, -1)
        x = torch.cat([offsets.transpose(2, 3), shared], 2)  # (N, D, 2 + C, H_1 * W_1)
        parts, layers = kernels.split([*head.weight_nums, *head.bias_nums], -1), len(head.weight_nums)
        for i, (weight, bias) in enumerate(zip(parts[:layers], parts[layers:])):
            x = weight.reshape(*weight.shape[:2], -1, x.shape[2]) @ (x.relu() if i else x) + bias[..., None]
        return x.reshape(*x.shape[:2], *size)

    @staticmethod
    def rois(boxes: Tensor) -> Tensor:
        """Prepend the image index to boxes: ``(N, D, 4)`` to ``(N * D, 5)``."""
        images = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)
        return torch.cat([images[:, None, None].expand(-1, boxes.shape[1], 1), boxes], -1).flatten(0, 1)


class HeadGraph(nn.Module):
    """Graph of a one-stage detector of mmdet up to the maps of its head, for runtimes that cannot select boxes.

    :func:`mmcasvit.export.comparison.detect` decodes and selects the boxes outside of it, as mmdet does.

    Shape: ``(N, 3, H, W)`` to all maps of the first output of the head, level by level, then of the second, and so on.
        For RetinaNet, these are scores ``(N, A * K, H_i, W_i)`` and deltas of boxes ``(N, A * 4, H_i, W_i)``.
    """

    def __init__(self, model: nn.Module, signature: Signature):
        super().__init__()
        if hasattr(model, 'rpn_head'):
            raise UsageError(
                f'{signature.format} can hold one-stage detectors, and this one selects boxes between its two stages.'
            )
        self.model = model
        # With a dynamic size, the image is padded outside.
        divisor = 1 if signature.dynamic_size else model.data_preprocessor.pad_size_divisor
        self.padding = tuple(-side % divisor for side in signature.size)
        with torch.no_grad():
            found = self.outputs(torch.zeros(1, 3, *signature.size))
        if any(isinstance(maps, Tensor) for maps in found):
            raise UsageError(
                f'{signature.format} cannot hold the head {type(model.bbox_head).__name__}: it does not return one map '
                'for each level.'
            )
        names = inspect.signature(model.bbox_head.predict_by_feat).parameters
        self.output_names = [f'{name}_{level}' for name, maps in zip(names, found) for level in range(len(maps))]

    def outputs(self, image: Tensor) -> tuple[list[Tensor], ...]:
        bottom, right = self.padding
        return self.model.bbox_head(self.model.extract_feat(F.pad(image, (0, right, 0, bottom))))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(x for maps in self.outputs(image) for x in maps)


def converts_to_rgb(preprocessor: nn.Module) -> bool:
    """Return whether a data preprocessor of mmdet, mmseg or mmpretrain converts BGR to RGB."""
    return getattr(preprocessor, '_channel_conversion', False) or getattr(preprocessor, 'to_rgb', False)


class Preprocessing(nn.Module):
    """Resizing to a fixed size, if requested, and the normalization of a model's data preprocessor.

    Shape: pixels ``(N, H, W, 3)`` in uint8 (for Core ML ``(N, 3, H, W)`` in float32) to ``(N, 3, H, W)``.
    """

    def __init__(self, preprocessor: nn.Module, signature: Signature):
        super().__init__()
        if not preprocessor._enable_normalize:
            raise UsageError('--preprocess: the data preprocessor of the config does not normalize.')
        self.channels_last = signature.format != 'coreml'
        # The model expects RGB if its preprocessor converts to it, and BGR otherwise.
        self.flip = (signature.pixels == 'rgb') != converts_to_rgb(preprocessor)
        self.size = signature.size if signature.resize else None
        self.register_buffer('mean', preprocessor.mean.clone().float())
        self.register_buffer('scale', 1 / preprocessor.std.float())

    def forward(self, pixels: Tensor) -> Tensor:
        if self.channels_last:
            pixels = pixels.permute(0, 3, 1, 2)
        image = pixels.float()
        if self.flip:
            image = torch.cat(image.split(1, 1)[::-1], 1)
        if self.size is not None:
            image = F.interpolate(image, self.size, mode='bilinear', align_corners=False)
        return (image - self.mean) * self.scale


class ExportGraph(nn.Module):
    """Graph as it is written to a file: float32 or pixels in, float32 or integers out, in any precision.

    Attributes:
        signature: Inputs, outputs and options of the graph.
    """

    def __init__(self, graph: nn.Module, signature: Signature, preprocessor: nn.Module | None = None):
        super().__init__()
        self.signature = signature
        self.dtype = DTYPES[signature.module_precision]
        self.preprocessing = None if signature.pixels is None else Preprocessing(preprocessor, signature)
        # The attribute 'graph' is taken by PyTorch's own graph modules.
        self.inner = graph.to(self.dtype)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        given = image.shape[1:3]
        if self.preprocessing is not None:
            image = self.preprocessing(image)
        found = [out.float() if out.is_floating_point() else out for out in self.inner(image.to(self.dtype))]
        if self.signature.resize and self.signature.what == 'detector':
            ratios = [side / new for side, new in zip(given, self.signature.size)]
            found[0] = torch.stack([found[0][..., i] * ratios[1 - i % 2] for i in range(4)], -1)
        return tuple(found)

    def example(self) -> Tensor:
        """Return an input of the right shape and type."""
        height, width = self.signature.size
        batch = 2 if self.signature.dynamic_batch else 1  # torch.export treats a dimension of 1 as constant
        if self.signature.pixels is None or self.signature.format == 'coreml':
            return torch.zeros(batch, 3, height, width)
        if self.signature.resize:
            height, width = height + 1, width + 2
        return torch.zeros(batch, height, width, 3, dtype=torch.uint8)


def build_graph(
    model: nn.Module, signature: Signature, fold: bool | None = None, images: Sequence[Tensor] = ()
) -> ExportGraph:
    """Build the graph of a model.

    Args:
        model: Model of mmdet or mmseg, or a bare backbone. It is not modified.
        signature: What to export. The graph's own signature has the ``outputs`` filled in.
        fold: Use the deploy form. By default, do so if the model contains a CAS-ViT.
        images: Normalized images ``(N, 3, H, W)``. The deploy form in fp16 is rescaled if they make it overflow.

    Raises:
        UsageError: If the model cannot be exported in this way.
    """
    preprocessor = getattr(model, 'data_preprocessor', None)
    # deploy() would fold the norms of a backbone's outputs into the neck of a whole model.
    if signature.what == 'backbone':
        model = getattr(model, 'backbone', model)
    if not (is_deployable(model) if fold is None else fold):
        copied = copy.deepcopy(model).eval()
    else:
        try:
            copied = deploy_for_fp16(model, images) if signature.precision == 'fp16' else deploy(model)
        except ValueError as error:
            raise UsageError(f'{error} Export in fp32 or bf16.') from error
    separate_blocks(copied)
    replace_adaptive_pooling(copied)
    if signature.what == 'backbone':
        graph = BackboneGraph(copied)
    elif signature.what == 'segmentor':
        if signature.dynamic_size:
            replace_upsampling(copied)
        graph = SegmentorGraph(copied, signature.argmax)
    elif signature.ends_at_head:
        graph = HeadGraph(copied, signature)
    else:
        graph = DetectorGraph(copied)
        if graph.dynamic and signature.resize:
            raise UsageError('--resize: the masks of RTMDet-Ins cover the input of the network. Resize images before.')
    return ExportGraph(graph, replace(signature, outputs=tuple(graph.output_names)), preprocessor).eval()


def kind_of(model: nn.Module) -> str:
    """Return ``'segmentor'`` or ``'detector'``.

    Raises:
        UsageError: If the model is neither.
    """
    if hasattr(model, 'encode_decode'):
        return 'segmentor'
    if hasattr(model, 'rpn_head') or getattr(model, 'bbox_head', None) is not None:
        return 'detector'
    raise UsageError(f'only the backbone of a {type(model).__name__} can be exported: --what backbone')
