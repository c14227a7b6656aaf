"""Parameters, multiply-adds and minimum memory traffic of a pass, counted with PyTorch's own counter."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry, shape_wrapper


def _convolution_backward(
    grad_shape,
    x_shape,
    weight_shape,
    _bias,
    _stride,
    _padding,
    _dilation,
    transposed,
    _output_padding,
    _groups,
    output_mask,
    out_shape,
) -> int:
    """Count the FLOPs of a backward pass: each requested gradient costs as much as the forward pass.

    PyTorch's own formula counts grouped convolutions as dense ones.
    """
    return 2 * math.prod(x_shape if transposed else grad_shape) * math.prod(weight_shape[1:]) * sum(output_mask[:2])


_CORRECTED = {torch.ops.aten.convolution_backward: _convolution_backward}
# Functions that count the multiplications and additions of each operator with arithmetic worth counting.
FLOPS = {**flop_registry, **{operator: shape_wrapper(function) for operator, function in _CORRECTED.items()}}


@dataclass(frozen=True)
class Cost:
    """Minimum cost of a pass.

    Attributes:
        params: Number of parameters of the model.
        macs: Multiply-adds of convolutions and matrix products, attention included, as
            :class:`torch.utils.flop_counter.FlopCounterMode` counts them: norms, activations and sums count as 0.
        traffic: Bytes that these operators read and write if each reads its inputs and weights once and writes its
            result once, with all other operators fused into them. Maps that stay in the cache can need less.
    """

    params: int
    macs: int
    traffic: int


def nbytes(tree) -> int:
    """Return the number of bytes of all tensors in nested containers."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


class TrafficCounter(TorchDispatchMode):
    """Mode that adds up the bytes that go in and out of the operators in :data:`FLOPS`."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in FLOPS:
            self.bytes += nbytes((args, kwargs)) + nbytes(result)
        return result


def count(module: nn.Module, run: Callable[[], object]) -> Cost:
    """Count one call of ``run``, which passes data through ``module``."""
    with FlopCounterMode(display=False, custom_mapping=_CORRECTED) as flops, TrafficCounter() as traffic:
        run()
    return Cost(
        params=sum(p.numel() for p in module.parameters()), macs=flops.get_total_flops() // 2, traffic=traffic.bytes
    )


def on_meta(module: nn.Module, example: Tensor, run: Callable[[nn.Module, Tensor], object]) -> Cost:
    """Count a pass without computing it, on tensors without content.

    Args:
        module: Module to count. It is moved to the meta device and cannot be used afterwards.
        example: Input of the wanted shape and type.
        run: Function that passes an input through the module.
    """
    meta = torch.empty_like(example, device='meta')
    module.to('meta')
    return count(module, lambda: run(module, meta))
