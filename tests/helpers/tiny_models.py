"""Detectors and segmentors of the repository with a backbone that is small enough for a test."""

import functools
import logging

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmcasvit.apis.config import get_config
from mmcasvit.apis.model import get_model
from mmcasvit.export.formats import FORMATS
from mmcasvit.export.formats import export as export_model
from mmcasvit.export.signature import Signature

TWINS = dict(
    retinanet='retinanet_casvit-xs_fpn_6e_shapes',
    mask_rcnn='mask-rcnn_casvit-xs_fpn_6e_shapes',
    semantic_fpn='semantic-fpn_casvit-xs_600i_shapes',
    upernet='upernet_casvit-xs_600i_shapes',
)
CHANNELS = (8, 12, 16, 24)
TINY = dict(depths=(1, 1, 2, 1), channels=CHANNELS)


def tiny_config(name, **backbone):
    cfg = get_config(TWINS[name])
    cfg.model.backbone.update(arch=TINY, **backbone)
    channels = [TINY['channels'][i] for i in cfg.model.backbone.get('out_indices', range(4))]
    if 'neck' in cfg.model:
        cfg.model.neck.in_channels = channels
    else:
        cfg.model.decode_head.in_channels = channels
        cfg.model.auxiliary_head.in_channels = channels[2]
    return cfg


@functools.cache
def tiny(twin):
    """A small model with random BatchNorm statistics and heads that find something."""
    cfg = get_config(TWINS[twin])
    cfg.model.backbone.arch = dict(depths=(1, 1, 1, 1), channels=CHANNELS)
    if 'neck' in cfg.model:
        cfg.model.neck.in_channels = list(CHANNELS[1:] if twin == 'retinanet' else CHANNELS)
    if twin == 'upernet':
        cfg.model.decode_head.in_channels = list(CHANNELS)
        cfg.model.auxiliary_head.in_channels = CHANNELS[2]
    torch.manual_seed(0)
    model = get_model(cfg)
    logging.disable()
    model.init_weights()
    logging.disable(logging.NOTSET)
    for part in model.modules():
        if isinstance(part, _BatchNorm):
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.normal_(part.bias, std=0.1)
    for layer in dict(
        retinanet=['bbox_head.retina_cls'],
        mask_rcnn=[
            'rpn_head.rpn_cls',
            'roi_head.bbox_head.fc_cls',
            'rpn_head.rpn_reg',
            'roi_head.mask_head.conv_logits',
        ],
    ).get(twin, []):
        nn.init.normal_(model.get_submodule(layer).weight, std=0.1)
    return model.eval()


def export(model, path, **options):
    name = next(name for name, known in FORMATS.items() if known.suffix == path.suffix)
    options = dict(what='backbone', size=(64, 96)) | options
    export_model(model, Signature(name, **options), path)
    return path
