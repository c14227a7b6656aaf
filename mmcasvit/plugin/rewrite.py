"""Changes to a config: readers, backbone, image statistics, weights and imports, optimizer.

``notes`` is the list of changes, to which every function appends.
"""

import copy
from collections.abc import Sequence

from mmengine.config import Config, ConfigDict
from mmengine.registry import Registry

from mmcasvit.archs import STRIDES
from mmcasvit.utils.errors import PlugError, TrialError

from .probe import FeatureMap, lacks_operator, neck_outputs
from .readers import Reader, head_readers, neck_reader, parts_of, trim_neck, update_passed_channels
from .source import framework_of, nodes, shorten_error, type_name
from .trial import count_parameters

# The statistics that the authors' ImageNet weights were trained with, in RGB, as in torchvision.
IMAGE_STATISTICS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
# Arguments of optimizer constructors with layer-wise learning rates, which know only the layers of their own backbones.
_LAYER_DECAY_KEYS = ('decay_rate', 'decay_type', 'layer_decay_rate', 'num_layers')


def adapt_readers(
    cfg: Config,
    old_maps: list[FeatureMap],
    stages: list[int | None],
    channels: Sequence[int],
    models: Registry,
    notes: list[str],
) -> tuple[int, ...]:
    """Fit necks and heads of a config, in place, to CAS-ViT, and return its ``out_indices``.

    Args:
        old_maps: The outputs of the old backbone.
        stages: The stage of CAS-ViT that replaces each of them.
        channels: The channels of the four stages.

    Raises:
        PlugError: A reader cannot be fitted.
    """
    model, framework = cfg.model, framework_of(cfg)
    necks = parts_of(model.get('neck'), 'model.neck')
    old_necks = copy.deepcopy([neck for _, neck in necks])
    if necks:
        readers = [neck_reader(necks[0][1], necks[0][0], old_maps)]
        kept = [stage for i in readers[0].indices if (stage := stages[i]) is not None]
        if len(kept) == len(readers[0].indices):
            new_maps = [FeatureMap(channels[stage], STRIDES[stage]) for stage in kept]
            trim_neck(readers[0], new_maps, models, notes)
    else:
        readers = head_readers(model, old_maps, framework)
        if not readers:
            raise PlugError(
                f'nothing in {type_name(model)} names the channels of the backbone '
                f'({[m.channels for m in old_maps]}) as in_channels, so there is nothing to fit'
            )
    read = {i for reader in readers for i in reader.indices}
    outside = [old_maps[i].stride for i in sorted(read) if stages[i] is None]
    if outside:
        raise PlugError(
            f'{readers[0].where} reads a map of stride {outside[0]}, but CAS-ViT has strides 4, 8, 16 and 32. Use a '
            'config that reads no other stride'
        )

    wanted = [{i: stage for i in reader.indices if (stage := stages[i]) is not None} for reader in readers]
    if framework == 'mmseg' and isinstance(model.get('decode_head'), (list, tuple)) and not necks:
        _align_cascade(readers, wanted, old_maps, notes)
    out_indices = tuple(sorted({stage for stages_of_reader in wanted for stage in stages_of_reader.values()}))
    maps = [FeatureMap(channels[i], STRIDES[i]) for i in out_indices]
    for reader, stages_of_reader in zip(readers, wanted):
        reader.write(maps, {i: out_indices.index(stage) for i, stage in stages_of_reader.items()}, notes)
        if necks:
            update_passed_channels(reader, [old_maps[i].channels for i in reader.indices], notes)

    # A neck that returns some of its inputs changes what the next part reads.
    for position, (where, neck) in enumerate(necks):
        if position:
            neck_reader(neck, where, old_maps).write(maps, {i: i for i in range(len(maps))}, notes)
        old_maps, maps = _through_neck(models, old_necks[position], neck, where, old_maps, maps)
        if [m.channels for m in old_maps] == [m.channels for m in maps]:
            return out_indices
        if len(old_maps) != len(maps):
            raise PlugError(
                f'{where} outputs {len(maps)} maps with CAS-ViT and {len(old_maps)} with the old backbone, so its '
                'readers cannot be fitted'
            )
    if necks:
        for reader in head_readers(model, old_maps, framework):
            reader.write(maps, {i: i for i in range(len(maps))}, notes)
    return out_indices


def _align_cascade(
    readers: Sequence[Reader], wanted: Sequence[dict[int, int]], old_maps: Sequence[FeatureMap], notes: list[str]
) -> None:
    """Assign one stage to all heads of a cascade that read maps of one size, since they combine them."""
    cascade = [place for place, reader in enumerate(readers) if reader.where.startswith('model.decode_head[')]
    deepest = {}
    for place in cascade:
        for i, stage in wanted[place].items():
            deepest[old_maps[i].stride] = max(stage, deepest.get(old_maps[i].stride, 0))
    for place in cascade:
        if len({old_maps[i].stride for i in wanted[place]}) < len(wanted[place]):
            continue  # it resizes its maps to one size itself
        for i, stage in wanted[place].items():
            if stage != deepest[old_maps[i].stride]:
                wanted[place][i] = deepest[old_maps[i].stride]
                notes.append(
                    f'{readers[place].where} reads the same stage as the rest of the cascade, since their maps must '
                    'have one size'
                )


def _through_neck(
    models: Registry,
    old_neck: ConfigDict,
    new_neck: ConfigDict,
    where: str,
    old_maps: Sequence[FeatureMap],
    maps: Sequence[FeatureMap],
) -> tuple[list[FeatureMap], list[FeatureMap]]:
    """Return the outputs of a neck in the old config and in the new one, both empty if it cannot run here."""
    try:
        after = neck_outputs(models, new_neck, maps)
    except Exception as error:
        if lacks_operator(error):
            return [], []  # the trial finds errors where the operator exists
        raise PlugError(
            f'{where} ({type_name(new_neck)}) does not work with maps of {[m.channels for m in maps]} channels at '
            f'strides {[m.stride for m in maps]}: {shorten_error(error)}. Use another neck, such as FPN'
        ) from error
    before = neck_outputs(models, old_neck, old_maps)
    if before is None or after is None:
        raise PlugError(f'{where} ({type_name(new_neck)}) does not return a tuple of maps (N, C, H, W)')
    return before, after


def replace_backbone(
    cfg: Config, arch: str | dict, out_indices, pretrained, drop_path_rate: float, norm_eval: bool, frozen_stages: int
) -> None:
    """Write CAS-ViT into a config."""
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
    """Set mean, std and channel order to those of the ImageNet weights."""
    if cfg.model.backbone.get('in_channels', 3) != 3:
        notes.append('images are not RGB: their mean and std stay as they were')
        return
    # Many configs have a second data_preprocessor at the top level, which is used if the model has none.
    preprocessors = [part for part in (cfg.get('data_preprocessor'), cfg.model.get('data_preprocessor')) if part]
    changed = [
        key
        for key, value in IMAGE_STATISTICS.items()
        if any(not _same_statistic(part.get(key), value) for part in preprocessors)
    ]
    for preprocessor in preprocessors:
        preprocessor.update({key: copy.deepcopy(IMAGE_STATISTICS[key]) for key in changed})
        preprocessor.pop('rgb_to_bgr', None)
    if changed:
        notes.append(f'data_preprocessor: {", ".join(changed)} set to those of the ImageNet weights')


def _same_statistic(a, b) -> bool:
    if isinstance(b, bool):
        return a is b
    return isinstance(a, (list, tuple)) and list(a) == list(b)


def remove_old_weights_and_imports(old: Config, new: Config, notes: list[str]) -> None:
    """Remove weights of the old backbone or model, and imports that only the old backbone needed."""
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
        notes.append('model.init_cfg: removed, since it loaded the old model')
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
    scope, dot, _ = type_name(backbone).partition('.')
    still_used = any(type_name(node).startswith(f'{scope}.') for _, node in nodes(new.to_dict(), ''))
    if dot and not still_used:
        modules = [name for name in modules if name.partition('.')[0] != scope]
    if 'mmcasvit' not in modules:
        modules.append('mmcasvit')
    new.custom_imports = {**imports, 'imports': modules}


def adapt_optimizer(cfg: Config, notes: list[str]) -> None:
    """Remove learning rates and weight decays of layers that only the old backbone has."""
    wrapper = cfg.get('optim_wrapper')
    if not isinstance(wrapper, dict):
        return
    paramwise = wrapper.get('paramwise_cfg') or {}
    if 'constructor' in wrapper and any(key in paramwise for key in _LAYER_DECAY_KEYS):
        notes.append(
            f'optim_wrapper.constructor: {wrapper["constructor"]} removed, since it sets learning rates for the layers '
            'of its own backbones; norms and biases stay without weight decay'
        )
        del wrapper['constructor']
        kept = {key: value for key, value in paramwise.items() if key not in _LAYER_DECAY_KEYS}
        wrapper['paramwise_cfg'] = ConfigDict(norm_decay_mult=0.0, bias_decay_mult=0.0, **kept)
    custom_keys = (wrapper.get('paramwise_cfg') or {}).get('custom_keys')
    if custom_keys:
        _drop_custom_keys(custom_keys, cfg, notes)
    optimizer = wrapper.get('optimizer') or {}
    if type_name(optimizer) == 'SGD':
        notes.append(
            f'the optimizer stays SGD with lr {optimizer.get("lr")}; the published recipes of CAS-ViT train with '
            'AdamW, lr 2e-4, weight decay 1e-4'
        )


def _drop_custom_keys(custom_keys: ConfigDict, cfg: Config, notes: list[str]) -> None:
    try:
        parameters = count_parameters(cfg)
    except TrialError as error:
        notes.append(f'optim_wrapper.paramwise_cfg.custom_keys: not compared with the new layers. {error}')
        return
    dropped = [key for key in custom_keys if not any(key in name for name in parameters)]
    for key in dropped:
        del custom_keys[key]
    if dropped:
        some = ', '.join(dropped[:4]) + (f' and {len(dropped) - 4} more' if len(dropped) > 4 else '')
        notes.append(f'optim_wrapper.paramwise_cfg.custom_keys: {some} removed, since no parameter has these names')
