"""Operators that stand in for those of mmcv give on a GPU what they give on a CPU, gradients included."""

import pytest
import torch
from torch.testing import assert_close

from mmcasvit.benchmark.mmcv_ops import using
from mmcasvit.ops import extension

ops = pytest.importorskip('mmcv.ops')
MultiScaleDeformableAttnFunction = ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction
pytestmark = pytest.mark.gpu
RNG = torch.Generator().manual_seed(0)


def random(*shape):
    return torch.randn(shape, generator=RNG)


def boxes(count):
    corners = torch.rand(count, 2, generator=RNG) * 60
    return torch.cat([corners, corners + 2 + 30 * torch.rand(count, 2, generator=RNG)], 1)


ROIS = torch.cat([torch.randint(2, (20, 1), generator=RNG).float(), boxes(20)], 1)
FEW, SCORES = boxes(60), torch.rand(60, generator=RNG)
MASK = (torch.rand(1, 9, 11, generator=RNG) > 0.5).float()
SHAPES, STARTS = torch.tensor([[6, 8], [3, 4]]), torch.tensor([0, 48])
# Function of tensors, those that need a gradient, and the others.
CASES = {
    'nms': (lambda b, s: ops.nms(b, s, 0.5), [], [FEW, SCORES]),
    'nms with an offset': (lambda b, s: ops.nms(b, s, 0.5, offset=1), [], [FEW, SCORES]),
    'batched_nms': (
        lambda b, s, i: ops.batched_nms(b, s, i, dict(type='nms', iou_threshold=0.5)),
        [],
        [FEW, SCORES, torch.randint(3, (60,), generator=RNG)],
    ),
    'soft_nms': (lambda b, s: ops.soft_nms(b, s, 0.3), [], [FEW, SCORES]),
    'nms_match': (lambda d: ops.nms_match(d, 0.5), [], [torch.cat([FEW, SCORES[:, None]], 1)]),
    'roi_align': (lambda x, r: ops.roi_align(x, r, 7, 0.25, 0, 'avg', True), [random(2, 4, 20, 24)], [ROIS]),
    'roi_align, max': (lambda x, r: ops.roi_align(x, r, 7, 0.25, 2, 'max', True), [random(2, 4, 20, 24)], [ROIS]),
    'roi_pool': (lambda x, r: ops.roi_pool(x, r, 7, 0.25), [random(2, 4, 20, 24)], [ROIS]),
    'sigmoid_focal_loss': (
        lambda x, t: ops.sigmoid_focal_loss(x, t, 2.0, 0.25, None, 'none'),
        [random(50, 6)],
        [torch.randint(7, (50,), generator=RNG)],
    ),
    'softmax_focal_loss': (
        lambda x, t: ops.softmax_focal_loss(x, t, 2.0, 0.25, None, 'sum'),
        [random(50, 6)],
        [torch.randint(6, (50,), generator=RNG)],
    ),
    'deform_conv2d': (
        lambda x, o, w: ops.deform_conv2d(x, o, w, 1, 1),
        [random(2, 4, 9, 11), random(2, 18, 9, 11), random(6, 4, 3, 3)],
        [],
    ),
    'modulated_deform_conv2d': (
        lambda x, o, m, w, b: ops.modulated_deform_conv2d(x, o, m, w, b, 1, 1, 1, 1, 1),
        [random(2, 4, 9, 11), random(2, 18, 9, 11), random(2, 9, 9, 11), random(6, 4, 3, 3), random(6)],
        [],
    ),
    'masked_conv2d': (
        lambda x, m, w, b: ops.masked_conv2d(x, m, w, b, 1),
        [],
        [random(1, 4, 9, 11), MASK, random(6, 4, 3, 3), random(6)],
    ),
    'MultiScaleDeformableAttnFunction': (
        lambda v, p, w, s, i: MultiScaleDeformableAttnFunction.apply(v, s, i, p, w, 64),
        [random(2, 60, 2, 4), torch.rand(2, 5, 2, 2, 3, 2, generator=RNG), torch.rand(2, 5, 2, 2, 3, generator=RNG)],
        [SHAPES, STARTS],
    ),
}


def compute(name, device):
    function, differentiable, others = CASES[name]
    inputs = [x.detach().to(device).requires_grad_() for x in differentiable]
    with using(extension):
        found = function(*inputs, *(x.to(device) for x in others))
        outputs = [x.cpu() if torch.is_tensor(x) else x for x in (found if isinstance(found, tuple) else [found])]
        if inputs:
            (outputs[0] * torch.linspace(1, 2, outputs[0].numel()).view_as(outputs[0])).sum().backward()
    return outputs, [x.grad.cpu() for x in inputs]


@pytest.mark.parametrize('name', CASES)
def test_an_operator_agrees_with_that_of_the_cpu(device, name):
    found, grads = compute(name, device)
    wanted, wanted_grads = compute(name, 'cpu')
    for a, b in zip(found, wanted, strict=True):
        if torch.is_tensor(b):
            assert_close(a, b, rtol=1e-4, atol=1e-5)
        else:
            assert [list(map(int, group)) for group in a] == [list(map(int, group)) for group in b]
    assert_close(grads, wanted_grads, rtol=1e-3, atol=1e-4)
    assert all(grad.any() for grad in grads)
