"""Unreadable training images and annotations: skipped up to a limit and recorded."""

import json
import logging
import os
import tempfile
import uuid
import weakref
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from mmcv.transforms import BaseTransform, Compose
from mmengine.logging import print_log
from PIL import Image

from mmcasvit.registry import TRANSFORMS
from mmcasvit.utils.errors import DataError
from mmcasvit.utils.images import check_regular
from mmcasvit.utils.text import printable

from .outlines import LARGEST, outline_fault

# The readers of mmcv, mmdet, and mmseg raise these for files that are missing, damaged, or not images. Other errors,
# such as a missing key, point to a fault in the config and must end the run at once.
READING_ERRORS = (OSError, EOFError, SyntaxError, ValueError, AssertionError, cv2.error, Image.DecompressionBombError)


class SkippedFiles:
    """Record of the files that a training process and its data loader workers could not read.

    It is kept in a temporary file, because workers are separate processes and do not share memory with their parent.
    """

    def __init__(self):
        self._list = Path(tempfile.gettempdir(), f'mmcasvit-skipped-{uuid.uuid4().hex}')
        weakref.finalize(self, _remove, self._list, os.getpid())

    def add(self, file: str, reason: str) -> int | None:
        """Record a file. Return the number of files recorded so far, or ``None`` if this one was recorded before."""
        file = printable(file)
        if file in self.read():
            return None
        line = json.dumps([file, printable(' '.join(reason.split()))]) + '\n'
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


def _remove(file: Path, owner: int) -> None:
    if os.getpid() == owner:  # a worker may end before the training
        file.unlink(missing_ok=True)


@TRANSFORMS.register_module()
class SkipUnreadable(BaseTransform):
    """Transform that skips unreadable images, which mmengine's datasets then replace by random other ones.

    An image counts as unreadable too if mmdet or pycocotools cannot read one of its annotations: a box without an area
    or with NaN, a missing segmentation where masks are loaded, or an outline that does not fit the image.

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
        self._with_masks = any(getattr(step, 'with_mask', False) for step in self.transforms.transforms)
        self._remote = any(getattr(step, 'backend_args', None) for step in self.transforms.transforms)
        self.limit = limit
        self.skipped = SkippedFiles()
        self._in_a_row = 0

    def transform(self, results: dict) -> dict | None:
        file = str(results.get('img_path'))
        try:
            loaded = self._load(results)
        except READING_ERRORS as error:
            reason = f'{type(error).__name__}: {error}'
        else:
            self._in_a_row = 0
            return loaded
        file = printable(file)
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

    def _load(self, results: dict) -> dict | None:
        """Apply the transforms, and check the annotations as soon as the size of the image is known.

        Raises:
            ValueError: If an annotation cannot be read, or a path is an address.
        """
        for path in (results.get('img_path'), results.get('seg_map_path')):
            if path and not self._remote:
                if '://' in str(path):
                    raise ValueError(f'its path contains ://, which mmengine takes for an address: {path}')
                check_regular(path)
        checked = not results.get('instances')
        for step in self.transforms.transforms:
            shape = results.get('ori_shape')
            if results.get('seg_map_path') and shape is not None and min(shape[:2]) == 1:
                raise ValueError(f'mmseg cannot read a mask with a side of one pixel: {results["seg_map_path"]}')
            if not checked and shape is not None:
                self._check_instances(results['instances'], tuple(shape[:2]))
                checked = True
            results = step(results)
            if results is None:
                return None
            if getattr(step, 'color_type', '') == 'color' and np.ndim(results.get('img')) == 2:
                raise ValueError('OpenCV reads this kind of file as one channel instead of three')
        return results

    def _check_instances(self, instances: list[dict], size: tuple[int, int]) -> None:
        for number, instance in enumerate(instances):
            box, outline = instance.get('bbox'), instance.get('mask')
            if box is not None:
                try:
                    numbers = np.asarray(box, float)
                except (TypeError, OverflowError) as error:
                    raise ValueError(f'box {number} is {str(box)[:80]}: {error}') from error
                if not (np.abs(numbers) <= LARGEST).all():
                    raise ValueError(f'box {number} is {str(box)[:80]}, expected numbers of at most {LARGEST:.0e}')
                if numbers.shape == (4,) and not instance.get('ignore_flag') and (numbers[2:] <= numbers[:2]).any():
                    raise ValueError(f'box {number} has no area: {box}')
            if self._with_masks:
                if outline is None:
                    raise ValueError(f'annotation {number} has no segmentation')
                if fault := outline_fault(outline, size):
                    raise ValueError(f'annotation {number}: {fault}')

    def __repr__(self) -> str:
        return f'{type(self).__name__}(transforms={self.transforms}, limit={self.limit})'
