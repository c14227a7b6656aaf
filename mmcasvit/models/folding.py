"""Folding norms into the convolutions next to them: on the fly in training, and for good in the deploy form.

The functions return new layers or results; they leave the layers that they are given as they are.
"""

import torch
from mmengine.model.efficient_conv_bn_eval import efficient_conv_bn_eval_forward
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval


def is_affine(norm: nn.Module) -> bool:
    """Return whether a norm in eval mode scales and shifts every channel by constants, as BatchNorm and SyncBN do."""
    return isinstance(norm, _BatchNorm) and norm.running_mean is not None


def affine_of(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the scale and the shift, ``(C,)`` each, that a norm applies with its running statistics."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def _folds_in_training(norm: nn.Module, conv: nn.Conv2d) -> bool:
    # In eval mode nothing is folded, so that exporters, tracers and hooks on norms find every layer in its place.
    return isinstance(norm, _BatchNorm) and norm.track_running_stats and conv.training and not norm.training


def conv_norm(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """Compute ``norm(conv(x))``.

    In training with frozen statistics this is one convolution, which saves the memory of the norm's gradient.

    Source: "Tune-Mode ConvBN Blocks" (arXiv 2305.11624), mmengine's ``efficient_conv_bn_eval``.
    """
    return efficient_conv_bn_eval_forward(norm, conv, x) if _folds_in_training(norm, conv) else norm(conv(x))


def norm_conv(norm: nn.Module, conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Compute ``conv(norm(x))`` for a 1x1 convolution.

    In training with frozen statistics this is one convolution. It must have no padding, because padding comes after
    the norm.
    """
    if not _folds_in_training(norm, conv):
        return conv(norm(x))
    scale, shift = affine_of(norm)
    # A product and a sum, because autocast would round a matrix product.
    bias = (conv.weight * shift[:, None, None]).sum((1, 2, 3)) + (0 if conv.bias is None else conv.bias)
    return conv._conv_forward(x, conv.weight * scale[:, None, None], bias)


def conv_like(
    conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, groups: int | None = None, kind: type[nn.Conv2d] = nn.Conv2d
) -> nn.Conv2d:
    """Return a convolution with the geometry of another one and with its own weights, which get no gradient."""
    groups = conv.groups if groups is None else groups
    new = nn.utils.skip_init(
        kind,
        weight.shape[1] * groups,
        weight.shape[0],
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=groups,
        bias=bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    new.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        new.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return new


def fold_affine(scale: Tensor, shift: Tensor, conv: nn.Conv2d) -> nn.Conv2d:
    """Return the 1x1 convolution that maps ``x`` to ``conv(scale * x + shift)``.

    Exact only without padding, because the zeros around the map would have to be shifted as well.
    """
    bias = conv.weight.flatten(1) @ shift
    return conv_like(conv, conv.weight * scale[:, None, None], bias if conv.bias is None else bias + conv.bias)


def fold_offset(offset: Tensor, conv: nn.Conv2d) -> nn.Conv2d:
    """Return the 1x1 convolution that maps ``x`` to ``conv(x + offset)``."""
    return fold_affine(torch.ones_like(offset), offset, conv)


def side_by_side(first: nn.Conv2d, second: nn.Conv2d) -> nn.Conv2d:
    """Return one grouped convolution for two of the same geometry, on their concatenated inputs and outputs."""
    bias = None if first.bias is None else torch.cat([first.bias, second.bias])
    return conv_like(first, torch.cat([first.weight, second.weight]), bias, groups=first.groups + second.groups)


def without_bias(conv: nn.Conv2d) -> nn.Conv2d:
    """Return the convolution without its bias."""
    return conv_like(conv, conv.weight, None)


def output_channels(conv: nn.Conv2d, start: int, stop: int) -> nn.Conv2d:
    """Return the convolution to a range of the output channels, which must be that of whole groups."""
    groups = max(conv.groups * (stop - start) // conv.out_channels, 1)
    return conv_like(conv, conv.weight[start:stop], None if conv.bias is None else conv.bias[start:stop], groups)


def fold_sequence(layers: nn.Sequential) -> nn.Sequential:
    """Return the layers with each norm folded into the convolution before it, where that is possible."""
    folded = []
    for layer in layers:
        if is_affine(layer) and folded and isinstance(folded[-1], nn.Conv2d):
            folded[-1] = fuse_conv_bn_eval(folded[-1], layer)
        else:
            folded.append(nn.ReLU(inplace=True) if isinstance(layer, nn.ReLU) else layer)
    return nn.Sequential(*folded)
