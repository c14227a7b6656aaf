"""Checkpoints that are whole or not there: renames that survive a crash, damage, and the last good file of a run."""

import logging
import os
import re
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

from mmengine.logging import print_log

from mmcasvit.utils.errors import WeightsError

# The end of a file's name until the file is complete.
UNFINISHED = '.unfinished'
_NUMBERED = re.compile(r'(epoch|iter)_(\d+)\.pth')


def damage(path: str | Path) -> str:
    """Return what is wrong with a checkpoint, or '' if all of it can be read and every checksum is right.

    Args:
        path: A file, or the folder of a sharded checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        files = [file for file in path.rglob('*') if file.suffix in ('.pth', '.pt')]
        return '' if files and not any(map(damage, files)) else 'parts of it are missing or damaged'
    if not path.is_file():  # a pipe would block
        return 'it is not a file' if path.exists() else 'it does not exist'
    try:
        with zipfile.ZipFile(path) as content:
            broken = content.testzip()
    except (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, RuntimeError, ValueError) as error:
        return f'it is truncated or not a checkpoint ({error})'
    return f'the checksum of {broken} is wrong' if broken else ''


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def rename_durably(unfinished: Path, path: Path) -> None:
    """Bring a file or folder to the disk, then give it its name, so that a crash leaves the old content or the new."""
    for part in unfinished.rglob('*'):
        _to_disk(part)
    _to_disk(unfinished)
    if path.is_dir():  # os.replace would refuse
        shutil.rmtree(path)
    os.replace(unfinished, path)
    _to_disk(path.parent)  # the name


def write_text(path: Path, text: str) -> None:
    """Write a small file atomically."""
    unfinished = path.with_name(f'.{path.name}{UNFINISHED}')
    unfinished.write_text(text, encoding='utf-8')
    rename_durably(unfinished, path)


def read_pointer(work_dir: str | Path) -> Path | None:
    """Return the checkpoint that ``last_checkpoint`` names, or None if there is no such file or it names nothing.

    The file holds the path as seen from the folder in which the run was started. Where that leads nowhere, a
    checkpoint of the same name in the work dir is meant.
    """
    try:
        named = Path(work_dir, 'last_checkpoint').read_text(encoding='utf-8').strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    if not named or not named.isprintable():
        return None
    last, moved = Path(named), Path(work_dir, Path(named).name)
    return moved if not last.exists() and moved.exists() else last


def find_whole_checkpoint(work_dir: str | Path) -> str | None:
    """Return the last checkpoint of a run that is whole, or None if the run has written none.

    The checkpoint that ``last_checkpoint`` names comes first, then those before it, then any others from the newest on
    (of an earlier run, or written after the pointer). A warning names what was passed over.

    Args:
        work_dir: The folder of the run, with the pointer in it.

    Raises:
        WeightsError: There are checkpoints, and all of them are damaged.
    """
    last = read_pointer(work_dir)
    folder = Path(work_dir) if last is None or not last.parent.is_dir() else last.parent
    others = {path: (found[1], int(found[2])) for path in folder.glob('*.pth')
              if (found := _NUMBERED.fullmatch(path.name)) and path != last}  # fmt: skip
    newest = sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)
    if last is not None and (found := _NUMBERED.fullmatch(last.name)):
        unit, step = found[1], int(found[2])
        before = [path for path in others if others[path][0] == unit and others[path][1] < step]
        before.sort(key=lambda path: others[path][1], reverse=True)
        newest = [*before, *(path for path in newest if path not in before)]
    damaged = []
    for path in ([] if last is None else [last]) + newest:
        wrong = damage(path)
        if not wrong:
            if damaged:
                print_log(
                    f'the last checkpoint cannot be used: {"; ".join(damaged)}. The run resumes from {path}.',
                    logger='current',
                    level=logging.WARNING,
                )
            return str(path)
        damaged.append(f'{path}: {wrong}')
    if damaged:
        raise WeightsError(
            f'no checkpoint of {work_dir} can be resumed. {"; ".join(damaged)}. Start again in another work dir, or '
            'delete them.'
        )
    return None
