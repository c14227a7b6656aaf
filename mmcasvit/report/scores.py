"""Scores of single images, and confusion matrices."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def match_boxes(ious: np.ndarray, truth: np.ndarray, found: np.ndarray, iou_thr: float) -> list[tuple[int, int]]:
    """Match detections to objects, one to one.

    First each detection, in the given order, is matched to the free object of its own class that it overlaps most.
    These are the true positives of each class. The remaining detections are then matched to free objects of any class.

    Args:
        ious: IoUs, ``(number of objects, number of detections)``.
        truth: Classes of the objects.
        found: Classes of the detections, sorted by descending score.
        iou_thr: Lowest IoU of a match.

    Returns:
        Pairs of the index of an object and the index of a detection.
    """
    pairs, free, waiting = [], np.ones(len(truth), bool), list(range(len(found)))
    for same_class in (True, False):
        left = []
        for detection in waiting:
            fits = free & (ious[:, detection] >= iou_thr)
            if same_class:
                fits &= truth == found[detection]
            if fits.any():
                best = int(np.argmax(np.where(fits, ious[:, detection], -1)))
                free[best] = False
                pairs.append((best, detection))
            else:
                left.append(detection)
        waiting = left
    return pairs


def score_boxes(sample: dict[str, Any], classes: int, score_thr: float, iou_thr: float) -> dict[str, Any]:
    """Return score, number of errors, number of objects and confusion counts of one image of a detector.

    The score is F1, 2 TP / (2 TP + FP + FN), of the boxes with a score of at least ``score_thr``; it is 1 if there are
    neither objects nor detections. Unmatched detections are not counted if at least half of their area lies in a box
    that the dataset ignores (a crowd).

    Args:
        sample: ``pred_instances``, ``gt_instances`` and optionally ``ignored_instances``, as in mmdet.
        classes: Number of classes, which is also the index of the background.
        score_thr: Lowest score of a detection.
        iou_thr: Lowest IoU of a match.
    """
    from mmdet.structures.bbox import bbox_overlaps

    predicted, objects = sample['pred_instances'], sample['gt_instances']
    order = torch.argsort(predicted['scores'], descending=True, stable=True).cpu()
    order = order[predicted['scores'].cpu()[order] >= score_thr]
    boxes, found = boxes_of(predicted)[order], predicted['labels'].cpu()[order].numpy()
    truth = objects['labels'].cpu().numpy()
    pairs = match_boxes(bbox_overlaps(boxes_of(objects), boxes).numpy(), truth, found, iou_thr)
    cells = [(int(truth[i]), int(found[j])) for i, j in pairs]
    unmatched = sorted(set(range(len(found))) - {j for _, j in pairs})
    ignored = boxes_of(sample.get('ignored_instances') or {})
    if len(ignored) and unmatched:
        inside = bbox_overlaps(boxes[unmatched], ignored, mode='iof').max(1).values >= 0.5
        unmatched = [j for j, skip in zip(unmatched, inside.tolist()) if not skip]
    missed = sorted(set(range(len(truth))) - {i for i, _ in pairs})
    right = sum(i == j for i, j in cells)
    wrong = len(cells) - right
    errors = len(unmatched) + len(missed) + 2 * wrong  # a wrong class is a false negative and a false positive
    cells += [(classes, int(found[j])) for j in unmatched] + [(int(truth[i]), classes) for i in missed]
    rows, columns = np.array(cells, int).reshape(-1, 2).T
    return dict(
        score=2 * right / (2 * right + errors) if right or errors else 1.0,
        errors=errors,
        objects=len(truth),
        counts=_count(rows, columns, classes + 1),
    )


def boxes_of(instances: dict[str, Any]) -> torch.Tensor:
    """Return the boxes of instances, ``(N, 4)``."""
    boxes = instances.get('bboxes', torch.zeros(0, 4))
    return getattr(boxes, 'tensor', boxes).detach().cpu().float().reshape(-1, 4)


def score_label_map(sample: dict[str, Any], classes: int, ignore_index: int) -> dict[str, Any] | None:
    """Return score, number of wrong pixels, number of classes and confusion counts of one image of a segmentor.

    The score is the mean IoU of the classes that are in the image or were predicted in it.

    Args:
        sample: ``pred_sem_seg`` and ``gt_sem_seg``, as in mmseg.
        classes: Number of classes. Pixels with other labels are ignored.
        ignore_index: Label of ignored pixels.

    Returns:
        The four values, or None for an image without labeled pixels.
    """
    truth = sample['gt_sem_seg']['data'].squeeze(0).cpu().numpy().astype(int)
    found = sample['pred_sem_seg']['data'].squeeze(0).cpu().numpy().astype(int)
    valid = (truth != ignore_index) & (truth >= 0) & (truth < classes)
    truth, found = truth[valid], found[valid]
    if not len(truth):
        return None
    counts = _count(truth, found, classes)
    matrix = confusion_matrix([counts], classes)
    right, union = np.diag(matrix), matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    return dict(
        score=float((right[union > 0] / union[union > 0]).mean()),
        errors=int(matrix.sum() - right.sum()),
        objects=len(np.unique(truth)),
        counts=counts,
    )


def _count(rows: np.ndarray, columns: np.ndarray, size: int) -> list[list[int]]:
    """Return row, column and count of each pair that occurs."""
    cells, numbers = np.unique(rows * size + columns, return_counts=True)
    return [[int(cell) // size, int(cell) % size, int(number)] for cell, number in zip(cells, numbers)]


def confusion_matrix(counts: Sequence[Sequence[Sequence[int]]], size: int) -> np.ndarray:
    """Return the sum of the counts of several images, ``(size, size)``, with a row for each true class."""
    matrix = np.zeros((size, size), np.int64)
    for cells in counts:
        for row, column, number in cells:
            matrix[row, column] += number
    return matrix


def rank(entry: dict[str, Any]) -> tuple[float, int, int]:
    """Return the sort key that orders images from worst to best: by score, then fewer errors, then more objects."""
    return entry['score'], -entry['errors'], entry['objects']


def iou_per_class(matrix: np.ndarray) -> dict[str, list[float]]:
    """Return IoU and accuracy of each class in percent, computed by mmseg."""
    from mmseg.evaluation import IoUMetric

    right, found, truth = (
        torch.from_numpy(part).double() for part in (np.diag(matrix).copy(), matrix.sum(0), matrix.sum(1))
    )
    metrics = IoUMetric.total_area_to_metrics(right, found + truth - right, found, truth, ['mIoU'])
    return {name: (metrics[name] * 100).tolist() for name in ('IoU', 'Acc')}
