"""torchvision's operators in the place of mmcv's give what PyTorch's give; on a GPU if there is one."""

import pytest
import torch

from mmcasvit.ops import deform, libraries, nms, roi

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


@pytest.fixture
def both(monkeypatch):
    """Return a function that runs something with torchvision's operators, which a CPU has as well, and without."""
    pytest.importorskip('torchvision', exc_type=Exception)
    if not hasattr(torch.ops.torchvision, 'nms'):
        pytest.skip('torchvision was built for another PyTorch, so that its operators do not load')

    asked = []

    def run_with(function, use):
        def use_torchvision(name, x):
            asked.append(name)
            return use

        for module in (deform, nms, roi):
            monkeypatch.setattr(module, 'use_torchvision', use_torchvision)
        return function()

    def run(function):
        results = [run_with(function, use) for use in (True, False)]
        assert asked
        assert all(hasattr(torch.ops.torchvision, name) for name in asked)
        return results

    return run


@pytest.mark.parametrize('count', [1, 300])
def test_nms(both, count):
    rng = torch.Generator().manual_seed(0)
    corner = torch.randint(0, 60, (count, 2), generator=rng).float()
    boxes = torch.cat([corner, corner + torch.randint(1, 30, (count, 2), generator=rng)], 1).to(DEVICE)
    scores = (torch.rand(count, generator=rng) * 8).round().to(DEVICE)
    for threshold in (0.3, 0.7):
        found, wanted = both(lambda t=threshold: nms.nms(boxes, scores, t, 0))
        assert found.tolist() == wanted.tolist()


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_roi_align(both, dtype, sampling_ratio, aligned):
    rng = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 5, 17, 23, generator=rng).to(DEVICE, dtype)
    corner = torch.rand(20, 2, generator=rng) * 50
    image = torch.randint(2, (20, 1), generator=rng)
    rois = torch.cat([image, corner, corner + torch.rand(20, 2, generator=rng) * 60], 1).to(DEVICE, dtype)
    settings = dict(
        aligned_height=3,
        aligned_width=4,
        spatial_scale=0.25,
        sampling_ratio=sampling_ratio,
        pool_mode=1,
        aligned=aligned,
    )

    def run():
        output = maps.new_zeros(20, 5, 3, 4)
        grad_input = torch.zeros_like(maps)
        roi.roi_align_forward(maps, rois, output, output, output, **settings)
        gradient = torch.linspace(-1, 1, output.numel()).view_as(output).to(output)
        roi.roi_align_backward(gradient, rois, output, output, grad_input, **settings)
        return output, grad_input

    for found, wanted in zip(*both(run)):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize('modulated', [False, True])
def test_deform_conv(both, modulated):
    rng = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=rng).to(DEVICE) for shape in ((2, 8, 9, 11), (4, 4, 3, 3)))
    offset, mask, gradient = (
        torch.randn(shape, generator=rng).to(DEVICE) for shape in ((2, 36, 5, 11), (2, 18, 5, 11), (2, 4, 5, 11))
    )
    none, bias = x.new_empty(0), torch.ones(4, device=DEVICE)

    def run():
        output = torch.empty_like(gradient)
        grads = [torch.zeros_like(y) for y in (x, weight, bias, offset, mask)]
        if modulated:
            inputs, settings = (x, weight, bias, none, offset, mask), (3, 3, 2, 1, 1, 1, 1, 1, 2, 2, True)
            deform.modulated_deform_conv_forward(*inputs, output, none, *settings)
            deform.modulated_deform_conv_backward(*inputs, none, *grads, gradient, *settings)
        else:
            settings = 3, 3, 1, 2, 1, 1, 1, 1, 2, 2
            deform.deform_conv_forward(x, weight, offset, output, none, none, *settings, 2)
            deform.deform_conv_backward_input(x, offset, gradient, grads[0], grads[3], weight, none, *settings, 2)
            deform.deform_conv_backward_parameters(x, offset, gradient, grads[1], none, none, *settings, 1, 2)
        return output, *grads

    for found, wanted in zip(*both(run)):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
def test_on_a_gpu_torchvision_is_used(both):
    assert libraries.use_torchvision('roi_align', torch.zeros(1, device='cuda'))
    assert not libraries.use_torchvision('roi_align', torch.zeros(1))
