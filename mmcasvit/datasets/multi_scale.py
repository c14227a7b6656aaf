"""Multi-scale training with mmpretrain: batches whose image size changes.

mmpretrain is optional, so the package does not import this module. Configs name it in ``custom_imports``.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from mmengine.dataset.sampler import DefaultSampler

from mmcasvit.registry import DATA_SAMPLERS, DATASETS, TRANSFORMS

try:
    from mmpretrain.datasets.transforms import RandomResizedCrop
    from mmpretrain.registry import DATASETS as MMPRETRAIN_DATASETS
except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision built for another PyTorch
    raise ImportError(
        'mmcasvit.datasets.multi_scale needs mmpretrain (pip install "mmcasvit[classification]") and a torchvision '
        f'built for the installed PyTorch: {error}'
    ) from error


@DATA_SAMPLERS.register_module()
class MultiScaleBatchSampler:
    """Batch sampler that changes the image size from batch to batch.

    Use it as ``batch_sampler`` of a dataloader whose dataset is a :class:`MultiScaleDataset`. As in the authors' code,
    a batch of smaller images has more of them, about as many pixels in all as a batch of ``base_size``. A batch of
    larger images has ``batch_size`` of them. Unlike there, every size occurs equally often, so every epoch has the
    same number of batches and schedules can count them. All processes of a distributed run draw the same sizes.

    Args:
        sampler: Order of the images. mmengine passes it.
        batch_size: Number of images in a batch of ``base_size``.
        sizes: Sides of the square images, in pixels.
        base_size: One of the sizes.

    Raises:
        ValueError: If ``base_size`` is not one of the sizes.
    """

    def __init__(self, sampler: DefaultSampler, batch_size: int, sizes: Sequence[int], base_size: int) -> None:
        if base_size not in sizes:
            raise ValueError(f'base_size must be one of the sizes {tuple(sizes)}, got {base_size}.')
        self.sampler = sampler
        self.batch_sizes = {side: max(batch_size, batch_size * base_size**2 // side**2) for side in sorted(sizes)}

    def _sides(self) -> Iterator[int]:
        """Yield the image side of every batch: shuffled rounds of all sides, then part of a round."""
        rng = np.random.default_rng([self.sampler.seed, self.sampler.epoch])
        sides, left = list(self.batch_sizes), len(self.sampler)
        while left >= sum(self.batch_sizes.values()):
            yield from rng.permutation(sides).tolist()
            left -= sum(self.batch_sizes.values())
        for side in sides:
            if left > 0:
                yield side
                left -= self.batch_sizes[side]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        indices = iter(self.sampler)
        for side in self._sides():
            yield [(index, side) for index in itertools.islice(indices, self.batch_sizes[side])]

    def __len__(self) -> int:
        return sum(1 for _ in self._sides())


@DATASETS.register_module()
class MultiScaleDataset:
    """Dataset that passes the image size chosen by :class:`MultiScaleBatchSampler` to its pipeline as ``crop_size``.

    Args:
        dataset: Config of a dataset with a :class:`MultiScaleRandomResizedCrop` in its pipeline.
    """

    def __init__(self, dataset: dict) -> None:
        self.dataset = MMPRETRAIN_DATASETS.build(dataset)

    @property
    def metainfo(self) -> dict:
        return self.dataset.metainfo

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        index, side = key
        for _ in range(self.dataset.max_refetch + 1):
            sample = self.dataset.pipeline(dict(self.dataset.get_data_info(index), crop_size=(side, side)))
            if sample is not None:
                return sample
            index = np.random.randint(len(self.dataset))  # as mmengine's datasets do when a pipeline skips an image
        raise RuntimeError(f'the pipeline returned no sample in {self.dataset.max_refetch + 1} attempts.')


@TRANSFORMS.register_module()
class MultiScaleRandomResizedCrop(RandomResizedCrop):
    """Transform that applies mmpretrain's ``RandomResizedCrop`` with the sample's ``crop_size``, ``(H, W)``."""

    def __init__(self, **kwargs) -> None:
        super().__init__(scale=1, **kwargs)

    def transform(self, results: dict) -> dict:
        self.scale = results['crop_size']
        return super().transform(results)
