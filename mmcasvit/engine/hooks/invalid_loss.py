"""The hook that stops a run whose loss is NaN or infinite."""

import os

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmcasvit.engine.stopping import last_good
from mmcasvit.registry import HOOKS
from mmcasvit.utils.errors import RunStopped
from mmcasvit.utils.plain import plain


@HOOKS.register_module()
class StopOnInvalidLossHook(Hook):
    """Stops a run whose loss is NaN or infinite, and keeps the batch.

    It looks in every iteration, before a checkpoint is written. That costs nothing: mmengine's log reads the losses in
    every iteration too. ``invalid_loss_iter_N.pth`` in the work dir holds what the model was given, readable with
    ``torch.load``: ``inputs``, the paths and annotations under ``data_samples``, and the losses.
    """

    priority = 'VERY_HIGH'

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | tuple | list | None = None, outputs: dict | None = None
    ) -> None:
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
        raise RunStopped(
            f'training stopped in iteration {runner.iter + 1}: {", ".join(invalid)}. The batch is in '
            f'{file}. {last_good(runner)}'
        )
