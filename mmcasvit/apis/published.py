"""Published weights by name: what the metafiles next to the configs list, and which model each file is for."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmengine.fileio import load
from torch import Tensor
from yaml import YAMLError

from mmcasvit.utils.errors import UsageError, WeightsError
from mmcasvit.weights.match import Fit
from mmcasvit.weights.published import cache_folder, check, obtain

from .config import root
from .convert import expected_by_arch, expected_by_config


@dataclass(frozen=True)
class PublishedWeights:
    """Weights that the authors published.

    Attributes:
        alias: Short name, such as ``xs`` or ``mask-rcnn-xs``.
        name: Name of the config that the weights are for, which selects them as well.
        config: Path of that config, either absolute or below :func:`~mmcasvit.apis.config.root`.
        address: Where they are published.
        results: The authors' results, by metric.
        start: Short name of the weights that their training started from, if any.
    """

    alias: str
    name: str
    config: str
    address: str
    results: Mapping[str, float]
    start: str | None = None

    @property
    def file(self) -> Path:
        """The path of the file, whether or not it is there."""
        return cache_folder() / f'{self.name}.pth'

    def expected(self) -> Mapping[str, Tensor]:
        """Return the state dict of the model that the weights are for.

        A classifier needs no mmpretrain.

        Raises:
            UsageError: The framework of the config is not installed.
        """
        if classifier := re.match(r'casvit-([a-z]+)_', self.name):
            return expected_by_arch(classifier[1])
        return expected_by_config(str(root() / self.config))

    def get(self, trust: bool = False) -> Path:
        """Return the file, downloaded first if needed; see :func:`mmcasvit.weights.published.obtain`."""
        return obtain(self.alias, self.address, self.file, self.expected, trust)

    def check(self, trust: bool = False) -> Fit:
        """Compare the file with its checksum and its model; see :func:`mmcasvit.weights.published.check`."""
        return check(self.file, self.expected, trust)


@functools.cache
def list_published(index: Path | None = None) -> tuple[PublishedWeights, ...]:
    """Return all published weights, in the order of the metafiles.

    Args:
        index: File like ``model-index.yml``, which is the default. Its paths are relative to its folder; configs may
            also be those of this project.

    Raises:
        UsageError: The file, or one that it lists, cannot be read or lacks an entry.
    """
    file = index or root() / 'model-index.yml'
    try:
        return tuple(
            PublishedWeights(
                model['Alias'],
                model['Name'],
                _next_to(file, model['Config']) if index else model['Config'],
                model['Weights'],
                {metric: value for result in model['Results'] for metric, value in result['Metrics'].items()},
                model.get('Metadata', {}).get('Starts From'),
            )
            for metafile in load(file)['Import']
            for model in load(file.parent / metafile)['Models']
            if 'Weights' in model
        )
    except (OSError, KeyError, TypeError, AttributeError, ValueError, YAMLError) as error:
        raise UsageError(
            f'{file} is not an index of models: {type(error).__name__}: {" ".join(str(error).split())}. It has a list '
            'Import of metafiles, whose Models have Name, Alias, Config, Results, and Weights.'
        ) from error


def _next_to(index: Path, config: str) -> str:
    """Return the path of a config next to an index, or the path as it is if there is none."""
    file = index.parent.resolve() / config
    return str(file) if file.is_file() else config


def find_published(name: str) -> PublishedWeights:
    """Return the published weights with a name, which is an alias or the name of their config.

    Raises:
        WeightsError: There are none. The message lists the aliases.
    """
    for weights in list_published():
        if name in (weights.alias, weights.name):
            return weights
    raise WeightsError(
        f'checkpoint not found: {Path(name).absolute()}. Published weights: '
        f'{", ".join(weights.alias for weights in list_published())}, or the names of their configs'
    )


def published_file(name: str, trust: bool = False) -> Path:
    """Return the file of published weights, downloaded first if needed, by alias or by the name of their config.

    Raises:
        UsageError: The file cannot be downloaded. The message says how to get it by hand.
        WeightsError: No weights have this name, or the file is damaged or does not fit.
    """
    return find_published(name).get(trust)
