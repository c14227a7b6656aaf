"""Search for image files, the formats that are read, and checks that images can be read."""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from mmengine.utils import scandir
from PIL import Image

from .ahead import map_ahead
from .errors import UsageError

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
# Pillow's names of the formats that images and masks may have, whatever their files are called. Pillow knows others
# that are programs: it hands an EPS file to Ghostscript.
IMAGE_FORMATS = ('JPEG', 'PNG', 'BMP', 'TIFF', 'WEBP')
# Threads that read images.
_READERS = 4
# Formats of data sets that OpenCV reads as well.
DATA_FORMATS = (*IMAGE_FORMATS, 'PPM', 'GIF', 'JPEG2000')


def open_image(file, formats: Sequence[str] = IMAGE_FORMATS) -> Image.Image:
    """Open an image with Pillow by one of the named formats only.

    Args:
        file: Path, or a stream of the bytes.
        formats: Pillow's names of the formats that are tried.

    Raises:
        OSError: If a path is not that of a regular file, such as a pipe, which would never end.
        PIL.UnidentifiedImageError: If the file is in none of the formats.
    """
    if isinstance(file, (str, Path)):
        check_regular(file)
    return Image.open(file, formats=formats)


def check_regular(file: str | Path) -> None:
    """Check that a path that exists is a regular file: reading a pipe or a device may never end.

    Raises:
        OSError: If it is something else.
    """
    if Path(file).exists() and not Path(file).is_file():
        raise OSError(f'not a file: {file}')


def read_named_formats_only() -> None:
    """Make Pillow read images of :data:`DATA_FORMATS` only from now on, in this process.

    This holds for the readers of mmcv, mmdet, mmseg and mmpretrain, which name no formats.
    """
    Image.init()
    Image.ID[:] = [name for name in Image.ID if name in DATA_FORMATS]


def find_images(path: Path, leave_out: Path | None = None) -> list[str]:
    """Return the images of a folder and its subfolders, sorted by path, or the path itself if it is a file.

    Args:
        path: Folder or file.
        leave_out: Folder whose images are not wanted, such as that of the results.

    Raises:
        UsageError: If the path does not exist or the folder has no images.
    """
    if path.is_dir():
        found = scandir(path, IMAGE_SUFFIXES, recursive=True, case_sensitive=False)
        images = sorted(str(path / name) for name in found)
        if leave_out is not None:
            images = [image for image in images if leave_out.absolute() not in Path(image).absolute().parents]
        if not images:
            raise UsageError(f'no image in {path.absolute()}, looked for {", ".join(IMAGE_SUFFIXES)}')
        return images
    if not path.is_file():
        raise UsageError(f'image or folder not found: {path.absolute()}')
    return [str(path)]


@contextlib.contextmanager
def _unreadable(image: str) -> Iterator[None]:
    try:
        yield
    except UsageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise UsageError(
            f'{image} cannot be read as an image: it has none of the formats {", ".join(IMAGE_FORMATS)}'
        ) from error
    except Exception as error:  # decoders raise nearly anything
        raise UsageError(f'{image} cannot be read as an image: {error}') from error


def check_images(images: Sequence[str]) -> None:
    """Check that every image can be read completely, and that no two would get the same output name.

    Raises:
        UsageError: If one cannot be read by :func:`read_image`, or if two names differ only in their suffixes.
    """
    names = {}
    for image in images:
        other = names.setdefault(Path(image).with_suffix(''), image)
        if other != image:
            raise UsageError(
                f'{other} and {image} have the same name, so their predictions would have too. Put them into '
                'different folders.'
            )
    with ThreadPoolExecutor(_READERS) as readers:
        for _ in map_ahead(readers, lambda image: read_image(image).shape, images, _READERS):
            pass


def read_image(image: str) -> np.ndarray:
    """Read an image completely, as ``LoadImageFromFile`` does, or not at all.

    OpenCV reads a truncated image without an error and fills the rest with gray, so Pillow reads it as well.

    Returns:
        ``(H, W, 3)`` in uint8 BGR.

    Raises:
        UsageError: If the file is not an image of :data:`IMAGE_FORMATS` or is truncated, or if OpenCV cannot read it.
    """
    with _unreadable(image):
        with open_image(image) as file:
            mode, name = file.mode, file.format
            file.draft('L', (1, 1))  # a JPEG is read to its end all the same, with an eighth of its pixels a side
            file.load()
        file.close()  # its pixels take as much memory as those of OpenCV
        content = cv2.imdecode(np.fromfile(image, np.uint8), cv2.IMREAD_COLOR)
        if content is None:
            raise UsageError(
                f'{image} cannot be read by OpenCV: its {name} holds pixels of mode {mode}. Save it as an '
                'ordinary JPEG or PNG.'
            )
    return content
