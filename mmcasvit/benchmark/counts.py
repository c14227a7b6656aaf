"""Parameters, multiply-adds and the least memory traffic of a pass, counted by PyTorch's own counter."""

import math
from collections.abc import Callable, Iterator
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
    """Each gradient asked for costs as much as the forward pass. PyTorch takes grouped convolutions for dense here."""
    return 2 * math.prod(x_shape if transposed else grad_shape) * math.prod(weight_shape[1:]) * sum(output_mask[:2])


_CORRECTED = {torch.ops.aten.convolution_backward: _convolution_backward}
# Of each operator with arithmetic worth counting, its multiplications and additions.
FLOPS = {**flop_registry, **{operator: shape_wrapper(function) for operator, function in _CORRECTED.items()}}


@dataclass(frozen=True)
class Cost:
    """What a pass costs at least.

    Attributes:
        params: of the model, all of them.
        macs: multiply-adds of convolutions and matrix products (attention included), as
            :class:`torch.utils.flop_counter.FlopCounterMode` counts them: norms, activations and sums cost none.
        traffic: bytes that these operators read and write if each reads its inputs and weights once and writes its
            result once, and everything between them is fused into them. A processor whose cache holds a map until
            it is read again may need less.
    """

    params: int
    macs: int
    traffic: int


def nbytes(tree) -> int:
    """Bytes of all tensors in nested containers."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


class TrafficCounter(TorchDispatchMode):
    """Adds up the bytes that go in and out of the operators that PyTorch's counter counts."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in FLOPS:
            self.bytes += nbytes((args, kwargs)) + nbytes(result)
        return result


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def count(module: nn.Module, run: Callable[[], object]) -> Cost:
    """Counts one call of ``run``, which passes data through ``module``."""
    with FlopCounterMode(display=False, custom_mapping=_CORRECTED) as flops, TrafficCounter() as traffic:
        run()
    return Cost(
        params=sum(p.numel() for p in module.parameters()), macs=flops.get_total_flops() // 2, traffic=traffic.bytes
    )


def on_meta(module: nn.Module, example: Tensor, run: Callable[[nn.Module, Tensor], object]) -> Cost:
    """Counts without computing: on tensors that have a shape and no content.

    Args:
        module: it is moved to the meta device and is of no use afterwards.
        example: an input of the wanted shape and type.
        run: passes an input through the module.
    """
    module = module.to('meta')
    meta = torch.empty_like(example, device='meta')
    return count(module, lambda: run(module, meta))
