"""Plain copies of nested data."""

from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor


def plain(value: Any) -> Any:
    """A copy of nested data that ``torch.load(..., weights_only=True)`` reads; other objects become their text."""
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
    if hasattr(value, 'to_ndarray'):  # mmdet's masks
        return plain(value.to_ndarray())
    if isinstance(getattr(value, 'tensor', None), Tensor):  # mmdet's boxes
        return plain(value.tensor)
    return repr(value)
