"""plugin.core"""

import copy
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

from mmcasvit.archs import STRIDES
from mmcasvit.models.casvit import CASViT
from mmcasvit.utils.errors import PlugError, TrialError

from .probe import frozen_world, maps_of, stages_of
from .rewrite import adapt_optimizer, adapt_readers, forget_old_backbone, replace_backbone, use_image_statistics
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
    verify: bool = True,
) -> Config:
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
    new, notes = plug_with_notes(
        cfg,
        arch,
        pretrained=pretrained,
        drop_path_rate=drop_path_rate,
        norm_eval=norm_eval,
        frozen_stages=frozen_stages,
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
    verify: bool = True,
) -> tuple[Config, list[str]]:
    """As :func:`plug`, and the list of changes instead of logging it."""
    old = cfg if isinstance(cfg, Config) else read_config(cfg)
    new = copy.deepcopy(old)
    check_structure(new)
    notes = []
    if drop_path_rate is None:
        drop_path_rate = DROP_PATH.get(arch, 0.0) if isinstance(arch, str) else 0.0
    with frozen_world(framework_of(old)) as models:
        try:
            channels = CASViT(arch, drop_path_rate=drop_path_rate, frozen_stages=frozen_stages).out_channels
        except ValueError as error:
            raise PlugError(str(error)) from error
        old_maps = maps_of(old.model, models, notes)
        stages = stages_of(old_maps, framework_of(old), type_name(old.model.backbone), notes)
        out_indices = adapt_readers(new, old_maps, stages, channels, models, notes)
    replace_backbone(new, arch, out_indices, pretrained, drop_path_rate, norm_eval, frozen_stages)
    notes.insert(
        0,
        f'model.backbone: {type_name(old.model.backbone)} -> CASViT {arch}, stages {out_indices} with '
        f'{tuple(channels[i] for i in out_indices)} channels at strides '
        f'{tuple(STRIDES[i] for i in out_indices)}',
    )
    use_image_statistics(new, notes)
    forget_old_backbone(old, new, notes)
    adapt_optimizer(new, notes)
    if pretrained is None and norm_eval:
        notes.append(
            'no weights given: pass pretrained=, or --pretrained to tools/train.py. To train from random '
            'weights, set model.backbone.norm_eval=False'
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
                f'{error}. A part that reads the backbone was not recognised: override it by hand, '
                'beginning with what verify=False or --no-verify gives',
                error.reason,
            ) from error
        notes.append(
            f'NOT VERIFIED: with its own backbone the model fails in the same way, so it is not for CAS-ViT. {error}'
        )
    else:
        if trial.unused:
            new.find_unused_parameters = True
            notes.append(
                f'find_unused_parameters: True, for {len(trial.unused)} parameters of the backbone that no '
                f'loss reaches, such as {trial.unused[0]}'
            )


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
