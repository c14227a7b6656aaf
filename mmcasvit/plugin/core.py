"""The function ``plug``: replaces the backbone of a config, step by step."""

import copy
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

from mmcasvit.archs import STRIDES
from mmcasvit.models.casvit import CASViT
from mmcasvit.utils.errors import PlugError, TrialError

from .probe import assign_stages, backbone_outputs, isolated_registry
from .rewrite import (
    adapt_optimizer,
    adapt_readers,
    remove_old_weights_and_imports,
    replace_backbone,
    use_image_statistics,
)
from .safety import add_safety
from .source import check_structure, framework_of, read_config, type_name
from .trial import try_out

# As in the published recipes.
DROP_PATH = dict(m=0.1, t=0.1, l=0.1)


def plug(
    cfg: str | Path | Config,
    arch: str | dict = 'm',
    *,
    pretrained: str | Path | None = None,
    drop_path_rate: float | None = None,
    norm_eval: bool = True,
    frozen_stages: int = -1,
    safe: bool = False,
    verify: bool = True,
) -> Config:
    """Return a copy of a config of mmdet or mmseg with CAS-ViT as its backbone, and necks and heads that fit it.

    Each reader of a map of the old backbone gets the stage of CAS-ViT with the same stride. In a segmentor with a
    dilated backbone, whose last map has a stride below 32, stages are assigned in order: the last stage goes to the
    reader of the last map. Stages without a reader are left out of ``out_indices``.

    Settings that belong only to the old backbone are removed: its weights, ``load_from`` (set to None), optimizer
    entries for its layers, layer-wise learning rates. Image statistics become those of the ImageNet weights.
    Optimizer, schedule and data stay. Every change is logged.

    Args:
        cfg: A config, its path, or its name in an installed package, such as
            ``'mmdet::atss/atss_r50_fpn_1x_coco.py'``. It is not changed.
        arch: As in :class:`mmcasvit.CASViT`.
        pretrained: File, URL or name (such as ``m``) of ImageNet weights for the backbone.
        drop_path_rate: As in :class:`mmcasvit.CASViT`. None selects that of the published recipes: 0.1 for m, t and
            l, 0 for xs and s.
        norm_eval: Keep the backbone's BatchNorms in eval mode, as in the published recipes. Use False to train from
            random weights.
        frozen_stages: As in :class:`mmcasvit.CASViT`.
        safe: Add what our recipes have, see :func:`~mmcasvit.plugin.safety.add_safety`. Without it, what is missing is
            logged.
        verify: Try the result, see :func:`mmcasvit.plugin.try_out`. This also loads ``pretrained``.

    Raises:
        PlugError: CAS-ViT does not fit, or an argument is out of range. The message says why and what to do.
        TrialError: CAS-ViT seems to fit, but the trial fails.
        WeightsError: ``pretrained`` does not fit the arch.
    """
    new, notes = plug_with_notes(
        cfg,
        arch,
        pretrained=pretrained,
        drop_path_rate=drop_path_rate,
        norm_eval=norm_eval,
        frozen_stages=frozen_stages,
        safe=safe,
        verify=verify,
    )
    print_log('\n  '.join(['CAS-ViT plugged in:', *notes]), logger='current')
    return new


def plug_with_notes(
    cfg: str | Path | Config,
    arch: str | dict = 'm',
    *,
    pretrained: str | Path | None = None,
    drop_path_rate: float | None = None,
    norm_eval: bool = True,
    frozen_stages: int = -1,
    safe: bool = False,
    verify: bool = True,
) -> tuple[Config, list[str]]:
    """Return the result of :func:`plug` and the list of changes, without logging them."""
    old = cfg if isinstance(cfg, Config) else read_config(cfg)
    new = copy.deepcopy(old)
    check_structure(new)
    notes = []
    if drop_path_rate is None:
        drop_path_rate = DROP_PATH.get(arch, 0.0) if isinstance(arch, str) else 0.0
    with isolated_registry(framework_of(old)) as models:
        try:
            channels = CASViT(arch, drop_path_rate=drop_path_rate, frozen_stages=frozen_stages).out_channels
        except ValueError as error:
            raise PlugError(str(error)) from error
        old_maps = backbone_outputs(old.model, models, notes)
        stages = assign_stages(old_maps, framework_of(old), type_name(old.model.backbone), notes)
        out_indices = adapt_readers(new, old_maps, stages, channels, models, notes)
    replace_backbone(new, arch, out_indices, pretrained, drop_path_rate, norm_eval, frozen_stages)
    notes.insert(
        0,
        f'model.backbone: {type_name(old.model.backbone)} -> CASViT {arch}, stages {out_indices} with '
        f'{tuple(channels[i] for i in out_indices)} channels at strides {tuple(STRIDES[i] for i in out_indices)}',
    )
    use_image_statistics(new, notes)
    remove_old_weights_and_imports(old, new, notes)
    adapt_optimizer(new, notes)
    missing = add_safety(new if safe else copy.deepcopy(new))
    if missing:
        notes.append(f'added: {", ".join(missing)}' if safe else f'missing: {", ".join(missing)}. --safe adds them')
    if pretrained is None and norm_eval:
        notes.append(
            'no weights given: pass pretrained=, or --pretrained to tools/train.py. To train from random weights, set '
            'model.backbone.norm_eval=False'
        )
    if verify:
        _verify(old, new, notes)
    return new, notes


def _verify(old: Config, new: Config, notes: list[str]) -> None:
    try:
        trial = try_out(new)
    except TrialError as error:
        if not _fails_alike(old, error):
            raise TrialError(
                error.stage,
                f'{error}. A part that reads the backbone was not recognized. Override it by hand, starting from the '
                'result of verify=False or --no-verify',
                error.reason,
            ) from error
        notes.append(
            f'NOT VERIFIED: the model fails in the same way with its own backbone, so CAS-ViT is not the cause. {error}'
        )
    else:
        notes.append('verified: the model was built, took a training step, and predicted, on random images')
        if trial.unused:
            new.find_unused_parameters = True
            notes.append(
                f'find_unused_parameters: True, since {len(trial.unused)} parameters of the backbone get no gradient, '
                f'such as {trial.unused[0]}'
            )


def _fails_alike(old: Config, error: TrialError) -> bool:
    """Return True if the old config fails at the same stage for the same reason."""
    old = copy.deepcopy(old)
    old.model.backbone.pop('init_cfg', None)
    if 'pretrained' in old.model:
        old.model.pretrained = None
    try:
        try_out(old)
    except PlugError as failure:
        return isinstance(failure, TrialError) and (failure.stage, failure.reason) == (error.stage, error.reason)
    return False
