"""Configs and models by name, wherever the package is installed."""
import copy
import difflib
import importlib
import logging
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

from .conversion import adapted
from .tooling import UsageError, leaf_datasets, load_config
from .weights import find_weights, mismatches, read_checkpoint


def root() -> Path:
    """The folder that holds ``configs`` and ``tools``: ``mmcasvit/.mim``, or the repository of an editable install."""
    package = Path(__file__).resolve().parent
    for folder in (package / '.mim', package.parent):
        if (folder / 'configs').is_dir():
            return folder
    raise UsageError(f'{package} was installed without its configs. Install it with pip, from the repository, its '
                     'sdist or its wheel.')


def _config_files() -> dict[str, Path]:
    return {file.stem: file for file in sorted((root() / 'configs').rglob('*.py')) if '_base_' not in file.parts}


def list_configs() -> list[str]:
    """The names of all configs, such as ``retinanet_casvit-xs_fpn_1x_coco``."""
    return list(_config_files())


def config_path(name: str | Path) -> str:
    """The file of a config, for ``_base_`` of one's own config and for whatever wants a path.

    Args:
        name: a name out of :func:`list_configs`, with or without ``.py``, or the path of any config file.

    Raises:
        UsageError: there is neither such a file nor such a name; it lists the nearest names.

    Example::

        _base_ = __import__('mmcasvit').config_path('retinanet_casvit-xs_fpn_1x_coco')
    """
    if Path(name).is_file():
        return str(Path(name).absolute())
    files = _config_files()
    wanted = Path(name).name.removesuffix('.py')
    if wanted not in files:
        near = [file for file in files if wanted in file][:3] or difflib.get_close_matches(wanted, files, cutoff=.5)
        raise UsageError(f'no config file {name}, and none of that name in mmcasvit. '
                         + (f'Did you mean {" or ".join(near)}?' if near else 'List them: python -m mmcasvit'))
    return str(files[wanted])


def get_config(name: str | Path) -> Config:
    """Reads a config by name or path.

    Raises:
        UsageError: it is not there, cannot be read, or its framework is not installed.
    """
    return load_config(config_path(name))


def get_model(config: str | Path | Config,
              checkpoint: str | Path | None = None,
              device: str | torch.device = 'cpu') -> nn.Module:
    """Builds the model of a config, in evaluation mode, as the ``inference_*`` functions of its framework take it.

    The model carries ``cfg`` and ``dataset_meta``. Without a checkpoint its weights are those its layers start from:
    as with :func:`mmengine.hub.get_model`, ``init_weights()`` is left to the caller. The framework becomes mmengine's
    default scope.

    Args:
        config: a name out of :func:`list_configs`, the path of a config, or a config.
        checkpoint: weights of the whole model, a file or an http(s) address, read without executing its pickle.
        device: where the model goes.

    Raises:
        UsageError: see :func:`get_config`.
        WeightsError: the checkpoint cannot be read safely, or lacks a tensor of the model.
    """
    cfg = config if isinstance(config, Config) else get_config(config)
    content = {} if checkpoint is None else read_checkpoint(checkpoint)
    importlib.import_module(f'{cfg.default_scope}.utils').register_all_modules(init_default_scope=False)
    init_default_scope(cfg.default_scope)
    model_cfg = copy.deepcopy(cfg.model)
    if 'data_preprocessor' in cfg:
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(model_cfg)
    if checkpoint is not None:
        expected = model.state_dict()
        weights = adapted(find_weights(content)[1], expected)
        report = mismatches(expected, weights)
        report.refuse()
        model.load_state_dict(weights, strict=False)
        if report:
            print_log(f'{checkpoint} holds more than the model needs.\n{report}', 'current', logging.WARNING)
    model.dataset_meta = (content.get('meta') or {}).get('dataset_meta') or _dataset_meta(cfg)
    model.cfg = cfg
    return model.to(device).eval()


def _dataset_meta(cfg: Config) -> dict:
    if not cfg.get('test_dataloader'):
        return {}
    dataset = copy.deepcopy(next(leaf_datasets(cfg.test_dataloader.dataset)))
    dataset.update(lazy_init=True, pipeline=[])  # the names of the classes need neither annotations nor images
    return DATASETS.build(dataset).metainfo
