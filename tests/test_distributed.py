"""Two processes on a CPU train as one does at the same total batch."""
import multiprocessing
import os
import socket

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from test_resume import Classifier, config
from torch import nn
from torch.testing import assert_close

from mmcasvit.distributed import CPUSyncBatchNorm, use_cpus
from mmcasvit.runs import outcome


class SyncedClassifier(Classifier):
    """Without activations that are dropped, which would differ with the shape of a batch, and without a bias in front
    of the norm, whose gradient is rounding alone, which AdamW would make steps of."""

    def __init__(self):
        super().__init__()
        self.layers[0] = nn.Conv2d(3, 6, 3, bias=False)
        self.layers[1] = nn.SyncBatchNorm(6)
        self.layers[3] = nn.Identity()


def _train(rank, port, settings):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1',
                      MASTER_PORT=str(port))
    cfg = Config(dict())
    use_cpus(cfg)
    Runner(**settings, launcher='pytorch', cfg=cfg).train()


def train_two(settings):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context('fork')
    processes = [context.Process(target=_train, args=(rank, port, settings)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def _settings(work_dir, batch):
    settings = config(work_dir, by_epoch=False, interval=4)
    settings['model'] = dict(type=SyncedClassifier)
    settings['train_dataloader']['batch_size'] = batch
    settings['default_hooks']['checkpoint']['save_best'] = None
    settings['val_cfg'] = settings['val_dataloader'] = settings['val_evaluator'] = None
    return settings


def _train_one(settings):
    torch.set_num_threads(1)
    Runner(**settings, cfg=dict()).train()


@pytest.mark.skipif(torch.cuda.is_available(), reason='mmengine would put the models on the GPUs')
def test_two_processes_train_as_one_does_at_the_same_total_batch(tmp_path):
    one = multiprocessing.get_context('fork').Process(target=_train_one, args=(_settings(tmp_path / 'one', 4), ))
    one.start()
    one.join(120)
    assert one.exitcode == 0
    assert train_two(_settings(tmp_path / 'two', 2)) == [0, 0]
    states = [torch.load(tmp_path / name / 'iter_12.pth', weights_only=True)['state_dict'] for name in ('one', 'two')]
    assert_close(states[1], states[0], rtol=1e-3, atol=1e-4)
    # The log of two processes holds the loss of the first: its half of each batch.
    losses = [outcome(tmp_path / name)['log/train/12/loss'] for name in ('one', 'two')]
    assert losses[0] != losses[1]


def test_the_norm_is_that_of_pytorch_where_nothing_is_shared():
    torch.manual_seed(0)
    theirs, ours = nn.BatchNorm2d(4), CPUSyncBatchNorm(4)
    x = torch.randn(3, 4, 5, 6)
    assert_close(ours(x), theirs(x))
    assert_close(ours.eval()(x), theirs.eval()(x))
