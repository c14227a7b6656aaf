"""Text for messages."""

from collections.abc import Iterable
from pathlib import Path


def shorten(names: Iterable[str], limit: int = 6) -> str:
    """Join names with commas, and count those after the first ``limit`` instead of listing them."""
    names = list(names)
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more


def printable(text: str) -> str:
    """Return a text with what UTF-8 cannot encode as escapes, such as the bytes of file names in Latin-1."""
    return text.encode('utf-8', 'backslashreplace').decode()


def as_typed(path: Path) -> Path:
    """Return a path as one types it in the current folder: relative if it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, without those in which OpenVINO names places in its own code."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith('Exception from ')]
    return (told or lines or [type(error).__name__])[0]
