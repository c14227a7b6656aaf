"""CAS-ViT in place of the backbone of a config that exists, of mmdet or of mmseg.

No list of architectures decides what is possible. The old backbone is built and asked which maps it gives; whoever
reads them (a neck, or heads without one) is found by its ``in_channels``; every reader gets the CAS-ViT stage of the
map it read; a training step on random data shows whether anything was missed.
"""
import copy
import importlib
import importlib.util
import inspect
import math
import numbers
import random
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub, MMLogger, print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmengine.utils import import_modules_from_strings
from torch import Tensor

from .casvit import CASViT
from .tooling import nearest_config
from .weights import WeightsError

FRAMEWORKS = ('mmdet', 'mmseg')
# The statistics that the authors' ImageNet weights were trained with: RGB, as torchvision's.
IMAGE_STATISTICS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
# As in the published recipes.
DROP_PATH = dict(m=0.1, t=0.1, l=0.1)
# Parts of a model's config that never read the features of its own backbone.
_NO_READERS = ('backbone', 'neck', 'data_preprocessor', 'train_cfg', 'test_cfg', 'init_cfg')
# Of images for backbones, far above the stride of any map, so that its size tells the stride. Necks that go on to still
# coarser maps need larger ones.
_BACKBONE_PROBE_SIZE, _NECK_PROBE_SIZE = 256, 512
# What optimizer constructors with a learning rate per layer take; they know the layers of their own backbones alone.
_LAYER_DECAY_KEYS = ('decay_rate', 'decay_type', 'layer_decay_rate', 'num_layers')

# How many candidates a model has, keeps and samples in a trial: a small image has no more to give.
_TRIAL_LIMITS = dict(num_queries=30, num_proposals=30)
_TRIAL_LIMITS_OF_CFGS = dict(nms_pre=200, max_per_img=30, num=32)


class PlugError(ValueError):
    """A config that CAS-ViT does not fit into by rule; the message says why and what to do."""


class TrialError(PlugError):
    """A model that fails when it is tried.

    Attributes:
        stage: ``'build'``, ``'train'`` or ``'predict'``.
        reason: the error that the model raised, shortened.
    """

    def __init__(self, stage: str, message: str, reason: str):
        super().__init__(message)
        self.stage = stage
        self.reason = reason


@dataclass(frozen=True)
class FeatureMap:
    """What is known of a map between two parts of a model."""
    channels: int
    stride: int


@dataclass
class Reader:
    """A field of the config that names the channels of one or more maps.

    Attributes:
        where: the path of the field's dict in the config.
        node: that dict, of the new config.
        name: the field.
        maps: which of the maps, in the order of the field; one number where the field is a number.
    """
    where: str
    node: ConfigDict
    name: str
    maps: int | tuple[int, ...]

    @property
    def indices(self) -> tuple[int, ...]:
        return (self.maps, ) if isinstance(self.maps, int) else self.maps

    def write(self, new_maps: Sequence[FeatureMap], new_indices: dict[int, int], notes: list[str]) -> None:
        """Sets the field, and ``in_index`` beside it, to the maps that take the places of the old ones.

        Args:
            new_maps: all of them.
            new_indices: from the index of an old map to that of the new one.
            notes: gets a line on what changed.
        """
        indices = [new_indices[i] for i in self.indices]
        self._set(self.name, [new_maps[i].channels for i in indices], notes)
        if self.name == 'in_channels' and self.node.get('in_index') is not None:
            self._set('in_index', indices, notes)

    def _set(self, name: str, new: list[int], notes: list[str]) -> None:
        old = self.node[name]
        value = new[0] if isinstance(self.maps, int) else type(old)(new)
        if value != old:
            notes.append(f'{self.where}.{name}: {old} -> {value}')
            self.node[name] = value


def plug(cfg: str | Path | Config,
         arch: str | dict = 'm',
         *,
         pretrained: str | Path | None = None,
         drop_path_rate: float | None = None,
         norm_eval: bool = True,
         frozen_stages: int = -1,
         verify: bool = True) -> Config:
    """A copy of a config of mmdet or mmseg with CAS-ViT as its backbone, and with necks and heads that fit it.

    Every map goes to the reader of the old backbone's map of the same stride. Where a segmentor's backbone is
    dilated, so that its last map has a stride below 32, maps go by their order: the last to the last reader. Maps
    that nobody reads are not asked for. What belongs to the old backbone alone is removed: its weights,
    ``load_from`` (set to None), optimizer entries for its layers, layer-wise learning rates. The image statistics
    become those of the ImageNet weights. Optimizer, schedule and data stay. Every change is logged.

    Args:
        cfg: a config, its path, or its name in an installed package, such as
            ``'mmdet::atss/atss_r50_fpn_1x_coco.py'``. It is left as it was.
        arch: as in :class:`mmcasvit.CASViT`.
        pretrained: ImageNet weights for the backbone, a file or an address.
        drop_path_rate: as in :class:`mmcasvit.CASViT`; None for that of the published recipes (0.1 for m and t, 0
            for xs and s).
        norm_eval: keep the backbone's BatchNorms in eval mode, as the published recipes do. Turn it off to train
            from random weights.
        frozen_stages: as in :class:`mmcasvit.CASViT`.
        verify: try the result, see :func:`try_out`. That also loads ``pretrained``.

    Raises:
        PlugError: CAS-ViT does not fit, or an argument is out of range; the message says why and what to do.
        TrialError: it seems to fit, and fails when it is tried.
        WeightsError: ``pretrained`` does not fit the arch.
    """
    new, notes = plug_with_notes(cfg, arch, pretrained=pretrained, drop_path_rate=drop_path_rate,
                                 norm_eval=norm_eval, frozen_stages=frozen_stages, verify=verify)
    print_log('\n  '.join(['CAS-ViT plugged in:', *notes]), logger='current')
    return new


def plug_with_notes(cfg: str | Path | Config,
                    arch: str | dict = 'm',
                    *,
                    pretrained: str | Path | None = None,
                    drop_path_rate: float | None = None,
                    norm_eval: bool = True,
                    frozen_stages: int = -1,
                    verify: bool = True) -> tuple[Config, list[str]]:
    """As :func:`plug`, and the list of changes instead of logging it."""
    old = cfg if isinstance(cfg, Config) else read_config(cfg)
    new = copy.deepcopy(old)
    _check_structure(new)
    notes = []
    if drop_path_rate is None:
        drop_path_rate = DROP_PATH.get(arch, 0.) if isinstance(arch, str) else 0.
    with _frozen_world(framework_of(old)) as models:
        try:
            channels = CASViT(arch, drop_path_rate=drop_path_rate, frozen_stages=frozen_stages).out_channels
        except ValueError as error:
            raise PlugError(str(error)) from error
        old_maps = _maps_of(old.model, models, notes)
        stages = _stages_of(old_maps, framework_of(old), _type_name(old.model.backbone), notes)
        out_indices = _adapt_readers(new, old_maps, stages, channels, models, notes)
    _replace_backbone(new, arch, out_indices, pretrained, drop_path_rate, norm_eval, frozen_stages)
    notes.insert(0, f'model.backbone: {_type_name(old.model.backbone)} -> CASViT {arch}, stages {out_indices} with '
                    f'{tuple(channels[i] for i in out_indices)} channels at strides '
                    f'{tuple(CASViT.strides[i] for i in out_indices)}')
    _use_image_statistics(new, notes)
    _forget_old_backbone(old, new, notes)
    _adapt_optimizer(new, notes)
    if pretrained is None and norm_eval:
        notes.append('no weights given: pass pretrained=, or --pretrained to tools/train.py. To train from random '
                     'weights, set model.backbone.norm_eval=False')
    if verify:
        _verify(old, new, notes)
    return new, notes


def _verify(old: Config, new: Config, notes: list[str]) -> None:
    try:
        trial = try_out(new)
    except TrialError as error:
        if not _fails_alike(old, error):
            raise TrialError(
                error.stage, f'{error}. A part that reads the backbone was not recognised: override it by hand, '
                'beginning with what verify=False or --no-verify gives', error.reason) from error
        notes.append(f'NOT VERIFIED: with its own backbone the model fails in the same way, so it is not for CAS-ViT. '
                     f'{error}')
    else:
        if trial.unused:
            new.find_unused_parameters = True
            notes.append(f'find_unused_parameters: True, for {len(trial.unused)} parameters of the backbone that no '
                         f'loss reaches, such as {trial.unused[0]}')


def _fails_alike(old: Config, error: TrialError) -> bool:
    old = copy.deepcopy(old)
    old.model.backbone.pop('init_cfg', None)
    if 'pretrained' in old.model:
        old.model.pretrained = None
    try:
        try_out(old)
    except PlugError as failure:
        return isinstance(failure, TrialError) and (failure.stage, failure.reason) == (error.stage, error.reason)
    return False


# Reading configs


def read_config(name: str | Path) -> Config:
    """Reads a config by path or by its name in an installed package, without importing what it asks to import.

    mmengine resolves such names for a fixed list of distributions, of which not every release has the name; this
    looks into the folder of the installed package.

    Raises:
        PlugError: there is no such config, or it cannot be read.
    """
    file = config_file(name)
    try:
        # The old backbone may be all that custom_imports is for, and its package may be absent.
        return Config.fromfile(file, import_custom_modules=False)
    except Exception as error:
        raise PlugError(f'config {file} cannot be read: {_shortened(error)}') from error


def config_file(name: str | Path) -> Path:
    """The file behind a path or a name such as ``'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py'``.

    Raises:
        PlugError: there is none.
    """
    package, separator, rest = str(name).partition('::')
    if not separator:
        file = Path(name).expanduser()
        if not file.is_file():
            raise PlugError(f'config not found: {file.absolute()}')
        return file
    folder = package_configs(package)
    file = folder / rest
    if not file.is_file():
        near = nearest_config(file)
        raise PlugError(f'{package} has no config {rest} in {folder}'
                        + (f'. Did you mean {near.name}?' if near else ''))
    return file


def package_configs(package: str) -> Path:
    """The folder of the configs that an installed package brings.

    Raises:
        PlugError: it is not installed, or brings none.
    """
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise PlugError(f'{package} is not installed')
    root = Path(spec.submodule_search_locations[0])
    for folder in (root / '.mim' / 'configs', root.parent / 'configs'):
        if folder.is_dir():
            return folder
    raise PlugError(f'{package} in {root} brings no configs')


def framework_of(cfg: Config) -> str:
    """``'mmdet'`` or ``'mmseg'``."""
    scope = cfg.get('default_scope')
    return scope if scope in FRAMEWORKS else 'mmseg' if 'decode_head' in cfg.model else 'mmdet'


def _type_name(cfg: dict) -> str:
    type_ = cfg.get('type')
    return type_ if isinstance(type_, str) else getattr(type_, '__name__', str(type_))


def _nodes(node, where: str) -> Iterator[tuple[str, ConfigDict]]:
    """All dicts of a config, with their paths, from the outside in."""
    if isinstance(node, dict):
        yield where, node
        for key, value in node.items():
            yield from _nodes(value, f'{where}.{key}' if where else key)
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from _nodes(value, f'{where}[{i}]')


def _check_structure(cfg: Config) -> None:
    """Refuses what has no backbone of its own, or a second one that reads the first."""
    model = cfg.get('model')
    if not isinstance(model, dict):
        raise PlugError('the config has no model')
    if cfg.get('default_scope') not in (None, *FRAMEWORKS):
        raise PlugError(f'the config has default_scope {cfg.default_scope!r}; plug knows mmdet and mmseg')
    if not isinstance(model.get('backbone'), dict):
        inner = [where for where, node in _nodes(model, 'model') if isinstance(node.get('backbone'), dict)]
        if inner:
            raise PlugError(f'{_type_name(model)} wraps another model: its backbone is {inner[0]}.backbone. Plug '
                            'CAS-ViT into a config of the inner model, and wrap the result')
        raise PlugError(f'{_type_name(model)} has no backbone entry that could be replaced')
    if model.get('language_model'):
        raise PlugError(f'{_type_name(model)} reads text too, and its checkpoints were trained on images and words '
                        'with the old backbone: behind another one they mean nothing. Take a detector without a '
                        'language model')
    for where, node in _nodes({key: model[key] for key in model if key != 'backbone'}, 'model'):
        if where.endswith('.shared_head'):
            raise PlugError(f'{where} is the last stage of the old backbone, moved into the head. Take a config of '
                            'the same detector with an FPN neck')
        if where != 'model' and any(isinstance(node.get(key), dict) for key in node if key.endswith('backbone')):
            raise PlugError(f'{where} has a backbone of its own, which works on the outputs of the first. Take a '
                            'config of the same model with another neck')


# What the old backbone gives


@contextmanager
def _frozen_world(scope: str):
    """The framework's registry under its own scope; random state and default scope are as before afterwards."""
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
def _silent_logger():
    """Building and initialising a model logs a line per parameter."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('ERROR')
    try:
        yield
    finally:
        logger.setLevel(level)


def _outputs(models, module_cfg: dict, inputs: Callable[[], Tensor | tuple[Tensor, ...]]):
    """Runs a module without data where it can be, or on zeros where it needs them to be built or run."""
    for built_on, run_on in (('meta', 'meta'), ('cpu', 'meta'), ('cpu', 'cpu')):
        try:
            with torch.device(built_on):
                module = models.build(_without_process_group(module_cfg))
            module.to(run_on)
            module.eval()  # not chained: many backbones' train() returns None
            with torch.device(run_on), torch.no_grad():
                return module(inputs())
        except Exception as error:
            failure = error
    raise failure


def _without_process_group(cfg: dict) -> ConfigDict:
    """A copy whose norms work in a single process; PyTorch's SyncBN does, mmcv's asks for a process group."""
    cfg = ConfigDict(copy.deepcopy(cfg))
    for _, node in _nodes(cfg, ''):
        if node.get('type') == 'MMSyncBN':
            node.type = 'SyncBN'
    return cfg


def _as_maps(outputs, image_size: int) -> list[FeatureMap] | None:
    if not isinstance(outputs, (tuple, list)) or not outputs or not all(
            isinstance(x, Tensor) and x.ndim == 4 for x in outputs):
        return None
    return [FeatureMap(x.shape[1], round(image_size / x.shape[-1])) for x in outputs]


def _neck_outputs(models, neck: ConfigDict, maps: Sequence[FeatureMap]) -> list[FeatureMap] | None:
    sides = [math.ceil(_NECK_PROBE_SIZE / m.stride) for m in maps]
    outputs = _outputs(models, neck, lambda: tuple(
        torch.zeros(1, m.channels, side, side) for m, side in zip(maps, sides)))
    return _as_maps(outputs, _NECK_PROBE_SIZE)


def _maps_of(model: ConfigDict, models, notes: list[str]) -> list[FeatureMap]:
    """The maps that the old backbone gives, or those its reader expects where it cannot be built here."""
    backbone = copy.deepcopy(model.backbone)
    if model.get('pretrained') is not None:
        backbone.pop('pretrained', None)
    name = _type_name(backbone)
    image_channels = backbone.get('in_channels', 3)
    size = backbone.get('img_size', _BACKBONE_PROBE_SIZE)  # plain transformers take no other
    size = max(size) if isinstance(size, (list, tuple)) else size
    try:
        outputs = _outputs(models, backbone, lambda: torch.zeros(1, image_channels, size, size))
    except Exception as error:
        reason = _shortened(error, 120)
        maps = _expected_maps(model)
        if maps is None:
            raise PlugError(f'the old backbone {name} cannot be built and run here ({reason}), and no list of '
                            'in_channels behind it tells what it gives. Install what it needs, or take a config with '
                            'another backbone') from error
        notes.append(f'the old backbone {name} cannot be built and run here ({reason}); its reader expects '
                     f'{[m.channels for m in maps]} channels, taken as those of its last {len(maps)} stages')
        return maps
    maps = _as_maps(outputs, size)
    if maps is None:
        raise PlugError(f'{name} does not return a tuple of maps (N, C, H, W), as the stages of a backbone do. Its '
                        'heads are made for what it returns; take a config with a multi-stage backbone')
    return maps


def _expected_maps(model: ConfigDict) -> list[FeatureMap] | None:
    first = model.neck if model.get('neck') else {k: v for k, v in model.items() if k not in _NO_READERS}
    lists = [node.in_channels for _, node in _nodes(first, '') if isinstance(node.get('in_channels'), (list, tuple))]
    if not lists:
        return None
    channels = max(lists, key=len)[-4:]
    return [FeatureMap(c, stride) for c, stride in zip(channels, CASViT.strides[-len(channels):])]


def _stages_of(maps: Sequence[FeatureMap], framework: str, name: str, notes: list[str]) -> list[int | None]:
    """The stage of CAS-ViT that takes the place of each map; None where there is none."""
    strides, widths = [m.stride for m in maps], [m.channels for m in maps]
    if len(maps) > 1 and len(set(maps)) == 1:
        raise PlugError(f'{name} gives {len(maps)} maps of one stride, {strides[0]}: a plain transformer or a stack '
                        'of the same network, whose neck or heads expect just that. Take a config with a multi-stage '
                        'backbone')
    if strides != sorted(strides) or widths != sorted(widths):
        raise PlugError(f'{name} gives maps of strides {strides} and channels {widths}: more than the stages of a '
                        'backbone, it has a decoder of its own. Take a config with a multi-stage backbone')
    distinct = len(set(strides)) == len(strides)
    if framework == 'mmdet' and not distinct:
        raise PlugError(f'{name} gives several maps of one stride ({strides}), and detectors tie their heads to '
                        'strides. Take a config whose backbone is not dilated')
    if framework == 'mmdet' or (distinct and strides[-1] >= CASViT.strides[-1]):
        return [CASViT.strides.index(stride) if stride in CASViT.strides else None for stride in strides]
    if strides[-1] < 8:
        raise PlugError(f'{name} gives maps of strides {strides}, finer than any of a backbone\'s last stage: it has '
                        'a decoder of its own. Take a config with a multi-stage backbone')
    notes.append(f'{name} gave maps of strides {strides}, CAS-ViT gives 4, 8, 16, 32. Maps went by their order: the '
                 f'head on the last one sees stride 32 instead of {strides[-1]}, and dilated or pooling layers in it '
                 f'reach {CASViT.strides[-1] // strides[-1]} times as far')
    return [stage if stage >= 0 else None for stage in range(4 - len(maps), 4)]


# Who reads it


def _match(channels: Sequence[int], maps: Sequence[FeatureMap]) -> tuple[int, ...] | None:
    """Which maps a list of channels means, or None where that is not clear."""
    given = [m.channels for m in maps]
    channels, last = list(channels), len(given)
    if channels == given:
        return tuple(range(last))
    if channels == given[::-1]:
        return tuple(range(last))[::-1]
    if channels and all(given.count(c) == 1 for c in channels):
        return tuple(given.index(c) for c in channels)
    if channels == given[last - len(channels):]:
        return tuple(range(last - len(channels), last))
    return None


def _is_channels(value) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _neck_reader(neck: ConfigDict, where: str, maps: Sequence[FeatureMap]) -> Reader:
    given = [m.channels for m in maps]
    channels = neck.get('in_channels')
    if _is_channels(channels):
        found = [i for i, c in enumerate(given) if c == channels][-1:]
        indices = found[0] if found else None
    else:
        indices = _match(channels, maps) if isinstance(channels, (list, tuple)) else None
    if indices is None:
        raise PlugError(f'{where} ({_type_name(neck)}) reads maps of {given} channels and has in_channels={channels}: '
                        'it is not clear which map is which. Replace the neck by one with a channel for each map, '
                        'such as FPN')
    return Reader(where, neck, 'in_channels', indices)


def _trim_neck(reader: Reader, new_maps: Sequence[FeatureMap], models, notes: list[str]) -> None:
    """Leaves out the first maps where the neck starts behind them, so that no parameter stays without a gradient.

    Args:
        reader: that of the neck.
        new_maps: those it would read, in the order of its field.
        models: the framework's registry.
        notes: gets a line on what changed.
    """
    neck = reader.node
    neck_type = models.get(neck.type) if isinstance(neck.type, str) else neck.type
    parameter = inspect.signature(neck_type).parameters.get('start_level')
    start = neck.get('start_level', getattr(parameter, 'default', 0))
    if not _is_channels(start) or isinstance(reader.maps, int) or not 0 < start < len(reader.maps):
        return
    trimmed = dict(start_level=0)
    if neck.get('end_level', -1) > 0:
        trimmed['end_level'] = neck.end_level - start
    kept = new_maps[start:]
    try:
        _neck_outputs(models, {**neck, **trimmed, 'in_channels': [m.channels for m in kept]}, kept)
    except Exception as error:
        if not _lacks_operator(error):
            return  # it counts its inputs in a way of its own
    neck.update(trimmed)
    reader.maps = reader.maps[start:]
    notes.append(f'{reader.where}.start_level: {start} -> 0, and in_channels from there on')


def _pass_through(reader: Reader, old_channels: Sequence[int], notes: list[str]) -> None:
    """A neck that hands its inputs on, and adds maps behind them, names their channels a second time."""
    neck, count = reader.node, len(old_channels)
    out = neck.get('out_channels')
    if isinstance(out, (list, tuple)) and len(out) > count and list(out[:count]) == list(old_channels):
        neck.out_channels = type(out)([*neck.in_channels, *out[count:]])
        notes.append(f'{reader.where}.out_channels: {out} -> {neck.out_channels}')


def _head_readers(model: ConfigDict, maps: Sequence[FeatureMap], framework: str) -> list[Reader]:
    heads = {key: value for key, value in model.items()
             if key not in _NO_READERS and not key.startswith('teacher') and isinstance(value, (dict, list, tuple))}
    find = _segmentor_readers if framework == 'mmseg' else _detector_readers
    readers = []
    for key, head in heads.items():
        parts = [(f'model.{key}', head)] if isinstance(head, dict) else [
            (f'model.{key}[{i}]', part) for i, part in enumerate(head)]
        for where, part in parts:
            if isinstance(part, dict):
                readers += find(part, where, maps)
    return readers


def _segmentor_readers(head: ConfigDict, where: str, maps: Sequence[FeatureMap]) -> list[Reader]:
    """Decode heads say which maps they read by ``in_index``, the last one without it."""
    readers = []
    for path, node in _nodes(head, where):
        channels, index = node.get('in_channels'), node.get('in_index')
        if channels is None or (index is None and node is not head):
            continue  # a layer inside a head that reads what the head has made
        if index is None:
            index = -1 if _is_channels(channels) else _match(channels, maps)
        several = isinstance(index, (list, tuple))
        found = [channels] if _is_channels(channels) else list(channels)
        wanted = list(index) if several else [index]
        given = [m.channels for m in maps]
        if several == _is_channels(channels) or not all(
                _is_channels(i) and -len(maps) <= i < len(maps) for i in wanted) or found != [
                    given[i] for i in wanted]:
            raise PlugError(f'{path} ({_type_name(node)}) reads maps {node.get("in_index", "by default")} of {given} '
                            f'channels, and has in_channels={channels}: that does not fit the old backbone either')
        wanted = tuple(i % len(maps) for i in wanted)
        readers.append(Reader(path, node, 'in_channels', wanted if several else wanted[0]))
    # Some heads read a second, finer map, such as DeepLabV3+'s c1_in_channels.
    for name, value in head.items():
        fitting = [i for i, m in enumerate(maps) if m.channels == value]
        if name.endswith('_in_channels') and _is_channels(value) and len(fitting) == 1:
            readers.append(Reader(where, head, name, fitting[0]))
    return readers


def _detector_readers(head: ConfigDict, where: str, maps: Sequence[FeatureMap]) -> list[Reader]:
    """Detectors' heads read every map, or the only one; channels alone tell which fields mean them."""
    readers, by_value = [], []
    for path, node in _nodes(head, where):
        channels = node.get('in_channels')
        if isinstance(channels, (list, tuple)) and (indices := _match(channels, maps)) is not None:
            readers.append(Reader(path, node, 'in_channels', indices))
        fields = ['in_channels', *(['out_channels'] if _type_name(node).endswith('RoIExtractor') else [])]
        for name in fields:
            fitting = [i for i, m in enumerate(maps) if m.channels == node.get(name)]
            if _is_channels(node.get(name)) and fitting:
                by_value.append(Reader(path, node, name, fitting[-1]))
    # Beside a list that names the maps, a number that equals one of theirs is the width of an inner layer.
    return readers or by_value


# Writing the changes


def _adapt_readers(new: Config, old_maps: list[FeatureMap], stages: list[int | None], channels: Sequence[int], models,
                   notes: list[str]) -> tuple[int, ...]:
    """Fits necks and heads of the new config to CAS-ViT and returns its ``out_indices``."""
    model, framework = new.model, framework_of(new)
    neck = model.get('neck')
    chain = [('model.neck', neck)] if isinstance(neck, dict) else [
        (f'model.neck[{i}]', part) for i, part in enumerate(neck or ())]
    old_chain = copy.deepcopy([part for _, part in chain])
    if chain:
        readers = [_neck_reader(chain[0][1], chain[0][0], old_maps)]
        if all(stages[i] is not None for i in readers[0].indices):
            new_maps = [FeatureMap(channels[stages[i]], CASViT.strides[stages[i]]) for i in readers[0].indices]
            _trim_neck(readers[0], new_maps, models, notes)
    else:
        readers = _head_readers(model, old_maps, framework)
        if not readers:
            raise PlugError(f'nothing in {_type_name(model)} names the channels of the backbone '
                            f'({[m.channels for m in old_maps]}) as in_channels, so nothing could be fitted')
    read = {i for reader in readers for i in reader.indices}
    outside = [old_maps[i].stride for i in sorted(read) if stages[i] is None]
    if outside:
        raise PlugError(f'{readers[0].where} reads a map of stride {outside[0]}; CAS-ViT gives strides 4, 8, 16, 32. '
                        'Take a config that reads no other')

    wanted = [{i: stages[i] for i in reader.indices} for reader in readers]
    if framework == 'mmseg' and isinstance(model.get('decode_head'), (list, tuple)) and not chain:
        _keep_cascade_aligned(readers, wanted, old_maps, notes)
    out_indices = tuple(sorted({stage for stages_of_reader in wanted for stage in stages_of_reader.values()}))
    maps = [FeatureMap(channels[i], CASViT.strides[i]) for i in out_indices]
    for reader, stages_of_reader in zip(readers, wanted):
        reader.write(maps, {i: out_indices.index(stage) for i, stage in stages_of_reader.items()}, notes)
        if chain:
            _pass_through(reader, [old_maps[i].channels for i in reader.indices], notes)

    # A neck that hands on what it reads changes what is behind it.
    for position, (where, part) in enumerate(chain):
        if position:
            _neck_reader(part, where, old_maps).write(maps, {i: i for i in range(len(maps))}, notes)
        old_maps, maps = _through_neck(models, old_chain[position], part, where, old_maps, maps)
        if [m.channels for m in old_maps] == [m.channels for m in maps]:
            return out_indices
        if len(old_maps) != len(maps):
            raise PlugError(f'{where} gave {len(old_maps)} maps and gives {len(maps)} behind CAS-ViT; its readers '
                            'cannot be fitted')
    if chain:
        for reader in _head_readers(model, old_maps, framework):
            reader.write(maps, {i: i for i in range(len(maps))}, notes)
    return out_indices


def _keep_cascade_aligned(readers: Sequence[Reader], wanted: Sequence[dict[int, int]], old_maps: Sequence[FeatureMap],
                          notes: list[str]) -> None:
    """Heads of a cascade that read maps of one size, and combine theirs with each other's, go on doing so."""
    cascade = [place for place, reader in enumerate(readers) if reader.where.startswith('model.decode_head[')]
    deepest = {}
    for place in cascade:
        for i, stage in wanted[place].items():
            deepest[old_maps[i].stride] = max(stage, deepest.get(old_maps[i].stride, 0))
    for place in cascade:
        if len({old_maps[i].stride for i in wanted[place]}) < len(wanted[place]):
            continue  # it brings maps of several sizes to one by itself
        for i, stage in wanted[place].items():
            if stage != deepest[old_maps[i].stride]:
                wanted[place][i] = deepest[old_maps[i].stride]
                notes.append(f'{readers[place].where} reads the same stage as the rest of the cascade, since their '
                             'maps have to be of one size')


def _through_neck(models, old_neck: ConfigDict, new_neck: ConfigDict, where: str, old_maps: Sequence[FeatureMap],
                  maps: Sequence[FeatureMap]) -> tuple[list[FeatureMap], list[FeatureMap]]:
    """The maps behind a neck, of the old config and of the new one."""
    try:
        after = _neck_outputs(models, new_neck, maps)
    except Exception as error:
        if _lacks_operator(error):
            return [], []  # not known here; the trial runs where the operator does
        raise PlugError(f'{where} ({_type_name(new_neck)}) does not work with maps of {[m.channels for m in maps]} '
                        f'channels at strides {[m.stride for m in maps]}: {_shortened(error)}. Replace it by another '
                        'neck, such as FPN') from error
    before = _neck_outputs(models, old_neck, old_maps)
    if before is None or after is None:
        raise PlugError(f'{where} ({_type_name(new_neck)}) does not return a tuple of maps (N, C, H, W)')
    return before, after


def _lacks_operator(error: Exception) -> bool:
    """Whether mmcv has an operator for GPUs alone."""
    return 'implementation for device' in str(error)


def _replace_backbone(cfg: Config, arch, out_indices, pretrained, drop_path_rate, norm_eval, frozen_stages) -> None:
    old = cfg.model.backbone
    new = dict(type='mmcasvit.CASViT', arch=arch, out_indices=out_indices, norm_eval=norm_eval)
    if drop_path_rate:
        new['drop_path_rate'] = drop_path_rate
    if frozen_stages != -1:
        new['frozen_stages'] = frozen_stages
    if old.get('with_cp'):
        new['with_cp'] = True
    if old.get('in_channels', 3) != 3:
        new['in_channels'] = old.in_channels
    if not norm_eval and 'SyncBN' in str(old.get('norm_cfg')):
        new['norm_cfg'] = dict(type='SyncBN', requires_grad=True)
    if pretrained is not None:
        new['init_cfg'] = dict(type='Pretrained', checkpoint=str(pretrained))
    cfg.model.backbone = ConfigDict(new)


def _use_image_statistics(cfg: Config, notes: list[str]) -> None:
    """Sets mean, std and channel order to those of the ImageNet weights."""
    if cfg.model.backbone.get('in_channels', 3) != 3:
        notes.append('images are not RGB: their mean and std stay as they were')
        return
    # Many configs keep a second one at the top level, which counts where the model has none.
    preprocessors = [part for part in (cfg.get('data_preprocessor'), cfg.model.get('data_preprocessor')) if part]
    changed = [key for key, value in IMAGE_STATISTICS.items()
               if any(not _same_numbers(part.get(key), value) for part in preprocessors)]
    for preprocessor in preprocessors:
        preprocessor.update({key: copy.deepcopy(IMAGE_STATISTICS[key]) for key in changed})
        preprocessor.pop('rgb_to_bgr', None)
    if changed:
        notes.append(f'data_preprocessor: {", ".join(changed)} set to those of the ImageNet weights')


def _same_numbers(a, b) -> bool:
    if isinstance(b, bool):
        return a is b
    return isinstance(a, (list, tuple)) and list(a) == list(b)


def _forget_old_backbone(old: Config, new: Config, notes: list[str]) -> None:
    """Removes weights of the old backbone, and of the whole old model, and imports that only it needed."""
    backbone = old.model.backbone
    init_cfg = backbone.get('init_cfg') or {}
    init_cfgs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    weights = {old.model.get('pretrained'), backbone.get('pretrained'),
               *(cfg.get('checkpoint') for cfg in init_cfgs)} - {None}
    if 'pretrained' in new.model:
        new.model.pretrained = None
    if 'init_cfg' in new.model and 'Pretrained' in str(new.model.init_cfg):
        new.model.init_cfg = None
        notes.append('model.init_cfg: removed, it loaded the old model')
    for key, value in new.items():
        if isinstance(value, str) and value in weights:
            new[key] = None
    if weights:
        notes.append(f'weights of the old backbone removed: {", ".join(sorted(map(str, weights)))}')
    if new.get('load_from'):
        notes.append(f'load_from: {new.load_from} -> None, weights of the old model')
        new.load_from = None
    if new.get('resume'):
        new.resume = False

    imports = new.get('custom_imports') or dict(allow_failed_imports=False)
    modules = imports.get('imports', [])
    modules = [modules] if isinstance(modules, str) else list(modules)
    scope = _type_name(backbone).partition('.')[0] if '.' in _type_name(backbone) else None
    still_used = any(_type_name(node).startswith(f'{scope}.') for _, node in _nodes(new.to_dict(), ''))
    if scope is not None and not still_used:
        modules = [name for name in modules if name.partition('.')[0] != scope]
    if 'mmcasvit' not in modules:
        modules.append('mmcasvit')
    new.custom_imports = {**imports, 'imports': modules}


def _adapt_optimizer(new: Config, notes: list[str]) -> None:
    """Removes learning rates and decays of layers that only the old backbone has."""
    wrapper = new.get('optim_wrapper')
    if not isinstance(wrapper, dict):
        return
    paramwise = wrapper.get('paramwise_cfg') or {}
    if 'constructor' in wrapper and any(key in paramwise for key in _LAYER_DECAY_KEYS):
        notes.append(f'optim_wrapper.constructor: {wrapper.constructor} removed, it gives each layer of its own '
                     'backbones a learning rate; norms and biases stay without weight decay')
        del wrapper['constructor']
        kept = {key: value for key, value in paramwise.items() if key not in _LAYER_DECAY_KEYS}
        wrapper.paramwise_cfg = ConfigDict(norm_decay_mult=0., bias_decay_mult=0., **kept)
    custom_keys = (wrapper.get('paramwise_cfg') or {}).get('custom_keys')
    if custom_keys:
        _drop_custom_keys(custom_keys, new, notes)
    optimizer = wrapper.get('optimizer') or {}
    if _type_name(optimizer) == 'SGD':
        notes.append(f'the optimizer stays SGD with lr {optimizer.get("lr")}; the published recipes of CAS-ViT train '
                     'with AdamW, lr 2e-4, weight decay 1e-4')


def _drop_custom_keys(custom_keys: ConfigDict, new: Config, notes: list[str]) -> None:
    try:
        parameters = _parameters(new)
    except TrialError as error:
        notes.append(f'optim_wrapper.paramwise_cfg.custom_keys: not compared with the new layers. {error}')
        return
    dropped = [key for key in custom_keys if not any(key in name for name in parameters)]
    for key in dropped:
        del custom_keys[key]
    if dropped:
        some = ', '.join(dropped[:4]) + (f' and {len(dropped) - 4} more' if len(dropped) > 4 else '')
        notes.append(f'optim_wrapper.paramwise_cfg.custom_keys: {some} removed, no such parameters any more')


def _parameters(cfg: Config) -> dict[str, int]:
    """The names of the model's parameters, and how many numbers each one holds."""
    with _frozen_world(framework_of(cfg)) as models:
        _import_modules(cfg)
        for device in ('meta', 'cpu'):
            try:
                with torch.device(device):
                    model = models.build(_model_without_weights(cfg))
                return {name: parameter.numel() for name, parameter in model.named_parameters()}
            except Exception as error:
                failure = error
    raise TrialError('build', _explain(cfg, 'cannot be built', failure), _shortened(failure)) from failure


def _import_modules(cfg: Config) -> None:
    try:
        import_modules_from_strings(**cfg.get('custom_imports') or dict(imports=[]))
    except ImportError as error:
        raise PlugError(
            f'custom_imports of the config fail: {error}. Install what they name, or remove them') from error


# Trying the result


@dataclass
class Trial:
    """What a model did on random data.

    Attributes:
        size: of the square images, in pixels.
        parameters: how many numbers the parameters of the whole model hold.
        losses: each loss of the training step.
        unused: parameters of the backbone that got no gradient though they ask for one.
        predictions: what it returned for each image.
    """
    size: int
    parameters: int
    losses: dict[str, float] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    predictions: list = field(default_factory=list)


def try_out(cfg: Config, sizes: Sequence[int] = (96, 320), seed: int = 0) -> Trial:
    """Builds and initialises the model of a config, takes the gradient of its losses on two random images, predicts.

    Everything is thrown away afterwards. Augmentation of whole batches and weights for anything but the backbone
    are left out.

    Args:
        cfg: of mmdet or mmseg.
        sizes: of the square images, in pixels: each one is tried where the one before it fails, since some heads
            need large images.
        seed: for weights, images and labels.

    Raises:
        TrialError: something failed, or a loss is not finite.
        WeightsError: the weights for the backbone do not fit it.
    """
    for size in sizes:
        try:
            return _try_out(cfg, size, seed)
        except TrialError as error:
            if error.stage == 'build' or 'allocate memory' in error.reason:
                raise
            failure = error
    raise failure


def _try_out(cfg: Config, size: int, seed: int) -> Trial:
    trial, stage = Trial(size, sum(_parameters(cfg).values())), 'build'
    with _frozen_world(framework_of(cfg)) as models, _run_under_way():
        torch.manual_seed(seed)
        try:
            model = revert_sync_batchnorm(models.build(_trial_model(cfg, size)))
            model.init_weights()
            if torch.cuda.is_available():
                model.cuda()
            stage = 'train'
            model.train()
            losses = model(**model.data_preprocessor(random_batch(cfg, size, seed), True), mode='loss')
            loss, values = model.parse_losses(losses)
            trial.losses = {key: value.item() for key, value in values.items()}
            if not torch.isfinite(loss):
                raise FloatingPointError(f'losses are not finite: {trial.losses}')
            loss.backward()
            trial.unused = [name for name, p in model.backbone.named_parameters()
                            if p.requires_grad and p.grad is None]
            stage = 'predict'
            model.eval()
            with torch.no_grad():
                trial.predictions = model(
                    **model.data_preprocessor(random_batch(cfg, size, seed), False), mode='predict')
            if len(trial.predictions) != 2:
                raise ValueError(f'{len(trial.predictions)} predictions for 2 images')
        except WeightsError:
            raise
        except Exception as error:
            happened = dict(build='cannot be built', train='fails in a training step', predict='fails to predict')
            raise TrialError(stage, _explain(cfg, happened[stage], error), _shortened(error)) from error
    return trial


@contextmanager
def _run_under_way():
    """What a runner tells the model about its progress, on which some losses depend."""
    info = MessageHub.get_current_instance().runtime_info
    kept = dict(info)
    info.update(epoch=0, max_epochs=1, iter=0, max_iters=1)
    try:
        yield
    finally:
        info.clear()
        info.update(kept)


def _explain(cfg: Config, happened: str, error: Exception) -> str:
    return f'{_type_name(cfg.model)} with {_type_name(cfg.model.backbone)} {happened}: {_shortened(error)}'


def _shortened(error: Exception, limit: int = 300) -> str:
    text = ' '.join(str(error).split()).rstrip('.')
    if not text and error.__traceback__ is not None:  # a bare assert
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = f'{Path(frame.filename).name}, line {frame.lineno}: {frame.line}'
    text = f'{type(error).__name__}: {text}'
    return text if len(text) <= limit else f'{text[:limit]}...'


def _model_without_weights(cfg: Config) -> ConfigDict:
    """The model of a config, which loads no weights but those of its backbone."""
    model = _without_process_group(cfg.model)
    if not model.get('data_preprocessor') and cfg.get('data_preprocessor'):
        model.data_preprocessor = copy.deepcopy(cfg.data_preprocessor)
    for where, node in _nodes(model, ''):
        if where != 'backbone' and 'Pretrained' in str(node.get('init_cfg')):
            node.init_cfg = None
        if node.get('teacher_ckpt'):
            node.teacher_ckpt = None
    return model


def _trial_model(cfg: Config, size: int) -> ConfigDict:
    """The model of a config, cut down to what small images need."""
    model = _model_without_weights(cfg)
    preprocessor = model.get('data_preprocessor') or {}
    preprocessor.pop('batch_augments', None)
    if framework_of(cfg) == 'mmseg':
        preprocessor.update(size=(size, size), test_cfg=None)
        preprocessor.pop('size_divisor', None)
    _limit(model, _TRIAL_LIMITS)
    for key in ('train_cfg', 'test_cfg'):
        _limit(model.get(key), _TRIAL_LIMITS_OF_CFGS)
    return model


def _limit(cfg, limits: dict[str, int]) -> None:
    for _, node in _nodes(cfg, ''):
        for name, most in limits.items():
            if _is_channels(node.get(name)):
                node[name] = min(node[name], most)


def random_batch(cfg: Config, size: int, seed: int = 0, images: int = 2) -> dict:
    """Random images with labels of every kind that a model may ask for, as a data loader gives them.

    Args:
        cfg: of mmdet or mmseg; its heads say how many classes there are.
        size: of the square images, in pixels.
        seed: for images and labels.
        images: how many.
    """
    rng = np.random.default_rng(seed)
    make = _segmentor_sample if framework_of(cfg) == 'mmseg' else _detector_sample
    return dict(inputs=[torch.from_numpy(rng.integers(0, 256, (3, size, size), dtype=np.uint8)) for _ in range(images)]
                if cfg.model.backbone.get('in_channels', 3) == 3 else
                [torch.from_numpy(rng.random((cfg.model.backbone.in_channels, size, size), dtype=np.float32))
                 for _ in range(images)],
                data_samples=[make(cfg, size, rng) for _ in range(images)])


def _numbers(node, name: str) -> list[int]:
    return [part[name] for _, part in _nodes(node, '') if _is_channels(part.get(name)) and part[name] > 0]


def _blocks(size: int, classes: int, rng: np.random.Generator, scale: float = 1.) -> Tensor:
    """A label map of random squares, (1, H, W)."""
    side = round(size * scale)
    coarse = rng.integers(0, classes, (4, 4))
    index = np.arange(side) * 4 // side
    return torch.from_numpy(coarse[np.ix_(index, index)])[None].long()


def _segmentor_sample(cfg: Config, size: int, rng: np.random.Generator):
    from mmseg.structures import SegDataSample
    classes = min(_numbers({key: cfg.model[key] for key in cfg.model if key not in _NO_READERS}, 'num_classes'))
    shape = dict(img_shape=(size, size), ori_shape=(size, size), pad_shape=(size, size))
    return SegDataSample(gt_sem_seg=PixelData(data=_blocks(size, classes, rng)), metainfo=shape)


def _detector_sample(cfg: Config, size: int, rng: np.random.Generator):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    model = cfg.model
    heads = {key: value for key, value in model.items() if key not in _NO_READERS}
    things = _numbers(heads, 'num_things_classes')
    stuff = _numbers(heads, 'num_stuff_classes')
    semantic = [n for where, part in _nodes(model, '') if where.endswith('semantic_head')
                for n in [part.get('num_classes')] if n]
    boxed = {key: value for key, value in heads.items() if key != 'semantic_head'}
    classes = min(things or [n for where, part in _nodes(boxed, '') if not where.endswith('semantic_head')
                             for n in [part.get('num_classes')] if _is_channels(n)] or [1])
    corners = rng.uniform(0, size / 2, (3, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(size / 4, size / 2, (3, 2))], axis=1)
    masks = np.zeros((3, size, size), dtype=np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int)):
        mask[top:bottom, left:right] = 1
    sample = DetDataSample(metainfo=dict(
        img_id=0, img_path='', img_shape=(size, size), ori_shape=(size, size), pad_shape=(size, size),
        scale_factor=(1., 1.), flip=False, flip_direction=None, border=np.array([0, size, 0, size])))
    sample.gt_instances = InstanceData(
        bboxes=torch.from_numpy(boxes).float(), labels=torch.from_numpy(rng.integers(0, classes, 3)))
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    if _loads_masks(cfg):
        sample.gt_instances.masks = BitmapMasks(masks, size, size)
        sample.ignored_instances.masks = BitmapMasks(masks[:0], size, size)
    if not model.get('rpn_head'):
        sample.proposals = InstanceData(bboxes=sample.gt_instances.bboxes.clone(), scores=torch.ones(3))
    if stuff or semantic:
        count = things[0] + stuff[0] if things and stuff else semantic[0]
        sample.gt_sem_seg = PixelData(sem_seg=_blocks(size, count, rng, _semantic_scale(cfg)))
    return sample


def _loads_masks(cfg: Config) -> bool:
    """Whether training data come with masks; some heads take them for a request to learn masks."""
    loaders = [node for _, node in _nodes(cfg.get('train_dataloader') or {}, '')
               if _type_name(node).endswith('Annotations')]
    return not loaders or any(node.get('with_mask', 'Panoptic' in _type_name(node)) for node in loaders)


def _semantic_scale(cfg: Config) -> float:
    """How the training pipeline shrinks label maps before a head sees them."""
    return min([node.get('scale_factor', 1.) for _, node in _nodes(cfg.get('train_dataloader') or {}, '')
                if _type_name(node) == 'SegRescale'], default=1.)
