"""Faster training: what ``tools/train.py --fast`` switches on in a config, and why."""

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from mmengine.config import Config
from mmengine.device import get_device

_CHANNELS_LAST, _SHORTCUTS, _KEEP_MEMORY, _COMPILE = HOOKS_OF_FAST = (
    'mmcasvit.ChannelsLastHook',
    'mmcasvit.ShortcutsHook',
    'mmcasvit.KeepMemoryHook',
    'mmcasvit.CompileHook',
)


@dataclass(frozen=True)
class Choice:
    """One means to make training faster.

    Attributes:
        name: What it is called.
        on: Whether the run uses it.
        reason: Why, or why not.
    """

    name: str
    on: bool
    reason: str

    def __str__(self) -> str:
        return f'fast: {self.name}{"" if self.on else " off"} ({self.reason})'


def use_fast_training(cfg: Config, device: str | None = None) -> list[Choice]:
    """Switch on in a config what makes its training faster and computes the same up to rounding.

    What the config has already is left as it is.

    Args:
        cfg: Config to change.
        device: Kind of device, such as ``'cpu'`` or ``'cuda'``, by default the one that mmengine uses.

    Returns:
        What was switched on or left out, each with its reason.
    """
    device = device or get_device()
    cfg.custom_hooks = list(cfg.get('custom_hooks') or [])
    choices = (_channels_last, _fused, _folded, _shortcuts, _memory, _compiled)
    return [choose(cfg, device) for choose in choices]


def log_choices(choices: Sequence[object], logger: logging.Logger) -> None:
    """Log what was chosen, such as by :func:`use_fast_training`, a line each, which the console shows, too."""
    for choice in choices:
        logger.info(str(choice))


def _has_hook(cfg: Config, kind: str) -> bool:
    return any(hook.get('type') == kind for hook in cfg.custom_hooks)


def _add_hook(cfg: Config, kind: str) -> None:
    if not _has_hook(cfg, kind):
        cfg.custom_hooks.append(dict(type=kind))


def _channels_last(cfg: Config, device: str) -> Choice:
    name = 'channels_last'
    if device == 'cpu':
        _add_hook(cfg, _CHANNELS_LAST)
        return Choice(name, True, 'CPU: convolutions of maps in this format need no reordering')
    if cfg.optim_wrapper.get('type') == 'AmpOptimWrapper':
        _add_hook(cfg, _CHANNELS_LAST)
        return Choice(name, True, 'mixed precision: tensor cores read this format. Not measured here')
    return Choice(name, False, 'GPU: it helps in mixed precision, which --amp switches on')


def _fused(cfg: Config, device: str) -> Choice:
    optimizer = cfg.optim_wrapper.get('optimizer') or {}
    kind = optimizer.get('type')
    name = f'fused {kind}' if kind else 'fused optimizer'
    if cfg.optim_wrapper.get('type', 'OptimWrapper') not in ('OptimWrapper', 'AmpOptimWrapper') or not kind:
        return Choice(name, False, 'the config has an optimizer wrapper of its own')
    known = getattr(torch.optim, str(kind), None)
    if known is None or 'fused' not in inspect.signature(known).parameters:
        return Choice(name, False, 'PyTorch has no fused form of it')
    if optimizer.get('fused') is False:
        return Choice(name, False, 'the config says fused=False')
    optimizer['fused'] = True
    optimizer.pop('foreach', None)  # PyTorch refuses both
    return Choice(name, True, 'one pass over weights, gradients and state. A resumed optimizer stays as it was saved')


def _folded(cfg: Config, device: str) -> Choice:
    name, backbone = 'folded norms', cfg.model.get('backbone') or {}
    if backbone.get('type') != 'mmcasvit.CASViT':
        return Choice(name, False, 'only the backbone mmcasvit.CASViT folds norms in training')
    if not backbone.get('norm_eval'):
        return Choice(name, False, 'only frozen norms can be folded: norm_eval=True in the backbone')
    return Choice(name, True, 'as always with norm_eval=True: the backbone folds its frozen norms in each step')


def _shortcuts(cfg: Config, device: str) -> Choice:
    name = 'shortcuts'
    known = dict(
        RPNHead='the loss of the RPN samples a few positions, and only these have a gradient',
        UPerHead='UPerHead convolves its coarse maps before it upsamples them',
    )
    heads = {str((cfg.model.get(part) or {}).get('type')).rpartition('.')[2] for part in ('rpn_head', 'decode_head')}
    reasons = [reason for head, reason in known.items() if head in heads]
    if not reasons:
        return Choice(name, False, f'there are some for {" and ".join(known)}, which this model does not have')
    if device != 'cpu':
        return Choice(name, False, 'not measured on a GPU')
    _add_hook(cfg, _SHORTCUTS)
    return Choice(name, True, '; '.join(reasons))


def _memory(cfg: Config, device: str) -> Choice:
    name = 'kept memory'
    if _has_hook(cfg, _KEEP_MEMORY):
        return Choice(name, True, 'as the config says')
    if device != 'cpu':
        return Choice(name, False, "PyTorch keeps a GPU's memory by itself")
    return Choice(name, False, 'it raises the peak: a step of Mask R-CNN needed 9% more. KeepMemoryHook switches it on')


def _compiled(cfg: Config, device: str) -> Choice:
    name = 'compile'
    if cfg.get('compile') or _has_hook(cfg, _COMPILE):
        return Choice(name, True, 'as the config says')
    if device == 'cpu':
        return Choice(name, False, 'CPU: backbone and neck are too small a part of the step to repay minutes')
    if cfg.get('default_scope') != 'mmseg':
        return Choice(name, False, 'only crops of one size are compiled once')
    if find_spec('triton') is None:
        return Choice(name, False, 'it needs the package triton')
    _add_hook(cfg, _COMPILE)
    return Choice(name, True, 'backbone and neck, since all crops have one size. Not measured here')
