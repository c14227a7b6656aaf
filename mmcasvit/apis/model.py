"""Models, built from a config and filled from a checkpoint."""

import copy
import importlib
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

from mmcasvit.datasets.config import leaf_datasets
from mmcasvit.utils.errors import UsageError
from mmcasvit.weights.checkpoint import read_checkpoint
from mmcasvit.weights.match import load

from .config import get_config


def get_model(
    config: str | Path | Config,
    checkpoint: str | Path | None = None,
    device: str | torch.device = 'cpu',
    pretrained: bool = False,
) -> nn.Module:
    """Build the model of a config in evaluation mode, ready for the ``inference_*`` functions of its framework.

    The model has the attributes ``cfg`` and ``dataset_meta``. Without a checkpoint, its weights are those that its
    layers start from: as with :func:`mmengine.hub.get_model`, ``init_weights()`` is left to the caller. The framework
    becomes mmengine's default scope.

    Args:
        config: A name from :func:`list_configs`, the path of a config, or a config.
        checkpoint: Weights of the whole model: a file, an http(s) address or the name of published weights, read
            without executing its pickle.
        device: Device of the model.
        pretrained: Use the published weights of this config.

    Raises:
        UsageError: As in :func:`get_config`, or if published weights cannot be downloaded.
        WeightsError: If the checkpoint cannot be read safely or lacks a tensor of the model.
    """
    cfg = config if isinstance(config, Config) else get_config(config)
    if pretrained:
        if checkpoint is not None:
            raise UsageError('give either checkpoint or pretrained=True, not both.')
        checkpoint = Path(cfg.filename or 'a config without a file').stem
    content = {} if checkpoint is None else read_checkpoint(checkpoint)
    importlib.import_module(f'{cfg.default_scope}.utils').register_all_modules(init_default_scope=False)
    init_default_scope(cfg.default_scope)
    model_cfg = copy.deepcopy(cfg.model)
    if 'data_preprocessor' in cfg:
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(model_cfg)
    if checkpoint is not None:
        load(model, content, what=str(checkpoint))
    model.dataset_meta = (content.get('meta') or {}).get('dataset_meta') or _dataset_meta(cfg)
    model.cfg = cfg
    return model.to(device).eval()


def _dataset_meta(cfg: Config) -> dict:
    if not cfg.get('test_dataloader'):
        return {}
    dataset = copy.deepcopy(next(leaf_datasets(cfg.test_dataloader.dataset)))
    dataset.update(lazy_init=True, pipeline=[])  # class names need neither annotations nor images
    return DATASETS.build(dataset).metainfo
