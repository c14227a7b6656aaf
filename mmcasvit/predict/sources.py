"""Images, videos, and cameras that a command line names."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.images import IMAGE_SUFFIXES

VIDEO_SUFFIXES = ('.mp4', '.m4v', '.mov', '.avi', '.mkv', '.webm', '.mpg', '.mpeg', '.wmv', '.flv')


class Source(NamedTuple):
    """Image, video, or camera.

    Attributes:
        path: Path of the file, or the index of the camera.
        name: Path of its results within the output folder, with the suffix of the file.
    """

    path: str | int
    name: Path

    @property
    def is_video(self) -> bool:
        return isinstance(self.path, int) or self.name.suffix.lower() in VIDEO_SUFFIXES


def stream_sources(inputs: Sequence[str], leave_out: Path | None = None) -> Iterator[Source]:
    """Yield the images, videos and cameras of the inputs as they are found, in no particular order.

    Memory does not grow with the number of files in a folder.

    Args:
        inputs: Files, folders, patterns such as ``'photos/*.jpg'``, and indices of cameras.
        leave_out: Folder whose files are not wanted, such as that of the results.

    Raises:
        UsageError: If an input does not exist, or if nothing is found in it.
    """
    for text in inputs:
        path, found = Path(text), False
        if path.is_dir():
            for name in _walk(text):
                if leave_out is None or leave_out.absolute() not in (path / name).absolute().parents:
                    found = True
                    yield Source(str(path / name), Path(name))
            if not found:
                raise UsageError(f'no image in {path.absolute()}, looked for {", ".join(IMAGE_SUFFIXES)}')
        elif path.exists():
            yield Source(text, Path(path.name))
        elif text.isdecimal():
            yield Source(int(text), Path(f'camera{int(text)}.mp4'))
        elif glob.has_magic(text):
            for file in glob.iglob(text, recursive=True):
                if _is_wanted(file) and os.path.isfile(file):
                    found = True
                    yield Source(file, Path(file).relative_to(_fixed_part(path)))
            if not found:
                raise UsageError(f'no image or video matches {text}')
        else:
            raise UsageError(f'image or folder not found: {path.absolute()}')


def _is_wanted(file: str) -> bool:
    return file.lower().endswith(IMAGE_SUFFIXES + VIDEO_SUFFIXES)


def _walk(folder: str, inside: str = '') -> Iterator[str]:
    """Yield the images and videos of a folder and its subfolders, as paths within it, without hidden files."""
    with os.scandir(os.path.join(folder, inside)) as entries:
        for entry in entries:
            name = os.path.join(inside, entry.name)
            if entry.is_dir():
                if not (entry.is_symlink() and _leads_up(entry.path)):
                    yield from _walk(folder, name)
            elif _is_wanted(entry.name) and not entry.name.startswith('.') and entry.is_file():
                yield name


def _leads_up(link: str) -> bool:
    """Return whether a link leads to a folder that it is in, so that following it would never end."""
    inside = Path(link).parent.resolve()
    return Path(link).resolve() in (inside, *inside.parents)


def _fixed_part(pattern: Path) -> Path:
    """Return the folder of a pattern down to its first wildcard."""
    parts = pattern.parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:first])


def find_sources(inputs: Sequence[str], leave_out: Path | None = None) -> list[Source]:
    """Return the images, videos and cameras of the inputs, sorted by name, each once.

    Raises:
        UsageError: As :func:`stream_sources`.
    """
    return sorted(set(stream_sources(inputs, leave_out)), key=lambda source: (source.name, str(source.path)))
