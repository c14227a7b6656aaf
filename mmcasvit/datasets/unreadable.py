"""Unreadable training images: skipped up to a limit and recorded."""

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

# The readers of mmcv, mmdet, and mmseg raise these for files that are missing, damaged, or not images. Other errors,
# such as a missing key, point to a fault in the config and must end the run at once.
READING_ERRORS = (OSError, EOFError, SyntaxError, ValueError, AssertionError, cv2.error, Image.DecompressionBombError)


class SkippedFiles:
    """Record of the files that a training process and its data loader workers could not read.

    It is kept in a temporary file, because workers are separate processes and do not share memory with their parent.
    """

    def __init__(self):
        self._list = Path(tempfile.gettempdir(), f'mmcasvit-skipped-{uuid.uuid4().hex}')
        self._owner = os.getpid()

    def add(self, file: str, reason: str) -> int | None:
        """Record a file. Return the number of files recorded so far, or ``None`` if this one was recorded before."""
        if file in self.read():
            return None
        line = json.dumps([file, ' '.join(reason.split())]) + '\n'
        descriptor = os.open(self._list, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode())  # a single write, since workers append to the same file
        finally:
            os.close(descriptor)
        return len(self.read())

    def read(self) -> dict[str, str]:
        """Return the reason for each recorded file."""
        try:
            lines = self._list.read_text().splitlines()
        except FileNotFoundError:
            return {}
        return dict(map(json.loads, lines))

    def __deepcopy__(self, memo: dict) -> 'SkippedFiles':
        return self  # a copied dataset adds to the same record

    def __del__(self):
        if os.getpid() == self._owner:  # a worker may end before the training
            self._list.unlink(missing_ok=True)


@TRANSFORMS.register_module()
class SkipUnreadable(BaseTransform):
    """Transform that skips unreadable images, which mmengine's datasets then replace by random other ones.

    A warning names each file the first time it fails, and :class:`mmcasvit.SkippedFilesHook` reports their number.
    Each process of a distributed run counts separately. Skip images only in training pipelines: the metrics of an
    evaluation on fewer images are not comparable.

    Args:
        transforms: Configs of the transforms that read files, such as ``LoadImageFromFile`` and ``LoadAnnotations``.
        limit: Number of different images that may be skipped, and of images that may be skipped in a row.

    Raises:
        ValueError: If ``limit`` is negative.
        DataError: If more than ``limit`` images could not be read.
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
                f'skipped unreadable training image ({count} so far, {self.limit} allowed): {file}: {reason}',
                logger='current',
                level=logging.WARNING,
            )
        if max(count or 0, self._in_a_row) > self.limit:
            raise DataError(
                f'{len(self.skipped.read())} images could not be read, but at most {self.limit} may be skipped. '
                f'The last one was {file} ({reason}). tools/check_dataset.py lists all unreadable images. The limit '
                'is set by mmcasvit.SkipUnreadable in the pipeline.'
            )
        return None

    def __repr__(self) -> str:
        return f'{type(self).__name__}(transforms={self.transforms}, limit={self.limit})'
