"""Predictions of the frameworks' own inferencers, on images in files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.fileio import dump

from mmcasvit.weights.checkpoint import read_ahead, use_safe_checkpoint_reader
from mmcasvit.weights.match import fit


def get_inferencer(cfg: Config, checkpoint: str, device: str | None = None, trust: bool = False) -> Any:
    """Build the inferencer of a config's framework: ``DetInferencer``, ``MMSegInferencer`` or
    ``ImageClassificationInferencer``.

    Args:
        cfg: A whole config.
        checkpoint: Weights of the whole model: a file or an http(s) address.
        device: Device of the model. By default a GPU if there is one.
        trust: As in :func:`~mmcasvit.weights.checkpoint.read_checkpoint`.

    Raises:
        WeightsError: If the checkpoint cannot be read safely or lacks a tensor of the model.
    """
    content = read_ahead(checkpoint, trust=trust)
    use_safe_checkpoint_reader(trust)
    cfg.model.backbone.pop('init_cfg', None)
    if cfg.default_scope == 'mmdet':
        from mmdet.apis import DetInferencer

        inferencer = DetInferencer(cfg, checkpoint, device=device)
    elif cfg.default_scope == 'mmpretrain':
        from mmpretrain import ImageClassificationInferencer

        inferencer = ImageClassificationInferencer(cfg, checkpoint, device=device or get_device())
    else:
        from mmseg.apis import MMSegInferencer

        inferencer = MMSegInferencer(cfg, checkpoint, device=device)
        # mmseg draws in the colors of Cityscapes by default.
        inferencer.visualizer.dataset_meta = inferencer.model.dataset_meta
    fit(content, inferencer.model.state_dict()).refuse(loaded=True)
    return inferencer


def predict(
    inferencer: Any, scope: str, images: Sequence[str], out_dir: Path, batch_size: int = 1, score_thr: float = 0.3
) -> Path:
    """Predict on images and write drawings and predictions.

    Args:
        inferencer: As :func:`get_inferencer` returns it.
        scope: Framework of the inferencer: ``'mmdet'``, ``'mmseg'`` or ``'mmpretrain'``.
        images: Paths of the images.
        out_dir: Folder for the drawings (``vis``) and the predictions.
        batch_size: Number of images in a batch.
        score_thr: Lowest score of a box that is drawn.

    Returns:
        Folder of the predictions: ``preds`` with one JSON file per image for detectors and classifiers, ``pred`` with
        one index mask per image for segmentors.
    """
    options = dict(batch_size=batch_size)
    if scope == 'mmseg':
        inferencer(images, out_dir=str(out_dir), **options)
        return out_dir / 'pred'
    predictions = out_dir / 'preds'
    if scope == 'mmdet':
        inferencer(images, out_dir=str(out_dir), pred_score_thr=score_thr, no_save_pred=False, **options)
        return predictions
    predictions.mkdir(parents=True, exist_ok=True)
    # Class names do not fit into a drawing of a small image, so all drawings are enlarged to one size.
    for image, result in zip(images, inferencer(images, show_dir=str(out_dir / 'vis'), resize=448, **options)):
        dump(result, predictions / f'{Path(image).stem}.json', indent=1)
    return predictions
