"""A training run that takes a second, can be killed anywhere, and leaves everything that a real one leaves."""

import contextlib
import importlib
import logging
import multiprocessing
import os
import random
import signal

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

# Every run is a process of its own, split off from this one: what mmengine imports late is imported once.
for late in ('matplotlib.pyplot', 'torch._inductor', 'torchvision', 'mmcv.ops'):
    with contextlib.suppress(ImportError, RuntimeError):
        importlib.import_module(late)

LENGTH, BATCH = 14, 4  # the last of the four batches is smaller


class Pictures(Dataset):
    """Pictures with a random part from each of the generators that augmentation uses."""

    metainfo = dict(classes=('a', 'b'))

    def __len__(self):
        return LENGTH

    def __getitem__(self, index):
        picture = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(index))
        picture[0] += random.random()
        picture[1] *= np.random.rand()
        return dict(inputs=picture + torch.randn(1), labels=index % 2)


class Classifier(BaseModel):
    """With statistics that are kept and activations that are dropped."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 2),
        )

    def forward(self, inputs, labels, mode='tensor'):
        scores = self.layers(inputs)
        return dict(loss=nn.functional.cross_entropy(scores, labels)) if mode == 'loss' else [scores]


class Score(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(data_samples[0].sum().item())

    def compute_metrics(self, results):
        return dict(score=float(np.sum(results)))


class CPUAmpOptimWrapper(AmpOptimWrapper):
    """mmengine's wrapper asks for a GPU; its scaler works without."""

    def __init__(self, **kwargs):
        import mmengine.optim.optimizer.amp_optimizer_wrapper as module

        module.is_cuda_available = lambda: True  # in the child process alone
        super().__init__(dtype='bfloat16', **kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=8.0, growth_interval=3)


class Killer(Hook):
    """Ends the process where ``moment`` says: an iteration, before or after its checkpoint, or in a validation."""

    priority = 'LOWEST'

    def __init__(self, moment, at):
        self.moment, self.at = moment, at

    def kill(self, moment, at):
        if (moment, at) == (self.moment, self.at):
            os.kill(os.getpid(), signal.SIGKILL)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.kill('before', runner.iter)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.kill('after', runner.iter)

    def before_val_epoch(self, runner):
        self.kill('validation', runner.iter)


def config(work_dir, by_epoch, interval, workers=0, ema=False, amp=False, kill=None, gather=1, **changes):
    loader = dict(
        batch_size=BATCH,
        num_workers=workers,
        persistent_workers=workers > 0,
        dataset=dict(type=Pictures),
        collate_fn=dict(type='default_collate'),
    )
    loop = (
        dict(type='mmcasvit.ResumableEpochLoop', max_epochs=3, val_interval=1)
        if by_epoch
        else dict(type='mmcasvit.ResumableIterLoop', max_iters=12, val_interval=4)
    )
    return dict(
        model=dict(type=Classifier),
        work_dir=str(work_dir),
        train_cfg=loop,
        val_cfg=dict(),
        train_dataloader=dict(
            loader, sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True)
        ),
        val_dataloader=dict(
            loader, num_workers=0, persistent_workers=False, sampler=dict(type='DefaultSampler', shuffle=False)
        ),
        val_evaluator=dict(type=Score),
        optim_wrapper=dict(
            type=CPUAmpOptimWrapper if amp else 'OptimWrapper',
            accumulative_counts=gather,
            optimizer=dict(type='AdamW', lr=0.05),
        ),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=5),
            dict(type='MultiStepLR', milestones=[2], by_epoch=by_epoch),
        ],
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(
                type='mmcasvit.CheckpointHook',
                interval=interval,
                by_epoch=False,
                max_keep_ckpts=2,
                save_best='score',
                rule='greater',
            ),
        ),
        custom_hooks=[
            dict(type='mmcasvit.StopOnInvalidLossHook'),
            *([dict(type='EMAHook')] if ema else []),
            *([dict(type=Killer, moment=kill[0], at=kill[1])] if kill else []),
        ],
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        randomness=dict(seed=7, deterministic=True),
        log_level='ERROR',
        log_processor=dict(by_epoch=by_epoch),
        default_scope='mmengine',
        **changes,
    )


def _train(settings):
    # A handler of an earlier test may write to a stream that is closed by now; logging would print a traceback.
    logging.raiseExceptions = False
    torch.set_num_threads(1)
    Runner(**settings, cfg=dict()).train()


def train(settings):
    """Trains in a process of its own and returns how that ended."""
    process = multiprocessing.get_context('fork').Process(target=_train, args=(settings,))
    process.start()
    process.join(60)
    return process.exitcode
