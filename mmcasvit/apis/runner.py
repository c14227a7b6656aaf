"""mmengine's runner, built from a config."""

import argparse
import importlib
import importlib.util
import os
from pathlib import Path

from mmengine.config import Config
from mmengine.device import is_cuda_available, is_mlu_available, is_musa_available, is_npu_available
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from mmcasvit.datasets.config import data_folders, leaf_datasets
from mmcasvit.models.wrappers import unwrap
from mmcasvit.weights.checkpoint import use_safe_checkpoint_reader

from .preflight import check_channels, check_classes, check_writable


def guard_data(runner: Runner) -> None:
    """Has the data sets of a runner, which are built later, refuse files that annotations name outside of their
    folders, and stop an evaluation with the name of an image that cannot be read.

    The config that the runner kept in its work dir stays as it was: it may be used with data elsewhere.
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


def prepare(cfg: Config, args: argparse.Namespace) -> None:
    """Applies the flags that training and testing have in common, and the project's safe reading of checkpoints."""
    if 'LOCAL_RANK' not in os.environ:
        os.environ['LOCAL_RANK'] = str(args.local_rank)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', Path(args.config).stem)
    check_writable(Path(cfg.work_dir))
    hooks = cfg.get('custom_hooks') or []
    if not any(hook.get('type') == 'mmcasvit.CheckWeightsHook' for hook in hooks):
        cfg.custom_hooks = [*hooks, dict(type='mmcasvit.CheckWeightsHook')]
    use_safe_checkpoint_reader(args.trust_checkpoint)
    backbone = cfg.model.get('backbone') or {}
    if args.trust_checkpoint and backbone.get('type') == 'mmcasvit.CASViT':
        init_cfg = backbone.get('init_cfg') or []
        for part in init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]:
            if part.get('type') == 'Pretrained':
                part.trust = True


def add_tensorboard(cfg: Config) -> None:
    """Has the curves written for TensorBoard too, where it is installed."""
    backends = cfg.get('visualizer', {}).get('vis_backends')
    if backends is None or any(backend.type == 'TensorboardVisBackend' for backend in backends):
        return
    if importlib.util.find_spec('tensorboard') is None:
        print_log('no TensorBoard curves: pip install "mmcasvit[tensorboard]"', logger='current')
        return
    cfg.visualizer.vis_backends = [*backends, dict(type='TensorboardVisBackend')]


def has_accelerator() -> bool:
    """Whether mmengine's automatic mixed precision can run on this machine."""
    return is_cuda_available() or is_npu_available() or is_mlu_available() or is_musa_available()


def build_runner(cfg: Config) -> Runner:
    """Builds mmengine's runner, or the one the config names, and checks what its parts expect of each other.

    Raises:
        UsageError: the backbone's channels are not those of the neck or heads.
    """
    if 'runner_type' in cfg:
        from mmengine.registry import RUNNERS

        runner = RUNNERS.build(cfg)
    else:
        runner = Runner.from_cfg(cfg)
    guard_data(runner)
    if isinstance(runner.model, nn.Module):
        check_channels(unwrap(runner.model))
        check_classes(unwrap(runner.model), cfg)
    return runner
