"""Image files that a user names: found, and read to their end before a run."""

from collections.abc import Sequence
from pathlib import Path

from mmengine.utils import scandir
from PIL import Image

from .errors import UsageError

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


def find_images(path: Path) -> list[str]:
    """The images of a folder in the order of their names, or the one image that is named.

    Raises:
        UsageError: there is none.
    """
    if path.is_dir():
        images = sorted(str(path / name) for name in scandir(path, IMAGE_SUFFIXES, case_sensitive=False))
        if not images:
            raise UsageError(f'no image in {path.absolute()}; looked for {", ".join(IMAGE_SUFFIXES)}')
        return images
    if not path.is_file():
        raise UsageError(f'image or folder not found: {path.absolute()}')
    return [str(path)]


def check_images(images: Sequence[str]) -> None:
    """Reads each image to its end: OpenCV fills what is missing of a cut-off one with grey, and says nothing.

    Raises:
        UsageError: one of them is no image or cut off, or two have the same name but for the suffix.
    """
    names = {}
    for image in images:
        other = names.setdefault(Path(image).stem, image)
        if other != image:
            raise UsageError(
                f'{other} and {image} have the same name, and so would their predictions. Put them into '
                'different folders.'
            )
        try:
            with Image.open(image) as file:
                file.load()
        except Exception as error:  # decoders raise nearly anything
            raise UsageError(f'{image} cannot be read as an image: {error}') from error
