"""Focal losses and masked convolutions, which mmcv compiles for GPUs only, against autograd and PyTorch."""

import pytest
import torch
import torch.nn.functional as F

from mmcasvit.ops import focal_loss, masked_conv

ALPHA, GAMMA = 0.3, 2.5


@pytest.fixture(params=[False, True], ids=['equal classes', 'weighted classes'])
def example(request):
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 5, generator=rng, dtype=torch.float64) * 3
    weight = torch.rand(5, generator=rng, dtype=torch.float64) if request.param else torch.zeros(0, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(0, 6, (12,), generator=rng), weight


def test_sigmoid_focal_loss(example):
    logits, target, weight = example
    hot = F.one_hot(target, 6)[:, :5].double()
    p = logits.sigmoid()
    right = p * hot + (1 - p) * (1 - hot)
    wanted = (ALPHA * hot + (1 - ALPHA) * (1 - hot)) * (1 - right) ** GAMMA * -right.log()
    if len(weight):
        wanted = wanted * torch.cat([weight, torch.ones(1, dtype=torch.float64)])[target][:, None]
    output, grad = torch.zeros_like(wanted), torch.zeros_like(wanted)
    inputs = logits.detach(), target, weight
    focal_loss.sigmoid_focal_loss_forward(*inputs, output, gamma=GAMMA, alpha=ALPHA)
    focal_loss.sigmoid_focal_loss_backward(*inputs, grad, gamma=GAMMA, alpha=ALPHA)
    torch.testing.assert_close(output, wanted.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(wanted.sum(), logits)[0])


def test_softmax_focal_loss(example):
    logits, target, weight = example
    target = torch.where(target == 5, -1, target)
    p = logits.softmax(1).gather(1, target.clamp(min=0)[:, None])[:, 0]
    wanted = ALPHA * (1 - p) ** GAMMA * -p.log() * (target >= 0)
    if len(weight):
        wanted = wanted * weight[target.clamp(min=0)]
    output, grad = torch.zeros_like(wanted), torch.zeros_like(logits)
    inputs = logits.detach().softmax(1), target, weight
    focal_loss.softmax_focal_loss_forward(*inputs, output, gamma=GAMMA, alpha=ALPHA)
    focal_loss.softmax_focal_loss_backward(*inputs, torch.zeros_like(wanted), grad, gamma=GAMMA, alpha=ALPHA)
    torch.testing.assert_close(output, wanted.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(wanted.sum(), logits)[0])


def test_focal_losses_of_nothing():
    none = torch.zeros(0, 5)
    focal_loss.sigmoid_focal_loss_forward(none, torch.zeros(0).long(), torch.zeros(0), none.clone(), 2.0, 0.25)
    focal_loss.softmax_focal_loss_forward(none, torch.zeros(0).long(), torch.zeros(0), torch.zeros(0), 2.0, 0.25)


@pytest.mark.parametrize(('kernel', 'padding'), [((3, 3), (1, 1)), ((1, 3), (0, 1)), ((2, 2), (0, 0))])
def test_masked_convolution(kernel, padding):
    rng = torch.Generator().manual_seed(0)
    image, weight = torch.randn(1, 3, 6, 7, generator=rng), torch.randn(4, 3, *kernel, generator=rng)
    dense = F.conv2d(image, weight, padding=padding)
    rows, columns = (torch.rand(dense.shape[2:], generator=rng) > 0.5).nonzero().T
    values = torch.zeros(3 * kernel[0] * kernel[1], len(rows))
    masked_conv.masked_im2col_forward(
        image, rows, columns, values, kernel_h=kernel[0], kernel_w=kernel[1], pad_h=padding[0], pad_w=padding[1]
    )
    output = torch.zeros_like(dense)
    masked_conv.masked_col2im_forward(
        weight.flatten(1) @ values, rows, columns, output, height=dense.shape[2], width=dense.shape[3], channels=4
    )
    chosen = torch.zeros_like(dense)
    chosen[:, :, rows, columns] = dense[:, :, rows, columns]
    torch.testing.assert_close(output, chosen, rtol=1e-5, atol=1e-5)
