"""Training that goes on after a stop as if it had never been stopped.

mmengine's checkpoints hold neither the states of the random number generators nor the place in the data. Here neither
has to be kept: what is drawn at random depends on a seed and on a place alone. For a sample of the training data the
place is the epoch, the batch and the place in the batch; for a step of the model it is the number of the iteration. So
it does not matter which worker process loads a sample, how many batches it has loaded before, or how many processes
share a batch. The seed is in the checkpoint, and the place follows from the counters that mmengine keeps there.
"""
import itertools
import random
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import get_dist_info, get_rank
from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import BatchSampler, Dataset, Sampler

from .registry import DATA_SAMPLERS, DATASETS, LOOPS

# Samples, steps and validations draw from streams of their own.
_SAMPLE, _STEP, _VALIDATION = 0, 1, 2


class Draw(NamedTuple):
    """One entry of a batch: what the data set is asked for, and what the randomness of its pipeline depends on."""
    key: Any
    entropy: tuple[int, ...]


def seed_generators(*entropy: int) -> None:
    """Seeds the global generators of Python, NumPy and PyTorch with a hash of non-negative integers."""
    words = np.random.SeedSequence(entropy).generate_state(3).tolist()
    random.seed(words[0])
    np.random.seed(words[1])
    torch.manual_seed(words[2])


@DATA_SAMPLERS.register_module()
class ResumableBatchSampler:
    """Batches of :class:`Draw` that begin where a run was stopped.

    Until :meth:`start` is called there are none: mmengine 0.10.7 begins to load before it knows where a run goes on.

    Args:
        sampler: gives the order of the images; mmengine passes it.
        batch_size: how many of them make a batch; mmengine passes it.
        batches: config of the batch sampler that the dataloader had; without one PyTorch's is used.
        drop_last: leave out a last batch of fewer images, where there is no ``batches``.
    """

    def __init__(self, sampler: Sampler, batch_size: int, batches: dict | None = None, drop_last: bool = False) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        if batches is None:
            self.batches = BatchSampler(sampler, batch_size, drop_last)
        else:
            self.batches = MMENGINE_DATA_SAMPLERS.build(batches, default_args=dict(
                sampler=sampler, batch_size=batch_size))
        self._seed = None

    def start(self, seed: int, epoch: int = 0, skip: int = 0, endless: bool = False) -> None:
        """Says where the next pass over the data begins.

        Args:
            seed: of the order and of the samples.
            epoch: of the order.
            skip: how many batches were trained on before. They are counted off, not loaded.
            endless: go on with the next epoch at the end of one.
        """
        self._seed, self._epoch, self._skip, self._endless = seed, epoch, skip, endless
        if hasattr(self.sampler, 'seed'):
            self.sampler.seed = seed

    def _passes(self) -> Iterator[tuple[int, Iterable]]:
        for epoch in itertools.count(self._epoch):
            if hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(epoch)
            yield epoch, self.batches
            if not self._endless:
                return

    def __iter__(self) -> Iterator[list[Draw]]:
        if self._seed is None:
            return
        rank, world_size = get_dist_info()
        skip, self._skip = self._skip, 0
        for epoch, batches in self._passes():
            number = -1
            for number, batch in enumerate(batches):
                if skip:
                    skip -= 1
                    continue
                yield [Draw(key, (self._seed, _SAMPLE, epoch, number, place * world_size + rank))
                       for place, key in enumerate(batch)]
            if number < 0:
                raise ValueError('the training data are fewer than a batch, and the last batch is left out.')

    def __len__(self) -> int:
        return len(self.batches)


@DATASETS.register_module()
class SeededDataset(Dataset):
    """A data set whose samples depend on what a :class:`Draw` says, and on nothing drawn before.

    In everything else it is the data set inside.

    Args:
        dataset: config of the data set.
    """

    def __init__(self, dataset: dict) -> None:
        self.dataset = MMENGINE_DATASETS.build(dataset)

    def __getitem__(self, draw: Draw) -> Any:
        seed_generators(*draw.entropy)
        return self.dataset[draw.key]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset' or name.startswith('__'):  # not there yet while it is unpickled in a worker
            raise AttributeError(name)
        return getattr(self.dataset, name)

    @property
    def pipeline(self) -> Any:
        return self.dataset.pipeline

    @pipeline.setter
    def pipeline(self, pipeline: Any) -> None:  # mmdet's PipelineSwitchHook sets it
        self.dataset.pipeline = pipeline


def resumable(dataloader: dict) -> dict:
    """The config of a training dataloader with :class:`SeededDataset` and :class:`ResumableBatchSampler` in it.

    Raises:
        TypeError: the dataloader, its data set or its batch sampler is built already.
    """
    built = [part for part in (dataloader, dataloader['dataset'] if isinstance(dataloader, dict) else None,
                               dataloader.get('batch_sampler') if isinstance(dataloader, dict) else None)
             if part is not None and not isinstance(part, dict)]
    if built:
        raise TypeError('the training loops of mmcasvit need a config of the dataloader, got a built '
                        f'{type(built[0]).__name__}.')
    config = dict(dataloader)
    config['dataset'] = dict(type='mmcasvit.SeededDataset', dataset=config['dataset'])
    config['batch_sampler'] = dict(
        type='mmcasvit.ResumableBatchSampler', batches=config.get('batch_sampler'),
        drop_last=config.pop('drop_last', False))
    return config


class _ResumableLoop:
    """What both loops share; the counters of the loop say how far the training has come."""

    def __init__(self, runner: Runner, dataloader: dict, **kwargs) -> None:
        super().__init__(runner, resumable(dataloader), **kwargs)

    def _restore_seed(self) -> None:
        """Takes the seed from the checkpoint, or from the sampler, whose seed all processes share."""
        hub, sampler = self.runner.message_hub, self.dataloader.batch_sampler.sampler
        if 'data_seed' not in hub.runtime_info:
            hub.update_info('data_seed', int(getattr(sampler, 'seed', self.runner.seed)))
        self._seed = hub.get_info('data_seed')

    def _validate_if_due(self, finished: int, total: int) -> None:
        if self.runner.val_loop is None or finished < self.val_begin:
            return
        if finished % self.val_interval and finished != total:
            return
        # The best checkpoint is written at the end of it, and a run that goes on from that has been validated.
        self.runner.message_hub.update_info('iter_of_validation', self._iter)
        seed_generators(self._seed, _VALIDATION, get_rank(), self._iter)
        self.runner.val_loop.run()

    def _make_up_validation(self, finished: int, total: int) -> None:
        """Validates where the run was stopped between a checkpoint and the end of the validation behind it."""
        if finished and self.runner.message_hub.get_info('iter_of_validation') != self._iter:
            self._decide_current_val_interval()
            self._validate_if_due(finished, total)

    def run_iter(self, *args, **kwargs) -> None:
        seed_generators(self._seed, _STEP, get_rank(), self._iter)
        super().run_iter(*args, **kwargs)


@LOOPS.register_module()
class ResumableEpochLoop(_ResumableLoop, EpochBasedTrainLoop):
    """mmengine's ``EpochBasedTrainLoop`` that goes on at the batch where a checkpoint was written.

    Args:
        runner: mmengine's runner.
        dataloader: config of the training dataloader.
        kwargs: of ``EpochBasedTrainLoop``.
    """

    def _batches_done(self) -> int:
        """How many batches of the current epoch were trained on before the run was stopped."""
        hub, length = self.runner.message_hub, len(self.dataloader)
        before = hub.get_info('batches_per_epoch', length)
        hub.update_info('batches_per_epoch', length)
        done = self._iter - self._epoch * before
        if before != length and 0 < done < before:
            self.runner.logger.warning(
                f'an epoch had {before} batches when the checkpoint was written and has {length} now: the epoch goes '
                'on at about the same place, with some images left out or seen twice.')
            return done * length // before
        return done if 0 < done <= length else 0

    def run(self) -> torch.nn.Module:
        self.runner.call_hook('before_train')
        self._restore_seed()
        self._done = self._batches_done()
        if not self._done:
            self._make_up_validation(self._epoch, self._max_epochs)
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._decide_current_val_interval()
            self._validate_if_due(self._epoch, self._max_epochs)
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        done, self._done = self._done, 0
        self.dataloader.batch_sampler.start(self._seed, self._epoch, done)
        for number, data_batch in enumerate(self.dataloader, done):
            self.run_iter(number, data_batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


@LOOPS.register_module()
class ResumableIterLoop(_ResumableLoop, IterBasedTrainLoop):
    """mmengine's ``IterBasedTrainLoop`` that goes on at the batch where a checkpoint was written.

    Batches that were trained on are counted off by the sampler and not loaded again, and data that end begin anew
    without a restart of the workers.

    Args:
        runner: mmengine's runner.
        dataloader: config of the training dataloader.
        kwargs: of ``IterBasedTrainLoop``.
    """

    def run(self) -> torch.nn.Module:
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        self._restore_seed()
        self._make_up_validation(self._iter, self._max_iters)
        self.dataloader.batch_sampler.start(self._seed, skip=self._iter, endless=True)
        self.dataloader_iterator = iter(self.dataloader)
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._decide_current_val_interval()
            self._validate_if_due(self._iter, self._max_iters)
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model
