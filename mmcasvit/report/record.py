"""Record of an evaluation: collected during a validation or test, and written next to the log of the run.

Every image leaves a score and a few counts; the best and worst images also leave their predictions, to be drawn.
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

from .images import FILE as IMAGES
from .images import compress_labels, matches_kept, write_images
from .scores import boxes_of, confusion_matrix, iou_per_class, rank, score_boxes, score_label_map

# The folder of a record next to the log of its run, and its file.
FOLDER, FILE = 'evaluation', 'record.json'
_MAX_WIDTH = 1280  # of ground truth and prediction side by side, in pixels


class ImageCollector(BaseMetric):
    """Metric that returns no value, but keeps the score and counts of each image for a report.

    Args:
        examples: Number of the best and of the worst images whose predictions are kept.
        score_thr: Lowest score of a detection.
        iou_thr: Lowest IoU of a match between a detection and an object.
        ignore_index: Label of ignored pixels.
    """

    default_prefix = 'report'

    def __init__(self, examples: int, score_thr: float, iou_thr: float, ignore_index: int = 255):
        super().__init__()
        self.examples, self.score_thr, self.iou_thr, self.ignore_index = examples, score_thr, iou_thr, ignore_index
        self.collected, self._drawable = [], []

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        classes = len(self.dataset_meta['classes'])
        for sample in data_samples:
            found = None
            if 'gt_sem_seg' in sample and 'pred_sem_seg' in sample:
                found = score_label_map(sample, classes, self.ignore_index)
            elif 'gt_instances' in sample and 'pred_instances' in sample:
                found = score_boxes(sample, classes, self.score_thr, self.iou_thr)
            # Every sample leaves an entry, since mmengine counts them to remove the padding of distributed runs.
            entry = dict(found or dict(score=None), path=str(sample.get('img_path')), img_id=sample.get('img_id'))
            if found is not None:
                entry |= self._single_image(sample, classes)
            self.results.append(entry)
            if found is not None:
                self._keep(entry, sample)

    def _single_image(self, sample: dict[str, Any], classes: int) -> dict[str, Any]:
        """Return what :func:`.images.write_images` writes of an image."""
        if 'pred_sem_seg' in sample:
            truth, found = (
                sample[name]['data'].squeeze(0).cpu().numpy().astype(np.int32)
                for name in ('gt_sem_seg', 'pred_sem_seg')
            )
            truth = np.where((truth >= 0) & (truth < classes) & (truth != self.ignore_index), truth, -1)
            valid = truth >= 0
            areas = [
                np.bincount(part, minlength=classes)[:classes]
                for part in (truth[valid & (truth == found)], found[valid], truth[valid])
            ]
            maps = dict(truth_map=compress_labels(truth), found_map=compress_labels(found))
            return dict(maps, areas=np.stack(areas, axis=1))
        rows = {}
        for name, key in (('truth', 'gt_instances'), ('found', 'pred_instances')):
            part = sample[key]
            scores = part['scores'].cpu() if 'scores' in part else torch.ones(len(part['labels']))
            columns = torch.cat([boxes_of(part), part['labels'].cpu()[:, None], scores[:, None]], dim=1)
            rows[f'{name}_boxes'] = columns[scores >= self.score_thr].float().numpy()
        return rows

    def _keep(self, entry: dict[str, Any], sample: dict[str, Any]) -> None:
        """Keep the data for drawing an image if it is among the best or worst so far."""
        place = bisect.bisect(self._drawable, rank(entry), key=rank)
        if self.examples <= place <= len(self._drawable) - self.examples:
            return
        entry['sample'] = self._to_draw(sample)
        self._drawable.insert(place, entry)
        if len(self._drawable) > 2 * self.examples:
            del self._drawable.pop(self.examples)['sample']

    def _to_draw(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Return the data for drawing an image, with only the boxes that are shown."""
        kept: dict[str, Any] = {}
        for name in ('gt_sem_seg', 'pred_sem_seg'):
            if name in sample:
                kept[name] = sample[name]['data'].squeeze(0).cpu().numpy().astype(np.int16)
        for name in ('gt_instances', 'pred_instances'):
            if name in sample and 'pred_sem_seg' not in sample:
                part = sample[name]
                shown = (part['scores'] >= self.score_thr).cpu() if 'scores' in part else slice(None)
                kept[name] = dict(bboxes=boxes_of(part)[shown], labels=part['labels'].cpu()[shown])
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


def watch_classes(metric: BaseMetric) -> None:
    """Make a ``CocoMetric`` keep the AP of each class, for boxes and masks, and the matches of each image.

    They are in ``metric.per_class`` and ``metric.matches``.

    Its own option ``classwise`` would add them to the metrics, where those of masks overwrite those of boxes.
    """
    compute, kinds, classwise = metric.compute_metrics, metric.metrics, metric.classwise

    @functools.wraps(compute)
    def compute_each(results: list) -> dict:
        metric.per_class, metric.matches, metrics = {}, {}, {}
        try:
            for kind in kinds:
                metric.metrics, metric.classwise = [kind], kind in ('bbox', 'segm')
                with matches_kept(metric):
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
    matches: dict[str, dict] | None = None,
) -> None:
    """Write ``record.json``, ``images.npz`` and the drawn images.

    Args:
        folder: Folder to write, which replaces an existing one.
        images: Entries that ``collector`` collected.
        collector: The collector.
        metrics: Metrics of the whole dataset.
        per_class: For each metric, its value for each class.
        source: Description of what was evaluated.
        matches: For ``'bbox'`` and ``'segm'``, the result of :func:`.images.coco_matches`.
    """
    meta = collector.dataset_meta
    classes = [str(name) for name in meta['classes']]
    scored = sorted((image for image in images if image['score'] is not None), key=rank)
    segmentation = any('gt_sem_seg' in image.get('sample', {}) for image in scored)
    size = len(classes) if segmentation else len(classes) + 1
    matrix = confusion_matrix([image['counts'] for image in scored], size)
    if segmentation:
        per_class = iou_per_class(matrix)
        score = 'mean IoU of the classes that are in the image or were predicted in it'
        unit = 'pixels'
    else:
        score = f'F1 of the boxes with a score of at least {collector.score_thr:g}, at an IoU of {collector.iou_thr:g}'
        unit = 'objects'
    number = min(collector.examples, len(scored))
    shown = dict(best=scored[::-1][:number], worst=scored[:number])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    record: dict[str, Any] = dict(
        source=source,
        classes=classes,
        unit=unit,
        metrics={name: _number(value) for name, value in metrics.items()},
        per_class={name: [_number(value) for value in values] for name, values in per_class.items()},
        confusion=[[int(row), int(column), int(matrix[row, column])] for row, column in zip(*np.nonzero(matrix))],
        score=score,
        images=len(images),
        scores=[[image['path'], image['score']] for image in scored],
        pictures={},
    )
    for kind, entries in shown.items():
        record['pictures'][kind] = []
        for place, image in enumerate(entries, 1):
            file = f'{kind}-{place}.jpg'
            draw(image, meta, folder / file)
            record['pictures'][kind].append(
                dict(file=file, **{key: image[key] for key in ('path', 'score', 'errors', 'objects')})
            )
    write_images(folder / IMAGES, images, meta, collector.score_thr, matches or {})
    (folder / FILE).write_text(json.dumps(record))


def _number(value: Any) -> float | None:
    """Return a finite number or None, since JSON has no NaN."""
    value = float(value) if isinstance(value, (int, float, np.number, torch.Tensor)) else float('nan')
    return value if np.isfinite(value) else None


def read_record(folder: Path) -> dict[str, Any]:
    """Read a record, and add its confusion matrix as ``matrix``.

    Raises:
        OSError, ValueError, LookupError, TypeError: There is no record, or it is incomplete.
    """
    record = json.loads((folder / FILE).read_text())
    size = len(record['classes']) + (record['unit'] == 'objects')
    return record | dict(matrix=confusion_matrix([record['confusion']], size))


@rc_context({'text.parse_math': False})  # class names are not formulas
def draw(image: dict[str, Any], meta: dict[str, Any], file: Path) -> None:
    """Draw ground truth on the left and prediction on the right with the visualizer of mmdet or mmseg."""
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

        # Boxes with low scores were removed before.
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
    if pair.shape[1] > _MAX_WIDTH:
        size = _MAX_WIDTH, round(pair.shape[0] * _MAX_WIDTH / pair.shape[1])
        mmcv.imwrite(mmcv.imresize(pair, size, interpolation='area'), str(file))
