"""Checkpoints of the authors' code turned into ones of this project, and back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmcasvit.archs import ARCHS
from mmcasvit.models.casvit import CASViT
from mmcasvit.utils.errors import WeightsError
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


def expected_classifier(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict that a classifier of this project has, for the arch and the number of classes in the weights.

    Args:
        weights: a classifier under this project's names.

    Raises:
        WeightsError: there is no CAS-ViT of one of the known archs inside.
    """
    found = describe_model(weights)
    name = found.removeprefix('arch ').strip("'")
    if name not in ARCHS:
        raise WeightsError(
            f'expected: a CAS-ViT of arch {", ".join(ARCHS)}, found: {found}. Give the '
            'config that the file was trained with: --config FILE'
        )
    with torch.device('meta'):
        model = CASViT(name, out_indices=3)
        head = torch.nn.Linear(model.out_channels[0], len(weights.get('head.head.bias', torch.empty(1000))))
    expected = {f'backbone.{key}': value for key, value in model.state_dict().items()}
    return expected | {
        f'head.{part}.{key}': value for part in ('head', 'dist_head') for key, value in head.state_dict().items()
    }


def _expected_for(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not is_own_classifier(weights):
        raise WeightsError(
            f'this is no classifier ({describe_model(weights)}): a config has to say which model it is. '
            'Give the one it was trained with: --config FILE'
        )
    return expected_classifier(weights)


@dataclass
class Conversion:
    """A converted checkpoint and how it fits.

    Attributes:
        content: what the new file holds.
        fit: The weights compared with those of the model. What is left over is kept next to them for the way back.
        supplied: Keys that were not in the file and do not change the model's function.
    """

    content: dict[str, Any]
    fit: Fit
    supplied: list[str] = field(default_factory=list)


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
    """Turns a checkpoint of the authors into one of this project.

    Args:
        content: the authors' file, as read.
        expected: the state dict of the model that the new file is for. A classifier needs none.
        ema: take the moving average, ``model_ema``, where the file holds both it and the last weights.

    Raises:
        WeightsError: there are no weights, or it cannot be told which model they are for.
    """
    if ema:
        if 'model_ema' not in content:
            raise WeightsError(f'there is no moving average (model_ema) in the file; it holds: {", ".join(content)}.')
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
    """Turns a checkpoint of this project into one that the authors' code loads.

    Args:
        content: the file, as read.
        expected: the state dict of the model that it was trained with. A classifier needs none.

    Raises:
        WeightsError: there are no weights, or it cannot be told which model they are of.
    """
    if expected is None:
        expected = _expected_for(find_weights(content)[1])
    found = fit(content, expected)
    weights = found.weights | (content.get('unused') or {})
    if is_own_classifier(expected):
        return Conversion(dict(model=to_authors_names(weights)), found)
    supplied = neutral_output_norms(weights)
    return Conversion(dict(meta=_authors_meta(content), state_dict=weights | supplied), found, list(supplied))
