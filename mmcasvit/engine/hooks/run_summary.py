"""The hook that says what a run uses, and what to do after it."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import BaseLoop, IterBasedTrainLoop, Runner

from mmcasvit.models.wrappers import unwrap
from mmcasvit.ops import operators_in_use
from mmcasvit.registry import HOOKS
from mmcasvit.utils.tables import count_of
from mmcasvit.utils.text import as_typed
from mmcasvit.weights.integrity import read_pointer


@HOOKS.register_module()
class RunSummaryHook(Hook):
    """Hook that logs what runs in some ten lines, and the next commands after training."""

    # After the hooks that write the last checkpoint, and before a report, which is the last thing to be said.
    priority = 'LOWEST'
    _highest: float | None = None

    def before_train(self, runner: Runner) -> None:
        """Log what the training uses."""
        self._log(runner, [*_parts(runner), ('schedule', _schedule(runner)), *_places(runner)])
        self.say_if_ended(runner)

    @staticmethod
    def say_if_ended(runner: Runner) -> None:
        """Log that nothing is left to train, as in a run that is resumed after its end."""
        done, total, unit = (
            (runner.iter, runner.max_iters, 'iteration')
            if isinstance(runner.train_loop, IterBasedTrainLoop)
            else (runner.epoch, runner.max_epochs, 'epoch')
        )
        if done >= total:
            runner.logger.warning(f'this run had already ended after {count_of(done, unit)}: nothing is trained.')

    def before_test(self, runner: Runner) -> None:
        """Log what the test uses."""
        self._log(runner, [*_parts(runner), *_places(runner)])

    def after_train(self, runner: Runner) -> None:
        """Log the checkpoint to use, and the commands that use it."""
        checkpoint = runner.message_hub.get_info('best_ckpt') or read_pointer(runner.work_dir)
        config = Path(runner.work_dir, os.path.basename(runner.cfg.filename or 'config.py'))
        if checkpoint is None or not config.is_file():
            return
        folder = Path(sys.argv[0]).absolute().parent
        tools = as_typed(folder) if folder.joinpath('infer.py').is_file() else 'tools'
        files = f'{os.path.relpath(config)} {os.path.relpath(checkpoint)}'
        runner.logger.info(
            f'finished: {os.path.relpath(checkpoint)}. Next:\n'
            f'  python {tools}/test.py {files}\n'
            f'  python {tools}/infer.py IMAGE_OR_FOLDER {files}\n'
            f'  python {tools}/export.py {files} --help'
        )

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None, outputs: Sequence | None = None
    ) -> None:
        """Note the highest score of a box."""
        for sample in outputs or ():
            scores = getattr(sample, 'pred_instances', {}).get('scores', ())
            if len(scores):
                self._highest = max(self._highest or 0.0, scores.max().item())

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Say why drawings show nothing."""
        drawing = (runner.cfg.get('default_hooks') or {}).get('visualization') or {}
        least = drawing.get('score_thr', 0.3)
        if drawing.get('draw') and self._highest is not None and self._highest < least:
            runner.logger.warning(
                f'the drawings show no prediction: the highest score is {self._highest:.3f}, and '
                f'default_hooks.visualization.score_thr is {least:g}. --cfg-options lowers it.'
            )

    @staticmethod
    def _log(runner: Runner, rows: list[tuple[str, str]]) -> None:
        runner.logger.info('\n'.join(f'{name:<10} {text}' for name, text in rows if text))


def _parts(runner: Runner) -> Iterator[tuple[str, str]]:
    yield 'config', str(runner.cfg.filename or '')
    model = unwrap(runner.model)
    backbone = getattr(model, 'backbone', None)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    arch = runner.cfg.model.get('backbone', {}).get('arch')
    named = f' with {type(backbone).__name__}{f" {arch}" if isinstance(arch, str) else ""}' if backbone else ''
    yield 'model', f'{type(model).__name__}{named}, {millions:.2f} million parameters'
    for split in ('train', 'val', 'test'):
        loop = getattr(runner, f'_{split}_loop', None)
        if isinstance(loop, BaseLoop):  # it was built because this run uses it
            loader = loop.dataloader
            batch = getattr(loader, 'batch_size', None) or getattr(loader.batch_sampler, 'batch_size', '?')
            yield f'{split} data', f'{len(loader.dataset)} images in batches of {batch}{_folder(loader.dataset)}'
    yield 'weights', _weights(runner)
    yield 'operators', operators_in_use()


def _folder(dataset) -> str:
    while not getattr(dataset, 'data_root', None) and hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    root = getattr(dataset, 'data_root', None)
    return f' from {root}' if root else ''


def _weights(runner: Runner) -> str:
    if runner._load_from:
        return f'{"resumed from" if runner._resume else "of"} {runner._load_from}'
    init = runner.cfg.model.get('backbone', {}).get('init_cfg') or []
    parts = init if isinstance(init, (list, tuple)) else [init]
    files = [str(part['checkpoint']) for part in parts if part.get('checkpoint')]
    return f'backbone of {", ".join(files)}' if files else 'random'


def _schedule(runner: Runner) -> str:
    loop, wrapper = runner.train_loop, runner.optim_wrapper
    by_iterations = isinstance(loop, IterBasedTrainLoop)
    unit, length = ('iteration', loop.max_iters) if by_iterations else ('epoch', loop.max_epochs)
    often = f'every {loop.val_interval} {unit}s' if loop.val_interval > 1 else f'after each {unit}'
    optimizer = getattr(wrapper, 'optimizer', None)
    rate = optimizer.param_groups[0].get('initial_lr', optimizer.param_groups[0]['lr']) if optimizer else None
    precision = ', mixed precision' if isinstance(wrapper, AmpOptimWrapper) else ''
    how = f', {type(optimizer).__name__} at {rate:g}{precision}' if optimizer else ''
    return f'{count_of(length, unit)}, validation {often}{how}'


def _places(runner: Runner) -> Iterator[tuple[str, str]]:
    device = next(runner.model.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else count_of(torch.get_num_threads(), 'thread')
    processes = get_world_size()
    yield 'device', f'{device} ({name}), {processes} process{"" if processes == 1 else "es"}'
    yield 'output', f'{os.path.relpath(runner.work_dir)}, log in {os.path.relpath(runner.log_dir)}'
