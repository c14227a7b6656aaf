"""Conversion of checkpoints of the authors' code into those of this project, and back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor

from mmcasvit.archs import ARCHS
from mmcasvit.models.casvit import CASViT
from mmcasvit.utils.errors import WeightsError
from mmcasvit.utils.text import shorten
from mmcasvit.version import __version__
from mmcasvit.weights.match import Fit, fit
from mmcasvit.weights.names import (
    describe_model,
    find_weights,
    is_own_classifier,
    neutral_output_norms,
    to_authors_names,
    to_own_names,
)

from .config import load_config


def expected_classifier(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict, on the meta device, of a classifier with the arch and number of classes of some weights.

    Args:
        weights: Weights of a classifier, under the names of this project.

    Raises:
        WeightsError: If the weights are not those of a CAS-ViT with a known arch.
    """
    found = describe_model(weights)
    name = found.removeprefix('arch ').strip("'")
    if name not in ARCHS:
        raise WeightsError(
            f'expected: a CAS-ViT of arch {", ".join(ARCHS)}, found: {found}. Give the config that the file was '
            'trained with: --config FILE'
        )
    return expected_by_arch(name, len(weights.get('head.head.bias', torch.empty(1000))))


def expected_by_arch(arch: str, classes: int = 1000) -> dict[str, Tensor]:
    """Return the state dict, on the meta device, of a classifier."""
    with torch.device('meta'):
        model = CASViT(arch, out_indices=3)
        head = torch.nn.Linear(model.out_channels[0], classes)
    expected = {f'backbone.{key}': value for key, value in model.state_dict().items()}
    return expected | {
        f'head.{part}.{key}': value for part in ('head', 'dist_head') for key, value in head.state_dict().items()
    }


def _expected_for(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not is_own_classifier(weights):
        raise WeightsError(
            f'this is not a classifier ({describe_model(weights)}). Give the config that the file was trained with: '
            '--config FILE'
        )
    return expected_classifier(weights)


def expected_by_config(config: str) -> dict[str, Tensor]:
    """Return the state dict of the model of a config, without its initial weights.

    Raises:
        UsageError: As in :func:`~mmcasvit.apis.config.load_config`.
    """
    cfg = load_config(config)
    cfg.model.get('backbone', {}).pop('init_cfg', None)
    # The caller may be about to build another model, which must not depend on this one.
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.random.fork_rng(devices=[]):
        return MODELS.build(cfg.model).state_dict()


@dataclass
class Conversion:
    """Converted checkpoint, and how it fits the model.

    Attributes:
        content: Content of the new file. It also holds the weights that the model does not use, for the way back.
        fit: Comparison of the weights with those of the model.
        supplied: Keys that were not in the file. They do not change the outputs of the model.
    """

    content: dict[str, Any]
    fit: Fit
    supplied: list[str] = field(default_factory=list)

    def describe(self, source: str, model: str, target: Path | None) -> str:
        """Return what matched, in lines.

        Args:
            source: Name of the file.
            model: Name of the model.
            target: New file, if one is written.
        """
        found = self.fit
        lines = [
            source + (f' (under {found.container!r})' if found.container else ''),
            f'  {found.found}: {found.matched} of {found.matched + len(found.fatal)} tensors of {model} match',
        ]
        if found.leftover and not found.fatal:
            fate = 'not written to a .safetensors file' if target and target.suffix == '.safetensors' else 'kept aside'
            lines.append(f'  not in the model, {fate}: {shorten(found.leftover)}')
        if self.supplied:
            lines.append(f'  not in the file, added without effect on the outputs: {shorten(self.supplied)}')
        return '\n'.join(lines)


def _own_meta(content: Mapping, container: str) -> dict:
    old = content.get('meta') or {}
    meta = {key: old[key] for key in ('epoch', 'iter', 'dataset_meta') if key in old}
    if old.get('CLASSES') is not None:
        meta['dataset_meta'] = {key.lower(): old[key] for key in ('CLASSES', 'PALETTE') if old.get(key) is not None}
    return meta | dict(mmcasvit_version=__version__, converted_from=container or 'a bare state dict')


def _authors_meta(content: Mapping) -> dict:
    own = content.get('meta') or {}
    meta = {key: own[key] for key in ('epoch', 'iter') if key in own}
    return meta | {
        key.upper(): value for key, value in (own.get('dataset_meta') or {}).items() if key in ('classes', 'palette')
    }


def convert(content: Mapping, expected: Mapping[str, Tensor] | None = None, ema: bool = False) -> Conversion:
    """Convert a checkpoint of the authors into one of this project.

    Args:
        content: Content of the authors' file.
        expected: State dict of the model that the new file is for. Not needed for a classifier.
        ema: Take the moving average, ``model_ema``, instead of the last weights.

    Raises:
        WeightsError: If the file holds no weights, or if ``expected`` is needed to tell which model they are for.
    """
    if ema:
        if 'model_ema' not in content:
            raise WeightsError(f'the file has no moving average (model_ema). It holds: {", ".join(content)}.')
        content = {key: value for key, value in content.items() if key not in ('state_dict', 'model')}
    if expected is None:
        expected = _expected_for(to_own_names(find_weights(content)[1]))
    found = fit(content, expected)
    result = dict(
        meta=_own_meta(content, found.container),
        state_dict={key: value for key, value in found.weights.items() if key in expected},
    )
    if found.leftover:
        result['unused'] = {key: found.weights[key] for key in found.leftover}
    return Conversion(result, found)


def convert_back(content: Mapping, expected: Mapping[str, Tensor] | None = None) -> Conversion:
    """Convert a checkpoint of this project into one that the authors' code loads.

    Args:
        content: Content of the file.
        expected: State dict of the model that it was trained with. Not needed for a classifier.

    Raises:
        WeightsError: If the file holds no weights, or if ``expected`` is needed to tell which model they belong to.
    """
    if expected is None:
        expected = _expected_for(find_weights(content)[1])
    found = fit(content, expected)
    weights = found.weights | (content.get('unused') or {})
    if is_own_classifier(expected):
        return Conversion(dict(model=to_authors_names(weights)), found)
    supplied = neutral_output_norms(weights)
    return Conversion(dict(meta=_authors_meta(content), state_dict=weights | supplied), found, list(supplied))
