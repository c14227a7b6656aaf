"""The end of a run that cannot go on, with what is needed to see why."""
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor

from .registry import HOOKS


class RunStopped(RuntimeError):
    """Training that cannot go on; the message says why, and from where it can be taken up again."""


def last_good(runner: Runner) -> str:
    """A sentence on the checkpoint that a stopped run can be resumed from."""
    pointer = Path(runner.work_dir, 'last_checkpoint')
    last = pointer.read_text().strip() if pointer.is_file() else ''
    return f'The last good checkpoint is {last}.' if last else 'No checkpoint had been written yet.'


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


@HOOKS.register_module()
class StopOnInvalidLossHook(Hook):
    """Stops a run whose loss is NaN or infinite, and keeps the batch.

    It looks in every iteration, before a checkpoint is written. That costs nothing: mmengine's log reads the losses in
    every iteration too. ``invalid_loss_iter_N.pth`` in the work dir holds what the model was given, readable with
    ``torch.load``: ``inputs``, the paths and annotations under ``data_samples``, and the losses.
    """

    priority = 'VERY_HIGH'

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | tuple | list | None = None,
                         outputs: dict | None = None) -> None:
        """Raises :class:`RunStopped`, whose message names the file and the last good checkpoint."""
        losses = {key: value for key, value in (outputs or {}).items() if 'loss' in key}
        numbers = {key: float(torch.as_tensor(value).detach().sum()) for key, value in losses.items()}
        invalid = [f'{key} is {number}' for key, number in numbers.items() if not np.isfinite(number)]
        if not invalid:
            return
        rank = f'_rank_{runner.rank}' if runner.distributed else ''
        file = os.path.join(runner.work_dir, f'invalid_loss_iter_{runner.iter + 1}{rank}.pth')
        batch = data_batch if isinstance(data_batch, dict) else dict(batch=data_batch)
        torch.save(dict(plain(batch), losses=numbers, iter=runner.iter + 1, epoch=runner.epoch), file)
        raise RunStopped(f'training stopped in iteration {runner.iter + 1}: {", ".join(invalid)}. The batch is in '
                         f'{file}. {last_good(runner)}')
