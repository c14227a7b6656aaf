"""Conversion of nested data to plain Python values and tensors."""

from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor


def plain(value: Any) -> Any:
    """Copy nested data such that ``torch.load(..., weights_only=True)`` can read it.

    Objects without a plain form become their ``repr``.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray) and value.dtype.kind in 'biuf':
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, BaseDataElement):
        return {name: plain(part) for name, part in value.all_items()}
    if isinstance(value, dict):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if hasattr(value, 'to_ndarray'):  # masks of mmdet
        return plain(value.to_ndarray())
    if isinstance(getattr(value, 'tensor', None), Tensor):  # boxes of mmdet
        return plain(value.tensor)
    return repr(value)
