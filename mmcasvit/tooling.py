"""What the scripts of ``tools/`` share: reading configs, checking inputs before a run, errors in one line."""
import argparse
import difflib
import errno
import functools
import importlib
import importlib.util
import json
import linecache
import logging
import mmap
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import is_cuda_available, is_mlu_available, is_musa_available, is_npu_available
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings, scandir
from PIL import Image
from torch import nn

from .casvit import CASViT
from .datasets import DataError
from .weights import WeightsError, read_checkpoint, shorten, unwrap, use_safe_checkpoint_reader

# What the configs can be for, and what to install for it.
FRAMEWORKS = dict(
    mmdet='onedl-mmdetection', mmseg='onedl-mmsegmentation', mmpretrain='"mmcasvit[classification]"')


IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
# A disk that is full, or a folder that cannot be written to.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR,
                errno.EISDIR, errno.EEXIST)


class UsageError(Exception):
    """Wrong input; the message says what was wrong and what would be right."""


def exits_cleanly(main: Callable[[], None]) -> Callable[[], None]:
    """Turns wrong input into one ``error:`` line on stderr and exit status 2, without a traceback."""
    @functools.wraps(main)
    def wrapped() -> None:
        try:
            main()
        except Exception as error:
            if reason := wrong_input(error):
                print(f'error: {reason}', file=sys.stderr)
                sys.exit(2)
            raise
    return wrapped


def wrong_input(error: Exception) -> str:
    """What is wrong with what the user gave, in one line, or ``''`` where an error is about something else."""
    if isinstance(error, (UsageError, WeightsError, DataError)):
        # What a data loader's worker raises arrives with its traceback as the text, and its own text at the end.
        return str(error).rsplit(f'{type(error).__name__}: ')[-1].strip()
    return _wrong_surroundings(error) or _wrong_config(error)


def _wrong_surroundings(error: Exception) -> str:
    """What is wrong with a disk or a folder, if that is what an error is about."""
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return f'{error.strerror}: {error.filename}' if error.filename else str(error)
    return ''


def _wrong_config(error: Exception) -> str:
    """Which part of a config could not be built, and why, if an error comes out of mmengine's registries."""
    part, place, code = '', '', ''
    for frame, line in traceback.walk_tb(error.__traceback__):
        given = frame.f_locals.get('cfg')
        if frame.f_code.co_name == 'build_from_cfg':
            part = str((given or {}).get('type') or '')
        elif frame.f_code.co_name == 'build_optim_wrapper' and isinstance(given, dict):
            part = f'optim_wrapper with {dict(given.get("optimizer") or {})}'
        place = f'{frame.f_code.co_filename}:{line}'
        code = linecache.getline(frame.f_code.co_filename, line).strip()
    if not part:
        return ''
    reason = error.args[0] if isinstance(error, KeyError) and error.args else error
    if 'need at least one array to concatenate' in str(error):  # what mmengine's data sets say
        reason = 'it has no image that the config would use. tools/check_dataset.py says what is wrong with the data'
    return f'{part} of the config cannot be built: {type(error).__name__}: {reason or code} ({place})'


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/CONFIG_NAME)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE',
                        help='override entries of the config, such as train_cfg.max_epochs=24 or '
                             'model.backbone.out_indices="(1,2,3)"; data_root=DIR moves every data set of the config')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='how the processes of a distributed run were started')
    add_trust_argument(parser)
    # torch.distributed.launch hands the rank over as an argument, torchrun as a variable
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--trust-checkpoint', action='store_true',
                        help='execute the pickle of a checkpoint that cannot be read otherwise; only for files whose '
                             'origin you trust')


def nearest_config(file: Path) -> Path | None:
    """The config beside a file that is not there whose name is most like its own, if any is like it."""
    near = difflib.get_close_matches(file.name, [path.name for path in file.parent.glob('*.py')], n=1, cutoff=.5)
    return file.parent / near[0] if near else None


def load_config(path: str, options: dict | None = None) -> Config:
    """Reads a config and applies ``--cfg-options``.

    A top-level ``data_root`` among the options moves every data set and annotation file below the old one: plain
    merging would change a variable that nothing reads any more.

    Args:
        path: a ``.py``, ``.json`` or ``.yaml`` config.
        options: what ``--cfg-options`` gave.

    Raises:
        UsageError: there is no such file, it cannot be read, or it is for another framework.
    """
    file = Path(path)
    if not file.is_file():
        near = nearest_config(file)
        raise UsageError(f'config not found: {file.absolute()}' + (f'. Did you mean {near}?' if near else ''))
    try:
        cfg = Config.fromfile(file, import_custom_modules=False)
    except Exception as error:
        raise UsageError(f'config {file} cannot be read: {type(error).__name__}: {error}') from error
    if cfg.get('default_scope') not in FRAMEWORKS:
        raise UsageError(f'config {file} has default_scope {cfg.get("default_scope")!r}; these tools run configs of '
                         f'{", ".join(FRAMEWORKS)}.')
    _import_framework(cfg.default_scope, file)
    try:
        import_modules_from_strings(**cfg.get('custom_imports', dict(imports=[])))
    except ImportError as error:
        raise UsageError(f'config {file} cannot be read: {error}: {error.__context__}') from error
    options = dict(options or {})
    old_root, new_root = cfg.get('data_root'), options.get('data_root')
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, AssertionError, IndexError) as error:
        raise UsageError(f'--cfg-options do not fit the config {file}: {error}') from error
    _check_kinds(cfg, file)
    if new_root is not None:
        if old_root is None:
            raise UsageError(f'config {file} has no data_root; override that of each data set, such as '
                             'train_dataloader.dataset.data_root=DIR.')
        if not _move_data_root(cfg._cfg_dict, old_root, new_root):
            raise UsageError(f'no data set of config {file} lies in its data_root {old_root}; override that of each '
                             'data set, such as train_dataloader.dataset.data_root=DIR.')
    return cfg


def _check_kinds(cfg: Config, file: Path) -> None:
    """Looks whether the parts that the tools work on are what they take them for."""
    parts = {'model': cfg.get('model')}
    if isinstance(cfg.get('model'), dict):
        parts |= {f'model.{name}': cfg.model[name] for name in ('backbone', 'neck') if cfg.model.get(name) is not None}
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(name) is not None:
            parts[name] = cfg[name]
            parts[f'{name}.dataset'] = cfg[name].get('dataset') if isinstance(cfg[name], dict) else {}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise UsageError(f'{name} of config {file} must be a dict, got {part!r}.')


def _import_framework(name: str, config: Path) -> None:
    if importlib.util.find_spec(name) is None:
        raise UsageError(f'config {config} needs {name}, which is not installed: pip install {FRAMEWORKS[name]} (or '
                         'OpenMMLab\'s own release, see requirements/).')
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever a package raises that finds its surroundings wrong
        hint = (' Install the torchvision that was built for the installed PyTorch.' if 'torchvision' in str(error)
                else '')
        raise UsageError(f'config {config} needs {name}, and importing that failed: {error}.{hint}') from error


def _move_data_root(node, old: str, new: str) -> int:
    """Replaces the old root wherever data sets and evaluators name it, and returns how often."""
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list):
        items = list(enumerate(node))
    else:
        return 0
    moved = 0
    for key, value in items:
        if key in ('data_root', 'ann_file') and isinstance(value, str) and value.startswith(old):
            node[key] = os.path.join(new, value[len(old):].lstrip('/'))
            moved += 1
        else:
            moved += _move_data_root(value, old, new)
    return moved


def leaf_datasets(dataset: ConfigDict) -> Iterator[ConfigDict]:
    """The data sets inside wrappers such as RepeatDataset, MultiImageMixDataset and ConcatDataset."""
    for _, leaf in named_leaf_datasets(dataset, ''):
        yield leaf


def named_leaf_datasets(dataset: ConfigDict, name: str) -> Iterator[tuple[str, ConfigDict]]:
    """:func:`leaf_datasets`, each with the name by which ``--cfg-options`` reaches it; ``name`` is the outermost's."""
    if 'dataset' in dataset:
        yield from named_leaf_datasets(dataset.dataset, f'{name}.dataset')
    elif 'datasets' in dataset:
        for number, part in enumerate(dataset.datasets):
            yield from named_leaf_datasets(part, f'{name}.datasets.{number}')
    else:
        yield name, dataset


def data_folders(dataset: ConfigDict) -> list[str]:
    """Where the files of one data set may be: below its data root, and below the folders that it names itself.

    The list is empty where the annotations give whole paths.
    """
    root = dataset.get('data_root') or ''
    prefixes = dataset.get('data_prefix') or {}
    prefixes = list(prefixes.values()) if isinstance(prefixes, dict) else [prefixes]
    return list(dict.fromkeys(path for path in (root, *(os.path.join(root, p) for p in prefixes if p)) if path))


def annotation_file(dataset: ConfigDict) -> str:
    """The path of a data set's annotation file, or ``''``."""
    file = dataset.get('ann_file') or ''
    return os.path.join(dataset.get('data_root') or '', file) if file else ''


def dataset_type(dataset: ConfigDict, scope: str) -> type:
    """The class that a data set's config names.

    Raises:
        UsageError: nothing is registered under the name.
    """
    name = dataset.get('type')
    found = name if isinstance(name, type) else DATASETS.get(name if '.' in str(name) else f'{scope}.{name}')
    if found is None:
        raise UsageError(f'no data set is called {name!r} in {scope}.')
    return found


def reads_annotations_as(kind: type, scope: str) -> str:
    """``'coco'`` or ``'masks'`` where a data set reads annotations by mmdet's or mmseg's own method, else
    ``'images'``: what it reads in its own way is not second-guessed."""
    if scope == 'mmdet':
        from mmdet.datasets import CocoDataset
        if getattr(kind, 'load_data_list', None) is CocoDataset.load_data_list:
            return 'coco'
    if scope == 'mmseg':
        from mmseg.datasets import BaseSegDataset
        if getattr(kind, 'load_data_list', None) is BaseSegDataset.load_data_list:
            return 'masks'
    return 'images'


def class_names(dataset: ConfigDict, scope: str) -> tuple[str, ...]:
    """The classes of a data set in the order of its labels, or ``()`` where only its files say."""
    metainfo = {**getattr(dataset_type(dataset, scope), 'METAINFO', {}), **(dataset.get('metainfo') or {})}
    names = metainfo.get('classes') or ()
    return (names, ) if isinstance(names, str) else tuple(names)


def category_order_fault(in_file: Sequence[str], classes: Sequence[str]) -> str:
    """Says where a COCO file counts the classes of the config in another order, or ``''``."""
    in_file = [name for name in in_file if name in classes]
    classes = [name for name in classes if name in in_file]
    for label, (found, expected) in enumerate(zip(in_file, classes)):
        if found != expected:
            return (f'label {label} is {expected!r} in the config and {found!r} in the file, by whose order mmdet '
                    'numbers them')
    return ''


def read_categories(file: str) -> list[str] | None:
    """The names of the categories of a COCO file, without reading the rest of it, or ``None`` if it has no such list.

    The annotations of COCO take seconds to read, and the data set reads them anyway.
    """
    with open(file, 'rb') as stream:
        if os.fstat(stream.fileno()).st_size == 0:
            return None
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = -1
            while (start := content.find(b'"categories"', start + 1)) >= 0:
                begin = content.find(b'[', start)
                for size in (2**16, 2**20, 2**24):
                    try:
                        found, _ = json.JSONDecoder().raw_decode(content[begin:begin + size].decode(errors='replace'))
                    except ValueError:
                        continue
                    if all(isinstance(category, dict) and 'name' in category for category in found):
                        return [category['name'] for category in found]
                    break
    return None


def _check_categories(dataset: ConfigDict, scope: str) -> None:
    if reads_annotations_as(dataset_type(dataset, scope), scope) != 'coco':
        return
    file = annotation_file(dataset)
    in_file, classes = read_categories(file), class_names(dataset, scope)
    if in_file is None:
        raise UsageError(f'{file} is no annotation file of COCO: it has no list of categories.')
    missing = [name for name in classes if name not in in_file]
    if missing:
        raise UsageError(f'{file} has no category {shorten(map(repr, missing))}, which are classes of the config; it '
                         f'has {shorten(map(repr, in_file))}. Give the names as metainfo=dict(classes=(...)).')
    if fault := category_order_fault(in_file, classes):
        raise UsageError(f'the categories of {file} stand in another order than the classes of the config: {fault}. '
                         'tools/check_dataset.py --fix writes a file with the order of the config.')


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
                    raise UsageError(f'{key} of the {split} split is a pickle, and reading one can run code: '
                                     f'{dataset[key]}. Give the annotations as JSON.')
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
                 'and val/ lie in it, each with a folder per class')
    advice = sources.get(dataset.get('type'), 'Put the data there')
    return f'{advice}, or say where it is: --cfg-options data_root=DIR'


def check_checkpoint(path: str, trust: bool = False) -> None:
    """Reads a checkpoint in the safe way, so that a bad one ends the run before anything is built.

    Args:
        path: the file.
        trust: as in :func:`mmcasvit.weights.read_checkpoint`.

    Raises:
        WeightsError: it is missing, damaged or not safe.
    """
    read_checkpoint(path, trust=trust)


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


def check_classes(model: nn.Module, cfg: Config) -> None:
    """Compares the number of classes of a detector's or segmentor's heads with that of the data.

    Raises:
        UsageError: they differ.
    """
    heads = {name: module.num_classes for name, module in model.named_modules()
             if re.search(r'(^|\.)(bbox_head|mask_head|decode_head|auxiliary_head)(\.\d+)?$', name)
             and isinstance(getattr(module, 'num_classes', None), int) and not getattr(module, 'class_agnostic', False)}
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        for dataset in leaf_datasets(loader.dataset) if loader else ():
            classes = class_names(dataset, cfg.default_scope)
            for name, number in heads.items():
                if classes and number != len(classes):
                    raise UsageError(f'model.{name}.num_classes is {number}, and the data of the {split} split have '
                                     f'{len(classes)} classes ({shorten(classes, 3)}): set num_classes of the heads to '
                                     'that, or metainfo=dict(classes=(...)) of every data set.')


def check_channels(model: nn.Module) -> None:
    """Compares the channels of a CAS-ViT's outputs with those that the neck, or without one the heads, take.

    Raises:
        UsageError: they differ.
    """
    backbone, neck = getattr(model, 'backbone', None), getattr(model, 'neck', None)
    if not isinstance(backbone, CASViT):
        return
    given = list(backbone.out_channels)
    takers = [('neck', neck)] if neck is not None else [
        (name, getattr(model, name, None)) for name in ('decode_head', 'auxiliary_head')]
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
            raise UsageError(f'model.{name}.in_channels is {expected}, and the backbone gives {fitting}: set '
                             f'model.{name}.in_channels="{fitting}", or another model.backbone.arch.')


def find_images(path: Path) -> list[str]:
    """The images of a folder in the order of their names, or the one image that is named.

    Raises:
        UsageError: there is none.
    """
    if path.is_dir():
        images = sorted(str(path / name) for name in scandir(path, IMAGE_SUFFIXES, case_sensitive=False))
        if not images:
            raise UsageError(f'no image in {path.absolute()}; looked for {", ".join(IMAGE_SUFFIXES)}')
        return images
    if not path.is_file():
        raise UsageError(f'image or folder not found: {path.absolute()}')
    return [str(path)]


def check_images(images: Sequence[str]) -> None:
    """Reads each image to its end: OpenCV fills what is missing of a cut-off one with grey, and says nothing.

    Raises:
        UsageError: one of them is no image or cut off, or two have the same name but for the suffix.
    """
    names = {}
    for image in images:
        other = names.setdefault(Path(image).stem, image)
        if other != image:
            raise UsageError(f'{other} and {image} have the same name, and so would their predictions. Put them into '
                             'different folders.')
        try:
            with Image.open(image) as file:
                file.load()
        except Exception as error:  # decoders raise nearly anything
            raise UsageError(f'{image} cannot be read as an image: {error}') from error


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
        print_log('The backbone starts from RANDOM weights, with its BatchNorm statistics frozen. The published '
                  'results start from ImageNet weights: give them with --pretrained FILE.',
                  logger='current', level=logging.WARNING)
