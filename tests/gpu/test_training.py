"""Training on a GPU: mixed precision, resumed, and distributed over NCCL, with the tool that users run."""

import os
import subprocess
import sys

import pytest
import torch
from helpers.repository import ROOT, write_tiny_config

from mmcasvit.report.logs import read_runs

pytestmark = pytest.mark.gpu


@pytest.fixture(scope='module')
def train(tmp_path_factory, shapes):
    """Return a function that trains a tiny segmentor with some arguments and returns its work directory."""
    folder = tmp_path_factory.mktemp('training')
    config = write_tiny_config(folder / 'tiny.py', ROOT / 'configs/segmentation/semantic-fpn_casvit-xs_300i_shapes.py')

    def run(device, name, steps, *arguments, launcher=()):
        command = [sys.executable, *launcher, ROOT / 'tools/train.py', config, '--work-dir', folder / name]
        command += [*arguments, *(['--amp'] if device == 'cuda' else []), '--cfg-options', f'data_root={shapes}/ade']
        command += [f'train_cfg.max_iters={steps}', 'train_cfg.val_interval=100', 'train_dataloader.num_workers=0']
        command += ['train_dataloader.persistent_workers=False', 'default_hooks.logger.interval=1', 'randomness.seed=1']
        environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
        done = subprocess.run(list(map(str, command)), cwd=folder, env=environment, text=True, capture_output=True)
        assert done.returncode == 0, f'{done.stdout[-2000:]}\n{done.stderr[-4000:]}'
        return folder / name

    return run


@pytest.fixture(scope='module')
def started(device, train):
    return train(device, 'alone', 2)


def losses(run):
    return torch.tensor([numbers['loss'] for numbers in run.training.values()])


def test_mixed_precision_is_resumed(device, train, started):
    first, second = read_runs(train(device, started.name, 4, '--resume'))
    assert second.resumed == (0, 2)
    assert (list(first.training), list(second.training)) == ([1, 2], [3, 4])
    assert torch.cat([losses(first), losses(second)]).isfinite().all()
    saved = torch.load(started / 'iter_4.pth', weights_only=False, map_location='cpu')
    assert ('loss_scaler' in saved['optimizer']) == (device == 'cuda')


def test_one_process_of_a_distributed_run_trains_as_a_single_one(device, train, started):
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '1']
    (distributed,) = read_runs(train(device, 'distributed', 2, '--launcher', 'pytorch', launcher=launcher))
    assert 'Distributed launcher: pytorch' in distributed.environment
    torch.testing.assert_close(losses(distributed), losses(read_runs(started)[0]), rtol=0.02, atol=0)
