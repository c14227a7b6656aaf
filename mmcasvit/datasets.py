"""Training data that cannot be read: skipped up to a limit, counted and reported; and files outside the data root."""
import json
import logging
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
from mmcv.transforms import BaseTransform, Compose
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, Runner
from PIL import Image

from .registry import HOOKS, TRANSFORMS

# What the readers of mmcv, mmdet and mmseg raise for files that are missing, damaged or no images. A wrong argument
# or a missing key is a fault of the config and ends the run at once.
READING_ERRORS = (OSError, EOFError, SyntaxError, ValueError, AssertionError, cv2.error, Image.DecompressionBombError)


class DataError(RuntimeError):
    """Training data that a run cannot go on with; the message says which files and what to do."""


class SkippedFiles:
    """The files that one training process and its workers could not read, in a temporary file which they share.

    Workers are processes that are copied or spawned, so that a counter of their own would stay with them.
    """

    def __init__(self):
        self._list = Path(tempfile.gettempdir(), f'mmcasvit-skipped-{uuid.uuid4().hex}')
        self._owner = os.getpid()

    def add(self, file: str, reason: str) -> int | None:
        """Notes a file and returns how many there are, or None if it had been noted before."""
        if file in self.read():
            return None
        line = json.dumps([file, ' '.join(reason.split())]) + '\n'
        note = os.open(self._list, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(note, line.encode())  # at once: workers append to the same file
        finally:
            os.close(note)
        return len(self.read())

    def read(self) -> dict[str, str]:
        """Each file with the reason."""
        try:
            lines = self._list.read_text().splitlines()
        except FileNotFoundError:
            return {}
        return dict(map(json.loads, lines))

    def __deepcopy__(self, memo: dict) -> 'SkippedFiles':
        return self  # a copied data set counts on

    def __del__(self):
        if os.getpid() == self._owner:  # not in a worker that ends before the training does
            self._list.unlink(missing_ok=True)


@TRANSFORMS.register_module()
class SkipUnreadable(BaseTransform):
    """Has mmengine's data set take another image at random where the files of one cannot be read.

    The first time a file fails a warning names it; :class:`mmcasvit.SkippedFilesHook` reports the number. Each
    process of a distributed run counts for itself. It belongs into training pipelines alone: an evaluation on fewer
    images would mean something else.

    Args:
        transforms: configs of the transforms that read files, such as ``LoadImageFromFile`` and ``LoadAnnotations``.
        limit: how many different images may be skipped; also how many may be skipped in a row.

    Raises:
        DataError: more images than ``limit`` could not be read.
    """

    def __init__(self, transforms: Sequence[dict], limit: int = 100):
        if limit < 0:
            raise ValueError(f'limit must be at least 0, got {limit}')
        self.transforms = Compose(transforms)
        self.limit = limit
        self.skipped = SkippedFiles()
        self._in_a_row = 0

    def transform(self, results: dict) -> dict | None:
        file = str(results.get('img_path'))
        try:
            loaded = self.transforms(results)
        except READING_ERRORS as error:
            reason = f'{type(error).__name__}: {error}'
        else:
            self._in_a_row = 0
            return loaded
        self._in_a_row += 1
        count = self.skipped.add(file, reason)
        if count is not None:
            print_log(f'training image skipped ({count} so far, {self.limit} allowed): {file}: {reason}',
                      logger='current', level=logging.WARNING)
        if max(count or 0, self._in_a_row) > self.limit:
            raise DataError(f'training stopped: {len(self.skipped.read())} training images could not be read and '
                            f'{self.limit} may be skipped, the last one {file} ({reason}). tools/check_dataset.py '
                            'lists them all; the limit is that of mmcasvit.SkipUnreadable in the training pipeline.')
        return None

    def __repr__(self) -> str:
        return f'{type(self).__name__}(transforms={self.transforms}, limit={self.limit})'


def _single_datasets(dataset) -> Iterator[BaseDataset]:
    """The data sets inside wrappers, once they are built."""
    inner = getattr(dataset, 'datasets', None) or [part for part in [getattr(dataset, 'dataset', None)] if part]
    for part in inner:
        yield from _single_datasets(part)
    if not inner:
        yield dataset


@HOOKS.register_module()
class SkippedFilesHook(Hook):
    """Says at the end of an epoch, before an evaluation and at the end how many training images were skipped so far.

    The list is kept in ``skipped_images.txt`` of the folder of the logs, with the reasons. Runs whose pipelines have
    no :class:`SkipUnreadable` are left alone.
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
        runner.logger.warning(f'{len(skipped)} training images were skipped so far, since they could not be read: '
                              f'{file}')

    def after_train_epoch(self, runner: Runner) -> None:
        self._report(runner)

    def before_val_epoch(self, runner: Runner) -> None:
        if isinstance(runner._train_loop, BaseLoop):  # else it is an evaluation alone
            self._report(runner)

    def after_train(self, runner: Runner) -> None:
        self._report(runner)


def leaves(folders: Sequence[str], file: str) -> bool:
    """Whether a path lies in none of the folders, read as text: links are the user's own and are followed."""
    file = os.path.abspath(file)
    return not any(file.startswith(os.path.join(os.path.abspath(folder), '')) for folder in folders)


@TRANSFORMS.register_module()
class StayInFolders(BaseTransform):
    """Refuses an image or mask whose path, as an annotation file gives it, leads out of the folders of its data set.

    Args:
        folders: where files may be, such as the data root.

    Raises:
        DataError: the path leads elsewhere.
    """

    def __init__(self, folders: Sequence[str]):
        self.folders = list(folders)

    def transform(self, results: dict) -> dict:
        for key in ('img_path', 'seg_map_path'):
            if results.get(key) and leaves(self.folders, results[key]):
                raise DataError(f'the annotations name a file outside of the data set: {results[key]} is not in '
                                f'{" or ".join(self.folders)}. tools/check_dataset.py lists all of them.')
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(folders={self.folders})'
