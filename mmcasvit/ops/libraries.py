"""Find out which operators of torchvision can be used."""

import functools
import importlib

import torch
from torch import Tensor


@functools.cache
def torchvision_version() -> str | None:
    """Return the version of torchvision if there is a GPU and its compiled operators load, and None otherwise."""
    if not torch.cuda.is_available():
        return None
    try:
        version = importlib.import_module('torchvision').__version__
    except Exception:  # a torchvision that was built for another PyTorch fails in many ways
        return None
    return version if hasattr(torch.ops.torchvision, 'nms') else None


def use_torchvision(name: str, x: Tensor) -> bool:
    """Return True if an operator of torchvision is to be used for a tensor.

    On a CPU, those of mmcv and torchvision are the same code, which runs in one thread, and those here are faster.
    """
    if x.device.type != 'cuda' or torchvision_version() is None:
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(f'torchvision::{name}', 'CUDA')
