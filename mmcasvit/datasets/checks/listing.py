"""The datasets of a config, and the images that they list."""

import json
import os
from collections import Counter
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, init_default_scope

from mmcasvit.datasets.config import (
    annotation_file,
    class_names,
    data_folders,
    dataset_type,
    folder_of,
    named_leaf_datasets,
    reads_annotations_as,
    suffix_of,
    zero_label_fault,
)
from mmcasvit.datasets.outlines import is_side
from mmcasvit.datasets.sources import check_sources, listed_images, listed_outside, read_data_as_data, read_names
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.images import check_regular

from .problems import CheckedDataset, Sample
from .voc import read_xml


def load_datasets(cfg: Config, splits: list[str], limit: int | None = None) -> list[CheckedDataset]:
    """Load the lists of images and annotations of some splits, with the problems found while reading them.

    Datasets inside wrappers are loaded separately. A split with the same datasets as an earlier one is skipped.

    Args:
        cfg: Complete config.
        splits: Some of ``'train'``, ``'val'``, and ``'test'``.
        limit: Maximum number of images of each dataset.

    Raises:
        UsageError: If the config has no data for the splits, data that is not on a local disk, or a pickle.
    """
    init_default_scope(cfg.default_scope)
    read_data_as_data()
    found, seen = [], []
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if not loader:
            continue
        named = list(named_leaf_datasets(loader.dataset, f'{split}_dataloader.dataset'))
        places = [{key: leaf.get(key) for key in ('type', 'data_root', 'ann_file', 'data_prefix')} for _, leaf in named]
        if places in seen:
            continue
        seen.append(places)
        found += [_load(split, name, leaf, cfg.default_scope, limit) for name, leaf in named]
    if not found:
        raise UsageError(f'the config has no data for {", ".join(splits)}.')
    return found


def _load(split: str, name: str, config: ConfigDict, scope: str, limit: int | None) -> CheckedDataset:
    if config.get('backend_args'):
        raise UsageError(f'{name} has backend_args, but only data on a local disk can be checked.')
    kind = dataset_type(config, scope)
    data = CheckedDataset(
        split,
        name,
        config,
        reads_annotations_as(kind, scope),
        class_names(config, scope),
        data_folders(config),
        annotation_file(config),
    )
    check_sources(config, name)
    if fault := zero_label_fault(config, kind, scope):
        data.add('zero_label', name, fault)
    file = data.annotation_file
    if os.path.exists(file) and not os.path.isfile(file) and not os.path.isdir(file):
        data.add('bad_file', file, 'neither a file nor a folder')
    else:
        dict(coco=_list_coco, voc=_list_voc, masks=_list_masks, images=_list_images)[data.reads](data, kind)
    data.samples = data.samples[:limit]
    return data


def _list_coco(data: CheckedDataset, kind: type) -> None:
    try:
        check_regular(data.annotation_file)
        # As text, since JSON in other encodings, or after a byte order mark, is refused by pycocotools as well.
        content = json.loads(Path(data.annotation_file).read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        data.add('bad_file', data.annotation_file, f'{type(error).__name__}: {error}')
        return
    for key in ('images', 'annotations', 'categories'):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            data.add('bad_file', data.annotation_file, f'it has no list of {key}')
            return
    categories = content['categories']
    if not all(isinstance(c, dict) and is_id(c.get('id')) and isinstance(c.get('name'), str) for c in categories):
        data.add('bad_file', data.annotation_file, 'a category lacks its id or name')
        return
    for entries in (categories, content['images']):
        ids = [entry.get('id') for entry in entries if isinstance(entry, dict)]
        if any(isinstance(number, str) for number in ids) and any(isinstance(number, int) for number in ids):
            data.add('bad_file', data.annotation_file, 'some ids are numbers and some are text: they cannot be sorted')
            return
    data.content = content
    folder = folder_of(data.config, 'img')
    for index, image in enumerate(content['images']):
        where = f'images[{index}]'
        if not is_image(image):
            data.add('malformed', where, 'an image needs id, file_name, width, and height', image_index=index)
            continue
        path = os.path.join(folder, image['file_name'])
        if '://' in image['file_name']:
            data.add('malformed', where, f'{image["file_name"]}: mmengine takes :// for an address', image_index=index)
            continue
        size = image.get('width'), image.get('height')
        if not has_size(image):
            data.add('malformed', path, f'width and height are {size}, expected positive integers', image_index=index)
        data.samples.append(Sample(path, size=size if has_size(image) else None, index=index))


def _list_voc(data: CheckedDataset, kind: type) -> None:
    try:
        listed = list(listed_images(data.config, kind))
    except UsageError as error:
        data.add('bad_file', data.annotation_file, str(error))
        return
    objects, unknown = Counter(), Counter()
    for name, count in Counter(entry.name for entry in listed).items():
        if count > 1:
            data.add('duplicate_file', name, f'listed {count} times in {data.annotation_file}')
    for index, entry in enumerate(listed):
        size = None
        if data.is_outside(entry.xml):
            data.add('path_outside', entry.xml, f'not in {" or ".join(data.folders)}', image_index=index)
        else:
            size, names = read_xml(data, entry, index)
            objects.update(name for name in names if name in data.classes)
            unknown.update(name for name in names if name not in data.classes)
        if '://' in entry.name:
            data.add('malformed', entry.name, 'mmengine takes :// for an address', image_index=index)
        else:
            data.samples.append(Sample(entry.image, size=size, index=index))
    if data.needs_masks and listed:
        data.add('no_outline', data.annotation_file, 'XML files have no segmentations. Set with_mask=False')
    data.labeled.update(objects)
    for name, count in unknown.items():
        data.add('unknown_class', data.annotation_file, f'{name!r}: {count} objects')
    if not objects:
        data.add('no_instances', data.annotation_file, f'{len(listed)} images, no object of the classes of the config')


def _list_masks(data: CheckedDataset, kind: type) -> None:
    images, masks = folder_of(data.config, 'img_path'), folder_of(data.config, 'seg_map_path')
    image_suffix = suffix_of(data.config, kind, 'img_suffix')
    mask_suffix = suffix_of(data.config, kind, 'seg_map_suffix')
    if data.annotation_file and os.path.isfile(data.annotation_file):
        try:
            names = [line.strip() for line in read_names(data.annotation_file)]
        except UsageError as error:
            data.add('bad_file', data.annotation_file, str(error))
            return
    elif os.path.isdir(images):
        names = sorted(
            str(path.relative_to(images))[: -len(image_suffix)] for path in Path(images).rglob(f'*{image_suffix}')
        )
        orphans = {
            str(path.relative_to(masks))[: -len(mask_suffix)] for path in Path(masks).rglob(f'*{mask_suffix}')
        } - set(names)
        for name in sorted(orphans):
            data.add('mask_without_image', os.path.join(masks, name + mask_suffix), f'no {name}{image_suffix}')
    else:
        data.add('bad_file', images, 'no such folder')
        return
    for name, count in Counter(names).items():
        if count > 1:
            data.add('duplicate_file', name, f'listed {count} times in {data.annotation_file}')
    data.samples = [
        Sample(os.path.join(images, name + image_suffix), os.path.join(masks, name + mask_suffix), index=index)
        for index, name in enumerate(names)
    ]
    if not names:
        data.add('no_instances', images, f'no image with the suffix {image_suffix}')


def _list_images(data: CheckedDataset, kind: type) -> None:
    config = ConfigDict(data.config, pipeline=[], lazy_init=False)
    try:
        if outside := listed_outside(config, kind):  # building the dataset would open them
            for path in outside:
                data.add('path_outside', path, f'not in {" or ".join(data.folders)}')
            return
        built = DATASETS.build(config)
        infos = [built.get_data_info(index) for index in range(len(built))]
    except Exception as error:  # datasets raise anything if their files are not as expected
        data.add('bad_file', data.annotation_file or data.name, f'{type(error).__name__}: {error}')
        return
    data.samples = [
        Sample(str(info['img_path']), index=index) for index, info in enumerate(infos) if 'img_path' in info
    ]


def has_size(image: dict) -> bool:
    """Return whether an entry has a width and a height in pixels."""
    return is_side(image.get('width')) and is_side(image.get('height'))


def is_id(value) -> bool:
    """Return whether a value is text or an integer that NumPy can hold, as the evaluation needs."""
    return isinstance(value, str) or (isinstance(value, int) and abs(value) < 2**63)


def is_image(entry) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get('file_name'), str) and is_id(entry.get('id'))
