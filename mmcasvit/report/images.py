"""Evaluation of single images, recorded so that metrics of a part of the images can be computed from it later."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.evaluator import BaseMetric

from mmcasvit.utils.errors import UsageError

from .bootstrap import AveragePrecision, IntersectionOverUnion, Measured

FILE = 'images.npz'
_LONGEST = 320  # side of the recorded label maps in pixels
_KINDS = dict(bbox='box ', segm='mask ')


@contextmanager
def matches_kept(metric: BaseMetric) -> Iterator[None]:
    """Make pycocotools leave the matches of each image in ``metric.matches``, while a ``CocoMetric`` computes."""
    import mmdet.evaluation.metrics.coco_metric as module

    original = module.COCOeval

    class KeepingCOCOeval(original):  # type: ignore[misc,valid-type]  # known only at run time
        def evaluate(self) -> None:
            super().evaluate()
            if self.params.iouType in _KINDS and self.params.useCats:
                metric.matches[self.params.iouType] = coco_matches(self)

    module.COCOeval = KeepingCOCOeval
    try:
        yield
    finally:
        module.COCOeval = original


def coco_matches(evaluation: Any) -> dict[str, np.ndarray]:
    """Return what :class:`.bootstrap.AveragePrecision` reads, from a ``COCOeval`` that has been evaluated.

    Images are numbered in the order of ``ids``.
    """
    params = evaluation.params
    ids, areas = list(params.imgIds), len(params.areaRng)
    objects = np.zeros((len(ids), len(params.catIds)), np.int32)
    columns: dict[str, list] = dict(image=[], label=[], score=[], right=[], ignored=[])
    bits = 1 << np.arange(len(params.iouThrs), dtype=np.uint32)[:, None]
    for label in range(len(params.catIds)):
        for image in range(len(ids)):
            entry = evaluation.evalImgs[label * areas * len(ids) + image]  # the first range of areas is all of them
            if entry is None:
                continue
            objects[image, label] = np.count_nonzero(np.asarray(entry['gtIgnore']) == 0)
            scores = entry['dtScores'][:100]  # COCO's limit for AP
            if not scores:
                continue
            columns['image'].append(np.full(len(scores), image, np.int32))
            columns['label'].append(np.full(len(scores), label, np.int32))
            columns['score'].append(np.array(scores, np.float64))
            columns['right'].append(((entry['dtMatches'][:, :100] != 0) * bits).sum(0, dtype=np.uint32))
            columns['ignored'].append(((entry['dtIgnore'][:, :100] != 0) * bits).sum(0, dtype=np.uint32))
    found = {name: np.concatenate(parts) if parts else np.zeros(0, np.int32) for name, parts in columns.items()}
    return dict(found, objects=objects, thresholds=np.array(params.iouThrs), ids=np.array(ids))


def compress_labels(labels: np.ndarray) -> bytes:
    """Return a label map as a small PNG of 16 bits; labels are shifted by one, so that -1 can be kept."""
    scale = min(1.0, _LONGEST / max(labels.shape))
    size = max(1, round(labels.shape[1] * scale)), max(1, round(labels.shape[0] * scale))
    small = cv2.resize(labels.astype(np.int32).astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
    return cv2.imencode('.png', (small + 1).astype(np.uint16))[1].tobytes()


def label_map(png: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a label map of :func:`compress_labels`, enlarged to a height and width."""
    small = cv2.imdecode(png, cv2.IMREAD_UNCHANGED)
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_NEAREST).astype(np.int16) - 1


def write_images(
    file: Path, images: Sequence[dict], meta: dict[str, Any], score_thr: float, matches: dict[str, dict]
) -> None:
    """Write the evaluation of single images.

    Args:
        file: File to write.
        images: Entries that :class:`.record.ImageCollector` collected.
        meta: Meta information of the dataset.
        score_thr: Lowest score of the boxes that were kept for drawing.
        matches: For ``'bbox'`` and ``'segm'``, the result of :func:`coco_matches`.
    """
    images = sorted(images, key=lambda image: image['path'])  # so that the images of two runs are in the same order
    content: dict[str, Any] = dict(
        paths=np.array([image['path'] for image in images], dtype=str),
        scores=np.array([np.nan if image['score'] is None else image['score'] for image in images]),
        classes=np.array(meta['classes'], dtype=str),
        palette=np.array(meta.get('palette') or np.zeros((0, 3)), dtype=np.uint8).reshape(-1, 3),
        score_thr=score_thr,
    )
    if any('areas' in image for image in images):
        empty = np.zeros((len(meta['classes']), 3), np.int64)
        content['areas'] = np.stack([image.get('areas', empty) for image in images])
        for name in ('truth', 'found'):
            parts = [np.frombuffer(image.get(f'{name}_map', b''), np.uint8) for image in images]
            content[f'{name}_map'], content[f'{name}_map_ends'] = np.concatenate(parts), np.cumsum([*map(len, parts)])
    for name in ('truth', 'found'):
        parts = [image.get(f'{name}_boxes', np.zeros((0, 6), np.float32)) for image in images]
        content[f'{name}_boxes'], content[f'{name}_boxes_ends'] = np.concatenate(parts), np.cumsum([*map(len, parts)])
    places = {image.get('img_id'): place for place, image in enumerate(images)}
    for kind, found in matches.items():
        order = np.array([places.get(number, -1) for number in found['ids'].tolist()])
        if (order < 0).any():  # an evaluation on other images than those that were predicted
            continue
        objects = np.zeros((len(images), found['objects'].shape[1]), np.int32)
        objects[order] = found['objects']
        content |= {f'{kind}_{key}': value for key, value in found.items() if key != 'ids'}
        content |= {f'{kind}_image': order[found['image']].astype(np.int32), f'{kind}_objects': objects}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **content)
    file.write_bytes(buffer.getvalue())


class RecordedImages:
    """Evaluation of single images as :func:`write_images` wrote it.

    Args:
        file: The file.

    Raises:
        UsageError: The file cannot be read.
    """

    def __init__(self, file: Path):
        self.file = file
        try:
            with np.load(file, allow_pickle=False) as content:
                self._content = {name: content[name] for name in content.files}
            self.paths: list[str] = self._content['paths'].tolist()
            self.classes: list[str] = self._content['classes'].tolist()
            self.scores: np.ndarray = self._content['scores']
            self.measured = self._measured()
        except Exception as error:  # a damaged archive raises nearly anything
            raise UsageError(f'{file} cannot be read: {error}. Evaluate the run again with --report.') from error

    def _measured(self) -> dict[str, Measured]:
        """Return the evaluations that can be resampled, by their kind."""
        content = self._content
        if 'areas' in content:
            return dict(areas=IntersectionOverUnion(content['areas']))
        found: dict[str, Measured] = {}
        for kind, prefix in _KINDS.items():
            if f'{kind}_objects' not in content:
                continue
            part = {name: content[f'{kind}_{name}'] for name in ('image', 'label', 'score', 'objects', 'thresholds')}
            bits = np.arange(len(part['thresholds']), dtype=np.uint32)[:, None]
            for name in ('right', 'ignored'):
                part[name] = (content[f'{kind}_{name}'][None] >> bits & 1).astype(bool)
            found[kind] = AveragePrecision(**part, prefix=prefix)
        return found

    def truth(self) -> list[np.ndarray]:
        """Return what has to be equal for two runs to have been evaluated on the same annotations."""
        content = self._content
        if 'areas' in content:
            return [content['areas'][:, :, 2]]
        return [content[f'{kind}_objects'] for kind in _KINDS if f'{kind}_objects' in content]

    def _part(self, name: str, place: int) -> np.ndarray:
        ends = self._content[f'{name}_ends']
        return self._content[name][(ends[place - 1] if place else 0) : ends[place]]

    def drawable(self, place: int, size: tuple[int, int]) -> dict[str, Any]:
        """Return ground truth and prediction of an image, as :func:`.record.draw` takes them.

        Args:
            place: Index of the image.
            size: Its height and width in pixels.
        """
        import torch

        if 'areas' in self._content:
            maps = {name: label_map(self._part(f'{name}_map', place), size) for name in ('truth', 'found')}
            return dict(gt_sem_seg=maps['truth'], pred_sem_seg=maps['found'])
        kept = {}
        for key, name in (('gt_instances', 'truth'), ('pred_instances', 'found')):
            rows = torch.from_numpy(self._part(f'{name}_boxes', place).copy())
            # A drawing shrinks to make room for what lies outside.
            boxes = rows[:, :4].clamp(min=0).minimum(torch.tensor([size[1], size[0]] * 2) - 1)
            kept[key] = dict(bboxes=boxes, labels=rows[:, 4].long(), scores=rows[:, 5])
        kept['gt_instances'].pop('scores')
        return kept

    @property
    def meta(self) -> dict[str, Any]:
        """Classes and palette, as visualizers take them."""
        palette = [tuple(color) for color in self._content['palette'].tolist()]
        return dict(classes=self.classes, **(dict(palette=palette) if palette else {}))
