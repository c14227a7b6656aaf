"""Questions about data set configs: the data sets inside wrappers, their files, their classes."""

import inspect
import json
import mmap
import os
from collections.abc import Iterator, Sequence

from mmengine.config import ConfigDict
from mmengine.registry import DATASETS

from mmcasvit.utils.errors import UsageError


def leaf_datasets(dataset: ConfigDict) -> Iterator[ConfigDict]:
    """The data sets inside wrappers such as RepeatDataset, MultiImageMixDataset and ConcatDataset."""
    for _, leaf in named_leaf_datasets(dataset, ''):
        yield leaf


def named_leaf_datasets(dataset: ConfigDict, name: str) -> Iterator[tuple[str, ConfigDict]]:
    """:func:`leaf_datasets`, each with the name by which ``--cfg-options`` reaches it; ``name`` is the outermost's."""
    if 'dataset' in dataset:
        yield from named_leaf_datasets(dataset.dataset, f'{name}.dataset')
    elif 'datasets' in dataset:
        for number, part in enumerate(dataset.datasets):
            yield from named_leaf_datasets(part, f'{name}.datasets.{number}')
    else:
        yield name, dataset


def data_folders(dataset: ConfigDict) -> list[str]:
    """Where the files of one data set may be: below its data root, and below the folders that it names itself.

    The list is empty where the annotations give whole paths.
    """
    root = dataset.get('data_root') or ''
    prefixes = dataset.get('data_prefix') or {}
    prefixes = list(prefixes.values()) if isinstance(prefixes, dict) else [prefixes]
    return list(dict.fromkeys(path for path in (root, *(os.path.join(root, p) for p in prefixes if p)) if path))


def annotation_file(dataset: ConfigDict) -> str:
    """The path of a data set's annotation file, or ``''``."""
    file = dataset.get('ann_file') or ''
    return os.path.join(dataset.get('data_root') or '', file) if file else ''


def dataset_type(dataset: ConfigDict, scope: str) -> type:
    """The class that a data set's config names.

    Raises:
        UsageError: nothing is registered under the name.
    """
    name = dataset.get('type')
    found = name if isinstance(name, type) else DATASETS.get(name if '.' in str(name) else f'{scope}.{name}')
    if found is None:
        raise UsageError(f'no data set is called {name!r} in {scope}.')
    return found


def reads_annotations_as(kind: type, scope: str) -> str:
    """``'coco'`` or ``'masks'`` where a data set reads annotations by mmdet's or mmseg's own method, else
    ``'images'``: what it reads in its own way is not second-guessed."""
    if scope == 'mmdet':
        from mmdet.datasets import CocoDataset

        if getattr(kind, 'load_data_list', None) is CocoDataset.load_data_list:
            return 'coco'
    if scope == 'mmseg':
        from mmseg.datasets import BaseSegDataset

        if getattr(kind, 'load_data_list', None) is BaseSegDataset.load_data_list:
            return 'masks'
    return 'images'


def class_names(dataset: ConfigDict, scope: str) -> tuple[str, ...]:
    """The classes of a data set in the order of its labels, or ``()`` where only its files say."""
    metainfo = {**getattr(dataset_type(dataset, scope), 'METAINFO', {}), **(dataset.get('metainfo') or {})}
    names = metainfo.get('classes') or ()
    return (names,) if isinstance(names, str) else tuple(names)


def category_order_fault(in_file: Sequence[str], classes: Sequence[str]) -> str:
    """Says where a COCO file counts the classes of the config in another order, or ``''``."""
    in_file = [name for name in in_file if name in classes]
    classes = [name for name in classes if name in in_file]
    for label, (found, expected) in enumerate(zip(in_file, classes)):
        if found != expected:
            return (
                f'label {label} is {expected!r} in the config and {found!r} in the file, by whose order mmdet '
                'numbers them'
            )
    return ''


def read_categories(file: str) -> list[str] | None:
    """The names of the categories of a COCO file, without reading the rest of it, or ``None`` if it has no such list.

    The annotations of COCO take seconds to read, and the data set reads them anyway.
    """
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
                    except ValueError:
                        continue
                    if all(isinstance(category, dict) and 'name' in category for category in found):
                        return [category['name'] for category in found]
                    break
    return None


def folder_of(config: ConfigDict, key: str) -> str:
    prefix = config.get('data_prefix') or ''
    return os.path.join(config.get('data_root') or '', (prefix.get(key) if isinstance(prefix, dict) else prefix) or '')


def default_of(kind: type, argument: str) -> str:
    """The suffix that a data set of mmseg hands to its base class."""
    for base in kind.__mro__:
        parameter = inspect.signature(base.__init__).parameters.get(argument)
        if parameter is not None:
            return parameter.default
    return ''
