"""Weighted sums of positions of feature maps, which operators that sample a map come down to.

A map is a matrix with one row of channels per position. A bag is a group of positions, each with a weight.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Positions, or sampled values, that are held at once. This bounds the memory, not the result.
LIMIT = 2**22


def precise(x: Tensor) -> Tensor:
    """Return a tensor in at least single precision. Coordinates in half precision are off by whole positions."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def rows_of(maps: Tensor) -> Tensor:
    """Return feature maps ``(B, C, H, W)`` as one row per position, ``(B * H * W, C)``."""
    return precise(maps).permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def maps_of(rows: Tensor, shape: torch.Size) -> Tensor:
    """Return the inverse of :func:`rows_of`: contiguous maps of a shape ``(B, C, H, W)``."""
    maps = rows.new_empty(shape)
    for image, part in zip(maps.flatten(2), rows.view(shape[0], -1, shape[1])):
        image.copy_(part.t())  # PyTorch is several times as fast for a matrix as for more dimensions
    return maps


def sum_bags(rows: Tensor, index: Tensor, weights: Tensor, starts: Tensor) -> Tensor:
    """Return the weighted sum of each bag.

    Args:
        rows: ``(P, C)``.
        index: ``(N,)``, the rows of all bags.
        weights: ``(N,)``.
        starts: ``(G,)``, where each bag starts in ``index``.

    Returns:
        ``(G, C)``.
    """
    return F.embedding_bag(index, rows, starts, mode='sum', per_sample_weights=weights)


def spread_bags(bags: Tensor, index: Tensor, weights: Tensor, bag: Tensor, count: int) -> Tensor:
    """Return the transpose of :func:`sum_bags`: what each bag adds to each of ``count`` rows.

    Args:
        bags: ``(G, C)``.
        index: ``(N,)``, the rows of all bags.
        weights: ``(N,)``.
        bag: ``(N,)``, the bag of each of these.
        count: Number of rows.

    Returns:
        ``(count, C)``.
    """
    index, order = index.sort()
    starts = torch.searchsorted(index, torch.arange(count, device=index.device))
    return sum_bags(bags, bag[order], weights[order], starts)


def rectangles(heights: Tensor, widths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """List the cells of rectangles, row by row.

    Args:
        heights: ``(G,)``, in cells.
        widths: ``(G,)``.

    Returns:
        The rectangle, the row and the column of each cell, ``(N,)`` each, and ``(G,)`` with the first cell of each
        rectangle.
    """
    sizes = heights * widths
    ends = sizes.cumsum(0)
    starts = ends - sizes
    owner = torch.repeat_interleave(sizes)
    cell = torch.arange(len(owner), device=sizes.device) - starts[owner]
    width = widths[owner]
    row = torch.div(cell, width, rounding_mode='floor')
    return owner, row, cell - row * width, starts
