"""The layers and graphs that are written for export."""

import copy

import pytest
import torch
from helpers.tiny_models import tiny
from mmengine.config import Config
from torch import nn

from mmcasvit.export.graphs import AdaptiveAveragePool, build_graph
from mmcasvit.export.signature import Signature
from mmcasvit.utils.errors import UsageError


@pytest.mark.parametrize('length, side', [(7, 3), (16, 6), (2, 6), (12, 4)])
def test_adaptive_pooling_as_products(length, side):
    x = torch.randn(2, 3, length, length + 5)
    torch.testing.assert_close(AdaptiveAveragePool(side)(x), nn.functional.adaptive_avg_pool2d(x, side))


def test_what_cannot_be_exported_is_refused():
    model = copy.deepcopy(tiny('retinanet'))
    model.bbox_head.test_cfg = Config(dict(nms=dict(type='soft_nms', iou_threshold=0.5), nms_pre=10, max_per_img=5))
    with pytest.raises(UsageError, match='soft_nms'):
        build_graph(model, Signature('pt2', 'detector', (64, 96)))
    with pytest.raises(UsageError, match='--resize: the masks of RTMDet-Ins'):
        build_graph(tiny('rtmdet_ins'), Signature('pt2', 'detector', (64, 96), pixels='rgb', resize=True))
