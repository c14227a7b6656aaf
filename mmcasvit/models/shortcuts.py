"""Layers of detectors and segmentors that compute the same result, up to rounding, with less arithmetic."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Below this share of positions with a gradient, gathering them costs less than a convolution of all.
_SPARSE = 0.05


def conv_of_upsampled(x: Tensor, weight: Tensor, size: Sequence[int], align_corners: bool | None) -> Tensor:
    """Convolve a map that is first upsampled bilinearly, without computing the large map.

    A 1x1 convolution and an interpolation commute, and a 3x3 convolution is the sum of nine shifted 1x1 convolutions.
    So these run on the small map, and one matrix for each axis interpolates and shifts their results.

    Args:
        x: Map ``(N, C_in, h, w)``.
        weight: Weights ``(C_out, C_in, K, K)`` of a convolution of stride 1 with padding ``K // 2``, K odd.
        size: ``(H, W)``, size of the large map.
        align_corners: As in :func:`torch.nn.functional.interpolate`.

    Returns:
        ``(N, C_out, H, W)``.
    """
    outputs, inputs, side, _ = weight.shape
    taps = weight.permute(2, 3, 0, 1).reshape(-1, inputs, 1, 1)
    small = F.conv2d(x, taps).unflatten(1, (side, side, outputs))
    rows, columns = (
        F.pad(
            F.interpolate(torch.eye(few, device=x.device)[None], size=many, mode='linear', align_corners=align_corners)[
                0
            ],
            (side // 2, side // 2),
        ).unfold(1, many, 1)
        for few, many in zip(x.shape[2:], size)
    )
    halfway = torch.einsum('nyxchw,wxW->nychW', small, columns)
    return torch.einsum('nychW,hyH->ncHW', halfway, rows)


class _ConvOfPyramid(nn.Conv2d):
    """Convolution of maps that are upsampled to the size of the first and concatenated."""

    align_corners: bool | None = False

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        first, *others = maps
        weights = self.weight.split([x.shape[1] for x in maps], dim=1)
        out = F.conv2d(first, weights[0], self.bias, padding=self.padding)
        for x, weight in zip(others, weights[1:]):
            out = out + conv_of_upsampled(x, weight, first.shape[2:], self.align_corners)
        return out


class _LeanUPerHead:
    """Mixin for mmseg's ``UPerHead``, which convolves its pyramid of maps before it upsamples them."""

    def _forward_feature(self: Any, inputs: Sequence[Tensor]) -> Tensor:
        maps = self._transform_inputs(inputs)
        merged = [self.psp_forward(maps)]
        for conv, x in zip(reversed(self.lateral_convs), reversed(maps[:-1])):
            lateral = conv(x)
            above = F.interpolate(merged[0], lateral.shape[2:], mode='bilinear', align_corners=self.align_corners)
            merged.insert(0, lateral + above)
        return self.fpn_bottleneck([*(conv(x) for conv, x in zip(self.fpn_convs, merged)), merged[-1]])


class _SparseBackward(torch.autograd.Function):
    """Convolution of stride 1 whose backward pass visits only the positions that have a gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return F.conv2d(x, weight, bias, padding=padding)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        outputs, inputs, *side = weight.shape
        rows = gradient.permute(0, 2, 3, 1)
        image, row, column = rows.any(-1).nonzero(as_tuple=True)
        if len(image) > _SPARSE * gradient[:, 0].numel():
            found = torch.ops.aten.convolution_backward(
                gradient, x, weight, [outputs], [1, 1], ctx.padding, [1, 1], False, [0, 0], 1, ctx.needs_input_grad[:3]
            )
            return *found, None
        given = rows[image, row, column]  # (K, C_out)
        # The positions that the kernel reads, (K, height of the kernel, width of the kernel)
        y, z = ((at[:, None] + torch.arange(length) - pad) for at, length, pad in zip((row, column), side, ctx.padding))
        inside = ((y >= 0) & (y < x.shape[2]))[:, :, None] & ((z >= 0) & (z < x.shape[3]))[:, None]
        chosen, i, j = inside.nonzero(as_tuple=True)
        place = image[chosen], y[chosen, i], z[chosen, j]
        found = [None, None, given.sum(0) if ctx.needs_input_grad[2] else None]
        if ctx.needs_input_grad[0]:
            to_kernel = (given @ weight.flatten(1)).view(-1, inputs, *side)
            found[0] = torch.zeros_like(x)
            found[0].permute(0, 2, 3, 1).index_put_(place, to_kernel.permute(0, 2, 3, 1)[chosen, i, j], accumulate=True)
        if ctx.needs_input_grad[1]:
            read = given.new_zeros(len(image), *side, inputs)
            read[chosen, i, j] = x.permute(0, 2, 3, 1)[place]
            found[1] = (given.T @ read.flatten(1)).view(outputs, *side, inputs).permute(0, 3, 1, 2)
        return *found, None


class _SparseConv(nn.Conv2d):
    """Convolution that expects a gradient at few positions, since a loss samples them; see :class:`_SparseBackward`."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        return _SparseBackward.apply(x, self.weight, self.bias, self.padding)


def take_shortcuts(model: nn.Module) -> list[str]:
    """Replace layers of a detector or segmentor, in place, by ones that compute the same with less arithmetic.

    Names and values of the weights stay the same. Subclasses of the known heads are left alone, since they may compute
    something else.

    Returns:
        A description of each replacement.
    """
    taken = []
    for part in model.modules():
        kind = f'{type(part).__module__.partition(".")[0]}.{type(part).__name__}'
        if kind == 'mmdet.RPNHead' and type(part.rpn_conv) is nn.Conv2d:
            part.rpn_conv.__class__ = _SparseConv
            taken.append('RPNHead')
        elif kind == 'mmseg.UPerHead' and type(part.fpn_bottleneck.conv) is nn.Conv2d:
            part.__class__ = type(type(part).__name__, (_LeanUPerHead, type(part)), {})
            part.fpn_bottleneck.conv.__class__ = _ConvOfPyramid
            part.fpn_bottleneck.conv.align_corners = part.align_corners
            taken.append('UPerHead')
    return taken
