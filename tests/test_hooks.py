from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mmcasvit import CASViT, ChannelsLastHook


class RoIModel(nn.Module):
    """A backbone whose first output is cut into regions by mmcv's operator."""

    def __init__(self, roi_align):
        super().__init__()
        self.backbone = CASViT(dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 24)), out_indices=0)
        self.roi_align = roi_align

    def forward(self, x, rois):
        return self.roi_align(self.backbone(x)[0], rois)


def test_channels_last_changes_the_format_and_not_the_numbers():
    roi_align = pytest.importorskip('mmcv.ops').RoIAlign
    torch.manual_seed(0)
    model = RoIModel(roi_align(output_size=7, spatial_scale=1 / 4, sampling_ratio=0)).eval()
    x, rois = torch.randn(2, 3, 64, 96), torch.tensor([[0, 4., 8., 40., 60.], [1, 10., 0., 90., 30.]])
    wanted = model(x, rois)
    hook, runner = ChannelsLastHook(), SimpleNamespace(model=model)
    for moment in (hook.before_train, hook.before_val, hook.before_test):
        moment(runner)
    assert len(model.roi_align._forward_pre_hooks) == 1
    feature = model.backbone(x)[0]
    assert feature.is_contiguous(memory_format=torch.channels_last)
    assert not feature.is_contiguous()
    assert_close(model(x, rois), wanted)
