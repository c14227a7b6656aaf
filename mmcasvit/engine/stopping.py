"""The end of a run before its time: why, and from where it can be resumed."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.runner import Runner

from mmcasvit.utils.errors import RunStopped
from mmcasvit.weights.integrity import read_pointer

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def stops_explained(runner: Runner) -> Iterator[None]:
    """Explain the end of a run by causes outside of it: a full disk, a killed worker process, Ctrl-C.

    Raises:
        RunStopped: A file, such as a log, found no room, or a worker of a data loader was killed.
        KeyboardInterrupt: The run was interrupted. The message says from where it can be resumed.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(last_good(runner)) from None
    except RuntimeError as error:
        if not re.match(r'DataLoader worker \(pid.*\) (is killed|exited unexpectedly)', str(error)):
            raise
        raise RunStopped(
            f'training stopped: a worker process of a data loader was killed, often for want of memory ({error}). '
            f'train_dataloader.num_workers=N sets the number of workers. {last_good(runner)}'
        ) from error
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise RunStopped(f'training stopped: {error}. Free some space. {last_good(runner)}') from error


def last_good(runner: Runner) -> str:
    """Return a sentence that names the checkpoint from which a stopped run can be resumed."""
    last = read_pointer(runner.work_dir)
    if last is None:
        return 'No checkpoint had been written yet.'
    return f'The last good checkpoint is {last}. Resume with --resume.'
