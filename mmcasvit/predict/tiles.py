"""Large images, tile by tile: where the tiles are, and how the predictions of tiles become one of the image.

Memory holds the image and its result in uint8, and a few tiles.
"""

import contextlib
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor

from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.masks import encode_columns

from .merging import Crop, Views, merge
from .predictor import Predictor, name_labels, segments

# Pixels around a part of a drawing that are drawn and left out, so that a label that crosses its edge is whole.
_DRAWING, _MARGIN = 1024, 256


class Tile(NamedTuple):
    """Rectangle of an image, in pixels; the right and the bottom edge lie outside of it."""

    left: int
    top: int
    right: int
    bottom: int


def starts(length: int, tile: int, overlap: float) -> list[int]:
    """Return where tiles start along a side of an image, evenly spread, so that they overlap by at least a share.

    Args:
        length: Length of the side, in pixels.
        tile: Length of a tile.
        overlap: Share of a tile, from 0 to below 1.
    """
    if length <= tile:
        return [0]
    count = 1 + -(-(length - tile) // max(1, int(tile * (1 - overlap))))
    return [(length - tile) * i // (count - 1) for i in range(count)]


def tiles_of(size: tuple[int, int], tile: int, overlap: float) -> list[list[Tile]]:
    """Return the rows of tiles of an image of a size ``(H, W)``."""
    height, width = size
    return [
        [Tile(x, y, min(x + tile, width), min(y + tile, height)) for x in starts(width, tile, overlap)]
        for y in starts(height, tile, overlap)
    ]


def accumulate(rows: Sequence[Sequence[Tile]], logits: Iterable[Tensor], threshold: float | None = None) -> np.ndarray:
    """Return the label of each pixel by the mean of the logits of all tiles that it is in, as mmseg's sliding window.

    Only the logits of one tile, and of what the row of tiles before it and the tile on its left share with it, are kept
    at a time.

    Args:
        rows: As :func:`tiles_of` returns them.
        logits: Those of each tile, ``(K, h, w)``, row by row.
        threshold: Probability of a pixel of the only class, if there is only one.

    Returns:
        ``(H, W)``, in uint16 if there are over 256 classes and otherwise in uint8.
    """
    logits, labels = iter(logits), None
    shared = max((row[0].bottom - following[0].top for row, following in itertools.pairwise(rows)), default=0)
    carried = 0
    for row, following in itertools.zip_longest(rows, rows[1:]):
        top, bottom = row[0].top, row[0].bottom
        end = following[0].top if following else bottom
        left = None
        for tile, neighbor in itertools.zip_longest(row, row[1:]):
            part = next(logits).float().cpu().clone()
            if labels is None:
                labels = np.empty((rows[-1][0].bottom, row[-1].right), np.uint8 if len(part) <= 256 else np.uint16)
                carry = part.new_zeros(len(part), shared, row[-1].right)
            if left is not None:
                part[:, :, : left.shape[2]] += left
            right = neighbor.left if neighbor else tile.right
            part, left = part[:, :, : right - tile.left], part[:, :, right - tile.left :]
            columns = slice(tile.left, right)
            part[:, :carried] += carry[:, :carried, columns]
            carry[:, : bottom - end, columns] = part[:, end - top :]
            done = part[:, : end - top]
            if threshold is None:
                labels[top:end, columns] = done.argmax(0).numpy()
            else:
                labels[top:end, columns] = (done[0] / _times_covered(rows, top, end, columns)).numpy() > threshold
        carried = bottom - end
    return labels


def _times_covered(rows: Sequence[Sequence[Tile]], top: int, end: int, columns: slice) -> Tensor:
    """Return the number of tiles that each pixel of a part of an image is in."""
    y, x = torch.arange(top, end), torch.arange(columns.start, columns.stop)
    vertically = sum(((row[0].top <= y) & (y < row[0].bottom)).int() for row in rows)
    horizontally = sum(((tile.left <= x) & (x < tile.right)).int() for tile in rows[0])
    return torch.outer(torch.as_tensor(vertically), torch.as_tensor(horizontally))


class Detections(NamedTuple):
    """Detections of a large image.

    Attributes:
        size: Size ``(H, W)`` of the image.
        views: The detections, by falling score.
    """

    size: tuple[int, int]
    views: Views


class TiledPredictor:
    """Detector or segmentor that predicts on images ``(H, W, 3)`` in uint8 BGR tile by tile.

    Each tile goes through the test pipeline of the config, as an image of its size would.

    Args:
        predictor: The model.
        tile: Side of a tile, in pixels.
        overlap: Share of a tile that it shares at least with the next one.
        batch_size: Number of tiles in a batch.

    Raises:
        UsageError: If the model is a classifier, or a number is out of range.
    """

    def __init__(self, predictor: Predictor, tile: int, overlap: float = 0.2, batch_size: int = 1):
        if predictor.scope == 'mmpretrain':
            raise UsageError('--tile is for detectors and segmentors, and the config has a classifier.')
        check_tiles(tile, overlap)
        self.predictor, self.tile, self.overlap, self.batch_size = predictor, tile, overlap, batch_size

    @property
    def model(self) -> Any:
        return self.predictor.inferencer.model

    def predict(self, images: Sequence[np.ndarray]) -> list:
        """Return the :class:`Detections`, or the label map ``(H, W)``, of each image."""
        return [self._predict(image) for image in images]

    def _predict(self, image: np.ndarray) -> Any:
        rows = tiles_of(image.shape[:2], self.tile, self.overlap)
        samples = self._samples(image, [tile for row in rows for tile in row])
        if self.predictor.scope == 'mmseg':
            threshold = self.model.decode_head.threshold if self.model.decode_head.out_channels == 1 else None
            return accumulate(rows, (sample.seg_logits.data for _, sample in samples), threshold)
        views = Views.cat([_views(tile, sample.pred_instances) for tile, sample in samples])
        return Detections(image.shape[:2], merge(views, image.shape[:2], _nms_threshold(self.model)))

    def _samples(self, image: np.ndarray, tiles: Sequence[Tile]) -> Iterator[tuple[Tile, BaseDataElement]]:
        for first in range(0, len(tiles), self.batch_size):
            batch = tiles[first : first + self.batch_size]
            parts = [np.ascontiguousarray(image[tile.top : tile.bottom, tile.left : tile.right]) for tile in batch]
            yield from zip(batch, self.predictor.predict(parts))

    def values(self, result: Any) -> dict:
        """Return a result as values for JSON, as :meth:`Predictor.values` does."""
        if self.predictor.scope == 'mmseg':
            return segments(result, self.predictor.classes)
        (height, width), views = result
        values = dict(labels=views.labels.tolist(), scores=views.scores.tolist(), bboxes=views.boxes.tolist())
        if views.masks is not None:
            values['masks'] = [_encode(mask, height, width) for mask in views.masks]
        name_labels(values, self.model)
        return values

    def draw(self, image: np.ndarray, result: Any) -> np.ndarray:
        """Draw a result into its image, which is changed."""
        (_draw_labels if self.predictor.scope == 'mmseg' else _draw_detections)(self.predictor, image, result)
        return image


def check_tiles(tile: int, overlap: float) -> None:
    """Check the options of tiles.

    Raises:
        UsageError: If a number is out of range.
    """
    if tile < 32:
        raise UsageError(f'--tile must be at least 32, got {tile}.')
    if not 0 <= overlap <= 0.9:
        raise UsageError(f'--overlap must lie between 0 and 0.9, got {overlap}.')


def _nms_threshold(model: Any) -> float:
    """Return the IoU from which on the detector itself takes two boxes for one object."""
    settings = model.test_cfg.get('rcnn') or model.test_cfg
    return float((settings.get('nms') or {}).get('iou_threshold', 0.5))


def _views(tile: Tile, found: InstanceData) -> Views:
    """Return the detections of a tile in pixels of the image."""
    boxes, scores, labels = (found[key].detach().cpu().numpy() for key in ('bboxes', 'scores', 'labels'))
    masks = [_crop(mask, tile) for mask in np.asarray(found.masks.cpu())] if 'masks' in found else None
    offset = np.array([tile.left, tile.top] * 2)
    return Views(boxes + offset, scores, labels, np.tile(np.array(tile), (len(scores), 1)), masks)


def _crop(mask: np.ndarray, tile: Tile) -> Crop:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return Crop(tile.left, tile.top, np.zeros((1, 1), dtype=bool))
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Crop(tile.left + int(columns[0]), tile.top + int(rows[0]), part.astype(bool))


def _encode(mask: Crop, height: int, width: int) -> dict:
    rows, columns = mask.pixels.shape
    part = np.zeros((height, columns), dtype=bool)
    part[mask.top : mask.top + rows] = mask.pixels
    return encode_columns(part, mask.left, width)


def _draw_labels(predictor: Predictor, image: np.ndarray, labels: np.ndarray) -> None:
    """Color an image by its labels as mmseg does, some rows at a time."""
    opacity, palette = 0.8, np.zeros((np.iinfo(labels.dtype).max + 1, 3), np.uint8)
    given = np.array(predictor.inferencer.model.dataset_meta['palette'], np.uint8)[:, ::-1]
    palette[: len(given)] = given
    for top in range(0, len(image), _MARGIN):
        rows = slice(top, top + _MARGIN)
        image[rows] = image[rows] * (1 - opacity) + palette[labels[rows]] * opacity


def _draw_detections(predictor: Predictor, image: np.ndarray, result: Detections) -> None:
    """Draw detections part by part: mmdet's visualizer takes many times the memory of what it draws on."""
    from mmdet.structures import DetDataSample

    height, width = result.size
    views = result.views[result.views.scores >= predictor.score_thr]
    for top, left in itertools.product(range(0, height, _DRAWING), range(0, width, _DRAWING)):
        bottom, right = min(top + _DRAWING, height), min(left + _DRAWING, width)
        y, x = max(top - _MARGIN, 0), max(left - _MARGIN, 0)
        part = image[y : bottom + _MARGIN, x : right + _MARGIN]
        end = np.array([x + part.shape[1], y + part.shape[0]])
        here = views[(views.boxes[:, :2] < end).all(1) & (views.boxes[:, 2:] > [x, y]).all(1)]
        if not len(here):
            continue
        found = InstanceData(
            bboxes=torch.from_numpy(here.boxes - np.array([x, y, x, y])).float(),
            scores=torch.from_numpy(here.scores),
            labels=torch.from_numpy(here.labels),
        )
        if here.masks is not None:
            found.masks = torch.from_numpy(np.stack([_pasted(mask, x, y, part.shape[:2]) for mask in here.masks]))
        whole = mock.patch.object(predictor.inferencer.visualizer, 'whole', result.size, create=True)
        with warnings.catch_warnings(), steady_colors(), whole:
            warnings.filterwarnings('ignore', '.*out of bounds')
            drawing = predictor.draw(part, DetDataSample(pred_instances=found))
        image[top:bottom, left:right] = drawing[top - y : bottom - y, left - x : right - x]


@contextlib.contextmanager
def steady_colors() -> Iterator[None]:
    """Make mmdet draw the objects of a class in one color, and not each part of an object in another shade."""
    from mmdet.visualization import local_visualizer

    with mock.patch.object(local_visualizer, 'jitter_color', lambda color: color):
        yield


def _pasted(mask: Crop, left: int, top: int, size: tuple[int, int]) -> np.ndarray:
    """Return the part of a mask in a rectangle of a size ``(h, w)``."""
    pasted = np.zeros(size, dtype=bool)
    y, x = mask.top - top, mask.left - left
    target = pasted[max(y, 0) : max(y + mask.pixels.shape[0], 0), max(x, 0) : max(x + mask.pixels.shape[1], 0)]
    target[:] = mask.pixels[max(-y, 0) :, max(-x, 0) :][: target.shape[0], : target.shape[1]]
    return pasted
