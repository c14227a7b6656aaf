"""Checks before a run: data, folders, channels, classes, weights."""

import logging
import os
import re
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from torch import nn

from mmcasvit.datasets.config import (
    annotation_file,
    category_order_fault,
    class_names,
    dataset_type,
    leaf_datasets,
    read_categories,
    reads_annotations_as,
)
from mmcasvit.models.casvit import CASViT
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.text import shorten


def _check_categories(dataset: ConfigDict, scope: str) -> None:
    if reads_annotations_as(dataset_type(dataset, scope), scope) != 'coco':
        return
    file = annotation_file(dataset)
    in_file, classes = read_categories(file), class_names(dataset, scope)
    if in_file is None:
        raise UsageError(f'{file} is no annotation file of COCO: it has no list of categories.')
    missing = [name for name in classes if name not in in_file]
    if missing:
        raise UsageError(
            f'{file} has no category {shorten(map(repr, missing))}, which are classes of the config; it '
            f'has {shorten(map(repr, in_file))}. Give the names as metainfo=dict(classes=(...)).'
        )
    if fault := category_order_fault(in_file, classes):
        raise UsageError(
            f'the categories of {file} stand in another order than the classes of the config: {fault}. '
            'tools/check_dataset.py --fix writes a file with the order of the config.'
        )


def check_data(cfg: Config, *splits: str) -> None:
    """Looks for the files and folders that the data sets of the given splits name.

    Args:
        cfg: a whole config.
        splits: of ``'train'``, ``'val'`` and ``'test'``.

    Raises:
        UsageError: something is not there; it says what, where, and how to get it.
    """
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        for dataset in leaf_datasets(loader.dataset) if loader else ():
            if dataset.get('backend_args'):
                continue  # not on a local disk
            root = dataset.get('data_root') or ''
            prefixes = dataset.get('data_prefix', {})
            parts = [dataset.get('ann_file', ''), *(prefixes.values() if isinstance(prefixes, dict) else [prefixes])]
            for part in parts:
                path = Path(root, part) if part else Path(root)
                if not path.exists():
                    raise UsageError(f'data of the {split} split not found: {path.absolute()}. {_how_to_get(dataset)}')
            for key in ('ann_file', 'proposal_file'):
                if str(dataset.get(key) or '').endswith(('.pkl', '.pickle')):
                    raise UsageError(
                        f'{key} of the {split} split is a pickle, and reading one can run code: '
                        f'{dataset[key]}. Give the annotations as JSON.'
                    )
            _check_categories(dataset, cfg.default_scope)


def _how_to_get(dataset: ConfigDict) -> str:
    root = dataset.get('data_root') or ''
    if 'shapes' in Path(root).parts:
        return 'Make it: python tools/make_dataset.py'
    sources = dict(
        CocoDataset='Download the 2017 train and val images and annotations from cocodataset.org and unpack them so '
        'that annotations/, train2017/ and val2017/ lie in it',
        ADE20KDataset='Download ADEChallengeData2016.zip from sceneparsing.csail.mit.edu and unpack it so that '
        'images/ and annotations/ lie in it',
        ImageNet='Download the train and val images of ILSVRC2012 from image-net.org and unpack them so that train/ '
        'and val/ lie in it, each with a folder per class',
    )
    advice = sources.get(dataset.get('type'), 'Put the data there')
    return f'{advice}, or say where it is: --cfg-options data_root=DIR'


def check_writable(folder: Path) -> None:
    """Looks whether a folder can be made, or written to if it is there.

    Raises:
        UsageError: it cannot.
    """
    present = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not present.is_dir():
        raise UsageError(f'{folder.absolute()} cannot be a folder: {present} is a file.')
    if not os.access(present, os.W_OK | os.X_OK):
        raise UsageError(f'{folder.absolute()} cannot be written to.')


def check_classes(model: nn.Module, cfg: Config) -> None:
    """Compares the number of classes of a detector's or segmentor's heads with that of the data.

    Raises:
        UsageError: they differ.
    """
    heads = {
        name: module.num_classes
        for name, module in model.named_modules()
        if re.search(r'(^|\.)(bbox_head|mask_head|decode_head|auxiliary_head)(\.\d+)?$', name)
        and isinstance(getattr(module, 'num_classes', None), int)
        and not getattr(module, 'class_agnostic', False)
    }
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        for dataset in leaf_datasets(loader.dataset) if loader else ():
            classes = class_names(dataset, cfg.default_scope)
            for name, number in heads.items():
                if classes and number != len(classes):
                    raise UsageError(
                        f'model.{name}.num_classes is {number}, and the data of the {split} split have '
                        f'{len(classes)} classes ({shorten(classes, 3)}): set num_classes of the heads to '
                        'that, or metainfo=dict(classes=(...)) of every data set.'
                    )


def check_channels(model: nn.Module) -> None:
    """Compares the channels of a CAS-ViT's outputs with those that the neck, or without one the heads, take.

    Raises:
        UsageError: they differ.
    """
    backbone, neck = getattr(model, 'backbone', None), getattr(model, 'neck', None)
    if not isinstance(backbone, CASViT):
        return
    given = list(backbone.out_channels)
    takers = (
        [('neck', neck)]
        if neck is not None
        else [(name, getattr(model, name, None)) for name in ('decode_head', 'auxiliary_head')]
    )
    for name, taker in takers:
        expected, indices = getattr(taker, 'in_channels', None), getattr(taker, 'in_index', None)
        if indices is not None and neck is None:
            several = isinstance(indices, (list, tuple))
            if max(indices if several else [indices]) >= len(given):
                raise UsageError(f'model.{name}.in_index is {indices}, and the backbone has {len(given)} outputs.')
            fitting = [given[i] for i in indices] if several else given[indices]
        else:
            fitting = given
        if isinstance(fitting, list) != isinstance(expected, (list, tuple)):
            continue  # it joins them in a way of its own
        if (list(expected) if isinstance(fitting, list) else expected) != fitting:
            raise UsageError(
                f'model.{name}.in_channels is {expected}, and the backbone gives {fitting}: set '
                f'model.{name}.in_channels="{fitting}", or another model.backbone.arch.'
            )


def check_deployable(model: nn.Module) -> None:
    """Looks for a backbone that ``--deploy`` can act on.

    Raises:
        UsageError: there is none.
    """
    if not any(isinstance(part, CASViT) for part in model.modules()):
        raise UsageError('--deploy: the model of the config has no CASViT.')


def warn_about_random_backbone(cfg: Config) -> None:
    """Says so where a recipe that expects ImageNet weights is about to train a CAS-ViT from random ones."""
    backbone = cfg.model.get('backbone') or {}
    expects_weights = backbone.get('norm_eval') and backbone.get('type') == 'mmcasvit.CASViT'
    if expects_weights and not backbone.get('init_cfg') and not cfg.get('load_from') and not cfg.get('resume'):
        print_log(
            'The backbone starts from RANDOM weights, with its BatchNorm statistics frozen. The published '
            'results start from ImageNet weights: give them with --pretrained FILE.',
            logger='current',
            level=logging.WARNING,
        )
