"""Fitting a checkpoint to a model: names are mapped, shapes compared, misfits refused, weights loaded, all reported.

:func:`fit` compares, :func:`load` also loads. Whatever puts weights into a model calls one of them.
"""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmcasvit.utils.errors import WeightsError
from mmcasvit.utils.text import shorten

from .checkpoint import read_checkpoint
from .names import OUTPUT_NORM, count_classes, describe_model, find_weights, match_names

# What every key begins with in a file that holds only a CAS-ViT, and not a detector or segmentor.
_BARE_KEY = re.compile(r'(patch_embed|network|norm\d?|head|dist_head)\.')
_BATCH_COUNTER = '.num_batches_tracked'


@dataclass
class Fit:
    """The weights of a file under the names of a model, and how they differ from what the model expects.

    Attributes:
        weights: The weights to load, by the model's keys. Keys that the model does not have are included.
        container: The key of the checkpoint that held the weights, or ``''`` for a bare state dict.
        missing: Keys that the model needs and the file lacks. Batch counters of norms are not counted.
        reshaped: Key, shape in the file and shape in the model where these shapes differ.
        unusable: Keys whose tensors cannot be copied into a model, with the reason.
        leftover: Keys of the file that the model does not use.
        kept: Keys of the model that keep their initial value, because the caller allows it.
        matched: How many tensors fit.
        total: How many tensors the model has.
        expected: The model, in words.
        found: The model that the file was made from, in words.
    """

    weights: dict[str, Tensor]
    container: str
    missing: list[str]
    reshaped: list[tuple[str, tuple, tuple]]
    unusable: dict[str, str]
    leftover: list[str]
    matched: int
    total: int
    expected: str
    found: str
    kept: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f'expected: {self.expected}, found: {self.found}', f'{self.matched} tensors fit.']
        if self.reshaped:
            shapes = shorten((f'{key}: file {a}, model {b}' for key, a, b in self.reshaped), 3)
            lines.append(f'{len(self.reshaped)} tensors of another shape: {shapes}')
            if self._classes_differ:
                lines.append(
                    'The shapes of classification layers differ: the file was trained on another number of '
                    'classes, or num_classes of the config is not that of the data.'
                )
        if self.unusable:
            lines.append(
                f'{len(self.unusable)} tensors cannot be copied: '
                + shorten((f'{key} ({reason})' for key, reason in self.unusable.items()), 3)
            )
        if self.missing:
            lines.append(f'{len(self.missing)} tensors missing in the file: {shorten(self.missing, 3)}')
        if self.leftover:
            lines.append(f'{len(self.leftover)} tensors of the file not used: {shorten(self.leftover, 3)}')
        return '\n'.join('  ' + line for line in lines)

    @property
    def _classes_differ(self) -> bool:
        return any(re.search(r'cls|conv_seg|logits|dist_head', key) for key, *_ in self.reshaped)

    @property
    def fatal(self) -> list[str]:
        """Keys of the model that the file cannot fill."""
        return [*self.missing, *(key for key, *_ in self.reshaped), *self.unusable]

    @property
    def advice(self) -> str:
        """What to do about a misfit, in one or two sentences."""
        backbone = [key for key in self.fatal if key.startswith('backbone.')]
        if not self.matched and self.leftover and all(map(_BARE_KEY.match, self.leftover)):
            return (
                'The file holds only a backbone: give it as model.backbone.init_cfg (tools/train.py --pretrained '
                'FILE), and give a file of the whole model here.'
            )
        if self.unusable:
            return 'Save the weights again as ordinary tensors, or give another file.'
        if not self.matched:
            return (
                'No name in the file is one of this model. Give a checkpoint that this config was trained with; '
                'the names of another program have to be converted first.'
            )
        if any(re.match(r'(patch_embed|network)\.', key) for key in self.fatal):
            return 'Give the file that belongs to this arch, or set arch to that of the file.'
        if backbone and all(re.match(r'backbone\.' + OUTPUT_NORM, key) for key in self.fatal):
            return (
                'The model of the file had fewer outputs. Give the file to the backbone, which initializes the '
                'missing norms: model.backbone.init_cfg (tools/train.py --pretrained FILE).'
            )
        if backbone:
            return 'Give the config that the checkpoint was trained with, or a checkpoint of this config.'
        if self.reshaped and self._classes_differ:
            return (
                'Set num_classes of the heads to that of the file, or give a checkpoint of this config. To train '
                'these heads from scratch, start training from the file with load_from.'
            )
        return 'Give the config that the checkpoint was trained with, or start training from the file with load_from.'

    def refuse(self, only_under: str = '', loaded: bool = False, what: str = 'the checkpoint') -> None:
        """Raise an error if the file lacks something that the model needs.

        Args:
            only_under: Look only at keys with this prefix.
            loaded: Whether the tensors that fit are in the model already, which the message then does not deny.
            what: The file, for the message.

        Raises:
            WeightsError: Tensors are missing, have another shape or cannot be copied.
        """
        if any(key.startswith(only_under) for key in self.fatal):
            raise WeightsError(
                f'{what} does not fit the model{"" if loaded else "; nothing was loaded"}.\n{self}\n  {self.advice}'
            )

    def report(self, what: str) -> str:
        """Return what came from a file and what did not, in a few lines."""
        where = f'{what} (under {self.container!r})' if self.container else what
        lines = [
            f'{self.expected}: {self.matched} of {self.total} tensors loaded from {where}',
            f'  not in the file, kept as initialized: {shorten(self.kept, 24)}' if self.kept else '  none missing',
        ]
        heads = [key for key in self.leftover if re.match(r'(norm|head|dist_head)\.', key)]
        others = [key for key in self.leftover if key not in heads]
        if heads:
            lines.append(f'  left over, classification head: {shorten(heads, 12)}')
        if others:
            lines.append(f'  left over: {len(others)} tensors, such as {shorten(others, 3)}')
        return '\n'.join(lines if self.leftover else [*lines, '  nothing left over'])


def _reason_not_to_copy(tensor: Tensor) -> str:
    if tensor.is_meta:
        return 'it is on the meta device and holds no values'
    if tensor.layout is not torch.strided:
        return f'its layout is {str(tensor.layout).removeprefix("torch.")}'
    if tensor.is_complex():
        return 'it is complex'
    return 'it is quantized' if tensor.is_quantized else ''


def compare(
    weights: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    container: str = '',
    may_miss: re.Pattern | None = None,
    may_differ: re.Pattern | None = None,
) -> Fit:
    """Compare weights with a model's state dict, by key and by shape; the arguments are those of :func:`fit`."""
    weights = dict(weights)
    shapes = {key: (tuple(weights[key].shape), tuple(expected[key].shape)) for key in expected if key in weights}
    reshaped = [key for key, (found, wanted) in shapes.items() if found != wanted]
    kept = [
        key
        for key in expected
        if key not in weights and (key.endswith(_BATCH_COUNTER) or (may_miss and may_miss.match(key)))
    ]
    unusable = {key: reason for key in shapes if key not in reshaped and (reason := _reason_not_to_copy(weights[key]))}
    descriptions = [describe_model(state) for state in (expected, weights)]
    classes = count_classes(expected), count_classes(weights)
    if None not in classes and classes[0] != classes[1]:
        descriptions = [f'{text} with {number} classes' for text, number in zip(descriptions, classes)]
    matched = len(shapes) - len(reshaped) - len(unusable)
    for key in [key for key in reshaped if may_differ and may_differ.match(key)]:
        reshaped.remove(key)
        kept.append(key)
        del weights[key]
    return Fit(
        weights=weights,
        container=container,
        missing=[key for key in expected if key not in weights and key not in kept],
        reshaped=[(key, *shapes[key]) for key in reshaped],
        unusable=unusable,
        leftover=[key for key in weights if key not in expected],
        matched=matched,
        total=len(expected),
        expected=descriptions[0],
        found=descriptions[1],
        kept=kept,
    )


def fit(
    content: Mapping,
    expected: Mapping[str, Tensor],
    rename: Callable[[dict, Mapping], dict] = match_names,
    may_miss: re.Pattern | None = None,
    may_differ: re.Pattern | None = None,
) -> Fit:
    """Find the weights in a checkpoint, rename them, and compare them with what a model expects.

    Args:
        content: A checkpoint as it was read.
        expected: The model's state dict.
        rename: Takes the weights of the file and ``expected``, and returns the weights by the model's keys.
        may_miss: Matches the keys that may be missing in the file.
        may_differ: Matches the keys that may have another shape in the file, and are then not loaded.

    Raises:
        WeightsError: The checkpoint holds no weights.
    """
    container, weights = find_weights(content)
    return compare(rename(weights, expected), expected, container, may_miss, may_differ)


def load(
    model: nn.Module,
    checkpoint: str | Path | Mapping,
    what: str = '',
    map_location: str = 'cpu',
    trust: bool = False,
    **options,
) -> Fit:
    """Load a checkpoint into a model, and refuse one that does not fit.

    Args:
        model: Left as it was if the checkpoint is refused.
        checkpoint: A file or an http(s) address, or the content of one that was read already.
        what: The name for messages; by default the path.
        map_location: The device to read the tensors to.
        trust: As in :func:`~mmcasvit.weights.checkpoint.read_checkpoint`.
        **options: Further arguments of :func:`fit`.

    Raises:
        WeightsError: The file cannot be read safely, or the model needs something that it lacks.
    """
    what = what or str(checkpoint)
    content = checkpoint if isinstance(checkpoint, Mapping) else read_checkpoint(checkpoint, map_location, trust)
    found = fit(content, model.state_dict(), **options)
    found.refuse(what=what)
    try:
        model.load_state_dict(found.weights, strict=False)
    except RuntimeError as error:  # PyTorch's list of what could not be copied
        raise WeightsError(f'{what} was not loaded as a whole: {" ".join(str(error).split())}') from error
    print_log(found.report(what), logger='current', level=logging.INFO)
    return found
