"""Search for image files, and checks that they can be read."""

from collections.abc import Sequence
from pathlib import Path

from mmengine.utils import scandir
from PIL import Image

from .errors import UsageError

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


def find_images(path: Path) -> list[str]:
    """Return the images of a folder in the order of their names, or the path itself if it is a file.

    Raises:
        UsageError: If the path does not exist or the folder has no images.
    """
    if path.is_dir():
        images = sorted(str(path / name) for name in scandir(path, IMAGE_SUFFIXES, case_sensitive=False))
        if not images:
            raise UsageError(f'no image in {path.absolute()}, looked for {", ".join(IMAGE_SUFFIXES)}')
        return images
    if not path.is_file():
        raise UsageError(f'image or folder not found: {path.absolute()}')
    return [str(path)]


def check_images(images: Sequence[str]) -> None:
    """Check that every image can be read completely, and that no two would get the same output name.

    OpenCV reads a truncated image without an error and fills the rest with gray.

    Raises:
        UsageError: If a file is not an image or is truncated, or if two names differ only in their suffixes.
    """
    names = {}
    for image in images:
        other = names.setdefault(Path(image).stem, image)
        if other != image:
            raise UsageError(
                f'{other} and {image} have the same name, so their predictions would have too. Put them into '
                'different folders.'
            )
        try:
            with Image.open(image) as file:
                file.load()
        except Exception as error:  # decoders raise nearly anything
            raise UsageError(f'{image} cannot be read as an image: {error}') from error
