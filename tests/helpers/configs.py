"""Builders for the configs of the repository: config, model and random batch."""

import importlib
import importlib.util

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from helpers.repository import ROOT

needs_mmpretrain = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ('mmpretrain', 'torchvision')),
    reason='needs mmpretrain and torchvision',
)


def load(name):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    init_default_scope(cfg.default_scope)
    importlib.import_module(f'{cfg.default_scope}.models')
    return cfg


def build(cfg):
    return importlib.import_module(f'{cfg.default_scope}.registry').MODELS.build(cfg.model)


def random_batch(cfg, size):
    """Return two random images with labels, in the form that the framework's data loader yields."""
    rng = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 255, (3, *size), dtype=torch.uint8, generator=rng) for _ in range(2)]
    if cfg.default_scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        return demo_mm_inputs(
            2,
            [(3, *size)] * 2,
            num_classes=cfg.model.get('bbox_head', cfg.model.get('roi_head', {}).get('bbox_head')).num_classes,
            with_mask='roi_head' in cfg.model or 'loss_mask' in cfg.model.bbox_head,
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
