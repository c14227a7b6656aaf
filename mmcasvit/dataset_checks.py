"""Finds what is wrong with the data of a config before a run does: every image, mask and annotation is read.

:func:`load_splits` gathers the data sets of a config, :func:`check_annotations` looks at annotation files alone,
:func:`check_files` reads every image and mask in parallel, :func:`check_overlap` compares training data with the
others. Each returns a list of :class:`Problem`.
"""
import hashlib
import inspect
import io
import json
import math
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image, ImageDraw, ImageOps
from rich.console import Console
from rich.progress import Progress

from .datasets import leaves
from .tooling import (
    UsageError,
    annotation_file,
    category_order_fault,
    class_names,
    data_folders,
    dataset_type,
    named_leaf_datasets,
    reads_annotations_as,
)

# What can be wrong, in the order of the report.
KINDS = dict(
    bad_file='annotation files that are not what the data set reads',
    no_instances='data sets without an image or an instance',
    class_missing='classes of the config that the annotation file lacks',
    class_order='annotation files whose categories stand in another order than the classes of the config',
    duplicate_image_id='images with the id of another one',
    duplicate_file='images listed more than once',
    duplicate_annotation_id='annotations with the id of another one',
    malformed='entries that lack a field or have one of another type',
    path_outside='files outside of the data set\'s folders',
    missing_image='images that are not there',
    unreadable_image='images that cannot be read to their end',
    wrong_size='images of another size than recorded',
    no_such_image='annotations of an image that is not listed',
    unknown_category='annotations of a category that is not listed',
    empty_box='boxes without an area of at least one pixel',
    box_outside='boxes that leave their image',
    broken_polygon='outlines that enclose nothing or have corners that are no numbers',
    broken_rle='run-length codes that do not fit their image',
    no_outline='annotations without an outline, where the config asks for masks',
    missing_mask='masks that are not there',
    unreadable_mask='masks that cannot be read to their end',
    mask_size='masks of another size than their image',
    mask_format='masks that are no single channel of integers',
    mask_labels='masks with labels out of range',
    mask_without_image='masks that belong to no image',
    overlap='images that the training split shares with another one',
)
# A box may stick out by rounding.
OUTSIDE_TOLERANCE = 1.


@dataclass
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: of :data:`KINDS`.
        where: the file, and the id of the annotation if there is one.
        detail: what was found, and what was expected.
        image: the file to draw, if there is one.
        box: ``(x, y, w, h)`` in pixels, to draw on it.
        mask: the index mask, to draw on it.
        image_index, annotation_index: positions in the lists of the annotation file, for :func:`cleaned_coco`.
    """
    kind: str
    where: str
    detail: str
    image: str = ''
    box: tuple[float, ...] = ()
    mask: str = ''
    image_index: int | None = None
    annotation_index: int | None = None


@dataclass
class Sample:
    """An image of a data set, with its mask if it has one, and the ``(width, height)`` that is recorded for it."""
    image: str
    mask: str = ''
    size: tuple[int, int] | None = None
    index: int | None = None


@dataclass
class DataSet:
    """One data set of a config, as the checks see it.

    Attributes:
        name: what ``--cfg-options`` calls it.
        reads: how its annotations are read: ``'coco'``, ``'masks'`` or ``'images'`` (of another kind: only its images
            are checked).
        classes: the names of the classes, in the order of the labels.
        samples: every image.
        content: the annotation file of a COCO data set.
        problems: what was found while the lists were read, and is found by the checks later.
    """
    name: str
    config: ConfigDict
    reads: str
    classes: tuple[str, ...]
    folders: list[str]
    annotation_file: str = ''
    samples: list[Sample] = field(default_factory=list)
    content: dict = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def needs_masks(self) -> bool:
        return "'with_mask': True" in repr(self.config.get('pipeline'))  # wherever it is nested

    @property
    def source(self) -> str:
        """The annotation file, or the folder of the images."""
        return self.annotation_file or _prefix(self.config, 'img_path')

    def add(self, kind: str, where: str, detail: str, **rest) -> None:
        self.problems.append(Problem(kind, where, detail, **rest))


def load_splits(cfg: Config, splits: list[str], limit: int | None = None) -> dict[str, list[DataSet]]:
    """Lists the images of each split's data sets; those of wrappers are looked at one by one.

    A split whose data sets are those of an earlier one is left out.

    Args:
        cfg: a whole config.
        splits: of ``'train'``, ``'val'`` and ``'test'``.
        limit: take only so many images of each data set.

    Raises:
        UsageError: a split has no data, or a data set cannot be built.
    """
    init_default_scope(cfg.default_scope)
    found, seen = {}, []
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if not loader:
            continue
        leaves_of_split = list(named_leaf_datasets(loader.dataset, f'{split}_dataloader.dataset'))
        places = [{key: leaf.get(key) for key in ('type', 'data_root', 'ann_file', 'data_prefix')}
                  for _, leaf in leaves_of_split]
        if places in seen:
            continue
        seen.append(places)
        found[split] = [_load(name, leaf, cfg.default_scope, limit) for name, leaf in leaves_of_split]
    if not found:
        raise UsageError(f'the config has no data for {", ".join(splits)}.')
    return found


def _load(name: str, config: ConfigDict, scope: str, limit: int | None) -> DataSet:
    if config.get('backend_args'):
        raise UsageError(f'{name}: only data on a local disk can be checked, and it has backend_args.')
    kind = dataset_type(config, scope)
    data = DataSet(name, config, reads_annotations_as(kind, scope), class_names(config, scope), data_folders(config),
                   annotation_file(config))
    dict(coco=_list_coco, masks=_list_masks, images=_list_images)[data.reads](data, kind)
    data.samples = data.samples[:limit]
    return data


def _prefix(config: ConfigDict, key: str) -> str:
    prefix = config.get('data_prefix') or ''
    return os.path.join(config.get('data_root') or '', (prefix.get(key) if isinstance(prefix, dict) else prefix) or '')


def _list_coco(data: DataSet, kind: type) -> None:
    try:
        content = json.loads(Path(data.annotation_file).read_bytes())
    except (OSError, ValueError) as error:
        data.add('bad_file', data.annotation_file, f'{type(error).__name__}: {error}')
        return
    for key in ('images', 'annotations', 'categories'):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            data.add('bad_file', data.annotation_file, f'it has no list of {key}')
            return
    if not all(isinstance(category, dict) and {'id', 'name'} <= category.keys() for category in content['categories']):
        data.add('bad_file', data.annotation_file, 'a category has no id or no name')
        return
    data.content = content
    folder = _prefix(data.config, 'img')
    for index, image in enumerate(content['images']):
        where = f'images[{index}]'
        if not _is_image(image):
            data.add('malformed', where, 'an image needs id, file_name, width and height', image_index=index)
            continue
        path = os.path.join(folder, image['file_name'])
        size = image.get('width'), image.get('height')
        if not all(isinstance(side, int) and side > 0 for side in size):
            data.add('malformed', path, f'width and height are {size}', image_index=index)
            size = None
        data.samples.append(Sample(path, size=size, index=index))


def _list_masks(data: DataSet, kind: type) -> None:
    images, masks = _prefix(data.config, 'img_path'), _prefix(data.config, 'seg_map_path')
    image_suffix = data.config.get('img_suffix') or _default_of(kind, 'img_suffix')
    mask_suffix = data.config.get('seg_map_suffix') or _default_of(kind, 'seg_map_suffix')
    if data.annotation_file and os.path.isfile(data.annotation_file):
        names = [line.strip() for line in Path(data.annotation_file).read_text().splitlines()]
    elif os.path.isdir(images):
        names = sorted(str(path.relative_to(images))[:-len(image_suffix)]
                       for path in Path(images).rglob(f'*{image_suffix}'))
        orphans = {str(path.relative_to(masks))[:-len(mask_suffix)]
                   for path in Path(masks).rglob(f'*{mask_suffix}')} - set(names)
        for name in sorted(orphans):
            data.add('mask_without_image', os.path.join(masks, name + mask_suffix), f'no {name}{image_suffix}')
    else:
        data.add('bad_file', images, 'there is no such folder')
        return
    for name, count in Counter(names).items():
        if count > 1:
            data.add('duplicate_file', name, f'listed {count} times in {data.annotation_file}')
    data.samples = [Sample(os.path.join(images, name + image_suffix), os.path.join(masks, name + mask_suffix),
                           index=index) for index, name in enumerate(names)]
    if not names:
        data.add('no_instances', images, f'no image with the suffix {image_suffix}')


def _default_of(kind: type, argument: str) -> str:
    """The suffix that a data set of mmseg hands to its base class."""
    for base in kind.__mro__:
        parameter = inspect.signature(base.__init__).parameters.get(argument)
        if parameter is not None:
            return parameter.default
    return ''


def _list_images(data: DataSet, kind: type) -> None:
    config = ConfigDict(data.config, pipeline=[], lazy_init=False)
    try:
        built = DATASETS.build(config)
        infos = [built.get_data_info(index) for index in range(len(built))]
    except Exception as error:  # whatever a data set raises that does not find its files as it expects them
        data.add('bad_file', data.annotation_file or data.name, f'{type(error).__name__}: {error}')
        return
    data.samples = [Sample(str(info['img_path']), index=index) for index, info in enumerate(infos)
                    if 'img_path' in info]


# Annotations ----------------------------------------------------------------------------------------------------------


def check_annotations(data: DataSet) -> None:
    """Looks at everything of a COCO file that can be told without its images."""
    content = data.content
    if not content:
        return
    file = data.annotation_file
    if fault := category_order_fault([category['name'] for category in content['categories']], data.classes):
        data.add('class_order', file, fault)
    for name in set(data.classes) - {category['name'] for category in content['categories']}:
        data.add('class_missing', file, f'{name!r}; mmdet would number the classes after it wrongly')
    images = {}
    by_id, by_name = defaultdict(list), defaultdict(list)
    for index, image in enumerate(content['images']):
        if _is_image(image):  # else it was noted while listing
            images.setdefault(image['id'], image)
            by_id[image['id']].append(index)
            by_name[image['file_name']].append(index)
    for name, indices in by_name.items():
        for index in indices[1:]:
            ids = [content['images'][i]['id'] for i in (indices[0], index)]
            data.add('duplicate_file', name, f'listed as id {ids[0]} and {ids[1]}', image_index=index)
    for number, indices in by_id.items():
        names = list(dict.fromkeys(content['images'][index]['file_name'] for index in indices))
        for index in indices if len(names) > 1 else ():  # no one knows whose the annotations are
            data.add('duplicate_image_id', content['images'][index]['file_name'],
                     f'id {number} is that of {", ".join(names)}', image_index=index)
    categories = {category['id'] for category in content['categories'] if _is_id(category['id'])}
    if not content['images'] or not content['annotations']:
        data.add('no_instances', file, f'{len(content["images"])} images, {len(content["annotations"])} annotations')
    taken = set()
    for index, annotation in enumerate(content['annotations']):
        if not isinstance(annotation, dict) or not {'bbox', 'area'} <= annotation.keys() or not all(
                _is_id(annotation.get(key)) for key in ('id', 'image_id', 'category_id')):
            data.add('malformed', f'annotations[{index}]',
                     'an annotation needs id, image_id, category_id, bbox and area', annotation_index=index)
            continue
        image = images.get(annotation['image_id'])
        if annotation['id'] in taken:
            data.add('duplicate_annotation_id', f'annotation {annotation["id"]}',
                     f'annotations[{index}] has the id of an earlier one', annotation_index=index)
        taken.add(annotation['id'])
        if image is None:
            data.add('no_such_image', f'annotation {annotation["id"]}', f'image_id {annotation["image_id"]}',
                     annotation_index=index)
            continue
        path = os.path.join(_prefix(data.config, 'img'), image['file_name'])
        if leaves(data.folders, path) and data.folders:
            path = ''  # is not opened for a picture either
        about = dict(image=path, annotation_index=index)
        where = f'{image["file_name"]}, annotation {annotation["id"]}'
        if annotation['category_id'] not in categories:
            data.add('unknown_category', where, f'category_id {annotation["category_id"]}', **about)
        _check_shape(data, annotation, image, where, about)


def _is_id(value) -> bool:
    return isinstance(value, (int, str))


def _is_image(entry) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get('file_name'), str) and _is_id(entry.get('id'))


def _check_shape(data: DataSet, annotation: dict, image: dict, where: str, about: dict) -> None:
    box = annotation['bbox']
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        data.add('malformed', where, f'bbox is {str(box)[:80]}, not four numbers', **about)
        return
    about = dict(about, box=tuple(box))
    x, y, w, h = box
    width, height = image.get('width'), image.get('height')
    sized = isinstance(width, int) and isinstance(height, int)
    if not _is_number(annotation['area']) or annotation['area'] <= 0 or w < 1 or h < 1:
        data.add('empty_box', where, f'bbox {box}, area {annotation["area"]}', **about)
    elif sized and (x < -OUTSIDE_TOLERANCE or y < -OUTSIDE_TOLERANCE or x + w > width + OUTSIDE_TOLERANCE
                    or y + h > height + OUTSIDE_TOLERANCE):
        data.add('box_outside', where, f'bbox {box} in an image of {width} x {height}', **about)
    outline = annotation.get('segmentation')
    if not outline:
        if data.needs_masks:
            data.add('no_outline', where, 'no segmentation', **about)
    elif isinstance(outline, dict):
        fault = rle_fault(outline, (height, width)) if sized else ''
        if fault:
            data.add('broken_rle', where, fault, **about)
    else:
        faults = [fault for part in outline if (fault := polygon_fault(part))] if isinstance(outline, list) else \
            [f'segmentation is a {type(outline).__name__}']
        if faults:
            data.add('broken_polygon', where, faults[0], **about)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def polygon_fault(points) -> str:
    """What is wrong with a polygon ``[x, y, x, y, ...]``, or ``''``."""
    if not isinstance(points, list) or not all(map(_is_number, points)):
        return 'corners that are no numbers'
    if len(points) % 2 or len(points) < 6:
        return f'{len(points)} numbers; an outline has an even number of at least 6'
    corners = np.array(points, float).reshape(-1, 2)
    if (corners == corners[0]).all():
        return 'all corners are the same point'
    return ''


def rle_fault(code: dict, size: tuple[int, int]) -> str:
    """What is wrong with a run-length code ``dict(size=(H, W), counts=...)`` of an image, or ``''``.

    The runs are added up here, since pycocotools trusts them: it writes where they say.
    """
    if list(code.get('size') or []) != list(size):
        return f'its size is {code.get("size")}, the image has {list(size)} (height, width)'
    counts = code.get('counts')
    try:
        runs = counts if isinstance(counts, list) else decode_runs(counts)
    except (TypeError, ValueError, AttributeError):
        return 'its counts cannot be read'
    if not all(isinstance(run, int) and not isinstance(run, bool) and run >= 0 for run in runs):
        return 'some of its runs are no natural numbers'
    if sum(runs) != size[0] * size[1]:
        return f'its runs add up to {sum(runs)} pixels, the image has {size[0] * size[1]}'
    return ''


def decode_runs(text: str) -> list[int]:
    """The runs of COCO's compressed form: five bits a letter, low ones first, and from the third run on the difference
    to the last but one."""
    runs, value, shift = [], 0, 0
    for letter in text.encode('ascii'):
        bits = letter - 48
        if not 0 <= bits < 64:
            raise ValueError(f'{chr(letter)!r} is no letter of a run-length code')
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError('the last run is cut off')
    return runs


# Files ----------------------------------------------------------------------------------------------------------------


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
            outside = [path for path in (sample.image, sample.mask)
                       if path and data.folders and leaves(data.folders, path)]
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
        raise UsageError('a process died while it read images. --workers 1 reads them in this one, so that its last '
                         'words can be seen.') from error


def _judge_image(data: DataSet, sample: Sample, report: FileReport) -> None:
    about = dict(image=sample.image, image_index=sample.index)
    if not os.path.exists(sample.image):
        data.add('missing_image', sample.image, 'no such file', **about)
    elif report.error:
        data.add('unreadable_image', sample.image, report.error, **about)
    elif sample.size and report.size != sample.size:
        turned = ', turned as its EXIF entry says' if report.turned else ''
        data.add('wrong_size', sample.image, f'{report.size[0]} x {report.size[1]}{turned}; recorded as '
                 f'{sample.size[0]} x {sample.size[1]}', **about)


def _judge_mask(data: DataSet, sample: Sample, report: FileReport) -> None:
    about = dict(image=sample.image, mask=sample.mask, image_index=sample.index)
    if report.mask_error:
        data.add('missing_mask' if report.mask_error == 'missing' else 'unreadable_mask', sample.mask,
                 report.mask_error, **about)
        return
    if report.mask_mode not in ('L', 'P', '1', 'I', 'I;16', 'I;16B'):
        data.add('mask_format', sample.mask, f'its mode is {report.mask_mode}', **about)
        return
    if report.size and report.mask_size != report.size:
        data.add('mask_size', sample.mask, 'mask {} x {}, image {} x {}'.format(*report.mask_size, *report.size),
                 **about)
    wrong = [label for label in report.labels if label not in allowed_labels(data)]
    if wrong:
        data.add('mask_labels', sample.mask, f'{", ".join(map(str, wrong[:8]))}; {len(data.classes)} classes, '
                 f'reduce_zero_label={reduces_zero_label(data)}', **about)


def reduces_zero_label(data: DataSet) -> bool:
    """Whether label 0 of the files stands for what is not labelled, and 1 for the first class."""
    given = data.config.get('reduce_zero_label')
    return bool(_default_of(dataset_type(data.config, 'mmseg'), 'reduce_zero_label') if given is None else given)


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


# Cleaning -------------------------------------------------------------------------------------------------------------

_DROPS_IMAGE = ('duplicate_image_id', 'duplicate_file', 'path_outside', 'missing_image', 'unreadable_image',
                'wrong_size', 'missing_mask', 'unreadable_mask', 'mask_size', 'mask_format', 'mask_labels', 'overlap')
_DROPS_ANNOTATION = ('no_such_image', 'unknown_category', 'empty_box', 'broken_polygon', 'broken_rle', 'no_outline')


def cleaned_coco(data: DataSet) -> tuple[dict, list[str]]:
    """A copy of a COCO file's content without what is wrong in it, and what was done, in lines.

    Images that are at fault go with their annotations. Boxes that stick out are cut at the border; those that lie
    outside go. Annotations with the id of another one get a new id. Categories come in the order of the config's
    classes.
    """
    content, dropped = dict(data.content), Counter()
    bad_images, bad_annotations = {}, {}
    clipped, renumbered = set(), set()
    for problem in data.problems:
        image, annotation = problem.image_index, problem.annotation_index
        if problem.kind in _DROPS_IMAGE or (problem.kind == 'malformed' and annotation is None):
            bad_images.setdefault(image, problem.kind)
        elif problem.kind in _DROPS_ANNOTATION or problem.kind == 'malformed':
            bad_annotations.setdefault(annotation, problem.kind)
        elif problem.kind == 'box_outside':
            clipped.add(annotation)
        elif problem.kind == 'duplicate_annotation_id':
            renumbered.add(annotation)
    content['images'] = [image for index, image in enumerate(data.content['images']) if index not in bad_images]
    dropped.update(KINDS[kind] for kind in bad_images.values())
    sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
    ids = [entry['id'] for entry in data.content['annotations'] if isinstance(entry, dict)
           and isinstance(entry.get('id'), int)]
    next_id = max(ids, default=0) + 1
    content['annotations'] = []
    for index, annotation in enumerate(data.content['annotations']):
        if index in bad_annotations:
            dropped[KINDS[bad_annotations[index]]] += 1
            continue
        if annotation['image_id'] not in sizes:
            dropped['annotations of images that were left out'] += 1
            continue
        if index in clipped:
            width, height = sizes[annotation['image_id']]
            x, y, w, h = annotation['bbox']
            left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
            if right - left < 1 or bottom - top < 1:
                dropped['boxes that lie outside of their image'] += 1
                continue
            annotation = dict(annotation, bbox=[left, top, right - left, bottom - top])
        if index in renumbered:
            annotation, next_id = dict(annotation, id=next_id), next_id + 1
        content['annotations'].append(annotation)
    done = [f'left out {what}: {count}' for what, count in dropped.items()]
    if clipped:
        done.append(f'cut boxes at the border of their image, or left them out: {len(clipped)}')
    if renumbered:
        done.append(f'gave annotations an id of their own: {len(renumbered)}')
    if any(problem.kind == 'class_order' for problem in data.problems):
        order = {name: number for number, name in enumerate(data.classes)}
        content['categories'] = sorted(content['categories'], key=lambda c: order.get(c['name'], len(order)))
        done.append('put the categories into the order of the config\'s classes')
    return content, done


def cleaned_names(data: DataSet) -> tuple[list[str], list[str]]:
    """The names of a segmentation data set's faultless images, for its ``ann_file``, and what was left out."""
    bad = {}
    for problem in data.problems:
        if problem.kind in _DROPS_IMAGE and problem.image_index is not None:
            bad.setdefault(problem.image_index, problem.kind)
    folder = _prefix(data.config, 'img_path')
    suffix = data.config.get('img_suffix') or _default_of(dataset_type(data.config, 'mmseg'), 'img_suffix')
    names = [os.path.relpath(sample.image, folder)[:-len(suffix)] for sample in data.samples if sample.index not in bad]
    dropped = Counter(KINDS[kind] for kind in bad.values())
    return list(dict.fromkeys(names)), [f'left out {what}: {count}' for what, count in dropped.items()]


def fixed_path(data: DataSet) -> Path | None:
    """Where the cleaned list of a data set goes: beside its annotation file, or beside its folder of images."""
    if data.reads == 'images':
        return None
    beside = Path(data.annotation_file or _prefix(data.config, 'img_path').rstrip('/'))
    suffix = beside.suffix if data.annotation_file else '.txt'
    return beside.with_name(f'{beside.stem}.fixed{suffix}')


# Reporting ------------------------------------------------------------------------------------------------------------


def as_json(splits: dict[str, list[DataSet]]) -> dict:
    """Everything that was found, for programs."""
    return {data.name: dict(split=split, images=len(data.samples), checked=data.reads,
                            problems=[asdict(problem) for problem in data.problems])
            for split, group in splits.items() for data in group}


def draw_sheet(splits: dict[str, list[DataSet]], per_kind: int = 4, columns: int = 4) -> Image.Image | None:
    """Examples of each kind in a grid, with their boxes, or ``None`` if nothing is wrong."""
    cells = []
    for kind in KINDS:
        problems = [problem for group in splits.values() for data in group for problem in data.problems
                    if problem.kind == kind and (problem.image or problem.mask)]
        cells += [_draw(problem) for problem in problems[:per_kind]]
    if not cells:
        return None
    columns = min(columns, len(cells))
    width, height = cells[0].size
    sheet = Image.new('RGB', (columns * width, -(-len(cells) // columns) * height), 'white')
    for number, cell in enumerate(cells):
        sheet.paste(cell, (number % columns * width, number // columns * height))
    return sheet


def _draw(problem: Problem, size: tuple[int, int] = (300, 200)) -> Image.Image:
    """One example above its caption. The image shrinks until a box that leaves it can be seen as well."""
    cell = Image.new('RGB', (size[0] + 8, size[1] + 56), 'white')
    pen = ImageDraw.Draw(cell)
    try:
        with Image.open(problem.image) as file:
            full = file.size
            file.draft('RGB', size)  # decodes a JPEG at a fraction of its size
            photo = ImageOps.exif_transpose(file.convert('RGB'))
        full = full if (full[0] > full[1]) == (photo.size[0] > photo.size[1]) else full[::-1]
    except Exception:
        photo, full = Image.new('RGB', (300, 200), (210, 210, 210)), (300, 200)
        ImageDraw.Draw(photo).text((105, 94), 'no picture', fill=(90, 90, 90))
    x, y, w, h = problem.box or (0, 0, 0, 0)
    left, top = min(0, x), min(0, y)
    right, bottom = max(full[0], x + w), max(full[1], y + h)
    # a box far away must not shrink the image to a dot
    left, top = max(left, -full[0]), max(top, -full[1])
    right, bottom = min(right, 2 * full[0]), min(bottom, 2 * full[1])
    scale = min(size[0] / (right - left), size[1] / (bottom - top))
    shown = photo.resize((max(1, round(full[0] * scale)), max(1, round(full[1] * scale))))
    corner = round(4 - left * scale), round(4 - top * scale)
    if problem.mask:
        shown = _with_labels(shown, problem.mask)
    pen.rectangle((4, 4, 3 + size[0], 3 + size[1]), fill=(235, 235, 235))
    cell.paste(shown, corner)
    if problem.box:
        edges = (corner[0] + x * scale, corner[1] + y * scale, corner[0] + (x + w) * scale, corner[1] + (y + h) * scale)
        edges = [min(max(value, 4), 3 + bound) for value, bound in zip(edges, size * 2)]
        pen.rectangle((min(edges[::2]), min(edges[1::2]), max(edges[::2]), max(edges[1::2])), outline=(230, 0, 0),
                      width=2)
    pen.rectangle((0, size[1] + 6, *cell.size), fill='white')
    lines = (problem.kind.replace('_', ' '), problem.where[-48:], problem.detail[:48])
    for number, line in enumerate(lines):
        pen.text((4, size[1] + 8 + 15 * number), line.encode('ascii', 'replace').decode(),
                 fill=(180, 0, 0) if number == 0 else (0, 0, 0))
    return cell


def _with_labels(photo: Image.Image, mask: str) -> Image.Image:
    """Half photograph, half labels in colours that differ from their neighbours'."""
    try:
        with Image.open(mask) as file:
            labels = np.asarray(file.resize(photo.size, Image.Resampling.NEAREST)).astype(int)
    except Exception:
        return photo
    if labels.ndim != 2:
        return photo
    colours = np.stack([labels * 67 % 256, labels * 131 % 256, labels * 197 % 256], axis=-1).astype(np.uint8)
    return Image.blend(photo, Image.fromarray(colours), .5)
