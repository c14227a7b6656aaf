"""Input of a model from an image file, and predictions drawn over an image."""

from pathlib import Path

import numpy as np
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import VISUALIZERS
from mmengine.structures import BaseDataElement
from torch import nn

from mmcasvit.apis.drawing import quicken
from mmcasvit.datasets.config import leaf_datasets


def batch_of(model: nn.Module, image: str | Path) -> dict:
    """Load an image file with the test pipeline of the model's config. The file may be in any folder."""
    steps = [
        step
        for step in next(leaf_datasets(model.cfg.test_dataloader.dataset)).pipeline
        if 'Annotations' not in step['type'] and step['type'] != 'mmcasvit.StayInFolders'
    ]
    return model.data_preprocessor(pseudo_collate([Compose(steps)(dict(img_path=str(image), img_id=0))]), False)


def draw_prediction(
    model: nn.Module,
    image: np.ndarray,
    sample: BaseDataElement,
    score_thr: float,
    opacity: float | None = None,
    truth: bool = False,
) -> np.ndarray:
    """Draw the prediction of a detector or segmentor over an image, with the visualizer of its framework.

    Args:
        model: Model of :func:`mmcasvit.get_model`.
        image: ``(H, W, 3)`` in uint8 RGB.
        sample: Prediction of the model for this image.
        score_thr: Score above which boxes and masks are drawn.
        opacity: Opacity of boxes, masks and segmentation, from 0 to 1. The default is that of the config or visualizer.
        truth: Draw the ground truth of the sample instead of its prediction.

    Returns:
        ``(H, W, 3)`` in uint8 RGB.
    """
    settings = {**model.cfg.visualizer, 'name': 'visualizing', 'vis_backends': None}
    if opacity is not None:
        settings['alpha'] = opacity
    kind, scope = settings.pop('type'), settings.pop('_scope_', model.cfg.default_scope)
    if isinstance(kind, str):
        with VISUALIZERS.switch_scope_and_registry(scope) as registry:
            kind = registry.get(kind)
    visualizer = kind(**settings)  # the registry's build would return the first one of this name, whatever its settings
    quicken(visualizer).dataset_meta = model.dataset_meta
    threshold = dict(pred_score_thr=score_thr) if model.cfg.default_scope == 'mmdet' else dict(with_labels=False)
    visualizer.add_datasample('', image, sample, draw_gt=truth, draw_pred=not truth, **threshold)
    return visualizer.get_image()
