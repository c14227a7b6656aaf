"""What our recipes have and other configs lack: runs that lose nothing and stop where they cannot continue."""

from mmengine.config import Config, ConfigDict

from mmcasvit.apis.preflight import metric_names
from mmcasvit.datasets.config import leaf_datasets

from .source import type_name

_LOOPS = dict(EpochBasedTrainLoop='mmcasvit.ResumableEpochLoop', IterBasedTrainLoop='mmcasvit.ResumableIterLoop')
_HOOKS = {
    'mmcasvit.CheckWeightsHook': 'checks of loaded weights',
    'mmcasvit.SkippedFilesHook': 'the list of skipped files',
    'mmcasvit.StopOnInvalidLossHook': 'the stop at a NaN or infinite loss',
    'mmcasvit.StageHealthHook': 'warnings of stages that die',
    'mmcasvit.ReportHook': 'report.html',
}


def add_safety(cfg: Config) -> list[str]:
    """Add to a config, in place, what our recipes have, and return what was missing.

    These are the checkpoints that are verified, the best of them, the loop that resumes exactly, hooks, and the
    transform that skips unreadable training images. Settings that the config has stay.
    """
    missing = []
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    checkpoint = hooks.get('checkpoint') or ConfigDict(interval=1)
    if type_name(checkpoint) != 'mmcasvit.CheckpointHook':
        checkpoint.type = 'mmcasvit.CheckpointHook'
        missing.append('verified checkpoints')
    if not checkpoint.get('save_best') and cfg.get('val_evaluator'):
        known = metric_names(cfg.val_evaluator) if isinstance(cfg.val_evaluator, dict) else set()
        best = [name for name in sorted(known) if name == 'mIoU' or name.endswith('_mAP')]  # boxes before masks
        checkpoint.update(save_best=best[0] if best else 'auto', rule='greater')
        missing.append(f'save_best ({checkpoint.save_best})')
    hooks.checkpoint = checkpoint
    if _use_resumable_loop(cfg):
        missing.append('exact resume')
    if sum([_skip_unreadable(part) for part in _with_pipelines(cfg)]):
        missing.append('skipping of unreadable images')
    present = [type_name(hook) for hook in cfg.get('custom_hooks') or ()]
    cfg.custom_hooks = list(cfg.get('custom_hooks') or ()) + [dict(type=kind) for kind in _HOOKS if kind not in present]
    return missing + [text for kind, text in _HOOKS.items() if kind not in present]


def _use_resumable_loop(cfg: Config) -> bool:
    loop = cfg.get('train_cfg')
    if not loop:
        return False
    by_epoch = loop.pop('by_epoch', None)  # another way of mmengine to name a loop
    kind = type_name(loop) if 'type' in loop else 'EpochBasedTrainLoop' if by_epoch else 'IterBasedTrainLoop'
    if kind in _LOOPS:
        loop.type = _LOOPS[kind]
    return kind in _LOOPS


def _with_pipelines(cfg: Config) -> list[tuple[ConfigDict, str]]:
    """Return the parts of a config that load training images, each with the key of its pipeline."""
    loader = cfg.get('train_dataloader')
    datasets = list(leaf_datasets(loader.dataset)) if loader and loader.get('dataset') else []
    switches = [hook for hook in cfg.get('custom_hooks') or () if hook.get('switch_pipeline')]
    return [(part, 'pipeline') for part in datasets] + [(part, 'switch_pipeline') for part in switches]


def _skip_unreadable(part: tuple[ConfigDict, str]) -> bool:
    """Put the steps that read files, with which a pipeline starts, into one that skips those it cannot read."""
    node, key = part
    steps = list(node.get(key) or ())
    names = [type_name(step).rpartition('.')[2] for step in steps]
    if not names or names[0] != 'LoadImageFromFile':
        return False
    count = next(
        (i for i, name in enumerate(names) if name not in ('LoadImageFromFile', 'LoadAnnotations')), len(names)
    )
    node[key] = [dict(type='mmcasvit.SkipUnreadable', transforms=steps[:count]), *steps[count:]]
    return True
