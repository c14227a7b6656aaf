"""Detections of overlapping tiles become those of the whole image.

An object in several tiles has a detection in each. If it is not longer than the overlap, at least one tile has all of
it. So of the detections that do not touch a cut edge of their tile, the best one stays, as with the detector's own
non-maximum suppression. A detection at a cut edge is a part, and is dropped if it lies in one of these. What is left
are parts of objects that no tile has whole: parts that agree where their tiles overlap are joined.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Share of a part that lies in a whole detection of its class, from which on it is a part of the same object.
INSIDE = 0.5
# IoU of two parts within the overlap of their tiles, from which on they are parts of one object.
SAME = 0.5


class Crop(NamedTuple):
    """Mask of one object.

    Attributes:
        left, top: Place of its first pixel in the image.
        pixels: ``(h, w)``, boolean.
    """

    left: int
    top: int
    pixels: np.ndarray


@dataclass
class Views:
    """Detections of one or more tiles, in pixels of the image.

    Attributes:
        boxes: ``(D, 4)``, as left, top, right, bottom.
        scores: ``(D,)``.
        labels: ``(D,)``, integers.
        tiles: ``(D, 4)``, the tile of each.
        masks: One for each, or None.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    tiles: np.ndarray
    masks: list[Crop] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, indices: np.ndarray) -> 'Views':
        indices = np.arange(len(self))[indices]
        masks = None if self.masks is None else [self.masks[i] for i in indices]
        return Views(self.boxes[indices], self.scores[indices], self.labels[indices], self.tiles[indices], masks)

    @staticmethod
    def cat(parts: list['Views']) -> 'Views':
        boxes, scores, labels, tiles = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ('boxes', 'scores', 'labels', 'tiles')
        )
        masks = None if parts[0].masks is None else [mask for part in parts for mask in part.masks or ()]
        return Views(boxes, scores, labels, tiles, masks)


def merge(views: Views, size: tuple[int, int], threshold: float) -> Views:
    """Merge the detections of all tiles of an image.

    Args:
        views: The detections.
        size: Size ``(H, W)`` of the image.
        threshold: IoU of two detections of a class from which on the one with the lower score is dropped.

    Returns:
        Detections by falling score.
    """
    cut = _touches_cut_edge(views, size)
    whole, parts = views[~cut], views[cut]
    whole = whole[suppress(whole, threshold)]
    parts = parts[~_inside(parts, whole)]
    merged = Views.cat([whole, _join(parts)])
    return merged[suppress(merged, threshold)]


def _touches_cut_edge(views: Views, size: tuple[int, int]) -> np.ndarray:
    """Return for each detection whether it ends at an edge of its tile that is not an edge of the image."""
    inner = views.tiles != np.array([0, 0, size[1], size[0]])
    # A detector places the side of an object that is cut off only roughly.
    margin = np.maximum(2, 0.01 * (views.tiles[:, 2:] - views.tiles[:, :2]))
    return (inner & (np.abs(views.boxes - views.tiles) <= np.tile(margin, 2))).any(1)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2:] - boxes[..., :2]).clip(0).prod(-1)


def _intersect(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [np.maximum(left[..., :2], right[..., :2]), np.minimum(left[..., 2:], right[..., 2:])], axis=-1
    )


def _iou(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    common = _area(_intersect(left, right))
    return common / np.maximum(_area(left) + _area(right) - common, 1e-9)


def suppress(views: Views, threshold: float) -> np.ndarray:
    """Return the indices of the detections that non-maximum suppression within each class leaves, by falling score."""
    order, kept = np.argsort(-views.scores, kind='stable'), []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        same = views.labels[order] == views.labels[best]
        order = order[~(same & (_iou(views.boxes[order], views.boxes[best]) > threshold))]
    return np.array(kept, dtype=int)


def _inside(parts: Views, whole: Views) -> np.ndarray:
    """Return for each part whether most of it lies in a whole detection of its class."""
    found = np.zeros(len(parts), dtype=bool)
    for i, (box, label) in enumerate(zip(parts.boxes, parts.labels)):
        shares = _area(_intersect(whole.boxes[whole.labels == label], box)) / max(_area(box), 1e-9)
        found[i] = (shares >= INSIDE).any()
    return found


def _join(parts: Views) -> Views:
    """Join parts of one class, of different tiles, that agree where their tiles overlap."""
    pairs = []
    for i in range(len(parts)):
        common = _intersect(parts.tiles[i], parts.tiles[i + 1 :])
        agreement = _iou(_intersect(parts.boxes[i], common), _intersect(parts.boxes[i + 1 :], common))
        other = (parts.tiles[i + 1 :] != parts.tiles[i]).any(1) & (parts.labels[i + 1 :] == parts.labels[i])
        pairs += [(i, i + 1 + j) for j in np.flatnonzero(other & (agreement >= SAME))]
    rows, columns = np.array(pairs, dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(parts), len(parts)))
    count, groups = connected_components(graph, directed=False) if len(parts) else (0, np.zeros(0, int))
    joined = [parts[groups == group] for group in range(count)]
    return Views.cat([parts[:0], *map(_one, joined)])


def _one(group: Views) -> Views:
    box = np.concatenate([group.boxes[:, :2].min(0), group.boxes[:, 2:].max(0)])
    best = group[np.argmax(group.scores)[None]]
    masks = None if group.masks is None else [union(group.masks)]
    return Views(box[None], best.scores, best.labels, best.tiles, masks)


def union(masks: list[Crop]) -> Crop:
    """Return the union of masks."""
    left, top = (min(mask[side] for mask in masks) for side in (0, 1))
    right = max(mask.left + mask.pixels.shape[1] for mask in masks)
    bottom = max(mask.top + mask.pixels.shape[0] for mask in masks)
    pixels = np.zeros((bottom - top, right - left), dtype=bool)
    for mask in masks:
        height, width = mask.pixels.shape
        pixels[mask.top - top :, mask.left - left :][:height, :width] |= mask.pixels
    return Crop(left, top, pixels)
