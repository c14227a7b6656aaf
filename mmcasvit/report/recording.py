"""Collects during a validation or test what a report shows of it, and leaves it in the folder of the run's logs.

Of every image a score and a few counts are kept; of the best and the worst also the prediction, to be drawn at the end.
"""

import bisect
import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from mmengine.evaluator import BaseMetric
from mmengine.structures import InstanceData, PixelData

from .page import FILE

_PICTURE_WIDTH = 1280  # of ground truth and prediction side by side


def match_boxes(ious: np.ndarray, truth: np.ndarray, found: np.ndarray, least: float) -> list[tuple[int, int]]:
    """Assigns detections to objects, one to one.

    First each detection, in the order given, takes the free object of its own class that it overlaps most; then what is
    left takes free objects of any class. So the first kind are the true positives of each class, and the second kind
    objects that were found and named wrongly.

    Args:
        ious: ``(number of objects, number of detections)``.
        truth: classes of the objects.
        found: classes of the detections, the most certain first.
        least: the IoU from which a detection counts for an object.

    Returns:
        pairs of the index of an object and that of a detection.
    """
    pairs, free, waiting = [], np.ones(len(truth), bool), list(range(len(found)))
    for same_class in (True, False):
        left = []
        for detection in waiting:
            fits = free & (ious[:, detection] >= least)
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


def judge_boxes(sample: dict[str, Any], classes: int, score_thr: float, iou_thr: float) -> dict[str, Any]:
    """Score and counts of one image of a detector.

    The score is F1, 2 TP / (2 TP + FP + FN), of the boxes from ``score_thr`` on; 1 where nothing is and nothing was
    found. Detections that belong to no object and lie, with half of their area or more, in a box that the data set
    says to ignore (a crowd) are not counted.

    Args:
        sample: with ``pred_instances``, ``gt_instances`` and perhaps ``ignored_instances``, as mmdet gives it.
        classes: how many; index ``classes`` stands for the background.
    """
    from mmdet.structures.bbox import bbox_overlaps

    predicted, objects = sample['pred_instances'], sample['gt_instances']
    order = torch.argsort(predicted['scores'], descending=True, stable=True).cpu()
    order = order[predicted['scores'].cpu()[order] >= score_thr]
    boxes, found = _boxes(predicted)[order], predicted['labels'].cpu()[order].numpy()
    truth = objects['labels'].cpu().numpy()
    pairs = match_boxes(bbox_overlaps(_boxes(objects), boxes).numpy(), truth, found, iou_thr)
    cells = [(int(truth[i]), int(found[j])) for i, j in pairs]
    unmatched = sorted(set(range(len(found))) - {j for _, j in pairs})
    ignored = _boxes(sample.get('ignored_instances') or {})
    if len(ignored) and unmatched:
        inside = bbox_overlaps(boxes[unmatched], ignored, mode='iof').max(1).values >= 0.5
        unmatched = [j for j, skip in zip(unmatched, inside.tolist()) if not skip]
    missed = sorted(set(range(len(truth))) - {i for i, _ in pairs})
    right = sum(i == j for i, j in cells)
    wrong = len(cells) - right
    errors = len(unmatched) + len(missed) + 2 * wrong  # an object named wrongly is missed and something else made up
    cells += [(classes, int(found[j])) for j in unmatched] + [(int(truth[i]), classes) for i in missed]
    rows, columns = np.array(cells, int).reshape(-1, 2).T
    return dict(
        score=2 * right / (2 * right + errors) if right or errors else 1.0,
        errors=errors,
        objects=len(truth),
        counts=_sparse(rows, columns, classes + 1),
    )


def _boxes(instances: dict[str, Any]) -> torch.Tensor:
    boxes = instances.get('bboxes', torch.zeros(0, 4))
    return getattr(boxes, 'tensor', boxes).detach().cpu().float().reshape(-1, 4)


def judge_map(sample: dict[str, Any], classes: int, ignore_index: int) -> dict[str, Any] | None:
    """Score and counts of one image of a segmentor.

    The score is the mean IoU of the classes that the image has or that were predicted in it.

    Args:
        sample: with ``pred_sem_seg`` and ``gt_sem_seg``, as mmseg gives it.
        classes: how many.
        ignore_index: of pixels without a class.

    Returns:
        None for an image without a pixel of a class. Values that are no class are left out like ``ignore_index``.
    """
    truth = sample['gt_sem_seg']['data'].squeeze(0).cpu().numpy().astype(int)
    found = sample['pred_sem_seg']['data'].squeeze(0).cpu().numpy().astype(int)
    valid = (truth != ignore_index) & (truth >= 0) & (truth < classes)
    truth, found = truth[valid], found[valid]
    if not len(truth):
        return None
    counts = _sparse(truth, found, classes)
    matrix = dense([counts], classes)
    right, union = np.diag(matrix), matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    return dict(
        score=float((right[union > 0] / union[union > 0]).mean()),
        errors=int(matrix.sum() - right.sum()),
        objects=len(np.unique(truth)),
        counts=counts,
    )


def _sparse(rows: np.ndarray, columns: np.ndarray, size: int) -> list[list[int]]:
    """How often each pair of a row and a column occurs, without those that do not."""
    cells, numbers = np.unique(rows * size + columns, return_counts=True)
    return [[int(cell) // size, int(cell) % size, int(number)] for cell, number in zip(cells, numbers)]


def dense(images: Sequence[Sequence[Sequence[int]]], size: int) -> np.ndarray:
    """The confusion matrix of all images: ``(size, size)``, a row for each true class, a column for each predicted."""
    matrix = np.zeros((size, size), np.int64)
    for counts in images:
        for row, column, number in counts:
            matrix[row, column] += number
    return matrix


class ImageCollector(BaseMetric):
    """A metric that adds no number: it keeps scores and counts of images for a report.

    Args:
        pictures: of how many of the best and of the worst images the predictions are kept.
        score_thr: boxes below count as not found.
        iou_thr: the IoU from which a box counts for an object.
        ignore_index: of pixels without a class.
    """

    default_prefix = 'report'

    def __init__(self, pictures: int, score_thr: float, iou_thr: float, ignore_index: int = 255):
        super().__init__()
        self.pictures, self.score_thr, self.iou_thr, self.ignore_index = pictures, score_thr, iou_thr, ignore_index
        self.collected, self._drawable = [], []

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        classes = len(self.dataset_meta['classes'])
        for sample in data_samples:
            found = None
            if 'gt_sem_seg' in sample and 'pred_sem_seg' in sample:
                found = judge_map(sample, classes, self.ignore_index)
            elif 'gt_instances' in sample and 'pred_instances' in sample:
                found = judge_boxes(sample, classes, self.score_thr, self.iou_thr)
            # Every sample leaves an entry: mmengine tells by their number which are padding of another process.
            entry = dict(found or dict(score=None), path=str(sample.get('img_path')))
            self.results.append(entry)
            if found is not None:
                self._keep(entry, sample)

    def _keep(self, entry: dict[str, Any], sample: dict[str, Any]) -> None:
        """Adds to the entry what its picture needs if it is one of the best or the worst so far."""
        place = bisect.bisect(self._drawable, rank(entry), key=rank)
        if self.pictures <= place <= len(self._drawable) - self.pictures:
            return
        entry['sample'] = self._to_draw(sample)
        self._drawable.insert(place, entry)
        if len(self._drawable) > 2 * self.pictures:
            del self._drawable.pop(self.pictures)['sample']

    def _to_draw(self, sample: dict[str, Any]) -> dict[str, Any]:
        """What the picture of an image needs; of boxes those alone that are shown."""
        kept = {}
        for name in ('gt_sem_seg', 'pred_sem_seg'):
            if name in sample:
                kept[name] = sample[name]['data'].squeeze(0).cpu().numpy().astype(np.int16)
        for name in ('gt_instances', 'pred_instances'):
            if name in sample and 'pred_sem_seg' not in sample:
                part = sample[name]
                shown = (part['scores'] >= self.score_thr).cpu() if 'scores' in part else slice(None)
                kept[name] = dict(bboxes=_boxes(part)[shown], labels=part['labels'].cpu()[shown])
                if 'scores' in part:
                    kept[name]['scores'] = part['scores'].cpu()[shown]
                if 'masks' in part:
                    masks = part['masks']
                    masks = torch.from_numpy(masks.to_ndarray()) if hasattr(masks, 'to_ndarray') else masks
                    masks = (masks[shown] > 0).cpu().numpy()
                    kept[name]['masks'] = np.packbits(masks, axis=-1), masks.shape[-1]
        return kept

    def compute_metrics(self, results: list) -> dict:
        self.collected, self._drawable = results, []
        return {}


def rank(entry: dict[str, Any]) -> tuple[float, int, int]:
    """Orders images from the worst on: by score, then by the number of errors, then by what there was to find."""
    return entry['score'], -entry['errors'], entry['objects']


def watch_classes(metric: BaseMetric) -> None:
    """Has a ``CocoMetric`` of mmdet keep the AP of each class of each of its kinds, in ``metric.per_class``.

    Its own switch, ``classwise``, would mix them into the metrics, those of masks in the place of those of boxes.
    """
    compute, kinds, classwise = metric.compute_metrics, metric.metrics, metric.classwise

    @functools.wraps(compute)
    def compute_each(results: list) -> dict:
        metric.per_class, metrics = {}, {}
        try:
            for kind in kinds:
                metric.metrics, metric.classwise = [kind], kind in ('bbox', 'segm')
                found = compute(results)
                names = [f'{name}_precision' for name in metric.dataset_meta['classes']]
                if metric.classwise and all(name in found for name in names):
                    metric.per_class[dict(bbox='box AP', segm='mask AP')[kind]] = [float(found[name]) for name in names]
                metrics |= {name: value for name, value in found.items() if classwise or name not in names}
        finally:
            metric.metrics, metric.classwise = kinds, classwise
        return metrics

    metric.compute_metrics = compute_each


def write_record(
    folder: Path,
    images: list[dict],
    collector: ImageCollector,
    metrics: dict[str, float],
    per_class: dict[str, list[float]],
    source: str,
) -> None:
    """Writes ``record.json`` and the pictures beside it.

    Args:
        folder: takes the place of an earlier one.
        images: as :class:`ImageCollector` collected them.
        collector: what collected them.
        metrics: of the whole data set.
        per_class: of each of several metrics, a number for each class.
        source: what was evaluated, for the reader.
    """
    meta = collector.dataset_meta
    classes = [str(name) for name in meta['classes']]
    judged = sorted((image for image in images if image['score'] is not None), key=rank)
    segmentation = any('gt_sem_seg' in image.get('sample', {}) for image in judged)
    size = len(classes) if segmentation else len(classes) + 1
    matrix = dense([image['counts'] for image in judged], size)
    if segmentation:
        per_class = iou_per_class(matrix)
        score = 'mean IoU of the classes that the image has or that were predicted in it'
        unit = 'pixels'
    else:
        score = f'F1 of the boxes with a score from {collector.score_thr:g} on, at an IoU of {collector.iou_thr:g}'
        unit = 'objects'
    number = min(collector.pictures, len(judged))
    shown = dict(best=judged[::-1][:number], worst=judged[:number])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    record = dict(
        source=source,
        classes=classes,
        unit=unit,
        metrics={name: _number(value) for name, value in metrics.items()},
        per_class={name: [_number(value) for value in values] for name, values in per_class.items()},
        confusion=_sparse_matrix(matrix),
        score=score,
        images=len(images),
        scores=[[image['path'], image['score']] for image in judged],
        pictures={},
    )
    for kind, entries in shown.items():
        record['pictures'][kind] = []
        for place, image in enumerate(entries, 1):
            file = f'{kind}-{place}.jpg'
            draw(image, meta, folder / file)
            record['pictures'][kind].append(
                dict(
                    file=file,
                    path=image['path'],
                    score=image['score'],
                    errors=image['errors'],
                    objects=image['objects'],
                )
            )
    (folder / FILE).write_text(json.dumps(record))


def _number(value: Any) -> float | None:
    """A finite number for JSON, which knows no NaN."""
    value = float(value) if isinstance(value, (int, float, np.number, torch.Tensor)) else float('nan')
    return value if np.isfinite(value) else None


def _sparse_matrix(matrix: np.ndarray) -> list[list[int]]:
    return [[int(row), int(column), int(matrix[row, column])] for row, column in zip(*np.nonzero(matrix))]


def iou_per_class(matrix: np.ndarray) -> dict[str, list[float]]:
    """IoU and accuracy of each class in percent, by mmseg's own formulas."""
    from mmseg.evaluation import IoUMetric

    right, found, truth = (
        torch.from_numpy(part).double() for part in (np.diag(matrix).copy(), matrix.sum(0), matrix.sum(1))
    )
    metrics = IoUMetric.total_area_to_metrics(right, found + truth - right, found, truth, ['mIoU'])
    return {name: (metrics[name] * 100).tolist() for name in ('IoU', 'Acc')}


@rc_context({'text.parse_math': False})  # a name of a class is no formula
def draw(image: dict[str, Any], meta: dict[str, Any], file: Path) -> None:
    """Ground truth at the left and prediction at the right, drawn by mmdet's or mmseg's visualizer."""
    import mmcv

    kept, photo = image['sample'], mmcv.imread(image['path'], channel_order='rgb')
    if 'gt_sem_seg' in kept:
        from mmseg.structures import SegDataSample
        from mmseg.visualization import SegLocalVisualizer

        visualizer, sample, options = SegLocalVisualizer(name='report', alpha=0.6), SegDataSample(), {}
        for name in ('gt_sem_seg', 'pred_sem_seg'):
            setattr(sample, name, PixelData(data=torch.from_numpy(kept[name].astype(np.int64))[None]))
    else:
        from mmdet.structures import DetDataSample
        from mmdet.visualization import DetLocalVisualizer

        # Boxes with low scores have been left out before.
        visualizer, sample, options = DetLocalVisualizer(name='report'), DetDataSample(), dict(pred_score_thr=-1)
        for name in ('gt_instances', 'pred_instances'):
            part = dict(kept[name])
            if 'masks' in part:
                packed, width = part['masks']
                part['masks'] = np.unpackbits(packed, axis=-1, count=width).astype(bool)
            setattr(sample, name, InstanceData(**part))
    visualizer.dataset_meta = meta
    visualizer.add_datasample('report', photo, sample, out_file=str(file), **options)
    pair = mmcv.imread(file)
    if pair.shape[1] > _PICTURE_WIDTH:
        size = _PICTURE_WIDTH, round(pair.shape[0] * _PICTURE_WIDTH / pair.shape[1])
        mmcv.imwrite(mmcv.imresize(pair, size, interpolation='area'), str(file))
