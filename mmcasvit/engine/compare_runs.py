"""Comparison of what two training runs left behind, to the last bit."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer
from torch import Tensor

from mmcasvit.weights.checkpoint import read_checkpoint
from mmcasvit.weights.integrity import read_pointer

# Values that differ between any two runs: clocks, and what is derived from them or from the folder.
_OF_ONE_RUN = re.compile(r'time|eta|memory|last_ckpt|best_ckpt|experiment_name|cfg|mmengine|\bconfig\b')


def _leaves(value: Any, name: str, found: dict) -> dict:
    if isinstance(value, HistoryBuffer):
        value = value.data[0]
    if isinstance(value, Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        value = f'{value.dtype}{list(value.shape)} {hashlib.sha256(np.ascontiguousarray(value)).hexdigest()[:16]}'
    if isinstance(value, dict):
        for key, part in value.items():
            _leaves(part, f'{name}/{key}', found)
    elif isinstance(value, (list, tuple)):
        for number, part in enumerate(value):
            _leaves(part, f'{name}/{number}', found)
    elif not _OF_ONE_RUN.search(name):
        found[name] = value
    return found


def outcome(work_dir: str | Path) -> dict[str, Any]:
    """Return the final state of a run, each value under a name.

    This covers the whole last checkpoint (weights, average, optimizer, schedules, scaler, log buffers), the names of
    the checkpoints, and what was last logged for each step. Tensors are represented by their type, shape and hash.

    Args:
        work_dir: The folder of one run, or of several that were resumed from one another.
    """
    work_dir = Path(work_dir)
    last = read_pointer(work_dir)
    assert last is not None, f'{work_dir} has no last_checkpoint'
    content = read_checkpoint(last)
    content['meta'] = {key: content['meta'][key] for key in ('epoch', 'iter', 'seed')}
    found = _leaves(content, 'checkpoint', {})
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for entry in map(json.loads, file.read_text().splitlines()):
            kind = 'train' if 'loss' in entry else 'val'
            for key, value in entry.items():
                _leaves(value, f'log/{kind}/{entry["step"]}/{key}', found)
    found['files'] = ' '.join(sorted(path.name for path in work_dir.glob('*.pth')))
    return found


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Return a line for each value that differs between two outcomes; NaN equals NaN."""
    return [
        f'{name}: {found.get(name, "absent")}, expected {wanted.get(name, "absent")}'
        for name in sorted(found.keys() | wanted.keys())
        if repr(found.get(name, 'absent')) != repr(wanted.get(name, 'absent'))
    ]
