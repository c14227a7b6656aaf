"""The end of a run by causes outside of it is explained in one line, with the checkpoint to resume from."""

import errno
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from mmcasvit import RunStopped
from mmcasvit.engine.stopping import last_good, stops_explained


@pytest.fixture
def runner(tmp_path):
    return SimpleNamespace(work_dir=str(tmp_path))


def test_the_last_checkpoint_is_named_if_there_is_one(runner, tmp_path):
    assert last_good(runner) == 'No checkpoint had been written yet.'
    (tmp_path / 'iter_3.pth').touch()
    (tmp_path / 'last_checkpoint').write_text('elsewhere/iter_3.pth')
    assert last_good(runner) == f'The last good checkpoint is {tmp_path}/iter_3.pth. Resume with --resume.'


def test_an_interrupt_says_where_to_resume(runner):
    with pytest.raises(KeyboardInterrupt, match=r'^No checkpoint had been written yet\.$'), stops_explained(runner):
        raise KeyboardInterrupt


class Dying(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_named(runner):
    with pytest.raises(RunStopped, match=r'a worker process of a data loader was killed.*num_workers'):
        with stops_explained(runner):
            next(iter(DataLoader(Dying(), num_workers=1)))


@pytest.mark.parametrize('error', [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_named(runner, error):
    words = r"x: 'log\.json'\. Free some space\. No checkpoint"
    with pytest.raises(RunStopped, match=words), stops_explained(runner):
        raise OSError(error, 'x', 'log.json')


@pytest.mark.parametrize(
    'error',
    [
        *(OSError(number, 'x') for number in (errno.ENOENT, errno.EIO, errno.EACCES, errno.EROFS, errno.ENOMEM)),
        OSError('without a number'),
        RuntimeError('x'),
        RuntimeError('after DataLoader worker (pid 3) is killed'),
        ValueError('DataLoader worker (pid 3) is killed'),
    ],
    ids=repr,
)
def test_other_errors_pass_as_they_are(runner, error):
    with pytest.raises(type(error)) as caught, stops_explained(runner):
        raise error
    assert caught.value is error


@pytest.mark.parametrize('end', ['(pid 3) is killed by signal: Killed.', '(pid(s) 3, 4) exited unexpectedly'])
def test_both_ends_of_a_worker_are_explained(runner, end):
    with pytest.raises(RunStopped, match='a worker process of a data loader was killed'), stops_explained(runner):
        raise RuntimeError(f'DataLoader worker {end}')
