"""Reproducible order and augmentation of training data, so that a resumed run sees what it would have seen."""

import itertools
import random
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from torch.utils.data import BatchSampler, Dataset, Sampler

from mmcasvit.registry import DATA_SAMPLERS, DATASETS

# Samples, training steps, and validations use separate random streams.
SAMPLE, STEP, VALIDATION = 0, 1, 2


class Draw(NamedTuple):
    """Entry of a batch: the key that the dataset is indexed with, and the seed of the pipeline's random numbers."""

    key: Any
    entropy: tuple[int, ...]


def seed_generators(*entropy: int) -> None:
    """Seed the global random generators of Python, NumPy, and PyTorch with a hash of non-negative integers."""
    words = np.random.SeedSequence(entropy).generate_state(3).tolist()
    random.seed(words[0])
    np.random.seed(words[1])
    torch.manual_seed(words[2])


@DATA_SAMPLERS.register_module()
class ResumableBatchSampler:
    """Batch sampler that yields batches of :class:`Draw`, beginning where a run was stopped.

    It yields no batches until :meth:`start` is called, because mmengine 0.10.7 starts loading data before it knows
    where a run resumes.

    Args:
        sampler: Order of the images. mmengine passes it.
        batch_size: Number of images in a batch. mmengine passes it.
        batches: Config of the dataloader's original batch sampler. PyTorch's ``BatchSampler`` is used without one.
        drop_last: Whether PyTorch's ``BatchSampler`` drops an incomplete last batch.
    """

    def __init__(self, sampler: Sampler, batch_size: int, batches: dict | None = None, drop_last: bool = False) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        if batches is None:
            self.batches = BatchSampler(sampler, batch_size, drop_last)
        else:
            self.batches = MMENGINE_DATA_SAMPLERS.build(
                batches, default_args=dict(sampler=sampler, batch_size=batch_size)
            )
        self._seed: int | None = None

    def start(self, seed: int, epoch: int = 0, skip: int = 0, endless: bool = False) -> None:
        """Set where the next pass over the data begins.

        Args:
            seed: Seed of the order and of the samples.
            epoch: Epoch to begin with.
            skip: Number of batches that were already trained on. They are counted, not loaded.
            endless: Whether to continue with the next epoch at the end of one.
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
                yield [
                    Draw(key, (self._seed, SAMPLE, epoch, number, place * world_size + rank))
                    for place, key in enumerate(batch)
                ]
            if number < 0:
                raise ValueError('the training data does not fill one batch, and drop_last drops incomplete batches.')

    def __len__(self) -> int:
        return len(self.batches)


@DATASETS.register_module()
class SeededDataset(Dataset):
    """Dataset whose random augmentation depends only on the :class:`Draw`, not on what was loaded before.

    Every other attribute is that of the dataset inside.

    Args:
        dataset: Config of the dataset inside.
    """

    def __init__(self, dataset: dict) -> None:
        self.dataset = MMENGINE_DATASETS.build(dataset)

    def __getitem__(self, draw: Draw) -> Any:
        seed_generators(*draw.entropy)
        return self.dataset[draw.key]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset' or name.startswith('__'):  # while a worker unpickles it, there is no dataset yet
            raise AttributeError(name)
        return getattr(self.dataset, name)

    @property
    def pipeline(self) -> Any:
        return self.dataset.pipeline

    @pipeline.setter
    def pipeline(self, pipeline: Any) -> None:  # mmdet's PipelineSwitchHook sets it
        self.dataset.pipeline = pipeline


def resumable(dataloader: dict) -> dict:
    """Return the config of a training dataloader with :class:`SeededDataset` and :class:`ResumableBatchSampler`.

    Raises:
        TypeError: If the dataloader, its dataset, or its batch sampler is already built.
    """
    built = [
        part
        for part in (
            dataloader,
            dataloader['dataset'] if isinstance(dataloader, dict) else None,
            dataloader.get('batch_sampler') if isinstance(dataloader, dict) else None,
        )
        if part is not None and not isinstance(part, dict)
    ]
    if built:
        raise TypeError(
            f'the training loops of mmcasvit need the config of a dataloader, got a built {type(built[0]).__name__}.'
        )
    config = dict(dataloader)
    config['dataset'] = dict(type='mmcasvit.SeededDataset', dataset=config['dataset'])
    config['batch_sampler'] = dict(
        type='mmcasvit.ResumableBatchSampler',
        batches=config.get('batch_sampler'),
        drop_last=config.pop('drop_last', False),
    )
    return config
