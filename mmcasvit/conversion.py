"""Names of weights in the authors' code and in this project, and the way from one to the other and back.

Their classifier holds the backbone at the top, beside its norm and its two heads; ours is an mmpretrain classifier,
with the backbone and the heads one level down. Their detectors and segmentors come from mmdet 2.24 and mmsegmentation
0.24. The parameters of RetinaNet, Mask R-CNN, Semantic FPN and UperNet have the same names, shapes and meaning there
as in mmdet 3 and mmsegmentation 1, in both families; what differs is around them:

- their backbone has a norm for each of the four outputs, ours for the outputs that the config asks for. What is left
  over is kept beside the weights (``unused``) for the way back, which else supplies a norm that changes nothing;
- class names and colours are called ``CLASSES`` and ``PALETTE`` in their files, ``dataset_meta`` in ours.
"""
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .casvit import CASViT
from .version import __version__
from .weights import Mismatches, WeightsError, describe_model, find_weights, mismatches

_BACKBONE_KEY = re.compile(r'(patch_embed|network)\.')
# Of the classifier: theirs, ours. The norm in front of their heads is the norm of our backbone's last output.
_CLASSIFIER_PARTS = (('patch_embed.', 'backbone.patch_embed.'), ('network.', 'backbone.network.'),
                     ('norm.', 'backbone.norm6.'), ('head.', 'head.head.'), ('dist_head.', 'head.dist_head.'))


def is_authors_classifier(weights: Mapping[str, Any]) -> bool:
    """Whether the names are those of the authors' ImageNet model."""
    return any(_BACKBONE_KEY.match(key) for key in weights) and any(key.startswith('head.') for key in weights)


def is_own_classifier(weights: Mapping[str, Any]) -> bool:
    """Whether the names are those of this project's classifier."""
    return any(key.startswith('head.dist_head.') for key in weights)


def _rename(weights: Mapping[str, Any], names: dict[str, str]) -> dict[str, Any]:
    renamed = {}
    for key, value in weights.items():
        prefix = next((prefix for prefix in names if key.startswith(prefix)), None)
        renamed[key if prefix is None else names[prefix] + key.removeprefix(prefix)] = value
    return renamed


def to_own_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Renames the authors' weights to this project's names.

    Detectors and segmentors keep their names; so does anything that is not theirs.

    Args:
        weights: values of any kind by the authors' key.
    """
    return _rename(weights, dict(_CLASSIFIER_PARTS)) if is_authors_classifier(weights) else dict(weights)


def to_authors_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Renames this project's weights to the authors' names; undoes :func:`to_own_names`."""
    if not is_own_classifier(weights):
        return dict(weights)
    return _rename(weights, {own: theirs for theirs, own in _CLASSIFIER_PARTS})


def neutral_output_norms(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The output norms that a detector or segmentor lacks and the authors' backbone has, as they initialise them.

    Args:
        weights: a whole model of one of this project's configs.
    """
    norms = {}
    for stage in (0, 2, 4, 6):
        like = weights.get(f'backbone.network.{stage}.0.norm1.weight')
        if like is None or f'backbone.norm{stage}.weight' in weights:
            continue
        fresh = torch.nn.BatchNorm2d(len(like), dtype=like.dtype).state_dict()
        norms |= {f'backbone.norm{stage}.{key}': value for key, value in fresh.items()}
    return norms


def expected_classifier(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict that a classifier of this project has, for the arch and the number of classes in the weights.

    Args:
        weights: a classifier under this project's names.

    Raises:
        WeightsError: there is no CAS-ViT of one of the known archs inside.
    """
    found = describe_model(weights)
    name = found.removeprefix('arch ').strip("'")
    if name not in CASViT.arch_settings:
        raise WeightsError(f'expected: a CAS-ViT of arch {", ".join(CASViT.arch_settings)}, found: {found}. Give the '
                           'config that the file was trained with: --config FILE')
    with torch.device('meta'):
        model = CASViT(name, out_indices=3)
        head = torch.nn.Linear(model.out_channels[0], len(weights.get('head.head.bias', torch.empty(1000))))
    expected = {f'backbone.{key}': value for key, value in model.state_dict().items()}
    return expected | {f'head.{part}.{key}': value for part in ('head', 'dist_head')
                       for key, value in head.state_dict().items()}


def _expected_for(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not is_own_classifier(weights):
        raise WeightsError(f'this is no classifier ({describe_model(weights)}): a config has to say which model it is. '
                           'Give the one it was trained with: --config FILE')
    return expected_classifier(weights)


@dataclass
class Conversion:
    """A converted checkpoint and how it fits.

    Attributes:
        content: what the new file holds.
        report: the weights against those of the model.
        unused: keys that the model has no place for; they are kept beside its weights for the way back.
        supplied: keys that were not in the file and do not change the model's function.
        container: the name that the weights stood under.
    """
    content: dict[str, Any]
    report: Mismatches
    unused: list[str]
    supplied: list[str]
    container: str


def adapted(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of a model: the authors' ImageNet weights are renamed where it is a classifier."""
    return to_own_names(weights) if is_own_classifier(expected) else dict(weights)


def _own_meta(content: Mapping, container: str) -> dict:
    old = content.get('meta') or {}
    meta = {key: old[key] for key in ('epoch', 'iter', 'dataset_meta') if key in old}
    if old.get('CLASSES') is not None:
        meta['dataset_meta'] = {key.lower(): old[key] for key in ('CLASSES', 'PALETTE') if old.get(key) is not None}
    return meta | dict(mmcasvit_version=__version__, converted_from=container or 'a bare state dict')


def _authors_meta(content: Mapping) -> dict:
    own = content.get('meta') or {}
    meta = {key: own[key] for key in ('epoch', 'iter') if key in own}
    return meta | {key.upper(): value for key, value in (own.get('dataset_meta') or {}).items()
                   if key in ('classes', 'palette')}


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
    container, weights = find_weights(content)
    expected = _expected_for(to_own_names(weights)) if expected is None else expected
    weights = adapted(weights, expected)
    unused = {key: value for key, value in weights.items() if key not in expected}
    result = dict(meta=_own_meta(content, container),
                  state_dict={key: value for key, value in weights.items() if key in expected})
    if unused:
        result['unused'] = unused
    return Conversion(result, mismatches(expected, weights), list(unused), [], container)


def convert_back(content: Mapping, expected: Mapping[str, Tensor] | None = None) -> Conversion:
    """Turns a checkpoint of this project into one that the authors' code loads.

    Args:
        content: the file, as read.
        expected: the state dict of the model that it was trained with. A classifier needs none.

    Raises:
        WeightsError: there are no weights, or it cannot be told which model they are of.
    """
    container, weights = find_weights(content)
    expected = _expected_for(weights) if expected is None else expected
    report = mismatches(expected, weights)
    weights |= content.get('unused') or {}
    if is_own_classifier(expected):
        return Conversion(dict(model=to_authors_names(weights)), report, [], [], container)
    supplied = neutral_output_norms(weights)
    return Conversion(dict(meta=_authors_meta(content), state_dict=weights | supplied), report, [], list(supplied),
                      container)
