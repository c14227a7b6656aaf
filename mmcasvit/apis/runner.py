"""mmengine's runner, built from a config."""

import argparse
import functools
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import mmengine.config.config
import yapf.yapflib.yapf_api
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from mmcasvit.datasets.config import data_folders, leaf_datasets
from mmcasvit.datasets.sources import read_data_as_data
from mmcasvit.engine.console import QuietRunner
from mmcasvit.models.wrappers import unwrap
from mmcasvit.weights.checkpoint import use_safe_checkpoint_reader

from .preflight import check_channels, check_classes, check_launcher, check_schedule, check_writable

# Where mmengine 0.10.12 and 0.10.7 look up the function that formats the text of a config.
_FORMATTERS = (yapf.yapflib.yapf_api, mmengine.config.config)


def prepare(cfg: Config, args: argparse.Namespace) -> None:
    """Apply the arguments that training and testing share, and read checkpoints safely from now on."""
    if 'LOCAL_RANK' not in os.environ:
        os.environ['LOCAL_RANK'] = str(args.local_rank)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', Path(args.config).stem)
    check_writable(Path(cfg.work_dir))
    check_launcher(cfg.launcher)
    check_schedule(cfg)
    cfg.custom_hooks = list(cfg.get('custom_hooks') or [])
    for kind in ('mmcasvit.CheckWeightsHook', 'mmcasvit.EvaluatedImagesHook', 'mmcasvit.RunSummaryHook'):
        if not any(hook.get('type') == kind for hook in cfg.custom_hooks):
            cfg.custom_hooks.append(dict(type=kind))
    use_safe_checkpoint_reader(args.trust_checkpoint)
    read_data_as_data()
    backbone = cfg.model.get('backbone') or {}
    if args.trust_checkpoint and backbone.get('type') == 'mmcasvit.CASViT':
        init_cfg = backbone.get('init_cfg') or []
        for part in init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]:
            if part.get('type') == 'Pretrained':
                part.trust = True


def build_runner(cfg: Config, quiet: bool = False) -> Runner:
    """Build mmengine's runner, or the one that the config names, and check that the parts of its model fit.

    Args:
        cfg: Complete config.
        quiet: Write settings to the log file only, as in :mod:`mmcasvit.engine.console`. A runner that the config
            names is left as it is.

    Raises:
        UsageError: If the channels of the backbone do not fit the neck or heads, or the classes do not fit the data.
    """
    _format_configs_once()
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else (QuietRunner if quiet else Runner).from_cfg(cfg)
    _guard_data(runner)
    if isinstance(runner.model, nn.Module):
        check_channels(unwrap(runner.model))
        check_classes(unwrap(runner.model), cfg)
    _freeze_once()
    return runner


@functools.cache
def _freeze_once() -> None:
    """Leave all that was imported out of collections, which mmengine asks for whenever it builds a dataset."""
    gc.freeze()


def _format_configs_once() -> None:
    """Keep the formatted text of a config.

    mmengine formats it for the log, the work dir, each tracker, and each checkpoint, which takes a second each time.
    """
    for module in _FORMATTERS:
        function = getattr(module, 'FormatCode', None)
        if function and not hasattr(function, '__wrapped__'):
            module.FormatCode = _remembering(function)


@contextmanager
def configs_unformatted() -> Iterator[None]:
    """Leave the texts of configs as they are inside the context, for runs whose files nobody reads."""
    kept = {module: module.FormatCode for module in _FORMATTERS if hasattr(module, 'FormatCode')}
    try:
        for module in kept:
            module.FormatCode = lambda text, **options: (text, True)
        yield
    finally:
        for module, function in kept.items():
            module.FormatCode = function


def _remembering(format_code: Callable) -> Callable:
    texts = {}

    @functools.wraps(format_code)
    def remembered(text: str, **options) -> tuple[str, bool]:
        key = text, repr(options)
        if key not in texts:
            if len(texts) == 4:  # a run has one config or two
                texts.clear()
            texts[key] = format_code(text, **options)
        return texts[key]

    return remembered


def _guard_data(runner: Runner) -> None:
    """Make the datasets of a runner, which are built later, check the files that they read.

    They refuse files outside their folders, and stop an evaluation with the name of an image that cannot be read. The
    config in the work dir is not changed, since it may be used with data elsewhere.
    """
    for split in ('train', 'val', 'test'):
        loader = getattr(runner, f'_{split}_dataloader', None)
        for dataset in leaf_datasets(loader['dataset']) if isinstance(loader, dict) else ():
            steps, folders = list(dataset.get('pipeline') or []), data_folders(dataset)
            if steps and split != 'train' and str(steps[0].get('type')).endswith('LoadImageFromFile'):
                steps[0] = dict(type='mmcasvit.SkipUnreadable', transforms=steps[:1], limit=0)
            if steps and folders:
                steps.insert(0, dict(type='mmcasvit.StayInFolders', folders=folders))
            dataset['pipeline'] = steps
