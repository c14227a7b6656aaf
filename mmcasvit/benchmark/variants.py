"""Variants, the rows of a comparison: their combinations, which of them can be measured, and their baselines."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from mmcasvit.utils.errors import MissingLibrary, NotApplicable, UsageError

from .forms import parse_form
from .models import parse_name
from .peers import PEERS, check_library


@dataclass(frozen=True)
class Variant:
    """Model with the settings in which it is measured. Sizes are ``(height, width)`` in pixels."""

    model: str
    mode: str = 'infer'
    form: str = 'eager'
    precision: str = 'fp32'
    device: str = 'cpu'
    threads: int = 1
    batch: int = 1
    size: tuple[int, int] = (512, 512)

    def __str__(self) -> str:
        height, width = self.size
        return (
            f'{self.model} {self.mode} {self.form} {self.precision} {self.device} threads={self.threads} '
            f'batch={self.batch} {height}x{width}'
        )


FIELDS = [field.name for field in fields(Variant)]
# Functions that read the value of a field from the command line.
_READ: dict[str, Callable[[str], object]] = dict.fromkeys(FIELDS, str) | dict(
    threads=int, batch=int, size=lambda text: tuple(int(side) for side in text.split('x'))
)


def grid(**choices: Sequence) -> list[Variant]:
    """Combine the choices for each field of :class:`Variant`. The last field varies fastest."""
    return [Variant(*values) for values in itertools.product(*(choices[name] for name in FIELDS))]


def check(variant: Variant) -> None:
    """Check that a variant can be measured, without building it.

    Raises:
        UsageError: If a name is wrong, or the packages of a form or the device are missing.
        NotApplicable: If the combination makes no sense, or the library of the model is missing.
    """
    if variant.device == 'cuda' and not torch.cuda.is_available():
        raise UsageError('--devices cuda: no GPU is visible to PyTorch here.')
    base, _ = parse_name(variant.model)
    steps = parse_form(variant.form)
    if base in PEERS:
        check_library(base)
    if variant.precision == 'fp16' and variant.device == 'cpu':
        raise NotApplicable('fp16 is for GPUs: no current CPU computes convolutions in it')
    if variant.precision == 'int8' and not any(step.exported for step in steps):
        raise NotApplicable('int8 is for exported forms')


def check_all(variants: Sequence[Variant], asked_for: set[str]) -> tuple[list[Variant], list[str]]:
    """Check variants before any of them is built.

    Args:
        variants: All combinations.
        asked_for: Models that the user named one by one. A missing library of one of them is an error.

    Returns:
        The variants that can be measured, and the reasons why others cannot.

    Raises:
        UsageError: If :func:`check` raises it, or no variant is left.
    """
    good, left_out, missing = [], {}, {}
    for variant in variants:
        try:
            check(variant)
        except MissingLibrary as reason:
            if variant.model in asked_for:
                raise UsageError(str(reason)) from reason
            missing.setdefault(reason.reason, {})[reason.model] = None
        except NotApplicable as reason:
            left_out[str(reason)] = None
        else:
            good.append(variant)
    lines = [*left_out, *(f'{", ".join(names)}: {reason}' for reason, names in missing.items())]
    if not good:
        raise UsageError('nothing to measure: ' + '; '.join(lines))
    return good, lines


def parse_baseline(text: str, variants: Sequence[Variant]) -> dict[str, Any]:
    """Read ``form=eager,precision=fp32``: the fields in which the baseline of a row differs from the row.

    Raises:
        UsageError: If the text is malformed, or no variant has these values.
    """
    wanted: dict[str, Any] = {}
    for part in text.split(','):
        key, equals, value = part.partition('=')
        if not equals or key not in FIELDS:
            raise UsageError(f'--baseline: expected field=value with a field of {", ".join(FIELDS)}, got {part!r}.')
        try:
            wanted[key] = _READ[key](value)
        except ValueError as error:
            raise UsageError(f'--baseline: {value!r} is not a valid value of {key}.') from error
    if not any(replace(variant, **wanted) == variant for variant in variants):
        raise UsageError(f'--baseline {text}: no such variant is measured in this run.')
    return wanted


def default_baseline(variants: Sequence[Variant]) -> dict[str, Any]:
    """Return the first form and precision, or the first model if there is only one form and precision."""
    varying = [name for name in ('form', 'precision') if len({getattr(variant, name) for variant in variants}) > 1]
    return {name: getattr(variants[0], name) for name in varying or ['model']}
