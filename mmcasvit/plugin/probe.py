"""Probing of modules: which maps a backbone or a neck outputs, found by running it on zeros."""

import copy
import importlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope, Registry
from torch import Tensor

from mmcasvit.archs import STRIDES
from mmcasvit.utils.errors import PlugError

from .source import NO_READERS, nodes, shorten_error, type_name

# Sizes of the probe images, in pixels: far above any stride, so that the size of a map tells its stride. Necks add
# coarser maps and need larger images.
_BACKBONE_PROBE_SIZE, _NECK_PROBE_SIZE = 256, 512


@dataclass(frozen=True)
class FeatureMap:
    """Channels and stride of a map between two parts of a model."""

    channels: int
    stride: int


@contextmanager
def isolated_registry(scope: str) -> Iterator[Registry]:
    """Yield a framework's model registry in its own scope, and restore random states and default scope on exit."""
    models = importlib.import_module(f'{scope}.registry').MODELS
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices), DefaultScope.overwrite_default_scope(scope), _silent_logger():
        try:
            yield models
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def _silent_logger() -> Iterator[None]:
    """Silence mmengine's logger, which prints a line per parameter when a model is initialized."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('ERROR')
    try:
        yield
    finally:
        logger.setLevel(level)


def _run_module(models: Registry, cfg: dict, inputs: Callable[[], Tensor | tuple[Tensor, ...]]):
    """Build and run a module on meta tensors if possible, else on the CPU."""
    for built_on, run_on in (('meta', 'meta'), ('cpu', 'meta'), ('cpu', 'cpu')):
        try:
            with torch.device(built_on):
                module = models.build(without_process_group(cfg))
            module.to(run_on)
            module.eval()  # not chained: train() of many backbones returns None
            with torch.device(run_on), torch.no_grad():
                return module(inputs())
        except Exception as error:
            failure = error
    raise failure


def without_process_group(cfg: dict) -> ConfigDict:
    """Return a copy of a config in which norms work in a single process: mmcv's SyncBN becomes PyTorch's."""
    cfg = ConfigDict(copy.deepcopy(cfg))
    for _, node in nodes(cfg, ''):
        if node.get('type') == 'MMSyncBN':
            node.type = 'SyncBN'
    return cfg


def _as_maps(outputs, image_size: int) -> list[FeatureMap] | None:
    if (
        not isinstance(outputs, (tuple, list))
        or not outputs
        or not all(isinstance(x, Tensor) and x.ndim == 4 for x in outputs)
    ):
        return None
    return [FeatureMap(x.shape[1], round(image_size / x.shape[-1])) for x in outputs]


def neck_outputs(models: Registry, neck: dict, maps: Sequence[FeatureMap]) -> list[FeatureMap] | None:
    """Return the maps that a neck outputs for these inputs, or None if it outputs anything else."""
    sides = [math.ceil(_NECK_PROBE_SIZE / m.stride) for m in maps]
    outputs = _run_module(
        models, neck, lambda: tuple(torch.zeros(1, m.channels, side, side) for m, side in zip(maps, sides))
    )
    return _as_maps(outputs, _NECK_PROBE_SIZE)


def backbone_outputs(model: ConfigDict, models: Registry, notes: list[str]) -> list[FeatureMap]:
    """Return the maps that the old backbone outputs, or those that its reader expects if it cannot be built here.

    Raises:
        PlugError: The maps are unknown, or the output is not a tuple of maps.
    """
    backbone = copy.deepcopy(model.backbone)
    if model.get('pretrained') is not None:
        backbone.pop('pretrained', None)
    name = type_name(backbone)
    image_channels = backbone.get('in_channels', 3)
    size = backbone.get('img_size', _BACKBONE_PROBE_SIZE)  # the only size that plain transformers accept
    size = max(size) if isinstance(size, (list, tuple)) else size
    try:
        outputs = _run_module(models, backbone, lambda: torch.zeros(1, image_channels, size, size))
    except Exception as error:
        problem = f'the old backbone {name} cannot be built and run here ({shorten_error(error, 120)})'
        maps = _expected_maps(model)
        if maps is None:
            raise PlugError(
                f'{problem}, and no list of in_channels after it tells what it outputs. Install what it needs, or use '
                'a config with another backbone'
            ) from error
        notes.append(
            f'{problem}; its reader expects {[m.channels for m in maps]} channels, taken as those of its last '
            f'{len(maps)} stages'
        )
        return maps
    maps = _as_maps(outputs, size)
    if maps is None:
        raise PlugError(
            f'{name} does not return a tuple of maps (N, C, H, W), one for each stage. Its heads are made for what it '
            'returns. Use a config with a multi-stage backbone'
        )
    return maps


def _expected_maps(model: ConfigDict) -> list[FeatureMap] | None:
    first = model.neck if model.get('neck') else {k: v for k, v in model.items() if k not in NO_READERS}
    lists = [node.in_channels for _, node in nodes(first, '') if isinstance(node.get('in_channels'), (list, tuple))]
    if not lists:
        return None
    channels = max(lists, key=len)[-4:]
    return [FeatureMap(c, stride) for c, stride in zip(channels, STRIDES[-len(channels) :])]


def assign_stages(maps: Sequence[FeatureMap], framework: str, name: str, notes: list[str]) -> list[int | None]:
    """Return the stage of CAS-ViT that replaces each map of the old backbone, or None where no stage does.

    Raises:
        PlugError: The maps are not those of a multi-stage backbone.
    """
    strides, widths = [m.stride for m in maps], [m.channels for m in maps]
    if len(maps) > 1 and len(set(maps)) == 1:
        raise PlugError(
            f'{name} outputs {len(maps)} maps of the same stride, {strides[0]}. It is a plain transformer or a stack '
            'of equal networks, and its neck or heads expect that. Use a config with a multi-stage backbone'
        )
    if strides != sorted(strides) or widths != sorted(widths):
        raise PlugError(
            f'{name} outputs maps of strides {strides} and channels {widths}, so it has a decoder of its own. Use a '
            'config with a multi-stage backbone'
        )
    distinct = len(set(strides)) == len(strides)
    if framework == 'mmdet' and not distinct:
        raise PlugError(
            f'{name} outputs several maps of the same stride ({strides}), and detectors tie their heads to strides. '
            'Use a config whose backbone is not dilated'
        )
    if framework == 'mmdet' or (distinct and strides[-1] >= STRIDES[-1]):
        return [STRIDES.index(stride) if stride in STRIDES else None for stride in strides]
    if strides[-1] < 8:
        raise PlugError(
            f'{name} outputs maps of strides {strides}, finer than the last stage of any backbone, so it has a '
            'decoder of its own. Use a config with a multi-stage backbone'
        )
    notes.append(
        f'{name} outputs maps of strides {strides}, CAS-ViT of 4, 8, 16, 32. Maps were assigned in order: the head on '
        f'the last one sees stride 32 instead of {strides[-1]}, and dilated or pooling layers in it reach '
        f'{STRIDES[-1] // strides[-1]} times as far'
    )
    return [stage if stage >= 0 else None for stage in range(4 - len(maps), 4)]


def lacks_operator(error: Exception) -> bool:
    """Return True if an error says that an operator of mmcv is missing, in general or for this device."""
    return any(words in str(error) for words in ('implementation for device', 'mmcv was installed without'))
