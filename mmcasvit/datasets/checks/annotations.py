"""Checks of COCO annotation files that need no images."""

import os
from collections import Counter, defaultdict

from mmcasvit.datasets.config import category_name_fault, category_order_fault, folder_of
from mmcasvit.datasets.outlines import is_coordinate, polygon_fault, rle_fault

from .listing import has_size, is_id, is_image
from .problems import CheckedDataset

# Pixels that a box may extend beyond its image, for rounding.
OUTSIDE_TOLERANCE = 1.0


def check_annotations(data: CheckedDataset) -> None:
    """Check the classes, image entries, and annotations of a COCO dataset. Skip any other dataset."""
    if data.content:
        _check_classes(data)
        _check_entries(data, _check_images(data))


def _check_classes(data: CheckedDataset) -> None:
    names = [category['name'] for category in data.content['categories']]
    ids = Counter(category['id'] for category in data.content['categories'])
    for number in (number for number, count in ids.items() if count > 1):
        data.add('duplicate_category', data.annotation_file, f'{number!r} is the id of two categories')
    if fault := category_name_fault(names, data.classes):
        data.add('duplicate_category', data.annotation_file, fault)
    elif fault := category_order_fault(names, data.classes):
        data.add('class_order', data.annotation_file, fault)
    for name in set(data.classes) - set(names):
        data.add('class_missing', data.annotation_file, f'{name!r}; mmdet would number the classes after it wrongly')


def _check_images(data: CheckedDataset) -> dict:
    """Check for duplicates, and return the first valid entry of each image id."""
    entries, images = data.content['images'], {}
    by_id, by_name = defaultdict(list), defaultdict(list)
    for index, image in enumerate(entries):
        if is_image(image):  # load_datasets has reported the others
            images.setdefault(image['id'], image)
            by_id[image['id']].append(index)
            by_name[image['file_name']].append(index)
    for name, indices in by_name.items():
        for index in indices[1:]:
            ids = [entries[i]['id'] for i in (indices[0], index)]
            data.add('duplicate_file', name, f'listed with ids {ids[0]} and {ids[1]}', image_index=index)
    for number, indices in by_id.items():
        names = list(dict.fromkeys(entries[index]['file_name'] for index in indices))
        # Every one of them is reported, since it is unknown which one the annotations belong to.
        for index in indices if len(names) > 1 else ():
            data.add(
                'duplicate_image_id',
                entries[index]['file_name'],
                f'id {number} belongs to {", ".join(names)}',
                image_index=index,
            )
    return images


def _check_entries(data: CheckedDataset, images: dict) -> None:
    content = data.content
    categories = {category['id']: category['name'] for category in content['categories'] if is_id(category['id'])}
    if not content['images'] or not content['annotations']:
        counts = f'{len(content["images"])} images, {len(content["annotations"])} annotations'
        data.add('no_instances', data.annotation_file, counts)
    seen, evaluated = set(), data.split != 'train'
    for index, annotation in enumerate(content['annotations']):
        if (
            not isinstance(annotation, dict)
            or not {'bbox', 'area'} <= annotation.keys()
            or not all(is_id(annotation.get(key)) for key in ('id', 'image_id', 'category_id'))
        ):
            needed = 'an annotation needs id, image_id, category_id, bbox, and area'
            data.add('malformed', f'annotations[{index}]', needed, annotation_index=index)
            continue
        where = f'annotation {annotation["id"]}'
        about: dict = dict(annotation_index=index)
        if annotation['id'] in seen:
            data.add('duplicate_annotation_id', where, f'annotations[{index}] has the id of an earlier one', **about)
        seen.add(annotation['id'])
        image = images.get(annotation['image_id'])
        if image is None:
            data.add('no_such_image', where, f'image_id {annotation["image_id"]}', **about)
            continue
        path, where = os.path.join(folder_of(data.config, 'img'), image['file_name']), f'{image["file_name"]}, {where}'
        if not data.is_outside(path):  # files outside the folders are not even opened to draw an example
            about['image'] = path
        if annotation['category_id'] not in categories:
            data.add('unknown_category', where, f'category_id {annotation["category_id"]}', **about)
        else:
            data.labeled.add(categories[annotation['category_id']])
        if evaluated and isinstance(annotation['id'], str):
            data.add('malformed', where, 'its id is text, and the evaluation needs a number', **about)
        crowd = annotation.get('iscrowd', None if evaluated else 0)
        if not isinstance(crowd, (int, float)) or crowd not in (0, 1):
            found = f'iscrowd is {str(crowd)[:80]!r}' if 'iscrowd' in annotation else 'it has no iscrowd'
            data.add('iscrowd', where, f'{found}, and the evaluation needs 0 or 1', **about)
        _check_shape(data, annotation, image, where, about)


def _check_shape(data: CheckedDataset, annotation: dict, image: dict, where: str, about: dict) -> None:
    box = annotation['bbox']
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_coordinate, box))):
        data.add('malformed', where, f'bbox is {str(box)[:80]}, expected four numbers of at most 1e9', **about)
        return
    about = dict(about, box=tuple(box))
    x, y, w, h = box
    sized = has_size(image)
    width, height = (image['width'], image['height']) if sized else (0, 0)
    if not is_coordinate(annotation['area']) or annotation['area'] <= 0 or w < 1 or h < 1:
        data.add('empty_box', where, f'bbox {box}, area {annotation["area"]}', **about)
    elif sized and (
        x < -OUTSIDE_TOLERANCE
        or y < -OUTSIDE_TOLERANCE
        or x + w > width + OUTSIDE_TOLERANCE
        or y + h > height + OUTSIDE_TOLERANCE
    ):
        data.add('box_outside', where, f'bbox {box} in an image of {width} x {height}', **about)
    segmentation = annotation.get('segmentation')
    if not segmentation:
        if data.needs_masks:
            data.add('no_outline', where, 'no segmentation', **about)
    elif isinstance(segmentation, dict):
        fault = rle_fault(segmentation, (height, width)) if sized else ''
        if fault:
            data.add('broken_rle', where, fault, **about)
    else:
        faults = (
            [fault for part in segmentation if (fault := polygon_fault(part, (height, width) if sized else None))]
            if isinstance(segmentation, list)
            else [f'segmentation is a {type(segmentation).__name__}, expected a list of polygons']
        )
        if faults:
            data.add('broken_polygon', where, faults[0], **about)
