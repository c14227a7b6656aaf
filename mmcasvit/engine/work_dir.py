"""The work dir of a run: a lock that keeps a second run out of it."""

import os
from pathlib import Path

from mmengine.dist import is_main_process

from mmcasvit.utils.errors import RunStopped

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


class WorkDirLock:
    """Lock of a folder, held by this process until it ends or calls :meth:`release`.

    The lock is of a kind that the worker processes of a data loader do not inherit: it is free as soon as the process
    is gone, also after SIGKILL. Only the main process of a distributed run takes it. File systems and operating
    systems without such locks get none.

    Args:
        folder: The work dir.

    Raises:
        RunStopped: Another process holds the lock.
    """

    def __init__(self, folder: str | Path):
        self._file = Path(folder, '.running')
        self._handle: int | None = None
        if fcntl is None or not is_main_process() or not self._file.parent.is_dir():
            return
        self._handle = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            os.close(self._handle)
            raise RunStopped(
                f'{folder} is in use: another run is training in it. Wait until it ends, or give another --work-dir.'
            ) from error
        except OSError:  # a file system without locks
            pass

    def release(self) -> None:
        if self._handle is not None:
            self._file.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None
