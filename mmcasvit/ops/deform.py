"""Deformable convolutions (arXiv 1703.06211 and 1811.11168) and multi-scale deformable attention (2010.04159).

The backward functions run the forward pass again, as mmcv's do for their columns, and leave the rest to autograd.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .bags import precise, rows_of, sum_bags
from .libraries import use_torchvision


class _Geometry(NamedTuple):
    """Arguments of a deformable convolution; pairs are for height and width."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    deform_groups: int


def _corners(points: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Return the positions on both sides of each point of an axis, with weights that are 0 outside the map."""
    low = points.detach().floor()
    part = points - low
    return [
        (position.clamp(0, size - 1).long(), weight * ((position >= 0) & (position < size)))
        for position, weight in ((low, 1 - part), (low + 1, part))
    ]


def _sample(image: Tensor, offset: Tensor, mask: Tensor | None, kernel: Sequence[int], geometry: _Geometry) -> Tensor:
    """Return the values that the kernel sees at each position of the output.

    Args:
        image: ``(1, C, H, W)``.
        offset: ``(1, D * K * 2, h, w)`` for D groups and K positions of the kernel, first in y, then in x.
        mask: Factors of the values, ``(1, D * K, h, w)``.
        kernel: Height and width of the kernel.
        geometry: Arguments of the convolution.

    Returns:
        ``(h * w, K, C)``.
    """
    groups, (channels, *size), (*_, h, w) = geometry.deform_groups, image.shape[1:], offset.shape
    offset = offset.view(groups, *kernel, 2, h, w)
    grids = [
        torch.arange(count, device=image.device) * step
        for count, step in zip((*kernel, h, w), (*geometry.dilation, *geometry.stride))
    ]
    y = offset[:, :, :, 0] + (grids[0][:, None, None, None] + grids[2][:, None] - geometry.padding[0])
    x = offset[:, :, :, 1] + (grids[1][:, None, None] + grids[3] - geometry.padding[1])
    corners = [
        (row * size[1] + column, row_weight * column_weight)
        for row, row_weight in _corners(y, size[0])
        for column, column_weight in _corners(x, size[1])
    ]
    group = torch.arange(groups, device=image.device)[:, None, None, None, None]
    index = torch.stack([position * groups + group for position, _ in corners], -1)
    weights = torch.stack([weight for _, weight in corners], -1)
    if mask is not None:
        weights = weights * mask.view(groups, *kernel, h, w, 1)
    values = sum_bags(
        rows_of(image).reshape(-1, channels // groups),
        index.permute(3, 4, 1, 2, 0, 5).flatten(),
        weights.permute(3, 4, 1, 2, 0, 5).flatten(),
        torch.arange(0, index.numel(), len(corners), device=image.device),
    )
    return values.view(h * w, -1, channels)


def _convolve(inputs: Sequence[Any], geometry: _Geometry) -> Tensor:
    """Return a deformable convolution of x, offset, mask (or None) and weight, which autograd can differentiate."""
    x, offset, mask, weight = inputs
    if use_torchvision('deform_conv2d', x):
        return torch.ops.torchvision.deform_conv2d(
            x,
            weight,
            offset,
            x.new_zeros(len(x), 1) if mask is None else mask,
            x.new_zeros(len(weight)),
            *geometry.stride,
            *geometry.padding,
            *geometry.dilation,
            geometry.groups,
            geometry.deform_groups,
            mask is not None,
        )
    groups, outputs = geometry.groups, []
    kernel = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1).transpose(2, 3)
    for i in range(len(x)):
        part = slice(i, i + 1)
        values = _sample(x[part], offset[part], None if mask is None else mask[part], weight.shape[2:], geometry)
        values = values.view(len(values), -1, groups, weight.shape[1])
        outputs.append(torch.einsum('lkgc,gokc->gol', values, kernel).reshape(len(weight), *offset.shape[2:]))
    return torch.stack(outputs)


def _parts(batch: int, *tensors: Tensor | None) -> Iterator[list[Any]]:
    """Yield parts of batches, as views. In plain PyTorch, one image at a time bounds the memory."""
    size = batch if any(x is not None and use_torchvision('deform_conv2d', x) for x in tensors) else 1
    for start in range(0, batch, size or 1):
        yield [None if x is None else x[start : start + size] for x in tensors]


def _forward(
    x: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, geometry: _Geometry, output: Tensor
) -> None:
    """Write a deformable convolution into ``output``."""
    for result, *inputs in _parts(len(x), output, x, offset, mask):
        leaves = [None if y is None else precise(y) for y in (*inputs, weight)]
        result.copy_(_convolve(leaves, geometry))


@torch.enable_grad()
def _backward(
    gradient: Tensor,
    inputs: Sequence[Tensor | None],
    weight: Tensor,
    geometry: _Geometry,
    grads: Sequence[Tensor | None],
) -> None:
    """Add to the gradients of x, offset, mask and weight. Those that are None are not computed."""
    *input_grads, weight_grad = grads
    weight_sum = None if weight_grad is None else torch.zeros_like(precise(weight_grad))
    for part, *others in _parts(len(gradient), gradient, *inputs, *input_grads):
        sums = [*others[len(inputs) :], weight_sum]
        leaves: list[Any] = [None if x is None else precise(x).detach() for x in (*others[: len(inputs)], weight)]
        wanted = [(leaf.requires_grad_(), total) for leaf, total in zip(leaves, sums) if total is not None]
        output = _convolve(leaves, geometry)
        found = torch.autograd.grad(output, [leaf for leaf, _ in wanted], precise(part))
        for (_, total), add in zip(wanted, found):
            total += add
    if weight_grad is not None:
        weight_grad += weight_sum


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Write a deformable convolution into ``output``.

    Args:
        input: ``(B, C, H, W)``.
        weight: ``(O, C / group, kH, kW)``.
        offset: ``(B, deformable_group * kH * kW * 2, h, w)``, first in y, then in x.
        output: ``(B, O, h, w)``.
        columns: Unused, as are ``ones`` and ``im2col_step``.
        ones: Unused.
        kW: Width of the kernel; ``kH`` is its height, and so on for the other pairs.
        kH: Height of the kernel.
        dW: Stride.
        dH: Stride.
        padW: Padding.
        padH: Padding.
        dilationW: Dilation.
        dilationH: Dilation.
        group: Number of groups of channels.
        deformable_group: Number of groups of channels with offsets of their own.
        im2col_step: Unused.
    """
    geometry = _Geometry((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    _forward(input, offset, None, weight, geometry, output)


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Add to the gradients of input and offset; see :func:`deform_conv_forward`."""
    geometry = _Geometry((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    _backward(grad_output, (input, offset, None), weight, geometry, (grad_input, grad_offset, None, None))


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Add to the gradient of the weight, multiplied by ``scale``; see :func:`deform_conv_forward`."""
    geometry = _Geometry((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    # The values of the weight do not matter to its gradient.
    _backward(grad_output * scale, (input, offset, None), grad_weight, geometry, (None, None, None, grad_weight))


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write a modulated deformable convolution into ``output``.

    The arguments are those of :func:`deform_conv_forward`, and ``mask``, ``(B, deformable_group * kernel_h * kernel_w,
    h, w)``, with a factor for each sampled value.
    """
    geometry = _Geometry((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group, deformable_group)
    _forward(input, offset, mask, weight, geometry, output)
    if with_bias:
        output += bias.view(-1, 1, 1)


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Add to all gradients; see :func:`modulated_deform_conv_forward`."""
    geometry = _Geometry((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group, deformable_group)
    grads = (grad_input, grad_offset, grad_mask, grad_weight)
    _backward(grad_output, (input, offset, mask), weight, geometry, grads)
    if with_bias:
        grad_bias += grad_output.sum((0, 2, 3))


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Return multi-scale deformable attention, by the function that mmcv has for a CPU.

    Args:
        value: ``(B, K, heads, C)``, all levels one after the other.
        value_spatial_shapes: Height and width of the levels, ``(L, 2)``.
        value_level_start_index: Where each level starts, ``(L,)``.
        sampling_locations: x and y from 0 to 1, ``(B, Q, heads, L, points, 2)``.
        attention_weights: ``(B, Q, heads, L, points)``.
        im2col_step: Unused.

    Returns:
        ``(B, Q, heads * C)``.
    """
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch  # it imports this stand-in

    return multi_scale_deformable_attn_pytorch(
        value, value_spatial_shapes.tolist(), sampling_locations, attention_weights
    )


@torch.enable_grad()
def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Add to the gradients of value, locations and weights; see :func:`ms_deform_attn_forward`."""
    leaves = [x.detach().requires_grad_() for x in (value, sampling_locations, attention_weights)]
    output = ms_deform_attn_forward(
        leaves[0], value_spatial_shapes, value_level_start_index, leaves[1], leaves[2], im2col_step
    )
    grads = torch.autograd.grad(output, leaves, grad_output)
    for total, found in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads):
        total += found
