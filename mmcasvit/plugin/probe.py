"""The maps that the old backbone gives."""

import copy
import importlib
import importlib.util
import math
import random
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from torch import Tensor

from mmcasvit.archs import STRIDES
from mmcasvit.utils.errors import PlugError

from .source import NO_READERS, nodes, shortened, type_name

# Of images for backbones, far above the stride of any map, so that its size tells the stride. Necks that go on to still
# coarser maps need larger ones.
_BACKBONE_PROBE_SIZE, _NECK_PROBE_SIZE = 256, 512


@dataclass(frozen=True)
class FeatureMap:
    """What is known of a map between two parts of a model."""

    channels: int
    stride: int


@contextmanager
def frozen_world(scope: str):
    """The framework's registry under its own scope; random state and default scope are as before afterwards."""
    models = importlib.import_module(f'{scope}.registry').MODELS
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices), DefaultScope.overwrite_default_scope(scope), silent_logger():
        try:
            yield models
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def silent_logger():
    """Building and initialising a model logs a line per parameter."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('ERROR')
    try:
        yield
    finally:
        logger.setLevel(level)


def run_module(models, module_cfg: dict, inputs: Callable[[], Tensor | tuple[Tensor, ...]]):
    """Runs a module without data where it can be, or on zeros where it needs them to be built or run."""
    for built_on, run_on in (('meta', 'meta'), ('cpu', 'meta'), ('cpu', 'cpu')):
        try:
            with torch.device(built_on):
                module = models.build(without_process_group(module_cfg))
            module.to(run_on)
            module.eval()  # not chained: many backbones' train() returns None
            with torch.device(run_on), torch.no_grad():
                return module(inputs())
        except Exception as error:
            failure = error
    raise failure


def without_process_group(cfg: dict) -> ConfigDict:
    """A copy whose norms work in a single process; PyTorch's SyncBN does, mmcv's asks for a process group."""
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


def neck_outputs(models, neck: ConfigDict, maps: Sequence[FeatureMap]) -> list[FeatureMap] | None:
    sides = [math.ceil(_NECK_PROBE_SIZE / m.stride) for m in maps]
    outputs = run_module(
        models, neck, lambda: tuple(torch.zeros(1, m.channels, side, side) for m, side in zip(maps, sides))
    )
    return _as_maps(outputs, _NECK_PROBE_SIZE)


def maps_of(model: ConfigDict, models, notes: list[str]) -> list[FeatureMap]:
    """The maps that the old backbone gives, or those its reader expects where it cannot be built here."""
    backbone = copy.deepcopy(model.backbone)
    if model.get('pretrained') is not None:
        backbone.pop('pretrained', None)
    name = type_name(backbone)
    image_channels = backbone.get('in_channels', 3)
    size = backbone.get('img_size', _BACKBONE_PROBE_SIZE)  # plain transformers take no other
    size = max(size) if isinstance(size, (list, tuple)) else size
    try:
        outputs = run_module(models, backbone, lambda: torch.zeros(1, image_channels, size, size))
    except Exception as error:
        reason = shortened(error, 120)
        maps = _expected_maps(model)
        if maps is None:
            raise PlugError(
                f'the old backbone {name} cannot be built and run here ({reason}), and no list of '
                'in_channels behind it tells what it gives. Install what it needs, or take a config with '
                'another backbone'
            ) from error
        notes.append(
            f'the old backbone {name} cannot be built and run here ({reason}); its reader expects '
            f'{[m.channels for m in maps]} channels, taken as those of its last {len(maps)} stages'
        )
        return maps
    maps = _as_maps(outputs, size)
    if maps is None:
        raise PlugError(
            f'{name} does not return a tuple of maps (N, C, H, W), as the stages of a backbone do. Its '
            'heads are made for what it returns; take a config with a multi-stage backbone'
        )
    return maps


def _expected_maps(model: ConfigDict) -> list[FeatureMap] | None:
    first = model.neck if model.get('neck') else {k: v for k, v in model.items() if k not in NO_READERS}
    lists = [node.in_channels for _, node in nodes(first, '') if isinstance(node.get('in_channels'), (list, tuple))]
    if not lists:
        return None
    channels = max(lists, key=len)[-4:]
    return [FeatureMap(c, stride) for c, stride in zip(channels, STRIDES[-len(channels) :])]


def stages_of(maps: Sequence[FeatureMap], framework: str, name: str, notes: list[str]) -> list[int | None]:
    """The stage of CAS-ViT that takes the place of each map; None where there is none."""
    strides, widths = [m.stride for m in maps], [m.channels for m in maps]
    if len(maps) > 1 and len(set(maps)) == 1:
        raise PlugError(
            f'{name} gives {len(maps)} maps of one stride, {strides[0]}: a plain transformer or a stack '
            'of the same network, whose neck or heads expect just that. Take a config with a multi-stage '
            'backbone'
        )
    if strides != sorted(strides) or widths != sorted(widths):
        raise PlugError(
            f'{name} gives maps of strides {strides} and channels {widths}: more than the stages of a '
            'backbone, it has a decoder of its own. Take a config with a multi-stage backbone'
        )
    distinct = len(set(strides)) == len(strides)
    if framework == 'mmdet' and not distinct:
        raise PlugError(
            f'{name} gives several maps of one stride ({strides}), and detectors tie their heads to '
            'strides. Take a config whose backbone is not dilated'
        )
    if framework == 'mmdet' or (distinct and strides[-1] >= STRIDES[-1]):
        return [STRIDES.index(stride) if stride in STRIDES else None for stride in strides]
    if strides[-1] < 8:
        raise PlugError(
            f"{name} gives maps of strides {strides}, finer than any of a backbone's last stage: it has "
            'a decoder of its own. Take a config with a multi-stage backbone'
        )
    notes.append(
        f'{name} gave maps of strides {strides}, CAS-ViT gives 4, 8, 16, 32. Maps went by their order: the '
        f'head on the last one sees stride 32 instead of {strides[-1]}, and dilated or pooling layers in it '
        f'reach {STRIDES[-1] // strides[-1]} times as far'
    )
    return [stage if stage >= 0 else None for stage in range(4 - len(maps), 4)]


def lacks_operator(error: Exception) -> bool:
    """Whether mmcv has an operator for GPUs alone."""
    return 'implementation for device' in str(error)
