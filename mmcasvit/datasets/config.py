"""Functions that read dataset configs: the datasets inside wrappers, their files, and their classes."""

import inspect
import json
import mmap
import os
from collections.abc import Iterator, Sequence

from mmengine.config import ConfigDict
from mmengine.registry import DATASETS

from mmcasvit.utils.errors import UsageError


def leaf_datasets(dataset: ConfigDict) -> Iterator[ConfigDict]:
    """Yield the datasets inside wrappers such as RepeatDataset, MultiImageMixDataset, and ConcatDataset."""
    for _, leaf in named_leaf_datasets(dataset, ''):
        yield leaf


def named_leaf_datasets(dataset: ConfigDict, name: str) -> Iterator[tuple[str, ConfigDict]]:
    """Yield the datasets inside wrappers, each with its name.

    Args:
        dataset: Config of a dataset, which may be a wrapper.
        name: Name of ``dataset`` as ``--cfg-options`` takes it, such as ``train_dataloader.dataset``.

    Returns:
        The name of each dataset, as ``--cfg-options`` takes it, and its config.
    """
    if 'dataset' in dataset:
        yield from named_leaf_datasets(dataset.dataset, f'{name}.dataset')
    elif 'datasets' in dataset:
        for number, part in enumerate(dataset.datasets):
            yield from named_leaf_datasets(part, f'{name}.datasets.{number}')
    else:
        yield name, dataset


def data_folders(dataset: ConfigDict) -> list[str]:
    """Return the folders that the files of a dataset must be in: its data root and the folders of its data prefix.

    The list is empty if the config names no folder because the annotations contain full paths.
    """
    root = dataset.get('data_root') or ''
    prefixes = dataset.get('data_prefix') or {}
    prefixes = list(prefixes.values()) if isinstance(prefixes, dict) else [prefixes]
    return list(dict.fromkeys(path for path in (root, *(os.path.join(root, p) for p in prefixes if p)) if path))


def annotation_file(dataset: ConfigDict) -> str:
    """Return the path of the annotation file of a dataset, or ``''`` if it has none."""
    file = dataset.get('ann_file') or ''
    return os.path.join(dataset.get('data_root') or '', file) if file else ''


def dataset_type(dataset: ConfigDict, scope: str) -> type:
    """Return the class that the config of a dataset names.

    Raises:
        UsageError: If no class is registered under this name.
    """
    name = dataset.get('type')
    found = name if isinstance(name, type) else DATASETS.get(name if '.' in str(name) else f'{scope}.{name}')
    if found is None:
        raise UsageError(f'{scope} has no dataset named {name!r}.')
    return found


def reads_annotations_as(kind: type, scope: str) -> str:
    """Return the kind of annotations that a class of datasets reads.

    Returns:
        ``'coco'`` if it reads them with the method of mmdet's ``CocoDataset``, ``'voc'`` if with that of its
        ``XMLDataset``, ``'masks'`` if with that of mmseg's ``BaseSegDataset``, and ``'images'`` otherwise. Only the
        images of the last kind can be checked.
    """
    if scope == 'mmdet':
        from mmdet.datasets import CocoDataset, XMLDataset

        if getattr(kind, 'load_data_list', None) is XMLDataset.load_data_list:
            return 'voc'
        if getattr(kind, 'load_data_list', None) is CocoDataset.load_data_list:
            return 'coco'
    if scope == 'mmseg':
        from mmseg.datasets import BaseSegDataset

        if getattr(kind, 'load_data_list', None) is BaseSegDataset.load_data_list:
            return 'masks'
    return 'images'


def class_names(dataset: ConfigDict, scope: str) -> tuple[str, ...]:
    """Return the classes of a dataset in the order of its labels, or ``()`` if only its files name them."""
    metainfo = {**getattr(dataset_type(dataset, scope), 'METAINFO', {}), **(dataset.get('metainfo') or {})}
    names = metainfo.get('classes') or ()
    return (names,) if isinstance(names, str) else tuple(names)


def category_order_fault(in_file: Sequence[str], classes: Sequence[str]) -> str:
    """Describe the first category of a COCO file that is out of the config's order, or return ``''``."""
    in_file = [name for name in in_file if name in classes]
    classes = [name for name in classes if name in in_file]
    for label, (found, expected) in enumerate(zip(in_file, classes)):
        if found != expected:
            return (
                f'label {label} is {expected!r} in the config but {found!r} in the file, and mmdet numbers labels '
                'in the order of the file'
            )
    return ''


def category_name_fault(in_file: Sequence, classes: Sequence[str]) -> str:
    """Describe the first category name of a COCO file that is not text or that is used twice, or return ``''``."""
    for number, name in enumerate(in_file):
        if not isinstance(name, str):
            return f'the name of category {number} is {str(name)[:80]!r}, expected text'
        if name in classes and name in in_file[:number]:
            return f'{name!r} is the name of two categories, and mmdet would give each of them a label'
    return ''


def zero_label_fault(dataset: ConfigDict, kind: type, scope: str) -> str:
    """Describe a ``reduce_zero_label`` of a segmentation dataset that differs from its pipeline's, or return ``''``."""
    if reads_annotations_as(kind, scope) != 'masks':
        return ''
    given = dataset.get('reduce_zero_label')
    own = bool(default_of(kind, 'reduce_zero_label') if given is None else given)
    for step in _steps(dataset.get('pipeline') or []):
        named = step.get('reduce_zero_label')
        if str(step.get('type')).endswith('LoadAnnotations') and named is not None and bool(named) != own:
            return (
                f'reduce_zero_label is {own} in the dataset but {bool(named)} in the LoadAnnotations of its pipeline. '
                'Set both to the same value, or leave it out of the pipeline.'
            )
    return ''


def _steps(part) -> Iterator[dict]:
    """Yield the transforms of a pipeline, and those inside them."""
    if isinstance(part, dict):
        yield part
        part = list(part.values())
    for inner in part if isinstance(part, (list, tuple)) else ():
        yield from _steps(inner)


def read_categories(file: str) -> list[str] | None:
    """Return the category names of a COCO file, or ``None`` if it has no list of categories.

    The annotations, which take seconds to parse, are skipped.
    """
    if not os.path.isfile(file):  # a pipe would never end
        return None
    with open(file, 'rb') as stream:
        if os.fstat(stream.fileno()).st_size == 0:
            return None
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = -1
            while (start := content.find(b'"categories"', start + 1)) >= 0:
                begin = content.find(b'[', start)
                for size in (2**16, 2**20, 2**24):
                    try:
                        found, _ = json.JSONDecoder().raw_decode(content[begin : begin + size].decode(errors='replace'))
                    except (ValueError, RecursionError):
                        continue
                    if all(isinstance(category, dict) and 'name' in category for category in found):
                        return [category['name'] for category in found]
                    break
    return None


def folder_of(config: ConfigDict, key: str) -> str:
    """Return the folder that a dataset config names under a key of ``data_prefix``, such as ``'img'``."""
    prefix = config.get('data_prefix') or ''
    return os.path.join(config.get('data_root') or '', (prefix.get(key) if isinstance(prefix, dict) else prefix) or '')


def default_of(kind: type, argument: str) -> str:
    """Return the default value of a constructor argument of a class, or of the base class that defines it."""
    for base in kind.__mro__:
        parameter = inspect.signature(base.__init__).parameters.get(argument)  # type: ignore[misc]  # of exactly this class
        if parameter is not None:
            return parameter.default
    return ''


def suffix_of(dataset: ConfigDict, kind: type, argument: str) -> str:
    """Return the suffix of the images or masks of a segmentation dataset, which may be ``''`` if a list has it."""
    suffix = dataset.get(argument)
    return default_of(kind, argument) if suffix is None else suffix
