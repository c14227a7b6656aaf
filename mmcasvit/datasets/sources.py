"""What a dataset reads when it is built: files that hold only data, in the folders that its config names."""

import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from mmengine.config import ConfigDict
from mmengine.fileio import list_from_file

from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.images import check_regular, read_named_formats_only

from .config import annotation_file, data_folders, default_of, folder_of
from .folders import is_outside
from .outlines import guard_pycocotools
from .pickles import read_pickles_as_data


class ListedImage(NamedTuple):
    """Image of a dataset with one XML file per image.

    Attributes:
        name: Name in the list.
        xml: Path of its annotations.
        image: Path of the image, or ``''`` if the XML file names it.
    """

    name: str
    xml: str
    image: str


def read_data_as_data() -> None:
    """Make pickles and images run no code, and outlines crash nothing, from now on, in this process."""
    read_pickles_as_data()
    guard_pycocotools()
    read_named_formats_only()


def read_names(file: str) -> list[str]:
    """Return the lines of a list of names, as the datasets read them.

    Raises:
        UsageError: If it is not a regular file of UTF-8 text.
    """
    try:
        check_regular(file)
        return list_from_file(file)
    except UnicodeDecodeError as error:
        raise UsageError(f'{file} is not UTF-8 text: {error}') from error
    except OSError as error:
        raise UsageError(f'{file} cannot be read: {error}') from error


def listed_images(dataset: ConfigDict, kind: type) -> Iterator[ListedImage]:
    """Yield the images that the list of a VOC-style dataset names; nothing for other datasets.

    mmdet and mmpretrain open these XML files, and images without a recorded size, as soon as they build the dataset.

    Args:
        dataset: Config of the dataset.
        kind: Class of the dataset.

    Raises:
        UsageError: If the list cannot be read.
    """
    family = {base.__name__: base for base in kind.__mro__}
    if 'WIDERFaceDataset' in family:
        folder = folder_of(dataset, 'img')
        for name in read_names(annotation_file(dataset)):
            yield ListedImage(name, os.path.join(folder, 'Annotations', f'{name}.xml'), '')
    elif 'XMLDataset' in family:
        prefix = dataset.get('data_prefix') or {}
        folder = folder_of(dataset, 'sub_data_root') if 'sub_data_root' in prefix else ''
        images, annotations = (
            os.path.join(folder, dataset.get(key) or default_of(kind, key)) for key in ('img_subdir', 'ann_subdir')
        )
        for name in read_names(annotation_file(dataset)):
            yield ListedImage(name, os.path.join(annotations, f'{name}.xml'), os.path.join(images, f'{name}.jpg'))
    elif any(base.__module__ == 'mmpretrain.datasets.voc' for base in kind.__mro__):
        root, split = dataset.get('data_root') or '', dataset.get('split', default_of(kind, 'split'))
        listed = dataset.get('image_set_path') or os.path.join('ImageSets', 'Main', f'{split}.txt')
        prefix = dataset.get('data_prefix') or dict(img_path='JPEGImages', ann_path='Annotations')
        whole = ConfigDict(dataset, data_prefix=prefix)
        key = 'ann_path' if isinstance(prefix, dict) and 'ann_path' in prefix else 'img_path'
        for name in read_names(os.path.join(root, listed)):
            yield ListedImage(
                name,
                os.path.join(folder_of(whole, key), f'{name}.xml'),
                os.path.join(folder_of(whole, 'img_path'), f'{name}.jpg'),
            )


def listed_outside(dataset: ConfigDict, kind: type) -> list[str]:
    """Return the files outside the folders of a VOC-style dataset that building it would open."""
    folders = data_folders(dataset)
    listed = listed_images(dataset, kind) if folders else ()
    return [path for entry in listed for path in (entry.xml, entry.image) if path and is_outside(folders, path)]


def check_sources(dataset: ConfigDict, name: str) -> None:
    """Check that no file that the config of a dataset names holds code.

    Args:
        dataset: Config of the dataset.
        name: What the message calls it, such as ``'the train split'``.

    Raises:
        UsageError: If a file is a pickle.
    """
    for key in ('ann_file', 'proposal_file'):
        if str(dataset.get(key) or '').endswith(('.pkl', '.pickle')):
            raise UsageError(
                f'{key} of {name} is a pickle, and reading one can run code: {dataset[key]}. Give the annotations as '
                'JSON.'
            )
    if str(dataset.get('type')).endswith('OpenImagesChallengeDataset') and dataset.get('hierarchy_file'):
        # mmdet reads this array with allow_pickle, and relative to the data root only if it is not found without.
        for file in {dataset.hierarchy_file, os.path.join(dataset.get('data_root') or '', dataset.hierarchy_file)}:
            try:
                if os.path.exists(file):
                    check_regular(file)
                    np.load(file, mmap_mode='r', allow_pickle=False)
            except (OSError, ValueError) as error:
                raise UsageError(
                    f'hierarchy_file of {name} is not a plain array, and reading it can run code: {file}: {error}'
                ) from error


def check_listed(dataset: ConfigDict, kind: type, name: str) -> None:
    """Check that the list of a VOC-style dataset names no file outside its folders.

    Raises:
        UsageError: If it does.
    """
    if outside := listed_outside(dataset, kind):
        raise UsageError(
            f'the list of {name} names a file outside the dataset: {outside[0]} is not in '
            f'{" or ".join(data_folders(dataset))}. tools/check_dataset.py lists all such files.'
        )
