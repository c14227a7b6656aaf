"""The changes to a config that CAS-ViT needs."""

import copy
from collections.abc import Sequence

from mmengine.config import Config, ConfigDict

from mmcasvit.archs import STRIDES
from mmcasvit.utils.errors import PlugError, TrialError

from .probe import FeatureMap, lacks_operator, neck_outputs
from .readers import Reader, head_readers, neck_reader, pass_through, trim_neck
from .source import framework_of, nodes, shortened, type_name
from .trial import count_parameters

# The statistics that the authors' ImageNet weights were trained with: RGB, as torchvision's.
IMAGE_STATISTICS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
# What optimizer constructors with a learning rate per layer take; they know the layers of their own backbones alone.
_LAYER_DECAY_KEYS = ('decay_rate', 'decay_type', 'layer_decay_rate', 'num_layers')


def adapt_readers(
    new: Config, old_maps: list[FeatureMap], stages: list[int | None], channels: Sequence[int], models, notes: list[str]
) -> tuple[int, ...]:
    """Fits necks and heads of the new config to CAS-ViT and returns its ``out_indices``."""
    model, framework = new.model, framework_of(new)
    neck = model.get('neck')
    chain = (
        [('model.neck', neck)]
        if isinstance(neck, dict)
        else [(f'model.neck[{i}]', part) for i, part in enumerate(neck or ())]
    )
    old_chain = copy.deepcopy([part for _, part in chain])
    if chain:
        readers = [neck_reader(chain[0][1], chain[0][0], old_maps)]
        if all(stages[i] is not None for i in readers[0].indices):
            new_maps = [FeatureMap(channels[stages[i]], STRIDES[stages[i]]) for i in readers[0].indices]
            trim_neck(readers[0], new_maps, models, notes)
    else:
        readers = head_readers(model, old_maps, framework)
        if not readers:
            raise PlugError(
                f'nothing in {type_name(model)} names the channels of the backbone '
                f'({[m.channels for m in old_maps]}) as in_channels, so nothing could be fitted'
            )
    read = {i for reader in readers for i in reader.indices}
    outside = [old_maps[i].stride for i in sorted(read) if stages[i] is None]
    if outside:
        raise PlugError(
            f'{readers[0].where} reads a map of stride {outside[0]}; CAS-ViT gives strides 4, 8, 16, 32. '
            'Take a config that reads no other'
        )

    wanted = [{i: stages[i] for i in reader.indices} for reader in readers]
    if framework == 'mmseg' and isinstance(model.get('decode_head'), (list, tuple)) and not chain:
        _keep_cascade_aligned(readers, wanted, old_maps, notes)
    out_indices = tuple(sorted({stage for stages_of_reader in wanted for stage in stages_of_reader.values()}))
    maps = [FeatureMap(channels[i], STRIDES[i]) for i in out_indices]
    for reader, stages_of_reader in zip(readers, wanted):
        reader.write(maps, {i: out_indices.index(stage) for i, stage in stages_of_reader.items()}, notes)
        if chain:
            pass_through(reader, [old_maps[i].channels for i in reader.indices], notes)

    # A neck that hands on what it reads changes what is behind it.
    for position, (where, part) in enumerate(chain):
        if position:
            neck_reader(part, where, old_maps).write(maps, {i: i for i in range(len(maps))}, notes)
        old_maps, maps = _through_neck(models, old_chain[position], part, where, old_maps, maps)
        if [m.channels for m in old_maps] == [m.channels for m in maps]:
            return out_indices
        if len(old_maps) != len(maps):
            raise PlugError(
                f'{where} gave {len(old_maps)} maps and gives {len(maps)} behind CAS-ViT; its readers cannot be fitted'
            )
    if chain:
        for reader in head_readers(model, old_maps, framework):
            reader.write(maps, {i: i for i in range(len(maps))}, notes)
    return out_indices


def _keep_cascade_aligned(
    readers: Sequence[Reader], wanted: Sequence[dict[int, int]], old_maps: Sequence[FeatureMap], notes: list[str]
) -> None:
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
                notes.append(
                    f'{readers[place].where} reads the same stage as the rest of the cascade, since their '
                    'maps have to be of one size'
                )


def _through_neck(
    models,
    old_neck: ConfigDict,
    new_neck: ConfigDict,
    where: str,
    old_maps: Sequence[FeatureMap],
    maps: Sequence[FeatureMap],
) -> tuple[list[FeatureMap], list[FeatureMap]]:
    """The maps behind a neck, of the old config and of the new one."""
    try:
        after = neck_outputs(models, new_neck, maps)
    except Exception as error:
        if lacks_operator(error):
            return [], []  # not known here; the trial runs where the operator does
        raise PlugError(
            f'{where} ({type_name(new_neck)}) does not work with maps of {[m.channels for m in maps]} '
            f'channels at strides {[m.stride for m in maps]}: {shortened(error)}. Replace it by another '
            'neck, such as FPN'
        ) from error
    before = neck_outputs(models, old_neck, old_maps)
    if before is None or after is None:
        raise PlugError(f'{where} ({type_name(new_neck)}) does not return a tuple of maps (N, C, H, W)')
    return before, after


def replace_backbone(cfg: Config, arch, out_indices, pretrained, drop_path_rate, norm_eval, frozen_stages) -> None:
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


def use_image_statistics(cfg: Config, notes: list[str]) -> None:
    """Sets mean, std and channel order to those of the ImageNet weights."""
    if cfg.model.backbone.get('in_channels', 3) != 3:
        notes.append('images are not RGB: their mean and std stay as they were')
        return
    # Many configs keep a second one at the top level, which counts where the model has none.
    preprocessors = [part for part in (cfg.get('data_preprocessor'), cfg.model.get('data_preprocessor')) if part]
    changed = [
        key
        for key, value in IMAGE_STATISTICS.items()
        if any(not _same_numbers(part.get(key), value) for part in preprocessors)
    ]
    for preprocessor in preprocessors:
        preprocessor.update({key: copy.deepcopy(IMAGE_STATISTICS[key]) for key in changed})
        preprocessor.pop('rgb_to_bgr', None)
    if changed:
        notes.append(f'data_preprocessor: {", ".join(changed)} set to those of the ImageNet weights')


def _same_numbers(a, b) -> bool:
    if isinstance(b, bool):
        return a is b
    return isinstance(a, (list, tuple)) and list(a) == list(b)


def forget_old_backbone(old: Config, new: Config, notes: list[str]) -> None:
    """Removes weights of the old backbone, and of the whole old model, and imports that only it needed."""
    backbone = old.model.backbone
    init_cfg = backbone.get('init_cfg') or {}
    init_cfgs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    weights = {
        old.model.get('pretrained'),
        backbone.get('pretrained'),
        *(cfg.get('checkpoint') for cfg in init_cfgs),
    } - {None}
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
    scope = type_name(backbone).partition('.')[0] if '.' in type_name(backbone) else None
    still_used = any(type_name(node).startswith(f'{scope}.') for _, node in nodes(new.to_dict(), ''))
    if scope is not None and not still_used:
        modules = [name for name in modules if name.partition('.')[0] != scope]
    if 'mmcasvit' not in modules:
        modules.append('mmcasvit')
    new.custom_imports = {**imports, 'imports': modules}


def adapt_optimizer(new: Config, notes: list[str]) -> None:
    """Removes learning rates and decays of layers that only the old backbone has."""
    wrapper = new.get('optim_wrapper')
    if not isinstance(wrapper, dict):
        return
    paramwise = wrapper.get('paramwise_cfg') or {}
    if 'constructor' in wrapper and any(key in paramwise for key in _LAYER_DECAY_KEYS):
        notes.append(
            f'optim_wrapper.constructor: {wrapper.constructor} removed, it gives each layer of its own '
            'backbones a learning rate; norms and biases stay without weight decay'
        )
        del wrapper['constructor']
        kept = {key: value for key, value in paramwise.items() if key not in _LAYER_DECAY_KEYS}
        wrapper.paramwise_cfg = ConfigDict(norm_decay_mult=0.0, bias_decay_mult=0.0, **kept)
    custom_keys = (wrapper.get('paramwise_cfg') or {}).get('custom_keys')
    if custom_keys:
        _drop_custom_keys(custom_keys, new, notes)
    optimizer = wrapper.get('optimizer') or {}
    if type_name(optimizer) == 'SGD':
        notes.append(
            f'the optimizer stays SGD with lr {optimizer.get("lr")}; the published recipes of CAS-ViT train '
            'with AdamW, lr 2e-4, weight decay 1e-4'
        )


def _drop_custom_keys(custom_keys: ConfigDict, new: Config, notes: list[str]) -> None:
    try:
        parameters = count_parameters(new)
    except TrialError as error:
        notes.append(f'optim_wrapper.paramwise_cfg.custom_keys: not compared with the new layers. {error}')
        return
    dropped = [key for key in custom_keys if not any(key in name for name in parameters)]
    for key in dropped:
        del custom_keys[key]
    if dropped:
        some = ', '.join(dropped[:4]) + (f' and {len(dropped) - 4} more' if len(dropped) > 4 else '')
        notes.append(f'optim_wrapper.paramwise_cfg.custom_keys: {some} removed, no such parameters any more')
