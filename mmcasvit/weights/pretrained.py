"""Pretrained weights for the backbone."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from .match import Fit, load
from .names import OUTPUT_NORM


def load_pretrained(
    backbone: nn.Module,
    checkpoint: str | Path,
    prefix: str | None = None,
    map_location: str = 'cpu',
    trust: bool = False,
) -> Fit:
    """Load a CAS-ViT backbone from a file and log which tensors were loaded, which are missing and which are left over.

    These files are accepted: published ImageNet files (weights under ``model``, classification heads next to the
    backbone, no output norms), detectors and segmentors (the backbone under ``backbone.``), and bare state dicts.
    Only the output norms and the batch counters of norms may be missing.

    Args:
        backbone: A :class:`mmcasvit.CASViT`. It is left as it was if the file is refused.
        checkpoint: A file, an http(s) address, or the name of published weights, such as ``xs``.
        prefix: Take only the keys with this prefix. By default ``backbone.`` is found automatically.
        map_location: The device to read the tensors to.
        trust: As in :func:`~mmcasvit.weights.checkpoint.read_checkpoint`.

    Raises:
        WeightsError: The file cannot be read safely, lacks weights of the backbone, or has them in other shapes.
    """

    def rename(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return _backbone_names(weights, expected, prefix)

    return load(
        backbone, checkpoint, map_location=map_location, trust=trust, rename=rename, may_miss=re.compile(OUTPUT_NORM)
    )


def _backbone_names(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], prefix: str | None
) -> dict[str, Tensor]:
    """Remove the prefix of the backbone's keys; keep the keys of other parts, except those that a backbone has."""
    if prefix is not None:
        prefix = f'{prefix.removesuffix(".")}.'
    elif not any(key in expected for key in weights) and any(key.startswith('backbone.') for key in weights):
        prefix = 'backbone.'
    else:
        prefix = ''
    inside = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    outside = {key: value for key, value in weights.items() if not key.startswith(prefix)}
    if 'head.dist_head.weight' in outside:  # a classifier: its last norm is what published files call `norm`
        inside = {re.sub('^norm6', 'norm', key): value for key, value in inside.items()}
    return {key: value for key, value in outside.items() if key not in expected} | inside
