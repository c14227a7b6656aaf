"""Checks of annotation files."""

import math
import os
from collections import defaultdict

import numpy as np

from mmcasvit.datasets.config import category_order_fault, folder_of
from mmcasvit.datasets.folders import leaves

from .listing import is_id, is_image
from .problems import DataSet

# A box may stick out by rounding.
OUTSIDE_TOLERANCE = 1.0


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
        if is_image(image):  # else it was noted while listing
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
            data.add(
                'duplicate_image_id',
                content['images'][index]['file_name'],
                f'id {number} is that of {", ".join(names)}',
                image_index=index,
            )
    categories = {category['id'] for category in content['categories'] if is_id(category['id'])}
    if not content['images'] or not content['annotations']:
        data.add('no_instances', file, f'{len(content["images"])} images, {len(content["annotations"])} annotations')
    taken = set()
    for index, annotation in enumerate(content['annotations']):
        if (
            not isinstance(annotation, dict)
            or not {'bbox', 'area'} <= annotation.keys()
            or not all(is_id(annotation.get(key)) for key in ('id', 'image_id', 'category_id'))
        ):
            data.add(
                'malformed',
                f'annotations[{index}]',
                'an annotation needs id, image_id, category_id, bbox and area',
                annotation_index=index,
            )
            continue
        image = images.get(annotation['image_id'])
        if annotation['id'] in taken:
            data.add(
                'duplicate_annotation_id',
                f'annotation {annotation["id"]}',
                f'annotations[{index}] has the id of an earlier one',
                annotation_index=index,
            )
        taken.add(annotation['id'])
        if image is None:
            data.add(
                'no_such_image',
                f'annotation {annotation["id"]}',
                f'image_id {annotation["image_id"]}',
                annotation_index=index,
            )
            continue
        path = os.path.join(folder_of(data.config, 'img'), image['file_name'])
        if leaves(data.folders, path) and data.folders:
            path = ''  # is not opened for a picture either
        about = dict(image=path, annotation_index=index)
        where = f'{image["file_name"]}, annotation {annotation["id"]}'
        if annotation['category_id'] not in categories:
            data.add('unknown_category', where, f'category_id {annotation["category_id"]}', **about)
        _check_shape(data, annotation, image, where, about)


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
    elif sized and (
        x < -OUTSIDE_TOLERANCE
        or y < -OUTSIDE_TOLERANCE
        or x + w > width + OUTSIDE_TOLERANCE
        or y + h > height + OUTSIDE_TOLERANCE
    ):
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
        faults = (
            [fault for part in outline if (fault := polygon_fault(part))]
            if isinstance(outline, list)
            else [f'segmentation is a {type(outline).__name__}']
        )
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
