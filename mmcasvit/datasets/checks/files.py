"""Checks of images and masks, which are read in parallel."""

import hashlib
import io
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import Progress

from mmcasvit.datasets.config import dataset_type, default_of
from mmcasvit.datasets.folders import leaves
from mmcasvit.utils.errors import UsageError

from .problems import DataSet, Sample


@dataclass
class FileReport:
    """What reading an image, and its mask if it has one, gave; ``size`` is ``(width, height)`` as training sees it."""

    digest: str = ''
    size: tuple[int, int] | None = None
    turned: bool = False
    error: str = ''
    mask_error: str = ''
    mask_size: tuple[int, int] | None = None
    mask_mode: str = ''
    labels: tuple[int, ...] = ()


def read_files(image: str, mask: str) -> FileReport:
    """Decodes an image, and its mask, to the last byte."""
    report = FileReport()
    try:
        if os.path.exists(image) and not os.path.isfile(image):
            raise OSError('it is no file')
        content = Path(image).read_bytes()
        report.digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        with warnings.catch_warnings(), Image.open(io.BytesIO(content)) as picture:
            warnings.simplefilter('ignore')  # for large ones; Pillow refuses the very large
            picture.load()
            report.size = picture.size
            upright = ImageOps.exif_transpose(picture).size
            report.turned, report.size = upright != picture.size, upright
        if not cv2.haveImageReader(image):
            report.error = 'OpenCV, which mmcv reads images with, does not know the format'
    except Image.UnidentifiedImageError:
        report.error = 'no image, or of a format that Pillow does not know' if content else 'the file is empty'
    except Exception as error:  # decoders raise nearly anything
        report.error = f'{type(error).__name__}: {error}'
    if not mask:
        return report
    try:
        with Image.open(mask) as picture:
            report.mask_mode, report.mask_size = picture.mode, picture.size
            labels = np.asarray(picture)
        if labels.ndim == 2:
            report.labels = tuple(int(label) for label in np.unique(labels)[:1000])
    except Exception as error:
        report.mask_error = 'missing' if isinstance(error, FileNotFoundError) else f'{type(error).__name__}: {error}'
    return report


def _read_sample(sample: Sample) -> FileReport:
    return read_files(sample.image, sample.mask)


def check_files(splits: dict[str, list[DataSet]], workers: int) -> dict[str, dict[str, str]]:
    """Reads every image and mask, with a progress bar on stderr.

    Returns:
        The digest of each image's bytes, by data set and path.

    Raises:
        UsageError: a process that read images died.
    """
    tasks = []
    for data in (data for group in splits.values() for data in group):
        for sample in data.samples:
            outside = [
                path for path in (sample.image, sample.mask) if path and data.folders and leaves(data.folders, path)
            ]
            if outside:
                data.add('path_outside', outside[0], f'not in {" or ".join(data.folders)}', image_index=sample.index)
            else:
                tasks.append((data, sample))
    digests = defaultdict(dict)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task('reading images', total=len(tasks))
        for (data, sample), report in zip(tasks, _map(_read_sample, [sample for _, sample in tasks], workers)):
            progress.advance(task)
            _judge_image(data, sample, report)
            if sample.mask:
                _judge_mask(data, sample, report)
            if report.digest:
                digests[data.name][sample.image] = report.digest
    return digests


def _map(function: Callable, items: list, workers: int) -> Iterator:
    if workers <= 1:
        yield from map(function, items)
        return
    try:
        with ProcessPoolExecutor(workers) as pool:
            yield from pool.map(function, items, chunksize=max(1, min(32, len(items) // (4 * workers))))
    except BrokenProcessPool as error:
        raise UsageError(
            'a process died while it read images. --workers 1 reads them in this one, so that its last '
            'words can be seen.'
        ) from error


def _judge_image(data: DataSet, sample: Sample, report: FileReport) -> None:
    about = dict(image=sample.image, image_index=sample.index)
    if not os.path.exists(sample.image):
        data.add('missing_image', sample.image, 'no such file', **about)
    elif report.error:
        data.add('unreadable_image', sample.image, report.error, **about)
    elif sample.size and report.size != sample.size:
        turned = ', turned as its EXIF entry says' if report.turned else ''
        data.add(
            'wrong_size',
            sample.image,
            f'{report.size[0]} x {report.size[1]}{turned}; recorded as {sample.size[0]} x {sample.size[1]}',
            **about,
        )


def _judge_mask(data: DataSet, sample: Sample, report: FileReport) -> None:
    about = dict(image=sample.image, mask=sample.mask, image_index=sample.index)
    if report.mask_error:
        data.add(
            'missing_mask' if report.mask_error == 'missing' else 'unreadable_mask',
            sample.mask,
            report.mask_error,
            **about,
        )
        return
    if report.mask_mode not in ('L', 'P', '1', 'I', 'I;16', 'I;16B'):
        data.add('mask_format', sample.mask, f'its mode is {report.mask_mode}', **about)
        return
    if report.size and report.mask_size != report.size:
        data.add(
            'mask_size', sample.mask, 'mask {} x {}, image {} x {}'.format(*report.mask_size, *report.size), **about
        )
    wrong = [label for label in report.labels if label not in allowed_labels(data)]
    if wrong:
        data.add(
            'mask_labels',
            sample.mask,
            f'{", ".join(map(str, wrong[:8]))}; {len(data.classes)} classes, '
            f'reduce_zero_label={reduces_zero_label(data)}',
            **about,
        )


def reduces_zero_label(data: DataSet) -> bool:
    """Whether label 0 of the files stands for what is not labelled, and 1 for the first class."""
    given = data.config.get('reduce_zero_label')
    return bool(default_of(dataset_type(data.config, 'mmseg'), 'reduce_zero_label') if given is None else given)


def allowed_labels(data: DataSet) -> range | set[int]:
    """The values that a mask's file may hold."""
    # Where the config names some of the classes, the files still count all that their data set knows.
    known = getattr(dataset_type(data.config, 'mmseg'), 'METAINFO', {}).get('classes') or data.classes
    if not known:
        return range(256)
    first = 1 if reduces_zero_label(data) else 0
    return {0, 255, data.config.get('ignore_index') or 255, *range(first, first + len(known))}


def check_overlap(splits: dict[str, list[DataSet]], digests: dict[str, dict[str, str]]) -> None:
    """Notes images of the training split that are also in another one: the same file, or another with its bytes."""
    held_out = {}
    for split, group in splits.items():
        for data in group if split != 'train' else ():
            for path, digest in digests.get(data.name, {}).items():
                held_out.setdefault(digest, (split, path))
    for data in splits.get('train', ()):
        for sample in data.samples:
            digest = digests.get(data.name, {}).get(sample.image)
            if digest in held_out:
                split, path = held_out[digest]
                same = 'the same file' if os.path.realpath(path) == os.path.realpath(sample.image) else path
                data.add('overlap', sample.image, f'in {split}: {same}', image=sample.image, image_index=sample.index)
