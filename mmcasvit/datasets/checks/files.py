"""Checks of image and mask files, which are read in parallel."""

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
from PIL import ExifTags, Image, ImageOps
from rich.console import Console
from rich.progress import Progress

from mmcasvit.datasets.config import dataset_type, default_of
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.images import DATA_FORMATS, check_regular, open_image

from .problems import CheckedDataset, Sample


@dataclass
class FileReport:
    """Result of reading an image and its mask.

    Attributes:
        digest: Hash of the bytes of the image.
        size: ``(width, height)`` of the image in pixels after the rotation that its EXIF entry asks for.
        rotated: Whether that rotation changed the size.
        turned: Whether the EXIF entry asks for any rotation or flip.
        format: Pillow's name of the format of the image.
        error, mask_error: What went wrong, or ``''``.
        mask_mode: Mode of the mask in Pillow's terms.
        labels: Different values of the mask, up to 1000.
    """

    digest: str = ''
    size: tuple[int, int] | None = None
    rotated: bool = False
    turned: bool = False
    format: str = ''
    error: str = ''
    mask_error: str = ''
    mask_size: tuple[int, int] | None = None
    mask_mode: str = ''
    labels: tuple[int, ...] = ()


def read_sample(sample: Sample) -> FileReport:
    """Decode an image and its mask completely."""
    report = FileReport()
    try:
        check_regular(sample.image)
        content = Path(sample.image).read_bytes()
        report.digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        with warnings.catch_warnings(), open_image(io.BytesIO(content), DATA_FORMATS) as image:
            warnings.simplefilter('ignore')  # about large images; Pillow raises an error for very large ones
            image.load()
            report.size = ImageOps.exif_transpose(image).size
            report.rotated = report.size != image.size
            report.turned, report.format = (
                image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1),
                image.format or '',
            )
        # The other formats have variants that OpenCV does not read.
        if report.format not in ('JPEG', 'PNG', 'BMP', 'WEBP'):
            decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
            if decoded is None or decoded.ndim != 3:  # it gives one channel for a PFM
                report.error = f'OpenCV, which mmcv reads images with, does not support this kind of {report.format}'
    except Image.UnidentifiedImageError:
        report.error = 'not an image, or in a format that Pillow does not support' if content else 'the file is empty'
    except Exception as error:  # decoders raise nearly anything
        report.error = f'{type(error).__name__}: {error}'
    if not sample.mask:
        return report
    try:
        with open_image(sample.mask, DATA_FORMATS) as mask:
            report.mask_mode, report.mask_size = mask.mode, mask.size
            labels = np.asarray(mask)
        if labels.ndim == 2:
            report.labels = tuple(int(label) for label in np.unique(labels)[:1000])
    except Exception as error:
        report.mask_error = 'missing' if isinstance(error, FileNotFoundError) else f'{type(error).__name__}: {error}'
    return report


def check_files(datasets: list[CheckedDataset], workers: int) -> None:
    """Check every image and mask, and whether training images are also in another split.

    A progress bar is shown on stderr.

    Args:
        datasets: Datasets to check.
        workers: Number of processes that read files.

    Raises:
        UsageError: If a worker process died.
    """
    tasks = []
    for data in datasets:
        for sample in data.samples:
            outside = [path for path in (sample.image, sample.mask) if path and data.is_outside(path)]
            if outside:
                data.add('path_outside', outside[0], f'not in {" or ".join(data.folders)}', image_index=sample.index)
            else:
                tasks.append((data, sample))
    digests = defaultdict(dict)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task('reading images', total=len(tasks))
        for (data, sample), report in zip(tasks, _map(read_sample, [sample for _, sample in tasks], workers)):
            progress.advance(task)
            _check_image(data, sample, report)
            if sample.mask:
                _check_mask(data, sample, report)
            if report.digest:
                digests[data.name][sample.image] = report.digest
    _check_overlap(datasets, digests)


def _map(function: Callable, items: list, workers: int) -> Iterator:
    if workers <= 1:
        yield from map(function, items)
        return
    try:
        with ProcessPoolExecutor(workers) as pool:
            yield from pool.map(function, items, chunksize=max(1, min(32, len(items) // (4 * workers))))
    except BrokenProcessPool as error:
        raise UsageError(
            'a worker process died while reading images. Use --workers 1 to read them in the main process, '
            'which shows why.'
        ) from error


def _check_image(data: CheckedDataset, sample: Sample, report: FileReport) -> None:
    about = dict(image=sample.image, image_index=sample.index)
    if not os.path.exists(sample.image):
        data.add('missing_image', sample.image, 'no such file', **about)
    elif report.error:
        data.add('unreadable_image', sample.image, report.error, **about)
    elif report.turned and report.format == 'WEBP':
        data.add('orientation', sample.image, 'OpenCV and Pillow rotate a WebP image differently', **about)
    elif (
        report.turned
        and sample.mask
        and not (report.rotated and report.mask_size == report.size)  # the mask was drawn on the turned image
        and 'ignore_orientation' not in repr(data.config.get('pipeline'))
    ):
        data.add('orientation', sample.image, f'its mask is not: {sample.mask}', mask=sample.mask, **about)
    elif sample.size and report.size and report.size != sample.size:
        rotated = ' after the rotation in its EXIF entry' if report.rotated else ''
        data.add(
            'wrong_size',
            sample.image,
            f'{report.size[0]} x {report.size[1]}{rotated}, recorded as {sample.size[0]} x {sample.size[1]}',
            **about,
        )


def _check_mask(data: CheckedDataset, sample: Sample, report: FileReport) -> None:
    about = dict(image=sample.image, mask=sample.mask, image_index=sample.index)
    if report.mask_error:
        kind = 'missing_mask' if report.mask_error == 'missing' else 'unreadable_mask'
        data.add(kind, sample.mask, report.mask_error, **about)
        return
    if report.mask_mode not in ('L', 'P', '1', 'I', 'I;16', 'I;16B'):
        data.add('mask_format', sample.mask, f'its mode is {report.mask_mode}', **about)
        return
    if report.size and report.mask_size and report.mask_size != report.size:
        sizes = 'mask {} x {}, image {} x {}'.format(*report.mask_size, *report.size)
        data.add('mask_size', sample.mask, sizes, **about)
    elif report.mask_size and min(report.mask_size) == 1:
        data.add('mask_size', sample.mask, 'mmseg cannot read a mask with a side of one pixel', **about)
    first = 1 if _reduces_zero_label(data) else 0
    count = len(data.classes)
    data.labeled.update(data.classes[label - first] for label in report.labels if 0 <= label - first < count)
    allowed = _allowed_labels(data)
    wrong = [label for label in report.labels if label not in allowed]
    if wrong:
        data.add(
            'mask_labels',
            sample.mask,
            f'{", ".join(map(str, wrong[:8]))}; {len(data.classes)} classes, '
            f'reduce_zero_label={_reduces_zero_label(data)}',
            **about,
        )


def _reduces_zero_label(data: CheckedDataset) -> bool:
    """Return whether label 0 means unlabeled in the files, and 1 is the first class."""
    given = data.config.get('reduce_zero_label')
    return bool(default_of(dataset_type(data.config, 'mmseg'), 'reduce_zero_label') if given is None else given)


def _allowed_labels(data: CheckedDataset) -> range | set[int]:
    """Return the values that a mask file may contain."""
    # If the config names only some of the classes, the files still contain all classes that the dataset knows.
    known = getattr(dataset_type(data.config, 'mmseg'), 'METAINFO', {}).get('classes') or data.classes
    if not known:
        return range(256)
    first = 1 if _reduces_zero_label(data) else 0
    return {0, 255, data.config.get('ignore_index') or 255, *range(first, first + len(known))}


def _check_overlap(datasets: list[CheckedDataset], digests: dict[str, dict[str, str]]) -> None:
    """Look for training images that are also in another split: the same file, or one with the same bytes."""
    held_out = {}
    for data in datasets:
        for path, digest in digests[data.name].items() if data.split != 'train' else ():
            held_out.setdefault(digest, (data.split, path))
    for data in datasets:
        for sample in data.samples if data.split == 'train' else ():
            if (known := digests[data.name].get(sample.image)) in held_out:
                split, path = held_out[known]
                same = 'the same file' if os.path.realpath(path) == os.path.realpath(sample.image) else path
                data.add('overlap', sample.image, f'in {split}: {same}', image=sample.image, image_index=sample.index)
