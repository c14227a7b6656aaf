"""RoIAlign and RoIPool, which cut regions of interest out of feature maps."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .bags import LIMIT, maps_of, precise, rectangles, rows_of, spread_bags, sum_bags
from .libraries import use_torchvision


class _Axis(NamedTuple):
    """Sampling points of regions along one axis of the map.

    Attributes:
        start: ``(R,)``, where the regions begin.
        step: ``(R,)``, length of a cell of the output.
        counts: ``(R,)``, number of sampling points per cell.
        cells: Number of cells.
        size: Length of the map.
    """

    start: Tensor
    step: Tensor
    counts: Tensor
    cells: int
    size: int

    def of(self, chosen: Tensor | slice) -> '_Axis':
        """Return the axis of some of the regions."""
        return _Axis(self.start[chosen], self.step[chosen], self.counts[chosen], self.cells, self.size)

    def points(self) -> Tensor:
        """Return the positions of the points, ``(R, cells, S)`` for S points in the cells of one region at least."""
        start, step, counts = (x[:, None, None] for x in (self.start, self.step, self.counts))
        cell = torch.arange(self.cells, device=step.device)[:, None]
        point = torch.arange(max(1, int(self.counts.max())), device=step.device)
        return start + cell * step + (point + 0.5) * step / counts

    def taps(self, merge: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return where cells read the map, and with which weights.

        Args:
            merge: Merge the positions that neighboring points share. The points must be at most 1 apart.

        Returns:
            Positions and weights, ``(R, cells, K)``, and the number of those that a region needs, ``(R,)``.
        """
        points = self.points()
        low, high, low_weight, high_weight = _neighbors(points, self.size)
        if not merge:
            return torch.cat([low, high], -1), torch.cat([low_weight, high_weight], -1), 2 * self.counts
        used = torch.arange(points.shape[-1], device=points.device) < self.counts[:, None, None]
        first = low[..., :1]
        position = first + torch.arange(points.shape[-1] + 1, device=points.device)
        slot = (torch.cat([low, high], -1) - first).clamp_(max=points.shape[-1])
        weights = torch.zeros_like(position, dtype=points.dtype)
        weights.scatter_add_(2, slot, torch.cat([low_weight * used, high_weight * used], -1))
        return position.clamp_(max=self.size - 1), weights, (self.counts + 1) * (self.counts > 0)


def _neighbors(points: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the two positions around each point of an axis, and their weights, which are 0 far outside the map."""
    inside = (points >= -1) & (points <= size)
    points = points.clamp(0, size - 1)
    low = points.long()
    high = (low + 1).clamp_(max=size - 1)
    part = points - low
    return low, high, (1 - part) * inside, part * inside


def _axes(
    rois: Tensor, shape: torch.Size, height: int, width: int, scale: float, sampling_ratio: int, aligned: bool
) -> tuple[_Axis, _Axis]:
    """Return the axes of regions on maps of a shape, ``(B, C, H, W)``."""
    corners = rois[:, 1:] * scale - (0.5 if aligned else 0)
    axes = []
    for column, cells, size in ((1, height, shape[2]), (0, width, shape[3])):
        length = corners[:, column + 2] - corners[:, column]
        step = (length if aligned else length.clamp(min=1)) / cells
        counts = torch.full_like(step, sampling_ratio) if sampling_ratio > 0 else step.ceil().clamp_(min=0)
        axes.append(_Axis(corners[:, column], step, counts.long(), cells, size))
    return axes[0], axes[1]


def _chunks(costs: Tensor) -> Iterator[Tensor | slice]:
    """Yield indices of regions such that the number of regions times the highest cost among them is bounded."""
    if not len(costs) or int(costs.max()) * len(costs) <= LIMIT:
        yield slice(None)
        return
    costs, order = costs.sort()
    limits, start = costs.tolist(), 0
    while start < len(order):
        end = start + 1
        while end < len(order) and limits[end] * (end + 1 - start) <= LIMIT:
            end += 1
        yield order[start:end]
        start = end


class _Bags(NamedTuple):
    """Cells of the output as weighted sums of positions of the maps; see :mod:`mmcasvit.ops.bags`."""

    regions: Tensor | slice
    index: Tensor
    weights: Tensor
    owner: Tensor
    starts: Tensor


def _average_bags(rois: Tensor, y: _Axis, x: _Axis, merge: bool) -> Iterator[_Bags]:
    """Yield the cells of RoIAlign. It is separable, so that a weight is the product of those of both axes."""
    images = rois[:, 0].long()
    for regions in _chunks((y.counts + 1) * (x.counts + 1) * y.cells * x.cells * (1 if merge else 4)):
        (rows, row_weights, heights), (columns, column_weights, widths) = (
            axis.of(regions).taps(merge) for axis in (y, x)
        )
        rows = (images[regions, None, None] * y.size + rows) * x.size
        row_weights = row_weights / (y.counts * x.counts)[regions, None, None].clamp(min=1)
        cells = y.cells * x.cells
        owner, i, j, starts = rectangles(heights.repeat_interleave(cells), widths.repeat_interleave(cells))
        number = torch.arange(len(heights), device=rois.device)[:, None, None]
        row = (number * y.cells + torch.arange(y.cells, device=rois.device)[:, None]) * rows.shape[2]
        column = (number * x.cells + torch.arange(x.cells, device=rois.device)) * columns.shape[2]
        i += row.expand(-1, -1, x.cells).flatten()[owner]
        j += column.expand(-1, y.cells, -1).flatten()[owner]
        index = rows.flatten()[i] + columns.flatten()[j]
        weights = row_weights.flatten()[i] * column_weights.flatten()[j]
        yield _Bags(regions, index, weights, owner, starts)


def _flat(rois: Tensor, shape: torch.Size, device: torch.device) -> Tensor:
    """Return where the map of each region and channel starts in flattened maps, ``(R, C, 1, 1)``."""
    channel = torch.arange(shape[1], device=device)
    return ((rois[:, :1].long() * shape[1] + channel) * (shape[2] * shape[3]))[:, :, None, None]


def _max_forward(maps: Tensor, rois: Tensor, y: _Axis, x: _Axis, output: Tensor, arg_y: Tensor, arg_x: Tensor) -> None:
    """Compute the maximum over the sampling points of each cell, and its position."""
    for result, empty in ((output, -10000), (arg_y, -1), (arg_x, -1)):  # where there are no points, as in mmcv
        result.fill_(empty)
    rows, (_, channels, height, width) = rows_of(maps), maps.shape
    sampled = (y.counts * x.counts > 0).nonzero()[:, 0]
    for counts in torch.stack([y.counts, x.counts], 1)[sampled].unique(dim=0):
        same = ((y.counts == counts[0]) & (x.counts == counts[1])).nonzero()[:, 0]
        cost = int(counts.prod()) * y.cells * x.cells * channels
        for regions in same.split(max(1, LIMIT // cost)):
            points_y, points_x = y.of(regions).points(), x.of(regions).points()
            shape = (len(regions), y.cells, x.cells, points_y.shape[2], points_x.shape[2])
            sides_y, sides_x = _neighbors(points_y, height), _neighbors(points_x, width)
            index, weights = [], []
            for i in (0, 1):
                for j in (0, 1):
                    row = rois[regions, 0].long()[:, None, None] * height + sides_y[i]
                    index.append((row[:, :, None, :, None] * width + sides_x[j][:, None, :, None]).expand(shape))
                    weights.append(sides_y[i + 2][:, :, None, :, None] * sides_x[j + 2][:, None, :, None])
            values = F.embedding_bag(
                torch.stack(index, -1).reshape(-1, 4),
                rows,
                mode='sum',
                per_sample_weights=torch.stack(weights, -1).reshape(-1, 4),
            )
            best, where = values.view(len(regions), y.cells, x.cells, -1, channels).max(3)
            output[regions] = best.permute(0, 3, 1, 2).to(output)
            for result, points in (
                (arg_y, points_y[:, :, None, :, None].expand(shape)),
                (arg_x, points_x[:, None, :, None].expand(shape)),
            ):
                result[regions] = points.flatten(3).gather(3, where).permute(0, 3, 1, 2).to(result)


def _max_backward(gradient: Tensor, rois: Tensor, arg_y: Tensor, arg_x: Tensor, grad_input: Tensor) -> None:
    """Add the gradient of each cell to the four positions around its maximum."""
    sides_y, sides_x = (_neighbors(precise(points), size) for points, size in zip((arg_y, arg_x), grad_input.shape[2:]))
    start = _flat(rois, grad_input.shape, rois.device)
    total = torch.zeros(grad_input.numel(), dtype=gradient.dtype, device=gradient.device)
    gradient = gradient * (arg_y != -1)
    for i in (0, 1):
        for j in (0, 1):
            index = start + sides_y[i] * grad_input.shape[3] + sides_x[j]
            total.index_add_(0, index.flatten(), (gradient * sides_y[i + 2] * sides_x[j + 2]).flatten())
    grad_input += total.view_as(grad_input)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write RoIAlign of each region into ``output``.

    Args:
        input: ``(B, C, H, W)``.
        rois: ``(R, 5)`` as image index, x1, y1, x2, y2 in pixels of the image.
        output: ``(R, C, aligned_height, aligned_width)``.
        argmax_y: Positions of the maxima on the map, of the shape of ``output``; unused by the average.
        argmax_x: The same for x.
        aligned_height: Height of the output in cells.
        aligned_width: Width of the output.
        spatial_scale: Scale of the map relative to the image.
        sampling_ratio: Sampling points per cell and direction; 0 chooses it by the size of the region.
        pool_mode: 0 is the maximum over the sampling points, 1 the average.
        aligned: Subtract half a pixel, so that pixels are where their centers are.
    """
    maps, rois = input.detach(), precise(rois)
    if not len(rois):
        return
    if pool_mode == 1 and use_torchvision('roi_align', maps):
        output.copy_(
            torch.ops.torchvision.roi_align(
                precise(maps),
                rois.to(precise(maps)),
                spatial_scale,
                aligned_height,
                aligned_width,
                sampling_ratio,
                aligned,
            )
        )
        return
    y, x = _axes(rois, maps.shape, aligned_height, aligned_width, spatial_scale, sampling_ratio, aligned)
    if pool_mode == 0:
        _max_forward(maps, rois, y, x, output, argmax_y, argmax_x)
        return
    rows = rows_of(maps)
    for bags in _average_bags(rois, y, x, sampling_ratio <= 0):
        cells = sum_bags(rows, bags.index, bags.weights.to(rows), bags.starts)
        cells = cells.view(-1, aligned_height, aligned_width, maps.shape[1])
        output[bags.regions] = cells.permute(0, 3, 1, 2).to(output)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient of RoIAlign to ``grad_input``; see :func:`roi_align_forward`."""
    gradient, rois = precise(grad_output), precise(rois)
    if not len(rois):
        return
    if pool_mode == 1 and use_torchvision('_roi_align_backward', gradient):
        grad_input += torch.ops.torchvision._roi_align_backward(
            gradient,
            rois.to(gradient),
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
        return
    if pool_mode == 0:
        _max_backward(gradient, rois, argmax_y, argmax_x, grad_input)
        return
    y, x = _axes(rois, grad_input.shape, aligned_height, aligned_width, spatial_scale, sampling_ratio, aligned)
    batch, channels, height, width = grad_input.shape
    for bags in _average_bags(rois, y, x, sampling_ratio <= 0):
        cells = gradient[bags.regions].permute(0, 2, 3, 1).reshape(-1, channels)
        rows = spread_bags(cells, bags.index, bags.weights.to(cells), bags.owner, batch * height * width)
        grad_input += maps_of(rows, grad_input.shape)


def _pool_bins(start: Tensor, step: Tensor, cells: int, size: int) -> tuple[Tensor, Tensor]:
    """Return first positions and lengths of the cells of RoIPool along one axis, ``(R, cells)``."""
    cell = torch.arange(cells, device=start.device)
    first, end = (
        edge.long().clamp_(0, size)
        for edge in (
            (cell * step[:, None] + start[:, None]).floor_(),
            ((cell + 1) * step[:, None] + start[:, None]).ceil_(),
        )
    )
    return first, (end - first).clamp_(min=0)


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Write the maximum of each cell of each region into ``output``, and 0 for empty cells.

    torchvision's operator of this name rounds regions to whole positions, and mmcv's does not.

    Args:
        input: ``(B, C, H, W)``.
        rois: ``(R, 5)`` as image index, x1, y1, x2, y2 in pixels of the image.
        output: ``(R, C, pooled_height, pooled_width)``.
        argmax: Position of each maximum on its flattened map, -1 for empty cells.
        pooled_height: Height of the output in cells.
        pooled_width: Width of the output.
        spatial_scale: Scale of the map relative to the image.
    """
    rows, rois = rows_of(input.detach()), precise(rois)
    _, channels, height, width = input.shape
    if not len(rois):
        return
    starts, ends = rois[:, 1:3] * spatial_scale, (rois[:, 3:] + 1) * spatial_scale
    sizes = ends - starts
    proper = (sizes > 0).all(1)
    top, heights = _pool_bins(starts[:, 1], sizes[:, 1] / pooled_height, pooled_height, height)
    left, widths = _pool_bins(starts[:, 0], sizes[:, 0] / pooled_width, pooled_width, width)
    areas = heights[:, :, None] * widths[:, None] * proper[:, None, None]
    for regions in _chunks(areas.amax((1, 2)) * (pooled_height * pooled_width)):
        shape = areas[regions].shape
        flat_heights = (heights * proper[:, None])[regions][:, :, None].expand(shape).flatten()
        owner, i, j, first = rectangles(flat_heights, widths[regions][:, None].expand(shape).flatten())
        offset = rois[regions, 0].long() * (height * width)
        corner = top[regions][:, :, None] * width + left[regions][:, None]
        index = (corner + offset[:, None, None]).flatten()[owner] + i * width + j
        cells, _, _, best = torch.embedding_bag(rows, index, first, mode=2)  # 2 is the maximum
        best = best.view(*shape, channels) - offset[:, None, None, None]
        best = torch.where(areas[regions][..., None] > 0, best, -1)
        output[regions] = cells.view(*shape, channels).permute(0, 3, 1, 2).to(output)
        argmax[regions] = best.permute(0, 3, 1, 2).to(argmax)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Add the gradient of each cell to the position of its maximum; see :func:`roi_pool_forward`."""
    filled = argmax >= 0
    index = (_flat(rois, grad_input.shape, rois.device) + argmax)[filled]
    total = torch.zeros(grad_input.numel(), dtype=precise(grad_output).dtype, device=grad_output.device)
    grad_input += total.index_add_(0, index, precise(grad_output)[filled]).view_as(grad_input)
