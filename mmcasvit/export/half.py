"""Arithmetic in fp16, simulated on processors that have none, and the place where a network's operators can be seen."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

# Largest number of fp16.
LARGEST = torch.finfo(torch.float16).max


class NetworkMode(TorchDispatchMode):
    """Mode that sees every operator inside the modules of a network, once :func:`attach` has put it there.

    Data preprocessing, the decoding of boxes, their selection, and the pasting of masks are outside of it, in fp32, as
    in the graphs of ``tools/export.py``. So is what modules without parameters compute from coordinates, such as
    RoIAlign: :meth:`seen` gets its results only.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[str] = []  # names of the modules that are running

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            name = func.overloadpacket.__name__
            tree_map_only(Tensor, lambda x: self._seen(name, x), result)
        return result

    def _seen(self, operator: str, x: Tensor) -> None:
        if x.dtype == torch.float32:
            self.seen(operator, x)

    def seen(self, operator: str, x: Tensor) -> None:
        """Do something with a result of an operator, which may be changed in place."""
        raise NotImplementedError


def _networks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules in which a mode is active, by name: all but the model around them and its preprocessor."""
    if not hasattr(model, 'data_preprocessor'):
        return dict(model.named_modules())
    return {
        name: part for name, part in model.named_modules() if name and name.partition('.')[0] != 'data_preprocessor'
    }


def attach(model: nn.Module, mode: NetworkMode) -> None:
    """Make a mode active in the modules of a model, in place. Methods other than ``forward`` stay as they are."""
    for name, part in _networks(model).items():
        plain = next(part.parameters(), None) is None
        part.forward = _watched(part.forward, name, mode, plain)


def _watched(forward: Callable, name: str, mode: NetworkMode, plain: bool) -> Callable:
    @functools.wraps(forward)
    def watched(*args: Any, **kwargs: Any) -> Any:
        nested = bool(mode.inside)
        mode.inside.append(name)
        try:
            if nested:
                return forward(*args, **kwargs)
            if plain:
                return tree_map_only(Tensor, functools.partial(_passed, mode, 'output'), forward(*args, **kwargs))
            args, kwargs = tree_map_only(Tensor, functools.partial(_passed, mode, 'input'), (args, kwargs))
            with mode:
                return forward(*args, **kwargs)
        finally:
            mode.inside.pop()

    return watched


def _passed(mode: NetworkMode, name: str, x: Tensor) -> Tensor:
    """Show a mode a copy of a tensor that enters or leaves its part of the network, and return the copy."""
    x = x.clone()
    mode._seen(name, x)
    return x


class _Rounding(NetworkMode):
    def seen(self, operator: str, x: Tensor) -> None:
        x.copy_(x.half())


@torch.no_grad()
def simulate_half(model: nn.Module) -> nn.Module:
    """Return a copy of a model that computes as in fp16: weights, inputs and the result of each operator are rounded.

    What exceeds 65504 becomes infinite, and what is below 6e-8 becomes 0. Sums inside of an operator, such as those of
    a convolution, are in fp32, as on GPUs. Data preprocessing, the decoding and selection of boxes, RoIAlign and the
    pasting of masks are in fp32.

    Args:
        model: Detector, segmentor or backbone in fp32, usually its deploy form: few runtimes compute norms in fp16. It
            is left as it is.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    networks = _networks(model)
    for part in networks.values():
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            if tensor.dtype == torch.float32:
                tensor.copy_(tensor.half())
    attach(model, _Rounding())
    return model
