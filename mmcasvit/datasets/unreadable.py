"""Training data that cannot be read: skipped up to a limit, counted and reported; and files outside the data root."""

import json
import logging
import os
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

import cv2
from mmcv.transforms import BaseTransform, Compose
from mmengine.logging import print_log
from PIL import Image

from mmcasvit.registry import TRANSFORMS
from mmcasvit.utils.errors import DataError

# What the readers of mmcv, mmdet and mmseg raise for files that are missing, damaged or no images. A wrong argument
# or a missing key is a fault of the config and ends the run at once.
READING_ERRORS = (OSError, EOFError, SyntaxError, ValueError, AssertionError, cv2.error, Image.DecompressionBombError)


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
            print_log(
                f'training image skipped ({count} so far, {self.limit} allowed): {file}: {reason}',
                logger='current',
                level=logging.WARNING,
            )
        if max(count or 0, self._in_a_row) > self.limit:
            raise DataError(
                f'training stopped: {len(self.skipped.read())} training images could not be read and '
                f'{self.limit} may be skipped, the last one {file} ({reason}). tools/check_dataset.py '
                'lists them all; the limit is that of mmcasvit.SkipUnreadable in the training pipeline.'
            )
        return None

    def __repr__(self) -> str:
        return f'{type(self).__name__}(transforms={self.transforms}, limit={self.limit})'
