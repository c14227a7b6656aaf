"""Compares what two training runs left behind, to the last bit."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer
from torch import Tensor

from mmcasvit.weights.checkpoint import read_checkpoint

# What no two runs share: clocks, and what is derived from them or from the folder.
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
    """What a run ended with, each value under a name.

    That is all of the last checkpoint (weights, average, optimizer, schedules, scaler, log buffers), the names of the
    checkpoints, and what was last logged for each step. Tensors are represented by their type, shape and hash.

    Args:
        work_dir: of one run, or of several that were resumed one from the other.
    """
    work_dir = Path(work_dir)
    content = read_checkpoint(_last(work_dir))
    content['meta'] = {key: content['meta'][key] for key in ('epoch', 'iter', 'seed')}
    found = _leaves(content, 'checkpoint', {})
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for entry in map(json.loads, file.read_text().splitlines()):
            kind = 'train' if 'loss' in entry else 'val'
            for key, value in entry.items():
                _leaves(value, f'log/{kind}/{entry["step"]}/{key}', found)
    found['files'] = ' '.join(sorted(path.name for path in work_dir.glob('*.pth')))
    return found


def _last(work_dir: Path) -> Path:
    last = Path((work_dir / 'last_checkpoint').read_text().strip())
    return last if last.exists() else work_dir / last.name


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """One line for each value that is not the same in both outcomes; NaN equals NaN."""
    return [
        f'{name}: {found.get(name, "absent")}, expected {wanted.get(name, "absent")}'
        for name in sorted(found.keys() | wanted.keys())
        if repr(found.get(name, 'absent')) != repr(wanted.get(name, 'absent'))
    ]
