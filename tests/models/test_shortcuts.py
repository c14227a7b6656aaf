"""Layers with less arithmetic compute what the plain ones compute."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_models import tiny_config, tiny_model
from torch import nn
from torch.testing import assert_close

from mmcasvit import deploy
from mmcasvit.models.shortcuts import conv_of_upsampled, take_shortcuts
from mmcasvit.plugin.random_data import random_batch
from mmcasvit.plugin.trial import simulated_run


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('size', [(14, 18), (56, 72), (7, 9), (13, 40)])
@pytest.mark.parametrize('side', [1, 3, 5])
def test_a_small_map_is_convolved_as_if_it_were_upsampled(size, align_corners, side):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 7, 9, generator=rng, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(6, 5, side, side, generator=rng, requires_grad=True)
    large = F.interpolate(x, size, mode='bilinear', align_corners=align_corners)
    wanted = F.conv2d(large, weight, padding=side // 2)
    found = conv_of_upsampled(x, weight, size, align_corners)
    assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    gradient = torch.randn(wanted.shape, generator=rng)
    for a, b in zip(*(torch.autograd.grad(out, [x, weight], gradient) for out in (found, wanted))):
        assert_close(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('share', [0.0, 0.01, 1.0])
def test_positions_without_a_gradient_may_be_left_out(share, memory_format):
    rng = torch.Generator().manual_seed(0)
    model = nn.Module()
    model.rpn_head = tiny_model('mask_rcnn').rpn_head
    plain = model.rpn_head.rpn_conv.to(memory_format=memory_format)
    wanted = copy.deepcopy(plain)
    assert take_shortcuts(model) == ['RPNHead']
    where = (torch.rand(2, 1, 40, 50, generator=rng) < share).float()
    where[:, :, 0, 0] = where[:, :, -1, -1] = float(share > 0)  # kernels that reach beyond the map
    x = torch.randn(2, plain.in_channels, 40, 50, generator=rng).contiguous(memory_format=memory_format)
    gradient = torch.randn(2, plain.out_channels, 40, 50, generator=rng) * where
    outcomes = []
    for conv in (plain, wanted):
        given = x.clone().requires_grad_()
        out = conv(given)
        out.backward(gradient)
        outcomes.append((out, given.grad, conv.weight.grad, conv.bias.grad))
    for a, b in zip(*outcomes):
        assert_close(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('twin, taken', [('mask_rcnn', 'RPNHead'), ('upernet', 'UPerHead')])
def test_a_model_with_shortcuts_has_the_same_losses_gradients_and_names(twin, taken):
    plain = tiny_model(twin).train()
    fast = copy.deepcopy(plain)
    assert take_shortcuts(fast) == [taken]
    assert take_shortcuts(fast) == []
    assert list(fast.state_dict()) == list(plain.state_dict())
    data = random_batch(tiny_config(twin), 96)
    outcomes = []
    for model in (plain, fast):
        torch.manual_seed(0)
        batch = model.data_preprocessor(copy.deepcopy(data), True)
        with simulated_run():
            loss, _ = model.parse_losses(model(**batch, mode='loss'))
        loss.backward()
        outcomes.append((loss.detach(), {name: p.grad for name, p in model.named_parameters()}))
    (wanted_loss, wanted), (loss, found) = outcomes
    assert_close(loss, wanted_loss, rtol=1e-5, atol=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert_close(
            found[name], gradient, rtol=1e-3, atol=1e-5 * largest, msg=lambda text, name=name: f'{name}: {text}'
        )


def test_a_segmentor_with_shortcuts_can_be_deployed():
    model = tiny_model('upernet').eval()
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(x)
        take_shortcuts(model)
        assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)
        assert_close(deploy(model)(x), wanted, rtol=1e-4, atol=1e-4)


def test_heads_of_others_are_left_alone():
    model = nn.Module()
    head = tiny_model('upernet').decode_head
    head.__class__ = type('MyHead', (type(head),), {})
    model.decode_head = head
    assert take_shortcuts(model) == []
