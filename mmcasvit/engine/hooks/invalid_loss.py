"""The hook that stops a run whose loss is NaN or infinite."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from mmcasvit.engine.stopping import last_good
from mmcasvit.registry import HOOKS
from mmcasvit.utils.errors import RunStopped
from mmcasvit.utils.plain import plain
from mmcasvit.utils.text import shorten
from mmcasvit.weights.checkpoint import write_checkpoint


def _samples(batch: Any) -> Iterator[dict]:
    """Yield the plain annotations of each image in a batch."""
    if isinstance(batch, dict) and 'img_path' in batch:
        yield batch
    elif isinstance(batch, (dict, list)):
        for part in batch.values() if isinstance(batch, dict) else batch:
            yield from _samples(part)


def _oddities(sample: dict) -> Iterator[str]:
    """Yield what is unusual about the boxes and the pixels that a model was given."""
    instances = sample.get('gt_instances')
    boxes = instances.get('bboxes') if isinstance(instances, dict) else None
    if isinstance(boxes, Tensor) and boxes.ndim == 2 and boxes.shape[1] == 4:
        height, width = list(sample.get('img_shape') or (np.inf, np.inf))[:2]
        for number, box in enumerate(boxes.tolist()):
            left, top, right, bottom = box
            if not np.isfinite(box).all():
                yield f'box {number} is {box}'
            elif right <= left or bottom <= top:
                yield f'box {number} has no area: {box}'
            elif left < -1 or top < -1 or right > width + 1 or bottom > height + 1:
                yield f'box {number} leaves the image of {width} x {height} pixels: {box}'


def describe_batch(batch: Any) -> str:
    """Return the images of a plain batch and what is odd about them, in one sentence each."""
    lines = []
    for sample in _samples(batch):
        oddities = list(_oddities(sample))
        lines.append(f'{sample["img_path"]}' + (f' ({shorten(oddities, 3)})' if oddities else ''))
    inputs = batch.get('inputs') if isinstance(batch, dict) else None
    for number, image in enumerate(inputs if isinstance(inputs, (list, Tensor)) else ()):
        if isinstance(image, Tensor) and image.is_floating_point() and not image.isfinite().all():
            lines.append(f'input {number} has NaN or infinite pixels')
    return f' Its images: {shorten(lines, 8)}.' if lines else ''


@HOOKS.register_module()
class StopOnInvalidLossHook(Hook):
    """Hook that stops a run whose loss is NaN or infinite, and keeps the batch.

    It checks every iteration, before a checkpoint is written. This costs nothing, because mmengine's log reads the
    losses in every iteration too. ``invalid_loss_iter_N.pth`` in the work dir holds what the model was given:
    ``inputs``, the paths and annotations under ``data_samples``, and the losses. Read it with ``torch.load``.
    """

    priority = 'VERY_HIGH'

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | tuple | list | None = None, outputs: dict | None = None
    ) -> None:
        """Raise :class:`mmcasvit.RunStopped`, whose message names the file, the images and the last good checkpoint."""
        losses = {key: value for key, value in (outputs or {}).items() if 'loss' in key}
        numbers = {key: float(torch.as_tensor(value).detach().sum()) for key, value in losses.items()}
        invalid = [f'{key} is {number}' for key, number in numbers.items() if not np.isfinite(number)]
        if not invalid:
            return
        rank = f'_rank_{runner.rank}' if runner.distributed else ''
        file = Path(runner.work_dir, f'invalid_loss_iter_{runner.iter + 1}{rank}.pth')
        batch = plain(data_batch if isinstance(data_batch, dict) else dict(batch=data_batch))
        try:
            write_checkpoint(dict(batch, losses=numbers, iter=runner.iter + 1, epoch=runner.epoch), file)
            kept = f'The batch is in {file}.'
        except OSError as error:
            kept = f'The batch could not be kept: {error}.'
        raise RunStopped(
            f'training stopped in iteration {runner.iter + 1}: {", ".join(invalid)}. {kept}{describe_batch(batch)} '
            f'{last_good(runner)}'
        )
