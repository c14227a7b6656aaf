"""Predictions of the frameworks' own inferencers, on images in files."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mmcv
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.fileio import dump
from PIL import Image
from rich.console import Console
from rich.progress import track

from mmcasvit.datasets.config import dataset_type, leaf_datasets
from mmcasvit.datasets.sources import read_data_as_data
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.images import IMAGE_SUFFIXES
from mmcasvit.utils.text import shorten
from mmcasvit.weights.checkpoint import read_ahead, use_safe_checkpoint_reader
from mmcasvit.weights.match import fit

# The folder and the suffix of the predictions of each framework.
_PREDICTIONS = dict(mmdet=('preds', '.json'), mmseg=('pred', '.png'), mmpretrain=('preds', '.json'))


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
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f'--device: {name} cannot be used on this machine: {reason}') from error
    if device.type == 'meta':
        raise UsageError('--device: meta computes nothing. Use cpu or cuda.')


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


class Output(NamedTuple):
    """The files of one image.

    Attributes:
        image: Path of the image.
        drawing: Path of the drawing.
        prediction: Path of the prediction.
    """

    image: str
    drawing: Path
    prediction: Path


def plan_outputs(
    scope: str, images: Sequence[str], root: Path, out_dir: Path, force: bool = False
) -> tuple[list[Output], Path]:
    """Name the files that :func:`predict` writes after their images.

    Args:
        scope: Framework of the inferencer: ``'mmdet'``, ``'mmseg'`` or ``'mmpretrain'``.
        images: Paths of the images.
        root: Folder whose subfolders are kept, or the only image.
        out_dir: Folder for the drawings (``vis``) and the predictions: ``preds`` with one JSON file per image for
            detectors and classifiers, ``pred`` with one index mask per image for segmentors.
        force: Whether files that exist may be overwritten.

    Returns:
        The files of each image, and the folder of the predictions.

    Raises:
        UsageError: If an output exists, or is one of the images.
    """
    folder, suffix = _PREDICTIONS[scope]
    outputs = []
    for image in images:
        name = Path(image).relative_to(root) if root.is_dir() else Path(Path(image).name)
        drawing = name
        if scope == 'mmpretrain' or name.suffix.lower() not in IMAGE_SUFFIXES:
            drawing = name.with_suffix('.png')
        outputs.append(Output(image, out_dir / 'vis' / drawing, out_dir / folder / name.with_suffix(suffix)))
    inputs = {Path(image).resolve() for image in images}
    existing = [path for output in outputs for path in output[1:] if path.exists()]
    if own := [path for path in existing if path.resolve() in inputs]:
        raise UsageError(f'{own[0]} is one of the images. Choose another --out-dir.')
    if existing and not force:
        raise UsageError(
            f'{shorten(map(str, existing), 2)} exist already. Use --force to overwrite them, or another --out-dir.'
        )
    return outputs, out_dir / folder


def predict(
    inferencer: Any, scope: str, outputs: Sequence[Output], batch_size: int = 1, score_thr: float = 0.3
) -> None:
    """Predict on images and write drawings and predictions.

    Args:
        inferencer: As :func:`get_inferencer` returns it.
        scope: Framework of the inferencer: ``'mmdet'``, ``'mmseg'`` or ``'mmpretrain'``.
        outputs: As :func:`plan_outputs` returns them.
        batch_size: Number of images in a batch.
        score_thr: Lowest score of a box that is drawn.
    """
    write = dict(mmdet=_detect, mmseg=_segment, mmpretrain=_classify)[scope]
    starts = range(0, len(outputs), batch_size)
    for start in track(starts, 'predicting', console=Console(stderr=True)):
        batch = outputs[start : start + batch_size]
        for output in batch:
            output.drawing.parent.mkdir(parents=True, exist_ok=True)
            output.prediction.parent.mkdir(parents=True, exist_ok=True)
        write(inferencer, batch, score_thr)


def _draw(output: Output, drawing: np.ndarray) -> None:
    mmcv.imwrite(np.ascontiguousarray(drawing[..., ::-1]), str(output.drawing))


def _detect(inferencer: Any, batch: Sequence[Output], score_thr: float) -> None:
    images = [output.image for output in batch]
    found = inferencer(images, batch_size=len(batch), return_vis=True, pred_score_thr=score_thr)
    names = inferencer.model.dataset_meta['classes']
    for output, result, drawing in zip(batch, found['predictions'], found['visualization']):
        if 'labels' in result:
            result['label_names'] = [names[label] if label < len(names) else '' for label in result['labels']]
        if 'panoptic_seg' in result:
            file = output.prediction.with_name(f'{output.prediction.stem}_panoptic_seg.png')
            mmcv.imwrite(result.pop('panoptic_seg')[:, :, ::-1], str(file))
            result['panoptic_seg_path'] = str(file)
        dump(result, output.prediction)
        _draw(output, drawing)


def _segment(inferencer: Any, batch: Sequence[Output], score_thr: float) -> None:
    found = inferencer([output.image for output in batch], batch_size=len(batch), return_vis=True)
    # mmseg takes a single image out of its list.
    lists = [found[key] if len(batch) > 1 else [found[key]] for key in ('predictions', 'visualization')]
    for output, mask, drawing in zip(batch, *lists):
        if np.issubdtype(mask.dtype, np.integer):
            Image.fromarray(mask.astype(np.uint8 if mask.max() < 256 else np.uint16)).save(output.prediction)
        else:  # a depth map
            np.save(output.prediction.with_suffix('.npy'), mask)
        _draw(output, drawing)


def _classify(inferencer: Any, batch: Sequence[Output], score_thr: float) -> None:
    images = [output.image for output in batch]
    samples = [sample for data in inferencer.preprocess(images, len(batch)) for sample in inferencer.forward(data)]
    for output, sample, result in zip(batch, samples, inferencer.postprocess(samples, None)):
        dump(result, output.prediction, indent=1)
        # Class names do not fit into a drawing of a small image, so all drawings are enlarged to one size.
        inferencer.visualizer.visualize_cls(
            mmcv.imread(output.image, channel_order='rgb'),
            sample,
            classes=inferencer.classes,
            resize=448,
            draw_gt=False,
            out_file=str(output.drawing),
        )
