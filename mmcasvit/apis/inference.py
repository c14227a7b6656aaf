"""The frameworks' own inferencers, built from a config and a checkpoint."""

import math
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device

from mmcasvit.datasets.config import dataset_type, leaf_datasets
from mmcasvit.datasets.sources import read_data_as_data
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.text import first_line
from mmcasvit.weights.checkpoint import read_ahead, use_safe_checkpoint_reader
from mmcasvit.weights.match import fit

from .drawing import quicken


def check_options(
    cfg: Config, device: str | None = None, batch_size: int = 1, score_thr: float = 0.3, config: str = 'the config'
) -> None:
    """Check the options of a prediction before the model is built.

    Args:
        cfg: A whole config.
        device: Device of the model, if one is named.
        batch_size: Number of images in a batch.
        score_thr: Lowest score of a box that is drawn.
        config: What the message calls the config.

    Raises:
        UsageError: If the device does not exist, a number is out of range, or the config has no backbone or no data to
            test on, whose pipeline prepares the images.
    """
    if batch_size < 1:
        raise UsageError(f'--batch-size must be at least 1, got {batch_size}.')
    if not math.isfinite(score_thr) or not 0 <= score_thr <= 1:
        raise UsageError(f'--score-thr must lie between 0 and 1, got {score_thr}.')
    if device is not None:
        _check_device(device)
    if not isinstance((cfg.get('model') or {}).get('backbone'), dict):
        raise UsageError(f'the model of {config} has no backbone.')
    dataset = (cfg.get('test_dataloader') or {}).get('dataset')
    if not dataset or not next(leaf_datasets(dataset)).get('pipeline'):
        raise UsageError(f'{config} has no test_dataloader with a pipeline, which prepares the images.')


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:  # backends raise nearly anything
        raise UsageError(f'--device: {name} cannot be used on this machine: {first_line(error)}') from error
    if device.type == 'meta':
        raise UsageError('--device: meta computes nothing. Use cpu or cuda.')


def get_inferencer(cfg: Config, checkpoint: str | None, device: str | None = None, trust: bool = False) -> Any:
    """Build the inferencer of a config's framework: ``DetInferencer``, ``MMSegInferencer`` or
    ``ImageClassificationInferencer``.

    Args:
        cfg: A whole config.
        checkpoint: Weights of the whole model: a file or an http(s) address. None leaves them random.
        device: Device of the model. By default a GPU if there is one.
        trust: As in :func:`~mmcasvit.weights.checkpoint.read_checkpoint`.

    Raises:
        WeightsError: If the checkpoint cannot be read safely or lacks a tensor of the model.
    """
    content = read_ahead(checkpoint, trust=trust) if checkpoint else {}
    use_safe_checkpoint_reader(trust)
    read_data_as_data()
    cfg.model.backbone.pop('init_cfg', None)
    if cfg.default_scope == 'mmdet':
        from mmdet.apis import DetInferencer

        inferencer = DetInferencer(cfg, checkpoint, device=device, show_progress=False)
    elif cfg.default_scope == 'mmpretrain':
        from mmpretrain import ImageClassificationInferencer
        from mmpretrain.visualization import UniversalVisualizer

        inferencer = ImageClassificationInferencer(cfg, checkpoint, device=device or get_device())
        inferencer.visualizer = UniversalVisualizer()
    else:
        from mmseg.apis import MMSegInferencer

        _complete_palette(content.get('meta') or {})
        inferencer = MMSegInferencer(cfg, checkpoint, device=device)
        inferencer.show_progress = False  # not an argument in OpenMMLab's own mmseg
        # mmseg draws in the colors of Cityscapes by default.
        inferencer.visualizer.dataset_meta = inferencer.model.dataset_meta
    quicken(inferencer.visualizer)
    if checkpoint:
        fit(content, inferencer.model.state_dict()).refuse(loaded=True)
    meta = content.get('meta') or {}
    if not (meta.get('dataset_meta') or {}).get('classes') and not meta.get('CLASSES'):
        _use_classes_of(cfg, inferencer)
    return inferencer


def _complete_palette(meta: dict) -> None:
    """Give the classes of a checkpoint random colors if it does not have one for each, which mmseg asks for."""
    if meta.get('CLASSES'):
        meta.setdefault('dataset_meta', dict(classes=meta['CLASSES'], palette=meta.get('PALETTE')))
    data = meta.get('dataset_meta', {})
    classes, palette = data.get('classes') or (), data.get('palette')
    if not isinstance(palette, (list, tuple)) or len(palette) != len(classes):
        palette = np.random.RandomState(42).randint(0, 256, (len(classes), 3)).tolist()
    if classes:
        data['palette'] = palette


def _use_classes_of(cfg: Config, inferencer: Any) -> None:
    """Name the classes as the config does. Without names in the checkpoint, mmdet takes COCO's, mmseg Cityscapes'."""
    dataset: ConfigDict = next(leaf_datasets(cfg.test_dataloader.dataset))
    meta = {
        **getattr(dataset_type(dataset, cfg.default_scope), 'METAINFO', {}),
        **{key.lower(): value for key, value in (dataset.get('metainfo') or {}).items()},
    }
    if not meta.get('classes'):
        return
    if cfg.default_scope == 'mmpretrain':
        inferencer.classes = meta['classes']
    else:
        inferencer.model.dataset_meta = inferencer.visualizer.dataset_meta = meta
