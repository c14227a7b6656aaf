"""Non-maximum suppression: the greedy one, soft NMS, and the groups that a kept box stands for."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .libraries import use_torchvision

# Boxes that are compared with all others at once. The temporary arrays fit into the cache of a core.
_BLOCK = 64


def _columns(boxes: Tensor, offset: int) -> np.ndarray:
    """Return x1, y1, x2, y2 and area of boxes as the rows of an array of at least single precision."""
    boxes = boxes.detach().cpu()
    coordinates = (boxes if boxes.dtype == torch.float64 else boxes.float()).numpy().T
    x1, y1, x2, y2 = coordinates
    return np.stack([x1, y1, x2, y2, (x2 - x1 + offset) * (y2 - y1 + offset)])


def _overlaps(a: np.ndarray, b: np.ndarray, offset: int) -> np.ndarray:
    """Return the IoU of each box of ``a`` with each of ``b``, rounded as mmcv's compiled operator does.

    Args:
        a: ``(5, A)``, see :func:`_columns`.
        b: ``(5, B)``.
        offset: The width of a box is ``x2 - x1 + offset``.

    Returns:
        ``(A, B)``. Two boxes without any area give NaN.
    """
    a = a[:, :, None]
    inter, height = (np.minimum(a[high], b[high]) for high in (2, 3))
    for size, low in ((inter, 0), (height, 1)):
        size -= np.maximum(a[low], b[low])
        if offset:
            size += offset
        np.maximum(size, 0, out=size)
    inter *= height
    union = np.add(a[4], b[4], out=height)
    union -= inter
    with np.errstate(divide='ignore', invalid='ignore'):
        return np.divide(inter, union, out=inter)


def _apart(columns: np.ndarray, offset: int) -> Iterator[np.ndarray]:
    """Yield the indices of boxes in parts, such that boxes of different parts do not overlap.

    Boxes of different classes and levels lie apart in ``mmcv.ops.batched_nms``.
    """
    by_left = np.argsort(columns[0], kind='stable')
    reach = np.maximum.accumulate(columns[2, by_left]) + offset
    cuts = np.flatnonzero(columns[0, by_left[1:]] >= reach[:-1]) + 1
    cuts = cuts[np.unique(cuts // _BLOCK, return_index=True)[1]]  # tiny parts cost more than they save
    for part in np.split(by_left, cuts):
        part.sort()
        yield part


def _kept(columns: np.ndarray, threshold: float, offset: int) -> np.ndarray:
    """Return the indices of boxes that overlap with no kept box of a lower index."""
    index, kept = np.arange(columns.shape[1]), []
    while index.size:
        block = columns[:, :_BLOCK]
        suppresses = np.triu(_overlaps(block, block, offset) > threshold, 1)
        alive = np.ones(block.shape[1], bool)
        for i in np.flatnonzero(suppresses.any(1)):
            if alive[i]:
                alive[suppresses[i]] = False
        kept.append(index[:_BLOCK][alive])
        columns, index = columns[:, _BLOCK:], index[_BLOCK:]
        if index.size:
            left = ~(_overlaps(block[:, alive], columns, offset) > threshold).any(0)
            columns, index = columns[:, left], index[left]
    return np.concatenate(kept)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes that greedy NMS keeps, by falling score.

    Args:
        boxes: ``(N, 4)`` as x1, y1, x2, y2.
        scores: ``(N,)``.
        iou_threshold: Drop a box if its IoU with a better one is larger than this.
        offset: The width of a box is ``x2 - x1 + offset``.
    """
    order = scores.sort(0, descending=True)[1]  # equal scores in the order of mmcv, which sorts the same way
    threshold = float(np.float32(iou_threshold))  # mmcv's operator takes it in single precision
    if not len(boxes):
        return order
    if not offset and use_torchvision('nms', boxes):
        falling = torch.arange(len(order), 0, -1, device=boxes.device, dtype=torch.float64).to(boxes)
        if falling.dtype in (torch.float32, torch.float64):  # exact up to 2^24
            return order[torch.ops.torchvision.nms(boxes[order], falling, threshold)]
    columns = _columns(boxes[order], offset)
    keep = np.zeros(len(order), bool)
    # Without an overlap, the IoU is 0, and only a negative threshold is below that.
    for part in _apart(columns, offset) if threshold >= 0 else [np.arange(len(order))]:
        keep[part[_kept(columns[:, part], threshold, offset)]] = True
    return order[torch.from_numpy(keep).to(order.device)]


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lower the scores of boxes that overlap with better ones, as Soft-NMS (arXiv 1704.04503) does.

    Args:
        boxes: ``(N, 4)`` as x1, y1, x2, y2.
        scores: ``(N,)``.
        dets: ``(N, 5)``. Boxes and new scores are written into its first rows.
        iou_threshold: The least IoU that lowers a score, unless the method is Gaussian.
        sigma: Width of the Gaussian.
        min_score: Drop a box if its score falls below this.
        method: 0 drops the boxes, 1 lowers their scores linearly, 2 by a Gaussian of the IoU.
        offset: The width of a box is ``x2 - x1 + offset``.

    Returns:
        The indices of the boxes that are left, by falling score.
    """
    columns = _columns(boxes, offset)
    rows = np.concatenate([columns, scores.detach().cpu().numpy()[None].astype(columns.dtype)])
    index = np.arange(len(boxes))
    sigma, done = columns.dtype.type(sigma), 0
    while done < index.size:
        best = done + rows[5, done:].argmax()
        for x in (rows, index):
            x[..., [done, best]] = x[..., [best, done]]
        rest = rows[:, done + 1 :]
        overlaps = np.nan_to_num(_overlaps(rows[:5, done : done + 1], rest[:5], offset)[0])
        if method == 2:
            rest[5] *= np.exp(-(overlaps * overlaps) / sigma)
        else:
            near = overlaps >= iou_threshold
            rest[5, near] *= 0 if method == 0 else 1 - overlaps[near]
        # A dropped box is replaced by the last one, so that boxes of equal scores stay in the order of mmcv.
        left = ~(rest[5] < min_score)
        count = int(left.sum())
        holes = np.flatnonzero(~left[:count])
        fill = count + np.flatnonzero(left[count:])[::-1]
        for x in (rows, index):
            x[..., done + 1 + holes] = x[..., done + 1 + fill]
        rows, index = rows[:, : done + 1 + count], index[: done + 1 + count]
        done += 1
    dets[: index.size] = torch.from_numpy(rows[[0, 1, 2, 3, 5]].T).to(dets)
    return torch.from_numpy(index)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Return, for each box that NMS keeps, its index followed by those of the boxes that it suppresses.

    Args:
        dets: ``(N, 5)`` as x1, y1, x2, y2, score.
        iou_threshold: Suppress a box if its IoU with a better one is at least this.
    """
    index = dets[:, 4].sort(0, descending=True)[1].cpu().numpy()
    columns = _columns(dets[:, :4], 0)[:, index]
    groups = []
    while index.size:
        near = _overlaps(columns[:, :1], columns, 0)[0] >= np.float32(iou_threshold)
        near[0] = True
        groups.append(index[near].tolist())
        columns, index = columns[:, ~near], index[~near]
    return groups
