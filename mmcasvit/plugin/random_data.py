"""Random images with labels of every kind that a model may ask for."""

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from .source import NO_READERS, framework_of, is_channels, nodes, type_name


def random_batch(cfg: Config, size: int, seed: int = 0, images: int = 2) -> dict:
    """Random images with labels of every kind that a model may ask for, as a data loader gives them.

    Args:
        cfg: of mmdet or mmseg; its heads say how many classes there are.
        size: of the square images, in pixels.
        seed: for images and labels.
        images: how many.
    """
    rng = np.random.default_rng(seed)
    make = _segmentor_sample if framework_of(cfg) == 'mmseg' else _detector_sample
    return dict(
        inputs=[torch.from_numpy(rng.integers(0, 256, (3, size, size), dtype=np.uint8)) for _ in range(images)]
        if cfg.model.backbone.get('in_channels', 3) == 3
        else [
            torch.from_numpy(rng.random((cfg.model.backbone.in_channels, size, size), dtype=np.float32))
            for _ in range(images)
        ],
        data_samples=[make(cfg, size, rng) for _ in range(images)],
    )


def _numbers(node, name: str) -> list[int]:
    return [part[name] for _, part in nodes(node, '') if is_channels(part.get(name)) and part[name] > 0]


def _blocks(size: int, classes: int, rng: np.random.Generator, scale: float = 1.0) -> Tensor:
    """A label map of random squares, (1, H, W)."""
    side = round(size * scale)
    coarse = rng.integers(0, classes, (4, 4))
    index = np.arange(side) * 4 // side
    return torch.from_numpy(coarse[np.ix_(index, index)])[None].long()


def _segmentor_sample(cfg: Config, size: int, rng: np.random.Generator):
    from mmseg.structures import SegDataSample

    classes = min(_numbers({key: cfg.model[key] for key in cfg.model if key not in NO_READERS}, 'num_classes'))
    shape = dict(img_shape=(size, size), ori_shape=(size, size), pad_shape=(size, size))
    return SegDataSample(gt_sem_seg=PixelData(data=_blocks(size, classes, rng)), metainfo=shape)


def _detector_sample(cfg: Config, size: int, rng: np.random.Generator):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    model = cfg.model
    heads = {key: value for key, value in model.items() if key not in NO_READERS}
    things = _numbers(heads, 'num_things_classes')
    stuff = _numbers(heads, 'num_stuff_classes')
    semantic = [
        n for where, part in nodes(model, '') if where.endswith('semantic_head') for n in [part.get('num_classes')] if n
    ]
    boxed = {key: value for key, value in heads.items() if key != 'semantic_head'}
    classes = min(
        things
        or [
            n
            for where, part in nodes(boxed, '')
            if not where.endswith('semantic_head')
            for n in [part.get('num_classes')]
            if is_channels(n)
        ]
        or [1]
    )
    corners = rng.uniform(0, size / 2, (3, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(size / 4, size / 2, (3, 2))], axis=1)
    masks = np.zeros((3, size, size), dtype=np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int)):
        mask[top:bottom, left:right] = 1
    sample = DetDataSample(
        metainfo=dict(
            img_id=0,
            img_path='',
            img_shape=(size, size),
            ori_shape=(size, size),
            pad_shape=(size, size),
            scale_factor=(1.0, 1.0),
            flip=False,
            flip_direction=None,
            border=np.array([0, size, 0, size]),
        )
    )
    sample.gt_instances = InstanceData(
        bboxes=torch.from_numpy(boxes).float(), labels=torch.from_numpy(rng.integers(0, classes, 3))
    )
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    if _loads_masks(cfg):
        sample.gt_instances.masks = BitmapMasks(masks, size, size)
        sample.ignored_instances.masks = BitmapMasks(masks[:0], size, size)
    if not model.get('rpn_head'):
        sample.proposals = InstanceData(bboxes=sample.gt_instances.bboxes.clone(), scores=torch.ones(3))
    if stuff or semantic:
        count = things[0] + stuff[0] if things and stuff else semantic[0]
        sample.gt_sem_seg = PixelData(sem_seg=_blocks(size, count, rng, _semantic_scale(cfg)))
    return sample


def _loads_masks(cfg: Config) -> bool:
    """Whether training data come with masks; some heads take them for a request to learn masks."""
    loaders = [
        node for _, node in nodes(cfg.get('train_dataloader') or {}, '') if type_name(node).endswith('Annotations')
    ]
    return not loaders or any(node.get('with_mask', 'Panoptic' in type_name(node)) for node in loaders)


def _semantic_scale(cfg: Config) -> float:
    """How the training pipeline shrinks label maps before a head sees them."""
    return min(
        [
            node.get('scale_factor', 1.0)
            for _, node in nodes(cfg.get('train_dataloader') or {}, '')
            if type_name(node) == 'SegRescale'
        ],
        default=1.0,
    )
