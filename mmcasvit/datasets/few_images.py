"""A part of the images of a dataset, drawn at random but the same in every run."""

import copy
from bisect import bisect_left

import numpy as np
from mmengine.config import ConfigDict
from mmengine.logging import print_log
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from torch.utils.data import Dataset

from mmcasvit.registry import DATASETS
from mmcasvit.utils.errors import UsageError

from .config import leaf_datasets


@DATASETS.register_module(name='FewImages')
def few_images(dataset: dict, images: int) -> Dataset:
    """Build a dataset with some of its images, chosen after it has filtered out those without objects.

    They are drawn without replacement from all datasets inside wrappers together, with a seed of their own. Every
    run, every process and every seed of a run see the same images.

    Args:
        dataset: Config of a dataset, which may be a wrapper.
        images: Number of images. A dataset with fewer is left whole.

    Returns:
        The dataset itself, not a wrapper, so that samplers, hooks and metrics find what they read.

    Raises:
        UsageError: If a dataset cannot be divided.
    """
    dataset = ConfigDict(copy.deepcopy(dataset))
    leaves = list(leaf_datasets(dataset))
    built = [MMENGINE_DATASETS.build(leaf) for leaf in leaves]
    ends = np.cumsum([len(part) for part in built]).tolist()
    chosen = np.sort(np.random.default_rng(0).permutation(ends[-1])[:images]).tolist()
    for leaf, part, end in zip(leaves, built, ends):
        if not hasattr(part, 'get_subset_'):
            raise UsageError(
                f'{type(part).__name__} is not a dataset of mmengine and cannot be limited to some images.'
            )
        start = end - len(part)
        indices = [index - start for index in chosen[bisect_left(chosen, start) : bisect_left(chosen, end)]]
        part.get_subset_(indices)
        part._indices = indices  # as if the config had named them; EvaluatedImagesHook reads it
        leaf.clear()
        leaf.type = lambda part=part: part  # some wrappers take only configs
    print_log(f'{len(chosen)} of {ends[-1]} images are used', logger='current')
    return MMENGINE_DATASETS.build(dataset)
