"""What the scripts of ``tools/`` share: reading configs, checking inputs before a run, errors in one line."""
import argparse
import difflib
import functools
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import is_cuda_available, is_mlu_available, is_musa_available, is_npu_available
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings
from torch import nn

from .casvit import CASViT
from .datasets import DataError
from .weights import WeightsError, read_checkpoint, use_safe_checkpoint_reader

# What the configs can be for, and what to install for it.
FRAMEWORKS = dict(
    mmdet='onedl-mmdetection', mmseg='onedl-mmsegmentation', mmpretrain='"mmcasvit[classification]"')


class UsageError(Exception):
    """Wrong input; the message says what was wrong and what would be right."""


def exits_cleanly(main: Callable[[], None]) -> Callable[[], None]:
    """Turns wrong input into one ``error:`` line on stderr and exit status 2, without a traceback."""
    @functools.wraps(main)
    def wrapped() -> None:
        try:
            main()
        except (UsageError, WeightsError, DataError) as error:
            # What a data loader's worker raises arrives with its traceback as the text, and its own text at the end.
            print(f'error: {str(error).rsplit(f"{type(error).__name__}: ")[-1].strip()}', file=sys.stderr)
            sys.exit(2)
    return wrapped


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
    if new_root is not None:
        if old_root is None:
            raise UsageError(f'config {file} has no data_root; override that of each data set, such as '
                             'train_dataloader.dataset.data_root=DIR.')
        if not _move_data_root(cfg._cfg_dict, old_root, new_root):
            raise UsageError(f'no data set of config {file} lies in its data_root {old_root}; override that of each '
                             'data set, such as train_dataloader.dataset.data_root=DIR.')
    return cfg


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


def confine_to_folders(cfg: Config) -> None:
    """Has every data set refuse files that its annotations name outside of its folders."""
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        for dataset in leaf_datasets(loader.dataset) if loader else ():
            folders = data_folders(dataset)
            if folders and dataset.get('pipeline') and dataset.pipeline[0].type != 'mmcasvit.StayInFolders':
                dataset.pipeline = [dict(type='mmcasvit.StayInFolders', folders=folders), *dataset.pipeline]


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
    """Builds mmengine's runner, or the one the config names, with its data confined to their folders."""
    confine_to_folders(cfg)
    if 'runner_type' in cfg:
        from mmengine.registry import RUNNERS
        return RUNNERS.build(cfg)
    return Runner.from_cfg(cfg)


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
