"""Predictions on image files, one file for each."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import mmcv
import numpy as np
from mmengine.fileio import dump
from mmengine.structures import BaseDataElement
from PIL import Image
from rich.console import Console
from rich.progress import track

from mmcasvit.utils.ahead import map_ahead

from .outputs import Output
from .predictor import Predictor, Prepared, name_labels
from .tiles import TiledPredictor

# Threads that read and prepare images while the model runs.
READERS = 2
# Longest side of a JPEG, in pixels.
_LARGEST_JPEG = 65500

_Job: TypeAlias = tuple[Output, Prepared]


def predict(predictor: Predictor, outputs: Sequence[Output], batch_size: int = 1) -> None:
    """Predict on images and write drawings and predictions.

    Args:
        predictor: The model.
        outputs: As :func:`~mmcasvit.predict.outputs.plan_outputs` returns them.
        batch_size: Number of images in a batch.
    """
    work = predictions(predictor, outputs, batch_size)
    for _ in track(work, 'predicting', len(outputs), console=Console(stderr=True)):
        pass


def predictions(
    predictor: Predictor, outputs: Iterable[Output], batch_size: int = 1, readers: int = READERS
) -> Iterator[None]:
    """Predict on images, and yield whenever the drawing and the prediction of one are written.

    Args:
        predictor: The model.
        outputs: As :func:`~mmcasvit.predict.outputs.plan_outputs` returns them.
        batch_size: Number of images in a batch.
        readers: Number of threads that read and prepare images ahead of the model, while another one draws and writes.
            With 0, all is done in turn.
    """

    def prepare(output: Output) -> _Job:
        return output, predictor.prepare(str(output.source))

    def save(job: tuple[_Job, BaseDataElement]) -> None:
        (output, prepared), sample = job
        write_prediction(predictor, output, sample)
        write_drawing(predictor.draw(prepared.image, sample), output)

    if not readers:
        yield from map(save, _samples(predictor, map(prepare, outputs), batch_size))
        return
    with ThreadPoolExecutor(readers) as reading, ThreadPoolExecutor(1) as writing:
        ahead = map_ahead(reading, prepare, outputs, readers + batch_size)
        yield from map_ahead(writing, save, _samples(predictor, ahead, batch_size), batch_size)


def _samples(predictor: Predictor, jobs: Iterable[_Job], batch_size: int) -> Iterator[tuple[_Job, BaseDataElement]]:
    jobs = iter(jobs)
    while batch := list(itertools.islice(jobs, batch_size)):
        yield from zip(batch, predictor.run([prepared for _, prepared in batch]))


def write_prediction(predictor: Predictor, output: Output, sample: BaseDataElement) -> None:
    """Write a prediction as JSON, as an index mask, or, for a depth map, as an array."""
    output.prediction.parent.mkdir(parents=True, exist_ok=True)
    writers = dict(mmdet=_write_detections, mmseg=_write_labels, mmpretrain=_write_scores)
    writers[predictor.scope](predictor.inferencer, output, sample)


def write_drawing(drawing: np.ndarray, output: Output) -> None:
    """Write a drawing ``(H, W, 3)`` in uint8 BGR."""
    mmcv.imwrite(drawing, str(output.drawing))


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


def _write_detections(inferencer: Any, output: Output, sample: BaseDataElement) -> None:
    result = inferencer.pred2dict(sample)
    name_labels(result, inferencer.model)
    if 'panoptic_seg' in result:
        file = output.prediction.with_name(f'{output.prediction.stem}_panoptic_seg.png')
        mmcv.imwrite(result.pop('panoptic_seg')[:, :, ::-1], str(file))
        result['panoptic_seg_path'] = str(file)
    dump(result, output.prediction)


def _write_labels(inferencer: Any, output: Output, sample: BaseDataElement) -> None:
    if 'pred_depth_map' in sample:
        np.save(output.prediction.with_suffix('.npy'), sample.pred_depth_map.data[0].cpu().numpy())
        return
    mask = sample.pred_sem_seg.data[0].cpu().numpy()
    Image.fromarray(mask.astype(np.uint8 if mask.max() < 256 else np.uint16)).save(output.prediction)


def _write_scores(inferencer: Any, output: Output, sample: BaseDataElement) -> None:
    [result] = inferencer.postprocess([sample], None)
    dump(result, output.prediction, indent=1)
