"""Detectors and segmentors of the repository that are small enough for a test, and their exported files."""

import functools
import logging

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from helpers.reference import fill
from helpers.tiny_backbone import CHANNELS, TINY
from mmcasvit.apis.config import get_config
from mmcasvit.apis.model import get_model
from mmcasvit.export.comparison import compare, synthetic_images
from mmcasvit.export.formats import FORMATS, load_exported
from mmcasvit.export.formats import export as export_model
from mmcasvit.export.signature import Signature

TWINS = dict(
    retinanet='retinanet_casvit-xs_fpn_6e_shapes',
    mask_rcnn='mask-rcnn_casvit-xs_fpn_6e_shapes',
    semantic_fpn='semantic-fpn_casvit-xs_300i_shapes',
    upernet='upernet_casvit-xs_600i_shapes',
    rtmdet='rtmdet_casvit-xs_24e_shapes',
    rtmdet_ins='rtmdet-ins_casvit-xs_24e_shapes',
    ssdlite='ssdlite_casvit-xs_24e_shapes',
    segformer='segformer_casvit-xs_300i_shapes',
)


def tiny_config(name, arch=TINY, **backbone):
    cfg = get_config(TWINS.get(name, name))
    cfg.model.backbone.update(arch=arch, **backbone)
    channels = [CHANNELS[i] for i in cfg.model.backbone.get('out_indices', range(4))]
    if 'neck' in cfg.model:
        cfg.model.neck.in_channels = channels
        if cfg.model.neck.type == 'SSDNeck':  # its first outputs are its inputs
            levels = (*channels, *cfg.model.neck.out_channels[len(channels) :])
            cfg.model.neck.update(in_channels=tuple(channels), out_channels=levels)
            cfg.model.bbox_head.in_channels = levels
    else:
        cfg.model.decode_head.in_channels = channels
        if 'auxiliary_head' in cfg.model:
            cfg.model.auxiliary_head.in_channels = channels[2]
    return cfg


def tiny_model(name, **backbone):
    """Return a small model with reference weights in its backbone and random ones in its heads."""
    torch.manual_seed(0)
    model = get_model(tiny_config(name, **backbone))
    fill(model.backbone)
    return model


@functools.cache
def tiny(twin):
    """Return a small model with random BatchNorm statistics and heads that find something."""
    cfg = tiny_config(twin, arch=dict(depths=(1, 1, 1, 1), channels=CHANNELS))
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
    roi_layers = ('bbox_head.fc_cls', 'mask_head.conv_logits')
    for layer in dict(
        retinanet=['bbox_head.retina_cls'],
        rtmdet=[f'bbox_head.rtm_cls.{level}' for level in range(3)],
        rtmdet_ins=[
            'bbox_head.mask_head.projection',
            *(f'bbox_head.rtm_{part}.{level}' for part in ('cls', 'kernel') for level in range(3)),
        ],
        ssdlite=[f'bbox_head.cls_convs.{level}.1' for level in range(4)],
        mask_rcnn=['rpn_head.rpn_cls', 'rpn_head.rpn_reg', *(f'roi_head.{layer}' for layer in roi_layers)],
    ).get(twin, []):
        # Scores of RTMDet-Ins begin at 0.01, and its features are small.
        std = 2.0 if twin == 'rtmdet_ins' and 'rtm_cls' in layer else 0.1
        nn.init.normal_(model.get_submodule(layer).weight, std=std)
    return model.eval()


def export(model, path, **options):
    name = next(name for name, known in FORMATS.items() if path.name.endswith(known.suffix))
    options = dict(what='backbone', size=(64, 96)) | options
    export_model(model, Signature(name, **options), path)
    return path


def has(name):
    return not FORMATS[name].missing() and FORMATS[name].runs_here()


def needs(name):
    return pytest.mark.skipif(not has(name), reason=f'{name} is not installed')


def formats(*names):
    return [pytest.param(name, marks=needs(name)) for name in names]


def check_export(model, path, sizes, tolerance=1e-4):
    """Compare an exported file with PyTorch on images of some sizes, and return the differences."""
    images = [image for size in sizes for image in synthetic_images(2, size)]
    difference = compare(load_exported(path), model, images)
    assert difference.largest <= tolerance, difference
    return difference.by_output
