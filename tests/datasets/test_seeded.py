"""The order of the data and their random numbers depend only on a seed and a position."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import BatchSampler

from mmcasvit.datasets import seeded
from mmcasvit.datasets.seeded import SAMPLE, Draw, ResumableBatchSampler, SeededDataset, resumable, seed_generators

FIRST = (0.717342227, 0.786886625, 0.077114642)


def numbers():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_the_random_numbers_of_a_seed_never_change():
    """Else a run could not be resumed with another version."""
    seed_generators(3, SAMPLE, 1)
    assert numbers() == pytest.approx(FIRST, rel=1e-6)
    for entropy in ((3, SAMPLE, 2), (4, SAMPLE, 1)):
        seed_generators(*entropy)
        assert not set(numbers()) & set(FIRST)


def sampler_of(length=7, size=2, **options):
    return ResumableBatchSampler(DefaultSampler(range(length), shuffle=False), size, **options)


def test_nothing_is_loaded_before_the_start_is_known():
    sampler = sampler_of()
    assert list(sampler) == []
    sampler.start(5)
    assert len(list(sampler)) == len(sampler) == 4


@pytest.mark.parametrize('rank, world_size', [(0, 1), (1, 3)])
def test_a_draw_is_a_key_with_its_position(monkeypatch, rank, world_size):
    monkeypatch.setattr(seeded, 'get_dist_info', lambda: (rank, world_size))
    sampler = sampler_of()
    sampler.start(5, epoch=8)
    assert list(sampler) == [
        [Draw(2 * number + place, (5, SAMPLE, 8, number, place * world_size + rank)) for place in places]
        for number, places in enumerate([(0, 1), (0, 1), (0, 1), (0,)])
    ]


def test_batches_are_skipped_once():
    sampler = sampler_of()
    sampler.start(5, skip=3)
    assert [[draw.key for draw in batch] for batch in sampler] == [[6]]
    assert len(list(sampler)) == 4
    sampler.start(5, skip=4)
    assert list(sampler) == []


def test_an_endless_pass_goes_through_the_epochs():
    sampler = ResumableBatchSampler(DefaultSampler(range(3), shuffle=True), 2)
    sampler.start(5, skip=3, endless=True)
    batches = iter(sampler)
    found = [next(batches) for _ in range(3)]
    assert [draw.entropy[2:4] for batch in found for draw in batch] == [(1, 1), (2, 0), (2, 0), (2, 1)]
    for batch in (found[:1], found[1:]):
        order = DefaultSampler(range(3), shuffle=True, seed=5)
        order.set_epoch(batch[0][0].entropy[2])
        wanted = list(order)
        assert [draw.key for part in batch for draw in part] == (wanted[2:] if batch == found[:1] else wanted)


@pytest.mark.parametrize('drop_last, length', [(False, 4), (True, 3)])
def test_an_incomplete_batch_is_dropped_if_the_config_says_so(drop_last, length):
    assert len(sampler_of(drop_last=drop_last).batches) == length
    few = sampler_of(1, drop_last=True)
    few.start(5, endless=True)
    with pytest.raises(ValueError, match='does not fill one batch'):
        list(few)


def test_the_batch_sampler_of_the_config_is_used():
    sampler = sampler_of(batches=dict(type=BatchSampler, drop_last=True))
    assert isinstance(sampler.batches, BatchSampler)
    assert (len(sampler), sampler.batches.batch_size, sampler.batch_size) == (3, 2, 2)
    assert sampler.batches.sampler is sampler.sampler


class Noise:
    """Dataset of random numbers."""

    def __init__(self, pipeline='a'):
        self.pipeline, self.metainfo = pipeline, dict(classes=('x',))

    def __len__(self):
        return 9

    def __getitem__(self, key):
        return key, numbers()


def test_a_sample_depends_on_its_draw_alone():
    dataset = SeededDataset(dict(type=Noise))
    first = dataset[Draw(4, (5, SAMPLE, 0, 0, 0))]
    other = dataset[Draw(4, (5, SAMPLE, 0, 0, 1))]
    assert first[0] == other[0] == 4
    assert not set(first[1]) & set(other[1])
    assert dataset[Draw(4, (5, SAMPLE, 0, 0, 0))] == first


def test_a_dataset_inside_is_reached_from_outside():
    dataset = SeededDataset(dict(type=Noise))
    assert (len(dataset), dataset.metainfo, dataset.pipeline) == (9, dict(classes=('x',)), 'a')
    dataset.pipeline = 'b'
    assert dataset.dataset.pipeline == 'b'
    for copied in (copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
        assert copied.pipeline == 'b'
    with pytest.raises(AttributeError):
        dataset.__array__  # noqa: B018  # what is special is that of the wrapper
    with pytest.raises(AttributeError):
        SeededDataset.__new__(SeededDataset).metainfo  # noqa: B018  # no endless search for the dataset


def test_the_config_of_a_dataloader_is_wrapped_and_left_alone():
    given = dict(batch_size=2, dataset=dict(type=Noise), drop_last=True, batch_sampler=dict(type=BatchSampler))
    before = copy.deepcopy(given)
    config = resumable(given)
    assert given == before
    assert config == dict(
        batch_size=2,
        dataset=dict(type='mmcasvit.SeededDataset', dataset=dict(type=Noise)),
        batch_sampler=dict(type='mmcasvit.ResumableBatchSampler', batches=dict(type=BatchSampler), drop_last=True),
    )
    assert resumable(dict(dataset=dict(type=Noise)))['batch_sampler'] == dict(
        type='mmcasvit.ResumableBatchSampler', batches=None, drop_last=False
    )
    assert isinstance(DATASETS.build(config['dataset']), SeededDataset)
    assert DATA_SAMPLERS.get('mmcasvit.ResumableBatchSampler') is ResumableBatchSampler


@pytest.mark.parametrize(
    'built, name',
    [([], 'list'), (dict(dataset=()), 'tuple'), (dict(dataset={}, batch_sampler=[]), 'list')],
    ids=['dataloader', 'dataset', 'batch sampler'],
)
def test_what_is_built_already_is_refused(built, name):
    with pytest.raises(TypeError, match=f'need the config of a dataloader, got a built {name}'):
        resumable(built)
