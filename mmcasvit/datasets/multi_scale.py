"""Training images for mmpretrain in batches of changing size.

mmpretrain is optional, so this module is not imported with the package: configs name it in ``custom_imports``.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from mmengine.dataset.sampler import DefaultSampler

from mmcasvit.registry import DATA_SAMPLERS, DATASETS, TRANSFORMS

try:
    from mmpretrain.datasets.transforms import RandomResizedCrop
    from mmpretrain.registry import DATASETS as MMPRETRAIN_DATASETS
except (ImportError, RuntimeError) as error:  # a torchvision of another PyTorch raises the latter
    raise ImportError(
        'mmcasvit.datasets.multi_scale needs mmpretrain, pip install "mmcasvit[classification]", and the '
        f'torchvision that was built for the installed PyTorch: {error}'
    ) from error


@DATA_SAMPLERS.register_module()
class MultiScaleBatchSampler:
    """Batches whose image size changes from one to the next, larger ones for smaller images.

    Use it as ``batch_sampler`` of a dataloader whose data set is a :class:`MultiScaleDataset`. A batch holds about the
    pixels of the base batch, but never fewer images than that, as in the authors' code. There the sizes are drawn
    freely; here every size comes up equally often, so that each epoch has the same number of batches, which schedules
    are counted in. All processes draw the same sizes.

    Args:
        sampler: gives the order of the images; mmengine passes it.
        batch_size: images in a batch of ``base_size``.
        sizes: sides of the square images, in pixels.
        base_size: one of the sides.

    Raises:
        ValueError: ``base_size`` is not among the sizes.
    """

    def __init__(self, sampler: DefaultSampler, batch_size: int, sizes: Sequence[int], base_size: int) -> None:
        if base_size not in sizes:
            raise ValueError(f'base_size must be one of the sizes {tuple(sizes)}, got {base_size}.')
        self.sampler = sampler
        self.batch_sizes = {side: max(batch_size, batch_size * base_size**2 // side**2) for side in sorted(sizes)}

    def _sides(self) -> Iterator[int]:
        """A side for every batch of an epoch: shuffled rounds of all sides, then as much of one as is left."""
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
    """Hands the image size that :class:`MultiScaleBatchSampler` chose to the pipeline of a data set, as ``crop_size``.

    Args:
        dataset: config of the data set, with a :class:`MultiScaleRandomResizedCrop` in its pipeline.
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
            index = np.random.randint(len(self.dataset))  # as mmengine's data sets do for an image that is skipped
        raise RuntimeError(f'no sample came out of the pipeline in {self.dataset.max_refetch + 1} attempts.')


@TRANSFORMS.register_module()
class MultiScaleRandomResizedCrop(RandomResizedCrop):
    """mmpretrain's ``RandomResizedCrop`` to the size ``(H, W)`` that the sample asks for as ``crop_size``."""

    def __init__(self, **kwargs) -> None:
        super().__init__(scale=1, **kwargs)

    def transform(self, results: dict) -> dict:
        self.scale = results['crop_size']
        return super().transform(results)
