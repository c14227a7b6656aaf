"""Fixed copies of annotation files: what is wrong is left out or corrected."""

import json
import os
from collections import Counter
from pathlib import Path

from mmcasvit.datasets.config import dataset_type, folder_of, suffix_of
from mmcasvit.utils.errors import UsageError

from .problems import KINDS, CheckedDataset

_DROPS_IMAGE = (
    'duplicate_image_id',
    'duplicate_file',
    'path_outside',
    'missing_image',
    'unreadable_image',
    'wrong_size',
    'orientation',
    'missing_mask',
    'unreadable_mask',
    'mask_size',
    'mask_format',
    'mask_labels',
    'overlap',
)
_DROPS_ANNOTATION = ('no_such_image', 'unknown_category', 'empty_box', 'broken_polygon', 'broken_rle', 'no_outline')


def fixed_path(data: CheckedDataset) -> Path | None:
    """Return the path of the fixed file: next to the annotation file, or next to the folder of the images."""
    if data.reads in ('images', 'voc'):
        return None
    original = Path(data.annotation_file or folder_of(data.config, 'img_path').rstrip('/'))
    suffix = original.suffix if data.annotation_file else '.txt'
    return original.with_name(f'{original.stem}.fixed{suffix}')


def check_no_fixed_files(datasets: list[CheckedDataset]) -> None:
    """Check that no fixed file would be overwritten.

    Raises:
        UsageError: If a fixed file already exists.
    """
    for path in map(fixed_path, datasets):
        if path and path.exists():
            raise UsageError(f'{path} already exists. Use it, move it, or delete it.')


def write_fixed(data: CheckedDataset) -> str:
    """Write the fixed file of a dataset with problems.

    Returns:
        A message that says what was done, and how to use the file.
    """
    path = fixed_path(data)
    if path is None or any(problem.kind in ('bad_file', 'duplicate_category') for problem in data.problems):
        return f'{data.name}: cannot be fixed automatically'
    if data.reads == 'coco':
        content, done = fix_coco(data)
        text = json.dumps(content)
    else:
        names, done = fix_names(data)
        text = ''.join(f'{name}\n' for name in names)
    if not done:
        return f'{data.name}: none of the problems can be fixed by leaving entries out'
    with path.open('x') as file:
        try:
            file.write(text)
            file.flush()
        except OSError:
            path.unlink()
            raise
    options = [f'{data.name}.ann_file={os.path.relpath(path, data.config.get("data_root") or ".")}']
    if data.reads == 'coco' and data.split != 'train':
        options.append(f'{data.split}_evaluator.ann_file={path}')
    return f'{data.name}: {"; ".join(done)}\n  written: {path}\n  to use it: --cfg-options {" ".join(options)}'


def fix_coco(data: CheckedDataset) -> tuple[dict, list[str]]:
    """Return a copy of the content of a COCO file without its problems, and a list of what was done.

    Images with a problem are left out with all of their annotations. Boxes are clipped to their image, and left out if
    they are entirely outside. Annotations that reuse an id get a new one, and those without a valid iscrowd get 0.
    Categories are sorted into the order of the classes of the config.
    """
    content, dropped = dict(data.content), Counter()
    bad_images, bad_annotations = {}, {}
    clipped, renumbered, no_crowds = set(), set(), set()
    for problem in data.problems:
        place = problem.annotation_index
        if problem.kind in _DROPS_IMAGE or (problem.kind == 'malformed' and place is None):
            bad_images.setdefault(problem.image_index, problem.kind)
        elif problem.kind in _DROPS_ANNOTATION or problem.kind == 'malformed':
            bad_annotations.setdefault(place, problem.kind)
        elif problem.kind == 'box_outside':
            clipped.add(place)
        elif problem.kind == 'duplicate_annotation_id':
            renumbered.add(place)
        elif problem.kind == 'iscrowd':
            no_crowds.add(place)
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
            dropped['annotations whose image was left out'] += 1
            continue
        if index in clipped:
            width, height = sizes[annotation['image_id']]
            x, y, w, h = annotation['bbox']
            left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
            if right - left < 1 or bottom - top < 1:
                dropped['boxes that are outside their image'] += 1
                continue
            annotation = dict(annotation, bbox=[left, top, right - left, bottom - top])
        if index in renumbered:
            annotation, next_id = dict(annotation, id=next_id), next_id + 1
        if index in no_crowds:
            annotation = dict(annotation, iscrowd=0)
        content['annotations'].append(annotation)
    done = [f'left out {what}: {count}' for what, count in dropped.items()]
    if clipped:
        done.append(f'clipped boxes to their image, or left them out: {len(clipped)}')
    if renumbered:
        done.append(f'gave annotations a new id: {len(renumbered)}')
    if no_crowds:
        done.append(f'set iscrowd to 0: {len(no_crowds)}')
    if any(problem.kind == 'class_order' for problem in data.problems):
        order = {name: number for number, name in enumerate(data.classes)}
        content['categories'] = sorted(content['categories'], key=lambda c: order.get(c['name'], len(order)))
        done.append('sorted the categories into the order of the classes of the config')
    return content, done


def fix_names(data: CheckedDataset) -> tuple[list[str], list[str]]:
    """Return the names of the faultless images of a segmentation dataset, and a list of what was left out.

    The names are relative to the folder of the images and have no suffix, as in the ``ann_file`` of mmseg's datasets.
    """
    bad = {}
    for problem in data.problems:
        if problem.kind in _DROPS_IMAGE and problem.image_index is not None:
            bad.setdefault(problem.image_index, problem.kind)
    folder = folder_of(data.config, 'img_path')
    suffix = suffix_of(data.config, dataset_type(data.config, 'mmseg'), 'img_suffix')
    names = [
        os.path.relpath(sample.image, folder).removesuffix(suffix) for sample in data.samples if sample.index not in bad
    ]
    dropped = Counter(KINDS[kind] for kind in bad.values())
    return list(dict.fromkeys(names)), [f'left out {what}: {count}' for what, count in dropped.items()]
