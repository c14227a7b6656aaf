"""Random images with every kind of label that a model may need."""

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from .source import NO_READERS, framework_of, is_integer, nodes, type_name


def random_batch(cfg: Config, size: int, seed: int = 0, images: int = 2) -> dict:
    """Return a batch of random images and labels, as a data loader returns it.

    Args:
        cfg: A config of mmdet or mmseg; its heads define the number of classes.
        size: Side of the square images, in pixels.
        seed: Seed of images and labels.
        images: Number of images.
    """
    rng = np.random.default_rng(seed)
    make = _segmentor_sample if framework_of(cfg) == 'mmseg' else _detector_sample
    channels = cfg.model.backbone.get('in_channels', 3)
    return dict(
        inputs=[
            torch.from_numpy(
                rng.integers(0, 256, (3, size, size), dtype=np.uint8)
                if channels == 3
                else rng.random((channels, size, size), dtype=np.float32)
            )
            for _ in range(images)
        ],
        data_samples=[make(cfg, size, rng) for _ in range(images)],
    )


def _numbers(node, name: str) -> list[int]:
    return [part[name] for _, part in nodes(node, '') if is_integer(part.get(name)) and part[name] > 0]


def _random_label_map(size: int, classes: int, rng: np.random.Generator, scale: float = 1.0) -> Tensor:
    """Return a label map of 4 x 4 random squares, ``(1, H, W)``."""
    side = round(size * scale)
    coarse = rng.integers(0, classes, (4, 4))
    index = np.arange(side) * 4 // side
    return torch.from_numpy(coarse[np.ix_(index, index)])[None].long()


def _segmentor_sample(cfg: Config, size: int, rng: np.random.Generator):
    from mmseg.structures import SegDataSample

    classes = min(_numbers({key: cfg.model[key] for key in cfg.model if key not in NO_READERS}, 'num_classes'))
    shape = dict(img_shape=(size, size), ori_shape=(size, size), pad_shape=(size, size))
    return SegDataSample(gt_sem_seg=PixelData(data=_random_label_map(size, classes, rng)), metainfo=shape)


def _detector_sample(cfg: Config, size: int, rng: np.random.Generator):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    model = cfg.model
    heads = {key: value for key, value in model.items() if key not in NO_READERS}
    things = _numbers(heads, 'num_things_classes')
    stuff = _numbers(heads, 'num_stuff_classes')
    semantic = [
        n for where, part in nodes(model, '') if where.endswith('semantic_head') and (n := part.get('num_classes'))
    ]
    boxed = {key: value for key, value in heads.items() if key != 'semantic_head'}
    classes = min(
        things
        or [
            n
            for where, part in nodes(boxed, '')
            if not where.endswith('semantic_head') and is_integer(n := part.get('num_classes'))
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
        sample.gt_sem_seg = PixelData(sem_seg=_random_label_map(size, count, rng, _semantic_scale(cfg)))
    return sample


def _loads_masks(cfg: Config) -> bool:
    """Return True if the training data have masks; some heads learn masks whenever they get them."""
    loaders = [
        node for _, node in nodes(cfg.get('train_dataloader') or {}, '') if type_name(node).endswith('Annotations')
    ]
    return not loaders or any(node.get('with_mask', 'Panoptic' in type_name(node)) for node in loaders)


def _semantic_scale(cfg: Config) -> float:
    """Return the factor by which the training pipeline scales label maps before a head sees them."""
    return min(
        [
            node.get('scale_factor', 1.0)
            for _, node in nodes(cfg.get('train_dataloader') or {}, '')
            if type_name(node) == 'SegRescale'
        ],
        default=1.0,
    )
