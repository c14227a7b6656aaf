"""Deformable convolutions and attention, against the compiled operators and against autograd."""

import pytest
import torch

from mmcasvit.ops import deform

CASES = {
    'plain': dict(),
    'groups': dict(groups=2, deform_groups=4),
    'odd': dict(kernel=(3, 1), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
    'one image': dict(batch=1, kernel=(1, 1), padding=(0, 0)),
}


class Example:
    """Inputs of a convolution, with the arguments that mmcv's two operators take."""

    def __init__(
        self, dtype, batch=2, groups=1, deform_groups=1, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1)
    ):
        rng = torch.Generator().manual_seed(0)

        def random(*shape):
            return torch.randn(shape, generator=rng, dtype=dtype)

        height, width = (
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, p, d, k, s in zip((9, 11), padding, dilation, kernel, stride)
        )
        taps = kernel[0] * kernel[1]
        self.x, self.weight, self.bias = random(batch, 8, 9, 11), random(4, 8 // groups, *kernel), random(4)
        self.offset = random(batch, deform_groups * 2 * taps, height, width) * 2
        self.mask, self.gradient = random(batch, deform_groups * taps, height, width), random(batch, 4, height, width)
        names = ('H', 'W'), ('_h', '_w')
        plain, modulated = (
            {
                f'{name}{suffix}': value[i]
                for name, value in zip(prefixes, (kernel, stride, padding, dilation))
                for i, suffix in enumerate(suffixes)
            }
            for prefixes, suffixes in zip(
                (('k', 'd', 'pad', 'dilation'), ('kernel', 'stride', 'pad', 'dilation')), names
            )
        )
        shared = dict(group=groups, deformable_group=deform_groups)
        self.plain = plain | shared | dict(im2col_step=batch)
        self.modulated = modulated | shared | dict(with_bias=True)

    def run_plain(self, module):
        """Return the output and the gradients of input, offset and weight."""
        none = self.x.new_empty(0)
        output = torch.empty_like(self.gradient)
        grads = [torch.zeros_like(x) for x in (self.x, self.offset, self.weight)]
        module.deform_conv_forward(self.x, self.weight, self.offset, output, none, none, **self.plain)
        module.deform_conv_backward_input(
            self.x, self.offset, self.gradient, grads[0], grads[1], self.weight, none, **self.plain
        )
        module.deform_conv_backward_parameters(
            self.x, self.offset, self.gradient, grads[2], none, none, scale=1, **self.plain
        )
        return output, *grads

    def run_modulated(self, module):
        """Return the output and the gradients of input, weight, bias, offset and mask."""
        none = self.x.new_empty(0)
        inputs = self.x, self.weight, self.bias, none, self.offset, self.mask
        output = torch.empty_like(self.gradient)
        grads = [torch.zeros_like(x) for x in (self.x, self.weight, self.bias, self.offset, self.mask)]
        module.modulated_deform_conv_forward(*inputs, output, none, **self.modulated)
        module.modulated_deform_conv_backward(*inputs, none, *grads, self.gradient, **self.modulated)
        return output, *grads


@pytest.mark.parametrize('run', [Example.run_plain, Example.run_modulated], ids=['plain', 'modulated'])
@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(torch.float32, dict(rtol=1e-4, atol=1e-5)), (torch.float64, dict(rtol=1e-10, atol=1e-12))]
)
def test_deform_conv(compiled, dtype, tolerance, case, run):
    example = Example(dtype, **CASES[case])
    for found, wanted in zip(run(example, deform), run(example, compiled)):
        torch.testing.assert_close(found, wanted, **tolerance)


def test_without_offsets_it_is_a_convolution():
    example = Example(torch.float64, groups=2, kernel=(3, 2), stride=(2, 1), padding=(1, 2), dilation=(2, 1))
    example.offset.zero_()
    example.mask.fill_(0.5)
    leaves = [x.clone().requires_grad_() for x in (example.x, example.weight)]
    wanted = torch.nn.functional.conv2d(*leaves, None, (2, 1), (1, 2), (2, 1), groups=2)
    grads = torch.autograd.grad(wanted, leaves, example.gradient)
    output, grad_x, _, grad_weight = example.run_plain(deform)
    for found, expected in zip((output, grad_x, grad_weight), (wanted, *grads)):
        torch.testing.assert_close(found, expected.detach())
    halved = example.run_modulated(deform)[0] - example.bias[:, None, None]
    torch.testing.assert_close(halved, 0.5 * wanted.detach())


def test_half_precision_rounds_only_the_results():
    example, results = Example(torch.float32), []
    for dtype in (torch.bfloat16, torch.float32):
        for name in ('x', 'weight', 'bias', 'offset', 'mask', 'gradient'):
            setattr(example, name, getattr(example, name).to(dtype))
        results.append(example.run_modulated(deform))
    for rounded, wanted in zip(*results):
        assert rounded.dtype == torch.bfloat16
        torch.testing.assert_close(rounded.float(), wanted, rtol=2**-6, atol=2**-6)


def test_deformable_attention_is_that_of_mmcv():
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    rng = torch.Generator().manual_seed(0)
    shapes = torch.tensor([[5, 7], [3, 4]])
    value = torch.randn(2, 47, 4, 8, generator=rng, dtype=torch.float64).requires_grad_()
    locations = torch.rand(2, 6, 4, 2, 3, 2, generator=rng, dtype=torch.float64).requires_grad_()
    weights = torch.rand(2, 6, 4, 2, 3, generator=rng, dtype=torch.float64).requires_grad_()
    starts = torch.tensor([0, 35])
    wanted = multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
    gradient = torch.randn(wanted.shape, generator=rng, dtype=torch.float64)
    expected = torch.autograd.grad(wanted, (value, locations, weights), gradient)
    inputs = [x.detach() for x in (value, shapes, starts, locations, weights)]
    torch.testing.assert_close(deform.ms_deform_attn_forward(*inputs, im2col_step=64), wanted.detach())
    grads = [torch.zeros_like(x) for x in expected]
    deform.ms_deform_attn_backward(*inputs, gradient, *grads, im2col_step=64)
    for found, right in zip(grads, expected):
        torch.testing.assert_close(found, right)
