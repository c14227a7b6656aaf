"""Predictions on image files, one file for each."""

from collections.abc import Iterator, Sequence
from typing import Any

import mmcv
import numpy as np
from mmengine.fileio import dump
from PIL import Image
from rich.console import Console
from rich.progress import track

from mmcasvit.utils.images import open_image

from .outputs import Output
from .predictor import Predictor, name_labels
from .tiles import TiledPredictor

# Longest side of a JPEG, in pixels.
_LARGEST_JPEG = 65500


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
        for part in _of_one_size(batch) if scope == 'mmseg' else [batch]:
            write(inferencer, part, score_thr)


def _of_one_size(batch: Sequence[Output]) -> Iterator[list[Output]]:
    """Split a batch by the size of the images: mmseg's segmentors take only images of one size together."""
    sizes = []
    for output in batch:
        with open_image(output.source) as file:
            sizes.append(file.size)
    for size in sorted(set(sizes)):
        yield [output for output, other in zip(batch, sizes) if other == size]


def predict_tiled(predictor: TiledPredictor, outputs: Sequence[Output]) -> None:
    """Predict on large images tile by tile, and write drawings and predictions as :func:`predict` does.

    Args:
        predictor: The model.
        outputs: As :func:`~mmcasvit.predict.outputs.plan_outputs` returns them.
    """
    for output in track(outputs, 'predicting', console=Console(stderr=True)):
        image = mmcv.imread(output.source)
        [result] = predictor.predict([image])
        output.prediction.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(result, np.ndarray):
            Image.fromarray(result).save(output.prediction)
        else:
            dump(predictor.values(result), output.prediction)
        drawing = output.drawing if max(image.shape) <= _LARGEST_JPEG else output.drawing.with_suffix('.png')
        mmcv.imwrite(predictor.draw(image, result), str(drawing))


def _draw(output: Output, drawing: np.ndarray) -> None:
    mmcv.imwrite(np.ascontiguousarray(drawing[..., ::-1]), str(output.drawing))


def _detect(inferencer: Any, batch: Sequence[Output], score_thr: float) -> None:
    images = [output.source for output in batch]
    found = inferencer(images, batch_size=len(batch), return_vis=True, pred_score_thr=score_thr)
    for output, result, drawing in zip(batch, found['predictions'], found['visualization']):
        name_labels(result, inferencer.model)
        if 'panoptic_seg' in result:
            file = output.prediction.with_name(f'{output.prediction.stem}_panoptic_seg.png')
            mmcv.imwrite(result.pop('panoptic_seg')[:, :, ::-1], str(file))
            result['panoptic_seg_path'] = str(file)
        dump(result, output.prediction)
        _draw(output, drawing)


def _segment(inferencer: Any, batch: Sequence[Output], score_thr: float) -> None:
    found = inferencer([output.source for output in batch], batch_size=len(batch), return_vis=True)
    # mmseg takes a single image out of its list.
    lists = [found[key] if len(batch) > 1 else [found[key]] for key in ('predictions', 'visualization')]
    for output, mask, drawing in zip(batch, *lists):
        if np.issubdtype(mask.dtype, np.integer):
            Image.fromarray(mask.astype(np.uint8 if mask.max() < 256 else np.uint16)).save(output.prediction)
        else:  # a depth map
            np.save(output.prediction.with_suffix('.npy'), mask)
        _draw(output, drawing)


def _classify(inferencer: Any, batch: Sequence[Output], score_thr: float) -> None:
    images, predictor = [output.source for output in batch], Predictor(inferencer, 'mmpretrain', score_thr)
    samples = [sample for data in inferencer.preprocess(images, len(batch)) for sample in inferencer.forward(data)]
    for output, sample, result in zip(batch, samples, inferencer.postprocess(samples, None)):
        dump(result, output.prediction, indent=1)
        mmcv.imwrite(predictor.draw(mmcv.imread(output.source), sample), str(output.drawing))
