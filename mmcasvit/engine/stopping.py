"""The end of a run that cannot continue."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.runner import Runner

from mmcasvit.utils.errors import RunStopped

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def full_disk_explained(runner: Runner) -> Iterator[None]:
    """Turns the error of any file that found no room, such as a log, into :class:`RunStopped`."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise RunStopped(
            f'training stopped: {error}. {last_good(runner)} Make room and go on from it with --resume.'
        ) from error


def last_good(runner: Runner) -> str:
    """A sentence on the checkpoint that a stopped run can be resumed from."""
    pointer = Path(runner.work_dir, 'last_checkpoint')
    last = pointer.read_text().strip() if pointer.is_file() else ''
    return f'The last good checkpoint is {last}.' if last else 'No checkpoint had been written yet.'
