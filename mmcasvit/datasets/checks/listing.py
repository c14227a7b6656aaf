"""The data sets of a config and the samples that they list."""

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
    default_of,
    folder_of,
    named_leaf_datasets,
    reads_annotations_as,
)
from mmcasvit.utils.errors import UsageError

from .problems import DataSet, Sample


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
        places = [
            {key: leaf.get(key) for key in ('type', 'data_root', 'ann_file', 'data_prefix')}
            for _, leaf in leaves_of_split
        ]
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
    data = DataSet(
        name,
        config,
        reads_annotations_as(kind, scope),
        class_names(config, scope),
        data_folders(config),
        annotation_file(config),
    )
    dict(coco=_list_coco, masks=_list_masks, images=_list_images)[data.reads](data, kind)
    data.samples = data.samples[:limit]
    return data


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
    folder = folder_of(data.config, 'img')
    for index, image in enumerate(content['images']):
        where = f'images[{index}]'
        if not is_image(image):
            data.add('malformed', where, 'an image needs id, file_name, width and height', image_index=index)
            continue
        path = os.path.join(folder, image['file_name'])
        size = image.get('width'), image.get('height')
        if not all(isinstance(side, int) and side > 0 for side in size):
            data.add('malformed', path, f'width and height are {size}', image_index=index)
            size = None
        data.samples.append(Sample(path, size=size, index=index))


def _list_masks(data: DataSet, kind: type) -> None:
    images, masks = folder_of(data.config, 'img_path'), folder_of(data.config, 'seg_map_path')
    image_suffix = data.config.get('img_suffix') or default_of(kind, 'img_suffix')
    mask_suffix = data.config.get('seg_map_suffix') or default_of(kind, 'seg_map_suffix')
    if data.annotation_file and os.path.isfile(data.annotation_file):
        names = [line.strip() for line in Path(data.annotation_file).read_text().splitlines()]
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
        data.add('bad_file', images, 'there is no such folder')
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


def _list_images(data: DataSet, kind: type) -> None:
    config = ConfigDict(data.config, pipeline=[], lazy_init=False)
    try:
        built = DATASETS.build(config)
        infos = [built.get_data_info(index) for index in range(len(built))]
    except Exception as error:  # whatever a data set raises that does not find its files as it expects them
        data.add('bad_file', data.annotation_file or data.name, f'{type(error).__name__}: {error}')
        return
    data.samples = [
        Sample(str(info['img_path']), index=index) for index, info in enumerate(infos) if 'img_path' in info
    ]


def is_id(value) -> bool:
    return isinstance(value, (int, str))


def is_image(entry) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get('file_name'), str) and is_id(entry.get('id'))
