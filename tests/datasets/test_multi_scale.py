"""Multi-scale training: batches of one size each, the same sizes on every process."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.configs import load, needs_mmpretrain
from mmengine.dataset import DefaultSampler

from mmcasvit.datasets.unreadable import SkipUnreadable


class Order:
    """Sampler as mmengine passes it."""

    seed = 3

    def __init__(self, length, epoch=0):
        self.length, self.epoch = length, epoch

    def __len__(self):
        return self.length

    def __iter__(self):
        return iter(np.random.default_rng(self.epoch).permutation(self.length).tolist())


@needs_mmpretrain
class TestMultiScale:
    def sampler(self, length=1000, epoch=0, **kwargs):
        from mmcasvit.datasets.multi_scale import MultiScaleBatchSampler

        return MultiScaleBatchSampler(
            Order(length, epoch), **dict(dict(batch_size=8, sizes=(32, 64, 96), base_size=64), **kwargs)
        )

    @pytest.mark.parametrize('length', [1, 7, 32, 47, 48, 49, 1000])
    def test_every_image_is_in_one_batch_and_batches_have_one_size(self, length):
        sampler = self.sampler(length)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert sorted(index for batch in batches for index, _ in batch) == list(range(length))
        assert all(len({side for _, side in batch}) == 1 for batch in batches)
        full = {32: 32, 64: 8, 96: 8}  # the pixels of 8 images of 64, and never fewer than 8 images
        assert all(len(batch) == full[batch[0][1]] for batch in batches[:-1])
        assert 0 < len(batches[-1]) <= full[batches[-1][0][1]]

    def test_epochs_have_the_same_length_and_differ(self):
        orders = [[batch[0][1] for batch in self.sampler(epoch=epoch)] for epoch in range(4)]
        assert len({len(order) for order in orders}) == 1
        assert len({tuple(order) for order in orders}) == 4
        assert orders[0] == [batch[0][1] for batch in self.sampler()], 'must be the same on every process'
        counts = np.unique(orders[0], return_counts=True)[1]
        assert np.ptp(counts) <= 1

    def test_processes_get_different_images_of_the_same_size(self, monkeypatch):
        from mmcasvit.datasets.multi_scale import MultiScaleBatchSampler

        batches = []
        for rank in range(2):
            monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda rank=rank: (rank, 2))
            order = DefaultSampler(range(301), shuffle=True, seed=5)
            order.set_epoch(2)
            batches.append(list(MultiScaleBatchSampler(order, 8, (32, 64, 96), 64)))
        first, second = ([(len(batch), batch[0][1]) for batch in part] for part in batches)
        assert first == second
        seen = [{index for batch in part for index, _ in batch} for part in batches]
        assert seen[0] | seen[1] == set(range(301))
        assert len(seen[0] & seen[1]) <= 1

    def test_the_recipe_keeps_the_pixels_of_its_batch(self):
        sampler = self.sampler(batch_size=128, sizes=(160, 192, 224, 256, 288, 320), base_size=224)
        assert sampler.batch_sizes == {160: 250, 192: 174, 224: 128, 256: 128, 288: 128, 320: 128}

    def test_a_base_size_that_is_not_among_the_sizes_is_refused(self):
        with pytest.raises(ValueError, match=r'one of the sizes \(32, 64, 96\), got 128'):
            self.sampler(base_size=128)

    def test_the_loader_crops_to_the_size_of_the_batch(self, shapes):
        from mmengine.runner import Runner

        cfg = load('classification/casvit-xs_8e_shapes.py')
        cfg.merge_from_dict(
            {
                'train_dataloader.dataset.dataset.data_root': f'{shapes}/imagenet',
                'train_dataloader.batch_size': 2,
                'train_dataloader.num_workers': 0,
                'train_dataloader.persistent_workers': False,
            }
        )
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
        loader.batch_sampler.sampler.set_epoch(1)
        batches = list(loader)
        assert {tuple(batch['inputs'].shape[2:]) for batch in batches} == {(48, 48), (64, 64), (80, 80)}
        labels = [int(sample.gt_label) for batch in batches for sample in batch['data_samples']]
        assert sorted(labels) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
        assert loader.dataset.metainfo['classes'] == ('cross', 'disc', 'ring', 'square', 'star', 'triangle')

    def test_an_unreadable_image_is_replaced_by_another_one(self, shapes, tmp_path):
        from mmpretrain.registry import DATASETS

        root = shutil.copytree(shapes / 'imagenet', tmp_path / 'imagenet')
        cfg = load('classification/casvit-xs_8e_shapes.py').train_dataloader.dataset
        cfg.dataset.data_root = str(root)
        data = DATASETS.build(cfg)
        broken = Path(data.dataset.get_data_info(0)['img_path'])
        broken.write_bytes(broken.read_bytes()[:-40])
        sample = data[0, 48]
        assert sample['inputs'].shape[1:] == (48, 48)
        assert sample['data_samples'].img_path != str(broken)
        [steps] = [part for part in data.dataset.pipeline.transforms if isinstance(part, SkipUnreadable)]
        assert list(steps.skipped.read()) == [str(broken)]
