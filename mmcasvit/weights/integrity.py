"""Checkpoints that are whole or not there, and the search for the last one that is."""

import logging
import os
import re
import shutil
import zipfile
from pathlib import Path

from mmengine.logging import print_log

from mmcasvit.utils.errors import WeightsError

UNFINISHED = '.unfinished'


def damage(path: str | Path) -> str:
    """What is wrong with a checkpoint, or '' if all of it can be read and every checksum is right.

    Args:
        path: a file, or the folder that a sharded checkpoint is.
    """
    path = Path(path)
    if path.is_dir():
        files = [file for file in path.rglob('*') if file.suffix in ('.pth', '.pt')]
        return '' if files and not any(map(damage, files)) else 'parts of it are missing or damaged'
    try:
        with zipfile.ZipFile(path) as content:
            broken = content.testzip()
    except FileNotFoundError:
        return 'it is not there'
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError) as error:
        return f'it is truncated or no checkpoint ({error})'
    return f'the checksum of {broken} is wrong' if broken else ''


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def rename_durably(unfinished: Path, path: Path) -> None:
    for part in unfinished.rglob('*'):  # where it is a folder
        _to_disk(part)
    _to_disk(unfinished)
    if path.is_dir():  # os.replace would refuse
        shutil.rmtree(path)
    os.replace(unfinished, path)
    _to_disk(path.parent)  # the name


def write_text(path: Path, text: str) -> None:
    """Writes a small file so that a reader finds either the old text or the new one."""
    unfinished = path.with_name(f'.{path.name}{UNFINISHED}')
    unfinished.write_text(text)
    rename_durably(unfinished, path)


def _step(path: Path) -> int:
    return int(re.search(r'_(\d+)\.pth$', path.name)[1])


def find_whole_checkpoint(work_dir: str | Path) -> str | None:
    """The last checkpoint of a run that is whole, looked for behind the pointer ``last_checkpoint``.

    Where the checkpoint that the pointer names is damaged, the one before it is taken, with a warning that names both.
    Where there is no pointer, since the first checkpoint was just being written, the newest file is taken.

    Args:
        work_dir: where the pointer is.

    Returns:
        The checkpoint, or None if the run has written none.

    Raises:
        WeightsError: there are checkpoints, and all are damaged.
    """
    pointer = Path(work_dir, 'last_checkpoint')
    last = Path(pointer.read_text().strip()) if pointer.is_file() and pointer.read_text().strip() else None
    if last is not None and not last.exists() and (moved := Path(work_dir, last.name)).exists():
        last = moved  # the pointer holds the path as it was seen from the folder the run was started in
    folder = last.parent if last is not None else Path(work_dir)
    others = [
        path
        for kind in ('epoch', 'iter')
        for path in folder.glob(f'{kind}_*.pth')
        if re.fullmatch(rf'{kind}_\d+\.pth', path.name) and path != last
    ]
    if last is None:
        others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    elif re.search(r'_\d+\.pth$', last.name):
        others = sorted(
            (
                path
                for path in others
                if _step(path) < _step(last) and path.name.split('_')[0] == last.name.split('_')[0]
            ),
            key=_step,
            reverse=True,
        )
    damaged = []
    for path in [last, *others] if last is not None else others:
        wrong = damage(path)
        if not wrong:
            if damaged:
                print_log(
                    f'the last checkpoint is damaged: {"; ".join(damaged)}. The run goes on from the one before '
                    f'it, {path}.',
                    logger='current',
                    level=logging.WARNING,
                )
            return str(path)
        damaged.append(f'{path}: {wrong}')
    if damaged:
        raise WeightsError(
            f'no checkpoint of {work_dir} can be resumed. {"; ".join(damaged)}. Start anew in another '
            'work dir, or delete them.'
        )
    return None
