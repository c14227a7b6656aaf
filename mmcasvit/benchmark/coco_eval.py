"""COCO's evaluation by pycocotools and by faster-coco-eval, side by side on synthetic boxes."""

import contextlib
import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmcasvit.utils.errors import UsageError

_CLASSES, _OBJECTS, _DETECTIONS = 80, 7, 30  # about as in COCO: classes, objects and detections of an image


def made_up_boxes(images: int, seed: int = 0) -> tuple[dict[str, list], list[dict[str, Any]]]:
    """Return a COCO dataset of random boxes, and detections of which some are near them."""
    rng = np.random.default_rng(seed)
    annotations: list[dict] = []
    found: list[dict] = []
    for image in range(1, images + 1):
        truth = np.concatenate([rng.uniform(0, 500, (_OBJECTS, 2)), rng.uniform(8, 200, (_OBJECTS, 2))], axis=1)
        kinds = rng.integers(1, _CLASSES + 1, _OBJECTS)
        near = rng.integers(0, _OBJECTS, _DETECTIONS)
        guesses = np.maximum(truth[near] + rng.normal(0, 12, (_DETECTIONS, 4)), 1)
        labels = np.where(rng.random(_DETECTIONS) < 0.6, kinds[near], rng.integers(1, _CLASSES + 1, _DETECTIONS))
        for box, kind in zip(truth.tolist(), kinds.tolist()):
            crowd = int(rng.random() < 0.02)
            part = dict(id=len(annotations) + 1, image_id=image, category_id=kind, iscrowd=crowd)
            annotations.append(dict(part, bbox=box, area=box[2] * box[3]))
        for box, kind, score in zip(guesses.tolist(), labels.tolist(), rng.random(_DETECTIONS).tolist()):
            found.append(dict(image_id=image, category_id=kind, bbox=box, score=score))
    categories = [dict(id=number, name=str(number)) for number in range(1, _CLASSES + 1)]
    entries = [dict(id=number, width=700, height=700) for number in range(1, images + 1)]
    return dict(images=entries, annotations=annotations, categories=categories), found


def evaluate_both(images: int, tell: Callable[[str], None] = lambda text: None) -> tuple[list[dict[str, Any]], float]:
    """Evaluate synthetic boxes by both libraries.

    Args:
        images: Number of images.
        tell: Function that is told what begins and what is done.

    Returns:
        A row for each library, with its seconds of processor time, and the largest difference between their metrics.

    Raises:
        UsageError: If faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval import COCOeval_faster
    except ImportError as error:
        raise UsageError('faster-coco-eval is not installed: pip install "mmcasvit[coco]"') from error
    tell(f'making up the boxes of {images} images')
    dataset, found = made_up_boxes(images)
    rows, stats = [], []
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        for name, kind in (('pycocotools', COCOeval), ('faster-coco-eval', COCOeval_faster)):
            tell(f'evaluating by {name}')
            evaluation = kind(truth, truth.loadRes([dict(box) for box in found]), 'bbox')
            start = time.process_time()
            evaluation.evaluate()
            evaluation.accumulate()
            seconds = time.process_time() - start
            evaluation.summarize()
            stats.append(np.array(evaluation.stats[:12], float))
            rows.append({'evaluation': name, 'processor time, s': seconds, 'AP': float(stats[-1][0])})
    return rows, float(np.abs(stats[0] - stats[1]).max())
