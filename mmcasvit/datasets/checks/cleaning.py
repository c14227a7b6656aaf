"""Annotation files without what is wrong."""

import os
from collections import Counter
from pathlib import Path

from mmcasvit.datasets.config import dataset_type, default_of, folder_of

from .problems import KINDS, DataSet

_DROPS_IMAGE = (
    'duplicate_image_id',
    'duplicate_file',
    'path_outside',
    'missing_image',
    'unreadable_image',
    'wrong_size',
    'missing_mask',
    'unreadable_mask',
    'mask_size',
    'mask_format',
    'mask_labels',
    'overlap',
)
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
    ids = [
        entry['id']
        for entry in data.content['annotations']
        if isinstance(entry, dict) and isinstance(entry.get('id'), int)
    ]
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
        done.append("put the categories into the order of the config's classes")
    return content, done


def cleaned_names(data: DataSet) -> tuple[list[str], list[str]]:
    """The names of a segmentation data set's faultless images, for its ``ann_file``, and what was left out."""
    bad = {}
    for problem in data.problems:
        if problem.kind in _DROPS_IMAGE and problem.image_index is not None:
            bad.setdefault(problem.image_index, problem.kind)
    folder = folder_of(data.config, 'img_path')
    suffix = data.config.get('img_suffix') or default_of(dataset_type(data.config, 'mmseg'), 'img_suffix')
    names = [
        os.path.relpath(sample.image, folder)[: -len(suffix)] for sample in data.samples if sample.index not in bad
    ]
    dropped = Counter(KINDS[kind] for kind in bad.values())
    return list(dict.fromkeys(names)), [f'left out {what}: {count}' for what, count in dropped.items()]


def fixed_path(data: DataSet) -> Path | None:
    """Where the cleaned list of a data set goes: beside its annotation file, or beside its folder of images."""
    if data.reads == 'images':
        return None
    beside = Path(data.annotation_file or folder_of(data.config, 'img_path').rstrip('/'))
    suffix = beside.suffix if data.annotation_file else '.txt'
    return beside.with_name(f'{beside.stem}.fixed{suffix}')
