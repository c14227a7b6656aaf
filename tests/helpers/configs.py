"""Configs of the repository, read, built and fed with random images."""

import importlib

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from helpers.repository import ROOT


def load(name):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    init_default_scope(cfg.default_scope)
    importlib.import_module(f'{cfg.default_scope}.models')
    return cfg


def build(cfg):
    return importlib.import_module(f'{cfg.default_scope}.registry').MODELS.build(cfg.model)


def random_batch(cfg, size):
    """Two random images with their labels, as the framework's data loader would give them."""
    rng = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 255, (3, *size), dtype=torch.uint8, generator=rng) for _ in range(2)]
    if cfg.default_scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        return demo_mm_inputs(
            2,
            [(3, *size)] * 2,
            num_classes=cfg.model.get('bbox_head', cfg.model.get('roi_head', {}).get('bbox_head')).num_classes,
            with_mask='roi_head' in cfg.model,
        )
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for _ in images:
        labels = torch.randint(0, cfg.model.decode_head.num_classes, (1, *size), generator=rng)
        samples.append(
            SegDataSample(
                gt_sem_seg=PixelData(data=labels), metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size)
            )
        )
    return dict(inputs=images, data_samples=samples)
