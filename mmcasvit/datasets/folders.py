"""Files outside of the folders of a data set are refused."""

import os
from collections.abc import Sequence

from mmcv.transforms import BaseTransform

from mmcasvit.registry import TRANSFORMS
from mmcasvit.utils.errors import DataError


def leaves(folders: Sequence[str], file: str) -> bool:
    """Whether a path lies in none of the folders, read as text: links are the user's own and are followed."""
    file = os.path.abspath(file)
    return not any(file.startswith(os.path.join(os.path.abspath(folder), '')) for folder in folders)


@TRANSFORMS.register_module()
class StayInFolders(BaseTransform):
    """Refuses an image or mask whose path, as an annotation file gives it, leads out of the folders of its data set.

    Args:
        folders: where files may be, such as the data root.

    Raises:
        DataError: the path leads elsewhere.
    """

    def __init__(self, folders: Sequence[str]):
        self.folders = list(folders)

    def transform(self, results: dict) -> dict:
        for key in ('img_path', 'seg_map_path'):
            if results.get(key) and leaves(self.folders, results[key]):
                raise DataError(
                    f'the annotations name a file outside of the data set: {results[key]} is not in '
                    f'{" or ".join(self.folders)}. tools/check_dataset.py lists all of them.'
                )
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(folders={self.folders})'
