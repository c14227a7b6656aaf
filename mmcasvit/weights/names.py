"""Names of weights: where checkpoints keep them, what they tell about a model, and the authors' names for them.

The authors' classifier holds the backbone at the top, next to its norm and its two heads. Ours is an mmpretrain
classifier, with the backbone and the heads one level down. The authors' detectors and segmentors come from mmdet 2.24
and mmsegmentation 0.24; their parameters have the same names, shapes and meaning in mmdet 3 and mmsegmentation 1.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmcasvit.archs import arch_name
from mmcasvit.utils.errors import WeightsError

# Where checkpoints keep their weights: mmengine, then the authors' training code, then its moving average.
_CONTAINERS = ('state_dict', 'model', 'model_ema')
# Norms of the four outputs of a backbone, which ImageNet checkpoints do not have.
OUTPUT_NORM = r'norm[0246]\.'


def find_weights(content: Mapping) -> tuple[str, dict[str, Tensor]]:
    """Return the key that holds the weights of a checkpoint (``''`` for a bare state dict), and the weights.

    ``state_dict`` is preferred to ``model``, and that to ``model_ema``. A ``module.`` prefix left by a distributed
    wrapper is dropped.

    Raises:
        WeightsError: There are no weights.
    """
    for container in _CONTAINERS:
        if isinstance(content.get(container), Mapping):
            break
    else:
        container = ''
    weights = content[container] if container else content
    weights = {key: value for key, value in weights.items() if isinstance(value, Tensor)}
    if not weights:
        raise WeightsError(
            f'no weights under {", ".join(_CONTAINERS)} or at the top; the file holds: '
            f'{", ".join(map(str, content)) or "nothing"}.'
        )
    if all(key.startswith('module.') for key in weights):
        weights = {key.removeprefix('module.'): value for key, value in weights.items()}
    return container, weights


def describe_arch(weights: Mapping[str, Tensor]) -> str:
    """Describe a CAS-ViT by its keys and shapes: its arch, or its depths and channels if they are of no known arch."""
    blocks = {
        tuple(map(int, found.groups())) for key in weights if (found := re.match(r'network\.([0246])\.(\d+)\.', key))
    }
    depths = tuple(max((block for s, block in blocks if s == stage), default=-1) + 1 for stage in (0, 2, 4, 6))
    channels = tuple(
        len(weights[key]) if (key := f'network.{stage}.0.norm1.weight') in weights else 0 for stage in (0, 2, 4, 6)
    )
    if not any(depths):
        return 'no CAS-ViT at all'
    name = arch_name(depths, channels)
    return f'arch {name!r}' if name else f'a CAS-ViT of depths {depths} and channels {channels}'


def count_classes(weights: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes of a model of mmdet, mmseg or mmpretrain, or None if no layer shows it."""
    for key, weight in weights.items():
        *_, layer, kind = ('', *key.split('.'))
        if kind != 'weight':
            continue
        if layer == 'fc_cls':
            return len(weight) - 1  # the last one is the background
        if layer in ('conv_seg', 'dist_head'):
            return len(weight)
        boxes = weights.get(key.replace('retina_cls', 'retina_reg'))
        if layer == 'retina_cls' and boxes is not None:
            return len(weight) // (len(boxes) // 4)  # one score per class and anchor, four numbers per anchor
    return None


def describe_model(weights: Mapping[str, Tensor]) -> str:
    """Describe the CAS-ViT of a whole model, which is its ``backbone``, or a CAS-ViT on its own."""
    inside = {key.removeprefix('backbone.'): value for key, value in weights.items() if key.startswith('backbone.')}
    return describe_arch(inside or weights)


_BACKBONE_KEY = re.compile(r'(patch_embed|network)\.')
# Prefixes in a classifier: theirs, ours. The norm before their heads is the norm of our backbone's last output.
_CLASSIFIER_PARTS = (
    ('patch_embed.', 'backbone.patch_embed.'),
    ('network.', 'backbone.network.'),
    ('norm.', 'backbone.norm6.'),
    ('head.', 'head.head.'),
    ('dist_head.', 'head.dist_head.'),
)


def is_authors_classifier(weights: Mapping[str, Any]) -> bool:
    """Return whether the names are those of the authors' ImageNet model."""
    return any(_BACKBONE_KEY.match(key) for key in weights) and any(key.startswith('head.') for key in weights)


def is_own_classifier(weights: Mapping[str, Any]) -> bool:
    """Return whether the names are those of this project's classifier."""
    return any(key.startswith('head.dist_head.') for key in weights)


def _rename(weights: Mapping[str, Any], names: dict[str, str]) -> dict[str, Any]:
    renamed = {}
    for key, value in weights.items():
        prefix = next((prefix for prefix in names if key.startswith(prefix)), None)
        renamed[key if prefix is None else names[prefix] + key.removeprefix(prefix)] = value
    return renamed


def to_own_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the authors' weights to this project's names.

    Detectors and segmentors keep their names, and so does everything that is not of the authors.

    Args:
        weights: Values of any kind by the authors' key.
    """
    return _rename(weights, dict(_CLASSIFIER_PARTS)) if is_authors_classifier(weights) else dict(weights)


def to_authors_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Rename this project's weights to the authors' names. This is the inverse of :func:`to_own_names`."""
    if not is_own_classifier(weights):
        return dict(weights)
    return _rename(weights, {own: theirs for theirs, own in _CLASSIFIER_PARTS})


def neutral_output_norms(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the output norms that the authors' backbone has and a detector or segmentor lacks, freshly initialized.

    Args:
        weights: A whole model of one of this project's configs.
    """
    norms = {}
    for stage in (0, 2, 4, 6):
        like = weights.get(f'backbone.network.{stage}.0.norm1.weight')
        if like is None or f'backbone.norm{stage}.weight' in weights:
            continue
        fresh = torch.nn.BatchNorm2d(len(like), dtype=like.dtype).state_dict()
        norms |= {f'backbone.norm{stage}.{key}': value for key, value in fresh.items()}
    return norms


def match_names(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights by the names of a model. The authors' ImageNet weights are renamed if it is a classifier."""
    return to_own_names(weights) if is_own_classifier(expected) else dict(weights)
