"""The hook that reports skipped training images."""

from collections.abc import Iterator
from pathlib import Path

from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from mmcasvit.datasets.unreadable import SkipUnreadable
from mmcasvit.registry import HOOKS


def _single_datasets(dataset) -> Iterator[BaseDataset]:
    """Yield the data sets inside wrappers, once they are built."""
    inner = getattr(dataset, 'datasets', None) or [part for part in [getattr(dataset, 'dataset', None)] if part]
    for part in inner:
        yield from _single_datasets(part)
    if not inner:
        yield dataset


@HOOKS.register_module()
class SkippedFilesHook(Hook):
    """Hook that reports how many training images were skipped so far: after an epoch, before an evaluation, at the end.

    The list, with the reasons, is in ``skipped_images.txt`` in the folder of the logs. Runs whose pipelines have no
    :class:`~mmcasvit.datasets.unreadable.SkipUnreadable` are left alone.
    """

    def __init__(self):
        self._reported = 0

    def _report(self, runner: Runner) -> None:
        skipped = {}
        for dataset in _single_datasets(runner.train_dataloader.dataset):
            for step in getattr(dataset.pipeline, 'transforms', []):
                if isinstance(step, SkipUnreadable):
                    skipped.update(step.skipped.read())
        if len(skipped) == self._reported:
            return
        self._reported = len(skipped)
        suffix = f'_{runner.rank}' if runner.distributed else ''
        file = Path(runner.log_dir, f'skipped_images{suffix}.txt')
        file.write_text(''.join(f'{name}: {reason}\n' for name, reason in skipped.items()))
        runner.logger.warning(
            f'{len(skipped)} training images were skipped so far, because they could not be read: {file}'
        )

    def after_train_epoch(self, runner: Runner) -> None:
        self._report(runner)

    def before_val_epoch(self, runner: Runner) -> None:
        if isinstance(runner._train_loop, BaseLoop):  # otherwise there is no training
            self._report(runner)

    def after_train(self, runner: Runner) -> None:
        self._report(runner)
