"""Checks before a run starts: data, folders, channels, classes, initial weights and images."""

import difflib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from torch import nn

from mmcasvit.datasets.config import (
    annotation_file,
    category_name_fault,
    category_order_fault,
    class_names,
    dataset_type,
    leaf_datasets,
    read_categories,
    reads_annotations_as,
    zero_label_fault,
)
from mmcasvit.datasets.sources import check_listed, check_sources
from mmcasvit.models.casvit import CASViT
from mmcasvit.models.deploy import is_deployable
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.images import open_image
from mmcasvit.utils.text import shorten


def _datasets_of(cfg: Config, splits: Sequence[str]) -> Iterator[tuple[str, ConfigDict]]:
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        yield from ((split, dataset) for dataset in (leaf_datasets(loader.dataset) if loader else ()))


def check_data(cfg: Config, *splits: str, move: str = '--cfg-options data_root=DIR') -> None:
    """Check that the files and folders of the datasets of some splits exist, and that their categories fit.

    Args:
        cfg: A whole config.
        splits: Some of ``'train'``, ``'val'`` and ``'test'``.
        move: Option of the command line that says where the data is.

    Raises:
        UsageError: If data is missing (the message says what, where, and how to get it), if annotations are a pickle,
            if a list names files outside the folders of its dataset, if ``reduce_zero_label`` differs between a dataset
            and its pipeline, or if the categories of a COCO file are not the classes of the config in the same order.
    """
    for split, dataset in _datasets_of(cfg, splits):
        if dataset.get('backend_args'):
            continue  # not on a local disk
        root = dataset.get('data_root') or ''
        prefixes = dataset.get('data_prefix', {})
        parts = [dataset.get('ann_file', ''), *(prefixes.values() if isinstance(prefixes, dict) else [prefixes])]
        for part in parts:
            path = Path(root, part) if part else Path(root)
            if not path.exists():
                raise UsageError(
                    f'data of the {split} split not found: {path.absolute()}. {_how_to_get(dataset, move)}'
                )
        check_sources(dataset, f'the {split} split')
        check_listed(dataset, dataset_type(dataset, cfg.default_scope), f'the {split} split')
        _check_zero_label(dataset, cfg.default_scope, split)
        _check_categories(dataset, cfg.default_scope)


def _check_zero_label(dataset: ConfigDict, scope: str, split: str) -> None:
    if fault := zero_label_fault(dataset, dataset_type(dataset, scope), scope):
        raise UsageError(f'the {split} split: {fault}')


def _check_categories(dataset: ConfigDict, scope: str) -> None:
    if reads_annotations_as(dataset_type(dataset, scope), scope) != 'coco':
        return
    file = annotation_file(dataset)
    in_file, classes = read_categories(file), class_names(dataset, scope)
    if in_file is None:
        raise UsageError(f'{file} is not a COCO annotation file: it has no list of categories.')
    if fault := category_name_fault(in_file, classes):
        raise UsageError(f'the categories of {file} cannot be used: {fault}.')
    missing = [name for name in classes if name not in in_file]
    if missing:
        raise UsageError(
            f'{file} lacks classes of the config as categories: {shorten(map(repr, missing))}. It has '
            f'{shorten(map(repr, in_file))}. Give the names as metainfo=dict(classes=(...)).'
        )
    if fault := category_order_fault(in_file, classes):
        raise UsageError(
            f'the categories of {file} are in another order than the classes of the config: {fault}. '
            'tools/check_dataset.py --fix writes a file in the order of the config.'
        )


def _how_to_get(dataset: ConfigDict, move: str) -> str:
    if 'shapes' in Path(dataset.get('data_root') or '').parts:
        return 'Create it: python tools/make_dataset.py'
    sources = dict(
        CocoDataset='Download the 2017 train and val images and annotations from cocodataset.org and unpack them so '
        'that it contains annotations/, train2017/ and val2017/',
        ADE20KDataset='Download ADEChallengeData2016.zip from sceneparsing.csail.mit.edu and unpack it so that it '
        'contains images/ and annotations/',
        ImageNet='Download the train and val images of ILSVRC2012 from image-net.org and unpack them so that it '
        'contains train/ and val/, each with one folder per class',
    )
    advice = sources.get(dataset.get('type'), 'Put the data there')
    return f'{advice}, or say where it is: {move}'


def check_writable(folder: Path) -> None:
    """Check that a folder can be created, or written to if it exists, and that its name can be logged.

    Raises:
        UsageError: If it cannot.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f'the name of the folder {str(folder)!a} is not valid UTF-8. Choose another one.') from error
    present = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not present.is_dir():
        raise UsageError(f'{folder.absolute()} cannot be a folder: {present} is a file.')
    if not os.access(present, os.W_OK | os.X_OK):
        raise UsageError(f'{folder.absolute()} is not writable.')


# The variables that each launcher sets in the processes that it starts.
_LAUNCHERS = dict(
    pytorch=('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'),
    slurm=('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST'),
    mpi=('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
)


def check_launcher(launcher: str) -> None:
    """Check that the launcher of a distributed run has started this process.

    Raises:
        UsageError: If a variable that it sets is missing.
    """
    missing = [name for name in _LAUNCHERS.get(launcher, ()) if name not in os.environ]
    if missing:
        how = dict(pytorch='torchrun', slurm='srun', mpi='mpirun')[launcher]
        raise UsageError(
            f'--launcher {launcher}: {", ".join(missing)} not set. Start the processes with {how}, or leave out '
            '--launcher.'
        )


# The names that the metrics of an evaluator measure, where they are known before the first evaluation.
_COCO_METRICS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
_IOU_METRICS = dict(mIoU=('mIoU', 'mAcc'), mDice=('mDice', 'mAcc'), mFscore=('mFscore', 'mPrecision', 'mRecall'))


def _as_list(value: Any) -> list:
    return [value] if isinstance(value, str) else list(value or ())


def metric_names(evaluator: dict) -> set[str]:
    """Return the names that ``CocoMetric`` or ``IoUMetric`` gives to its values, and nothing for other metrics.

    Raises:
        UsageError: If ``IoUMetric`` is asked for a metric that it does not have.
    """
    kind, prefix = str(evaluator.get('type')).rpartition('.')[2], evaluator.get('prefix')
    if kind == 'IoUMetric':
        metrics = _as_list(evaluator.get('iou_metrics', 'mIoU'))
        if unknown := [metric for metric in metrics if metric not in _IOU_METRICS]:
            raise UsageError(f'IoUMetric has no iou_metrics {unknown[0]!r}. Valid: {", ".join(_IOU_METRICS)}.')
        names = {'aAcc', *(name for metric in metrics for name in _IOU_METRICS[metric])}
        return {f'{prefix}/{name}' if prefix else name for name in names}
    metrics = _as_list(evaluator.get('metric') or dict(CocoMetric='bbox').get(kind))
    if kind == 'CocoMetric' and not set(metrics) - {'bbox', 'segm'} and not evaluator.get('metric_items'):
        return {f'{prefix or "coco"}/{metric}_{name}' for metric in metrics for name in _COCO_METRICS}
    return set()


def check_schedule(cfg: Config) -> None:
    """Check numbers and names of a config that would stop a run only after its first epoch.

    Raises:
        UsageError: If a number of the schedule is not positive, the seed is negative, or ``save_best`` of the
            checkpoint hook is not a metric of the evaluator.
    """
    schedule = cfg.get('train_cfg') or {}
    for name in ('max_epochs', 'max_iters', 'val_interval'):
        value = schedule.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise UsageError(f'train_cfg.{name} must be an integer of at least 1, got {value!r}.')
    seed = (cfg.get('randomness') or {}).get('seed')
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32):
        raise UsageError(f'randomness.seed must be an integer from 0 to 2**32 - 1, got {seed!r}.')
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    best, evaluator = hook.get('save_best'), cfg.get('val_evaluator')
    names = metric_names(evaluator) if isinstance(evaluator, dict) else set()
    for name in [best] if isinstance(best, str) else best or ():
        if names and name not in names | {'auto'}:
            near = sorted(known for known in names if known.startswith(name))
            near = near or difflib.get_close_matches(name, names, n=1, cutoff=0)
            raise UsageError(
                f'default_hooks.checkpoint.save_best is {name!r}, which {evaluator["type"]} does not measure. Did you '
                f'mean {near[0]!r}?'
            )


def check_classes(model: nn.Module, cfg: Config) -> None:
    """Check that the heads of a detector or segmentor have as many classes as the data.

    Raises:
        UsageError: If the numbers differ.
    """
    heads = {
        name: module.num_classes
        for name, module in model.named_modules()
        if re.search(r'(^|\.)(bbox_head|mask_head|decode_head|auxiliary_head)(\.\d+)?$', name)
        and isinstance(getattr(module, 'num_classes', None), int)
        and not getattr(module, 'class_agnostic', False)
    }
    for split, dataset in _datasets_of(cfg, ('train', 'val', 'test')):
        classes = class_names(dataset, cfg.default_scope)
        for name, number in heads.items():
            if classes and number != len(classes):
                raise UsageError(
                    f'model.{name}.num_classes is {number}, but the data of the {split} split has {len(classes)} '
                    f'classes ({shorten(classes, 3)}). Set num_classes of the heads to {len(classes)}, or '
                    'metainfo=dict(classes=(...)) of every dataset.'
                )


def check_channels(model: nn.Module) -> None:
    """Check that the neck takes the channels that a CAS-ViT outputs, or the heads if there is no neck.

    Raises:
        UsageError: If the channels differ, or if a head asks for an output that does not exist.
    """
    backbone, neck = getattr(model, 'backbone', None), getattr(model, 'neck', None)
    if not isinstance(backbone, CASViT):
        return
    outputs = list(backbone.out_channels)
    takers = (
        [('neck', neck)]
        if neck is not None
        else [(name, getattr(model, name, None)) for name in ('decode_head', 'auxiliary_head')]
    )
    for name, taker in takers:
        expected, indices = getattr(taker, 'in_channels', None), getattr(taker, 'in_index', None)
        fitting = outputs
        if indices is not None and neck is None:
            several = isinstance(indices, (list, tuple))
            if max(indices if several else [indices]) >= len(outputs):
                raise UsageError(f'model.{name}.in_index is {indices}, but the backbone has {len(outputs)} outputs.')
            fitting = [outputs[i] for i in indices] if several else outputs[indices]
        if isinstance(fitting, list) != isinstance(expected, (list, tuple)):
            continue  # it combines the outputs in its own way
        if (list(expected) if isinstance(expected, (list, tuple)) else expected) != fitting:
            raise UsageError(
                f'model.{name}.in_channels is {expected}, but the backbone outputs {fitting}. Set '
                f'model.{name}.in_channels="{fitting}", or another model.backbone.arch.'
            )


def check_deployable(model: nn.Module) -> None:
    """Check that a model has a CAS-ViT, which ``--deploy`` needs.

    Raises:
        UsageError: If it has none.
    """
    if not is_deployable(model):
        raise UsageError('the model of the config has no CASViT that could be deployed.')


def check_drawable(images: Sequence[str]) -> None:
    """Check that no image is a single pixel, whose prediction mmseg's visualizer mistakes for an index.

    Raises:
        UsageError: If one is.
    """
    for image in images:
        with open_image(image) as file:
            if file.size == (1, 1):
                raise UsageError(f'{image} is a single pixel, which mmseg cannot draw.')


def warn_about_random_backbone(cfg: Config) -> None:
    """Log a warning if a recipe that expects ImageNet weights trains a CAS-ViT from random ones."""
    backbone = cfg.model.get('backbone') or {}
    expects_weights = backbone.get('norm_eval') and backbone.get('type') == 'mmcasvit.CASViT'
    if expects_weights and not backbone.get('init_cfg') and not cfg.get('load_from') and not cfg.get('resume'):
        print_log(
            'The backbone starts from RANDOM weights, with its BatchNorm statistics frozen. The published results '
            'start from ImageNet weights: give them with --pretrained FILE, or by name, such as --pretrained xs.',
            logger='current',
            level=logging.WARNING,
        )
