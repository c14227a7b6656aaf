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


def test_a_full_disk_is_named_and_other_errors_pass(runner):
    with pytest.raises(RunStopped, match=r'No space left on device.*Free some space'), stops_explained(runner):
        raise OSError(errno.ENOSPC, 'No space left on device', 'log.json')
    for error in (OSError(errno.ENOENT, 'x'), RuntimeError('x'), ValueError('x')):
        with pytest.raises(type(error)), stops_explained(runner):
            raise error
