"""Regions of interest, against the compiled operators and against loops."""

import math

import pytest
import torch

from mmcasvit.ops import roi

TOLERANCES = {torch.float32: dict(rtol=1e-5, atol=1e-6), torch.float64: dict(rtol=1e-12, atol=1e-12)}


def example(dtype, count, shape=(2, 5, 17, 23), scale=0.25, seed=0):
    """Return maps and regions, among them some without any area, with long sides, and beyond the border."""
    rng = torch.Generator().manual_seed(seed)
    maps = torch.randn(shape, generator=rng, dtype=dtype)
    size = torch.tensor([shape[3], shape[2]], dtype=dtype) / scale
    corner = torch.rand(count, 2, generator=rng, dtype=dtype) * size * 1.3 - 8
    sides = torch.rand(count, 2, generator=rng, dtype=dtype) ** 3 * size
    image = torch.randint(shape[0], (count, 1), generator=rng)
    rois = torch.cat([image.to(dtype), corner, corner + sides], 1)
    rois[:1, 3:] = rois[:1, 1:3]
    return maps, rois


def run_roi_align(module, maps, rois, size, **kwargs):
    """Return output, positions of maxima and the gradient of the maps."""
    output = maps.new_zeros(len(rois), maps.shape[1], *size)
    arg_y, arg_x = torch.zeros_like(output), torch.zeros_like(output)
    kwargs |= dict(aligned_height=size[0], aligned_width=size[1])
    module.roi_align_forward(maps, rois, output, arg_y, arg_x, **kwargs)
    gradient = torch.sin(torch.arange(output.numel(), dtype=maps.dtype)).view_as(output)
    grad_input = torch.zeros(maps.shape, dtype=maps.dtype)
    module.roi_align_backward(gradient, rois, arg_y, arg_x, grad_input, **kwargs)
    return output, arg_y, arg_x, grad_input


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling_ratio', [0, 1, 2, 3])
@pytest.mark.parametrize('pool_mode', [0, 1], ids=['max', 'avg'])
@pytest.mark.parametrize('dtype', TOLERANCES)
def test_roi_align(compiled, dtype, pool_mode, sampling_ratio, aligned):
    for count, shape, size in ((0, (1, 2, 4, 4), (2, 2)), (1, (1, 1, 1, 1), (1, 1)), (40, (2, 5, 17, 23), (3, 4))):
        kwargs = dict(spatial_scale=0.25, sampling_ratio=sampling_ratio, pool_mode=pool_mode, aligned=aligned)
        maps, rois = example(dtype, count, shape)
        wanted, found = (run_roi_align(module, maps, rois, size, **kwargs) for module in (compiled, roi))
        for a, b in zip(found, wanted):
            torch.testing.assert_close(a, b, **TOLERANCES[dtype])


@pytest.mark.parametrize('pool_mode', [0, 1], ids=['max', 'avg'])
def test_roi_align_in_parts_is_the_same(monkeypatch, pool_mode):
    maps, rois = example(torch.float64, 30)
    kwargs = dict(spatial_scale=0.25, sampling_ratio=0, pool_mode=pool_mode, aligned=True)
    whole = run_roi_align(roi, maps, rois, (3, 4), **kwargs)
    monkeypatch.setattr(roi, 'LIMIT', 500)
    for a, b in zip(run_roi_align(roi, maps, rois, (3, 4), **kwargs), whole):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('pool_mode', [0, 1], ids=['max', 'avg'])
def test_roi_align_of_a_plane_gives_the_centers_of_its_cells(pool_mode):
    """The average of a linear map over a cell is its value at the center; this needs no compiled operator."""
    maps = (torch.arange(30.0)[:, None] * 10 + torch.arange(30.0))[None, None].double()
    rois = torch.tensor([[0, 8.0, 16, 40, 48]], dtype=torch.float64)
    output = run_roi_align(
        roi, maps, rois, (2, 2), spatial_scale=0.5, sampling_ratio=0, pool_mode=pool_mode, aligned=True
    )
    center_y, center_x = torch.tensor([11.5, 19.5]), torch.tensor([7.5, 15.5])
    # The last of the 8 x 8 sampling points, which are 1 apart, lies 3.5 beyond the center.
    shift = 0 if pool_mode else 3.5 * 11
    torch.testing.assert_close(output[0][0, 0], (center_y[:, None] * 10 + center_x + shift).double())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_roi_align_in_half_precision_rounds_only_the_result(dtype):
    maps, rois = (x.to(dtype) for x in example(torch.float32, 20))
    kwargs = dict(spatial_scale=0.25, sampling_ratio=0, pool_mode=1, aligned=True)
    wanted = run_roi_align(roi, maps.float(), rois.float(), (3, 3), **kwargs)[0]
    found = run_roi_align(roi, maps, rois, (3, 3), **kwargs)[0]
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted.to(dtype))


def test_roi_align_of_channels_last_maps_is_the_same():
    maps, rois = example(torch.float32, 20)
    kwargs = dict(spatial_scale=0.25, sampling_ratio=0, pool_mode=1, aligned=True)
    wanted = run_roi_align(roi, maps, rois, (3, 3), **kwargs)
    found = run_roi_align(roi, maps.contiguous(memory_format=torch.channels_last), rois, (3, 3), **kwargs)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b)


def slow_roi_pool(maps, rois, size, scale):
    """Return maxima and their positions; mmcv compiles this operator for GPUs only."""
    output, argmax = maps.new_zeros(len(rois), maps.shape[1], *size), torch.full((len(rois), maps.shape[1], *size), -1)
    height, width = maps.shape[2:]
    for r, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        if x2 <= x1 or y2 <= y1:
            continue
        for i in range(size[0]):
            for j in range(size[1]):
                step_y, step_x = (y2 - y1) / size[0], (x2 - x1) / size[1]
                top, left = max(0, math.floor(i * step_y + y1)), max(0, math.floor(j * step_x + x1))
                bottom, right = (
                    min(height, math.ceil((i + 1) * step_y + y1)),
                    min(width, math.ceil((j + 1) * step_x + x1)),
                )
                part = maps[int(image), :, top:bottom, left:right]
                if part.numel():
                    value, place = part.flatten(1).max(1)
                    output[r, :, i, j] = value
                    argmax[r, :, i, j] = (top + place // part.shape[2]) * width + left + place % part.shape[2]
    return output, argmax


@pytest.mark.parametrize('count', [0, 1, 30])
def test_roi_pool(count, monkeypatch):
    maps, rois = example(torch.float64, count)
    rois[1:2, 3:] = rois[1:2, 1:3] - 40  # a region that ends before it begins
    wanted, wanted_argmax = slow_roi_pool(maps, rois, (3, 4), 0.25)
    for limit in (roi.LIMIT, 200):
        monkeypatch.setattr(roi, 'LIMIT', limit)
        output, argmax = torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.int)
        roi.roi_pool_forward(maps, rois, output, argmax, pooled_height=3, pooled_width=4, spatial_scale=0.25)
        torch.testing.assert_close(output, wanted)
        filled = (rois[:, 3:] + 1 > rois[:, 1:3]).all(1)
        assert torch.equal(argmax[filled].long(), wanted_argmax[filled])
    leaf = maps.clone().requires_grad_()
    gradient = torch.randn(wanted.shape, dtype=wanted.dtype, generator=torch.Generator().manual_seed(0))
    (slow_roi_pool(leaf, rois, (3, 4), 0.25)[0] * gradient + 0 * leaf.sum()).sum().backward()
    grad_input = torch.zeros_like(maps)
    roi.roi_pool_backward(gradient, rois, argmax, grad_input, pooled_height=3, pooled_width=4, spatial_scale=0.25)
    torch.testing.assert_close(grad_input, leaf.grad)
