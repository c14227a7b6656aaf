"""Two runs do not train in one work dir."""

import errno
import multiprocessing
import os

import pytest

from mmcasvit import RunStopped
from mmcasvit.engine import work_dir
from mmcasvit.engine.work_dir import WorkDirLock


def test_two_runs_do_not_train_in_one_work_dir(tmp_path):
    lock = WorkDirLock(tmp_path)
    process = multiprocessing.get_context('fork').Process(target=_refused, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 7
    lock.release()
    assert list(tmp_path.iterdir()) == []
    WorkDirLock(tmp_path).release()


def _refused(folder):
    try:
        WorkDirLock(folder)
    except RunStopped as error:
        os._exit(7 if 'another run is training in it' in str(error) else 8)
    os._exit(0)


@pytest.mark.parametrize('error, refused', [(errno.EAGAIN, True), (errno.EACCES, True), (errno.ENOLCK, False)])
def test_a_held_lock_is_told_from_a_file_system_without_locks(tmp_path, monkeypatch, error, refused):
    def lock(handle, flags):
        handles.append(handle)
        raise OSError(error, 'x')

    handles = []
    monkeypatch.setattr(work_dir.fcntl, 'lockf', lock)
    if not refused:
        WorkDirLock(tmp_path).release()
        assert list(tmp_path.iterdir()) == []
    else:
        with pytest.raises(RunStopped, match='is in use: another run is training in it'):
            WorkDirLock(tmp_path)
    with pytest.raises(OSError, match='Bad file descriptor'):
        os.fstat(handles[0])


@pytest.mark.parametrize('missing', ['locks', 'main process', 'folder'])
def test_no_lock_is_taken_where_there_can_be_none(tmp_path, monkeypatch, missing):
    if missing == 'locks':
        monkeypatch.setattr(work_dir, 'fcntl', None)
    if missing == 'main process':
        monkeypatch.setattr(work_dir, 'is_main_process', lambda: False)
    lock = WorkDirLock(tmp_path / 'none' if missing == 'folder' else tmp_path)
    assert list(tmp_path.iterdir()) == []
    lock.release()


def test_a_lock_is_released_once(tmp_path):
    lock = WorkDirLock(tmp_path)
    lock.release()
    other = WorkDirLock(tmp_path)
    lock.release()
    assert (tmp_path / '.running').exists()
    other.release()
