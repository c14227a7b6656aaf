"""Rejection of files outside the folders of a dataset."""

import os
from collections.abc import Sequence

from mmcv.transforms import BaseTransform

from mmcasvit.registry import TRANSFORMS
from mmcasvit.utils.errors import DataError


def is_outside(folders: Sequence[str], file: str) -> bool:
    """Return whether a path is in none of the folders. Links are not resolved, since the user may place them."""
    file = os.path.abspath(file)
    return not any(file.startswith(os.path.join(os.path.abspath(folder), '')) for folder in folders)


@TRANSFORMS.register_module()
class StayInFolders(BaseTransform):
    """Transform that rejects images and masks outside the folders of their dataset.

    Annotation files can name any path, for example with ``..``.

    Args:
        folders: Folders that files may be in, such as the data root.

    Raises:
        DataError: If the path of an image or mask is in none of the folders.
    """

    def __init__(self, folders: Sequence[str]):
        self.folders = list(folders)

    def transform(self, results: dict) -> dict:
        for key in ('img_path', 'seg_map_path'):
            if results.get(key) and is_outside(self.folders, results[key]):
                raise DataError(
                    f'the annotations name a file outside the dataset: {results[key]} is not in '
                    f'{" or ".join(self.folders)}. tools/check_dataset.py lists all such files.'
                )
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(folders={self.folders})'
