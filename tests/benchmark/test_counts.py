import pytest
import torch
from torch import nn

from mmcasvit import CASViT
from mmcasvit.benchmark.counts import count
from mmcasvit.benchmark.preparation import count_variant
from mmcasvit.benchmark.variants import Variant


def macs_by_hand(depths, channels, side):
    """Count the multiply-adds of the convolutions from nothing but the table of the architecture."""
    first = channels[0]
    total = 9 * 3 * first // 2 * (side // 2) ** 2 + 9 * first // 2 * first * (side // 4) ** 2
    for stage, (depth, c) in enumerate(zip(depths, channels)):
        pixels = (side // 2 ** (stage + 2)) ** 2
        if stage:
            total += 9 * channels[stage - 1] * c * pixels
        integration, mlp = 2 * c * c + 9 * c, 8 * c * c
        mixer = 3 * c * c + 2 * (9 * c + c) + 2 * 9 * c
        total += depth * ((integration + mixer + mlp) * pixels + 2 * c * c)
    return total


@pytest.mark.parametrize(
    'arch, params, published',
    [('xs', 2759132, 560e6), ('s', 5250704, 932e6), ('m', 11652224, 1887e6), ('t', 20738080, 3597e6)],
)
def test_parameters_and_multiply_adds_are_those_of_the_architecture(arch, params, published):
    cost = count_variant(Variant(arch, size=(224, 224)))
    assert cost.params == params
    assert cost.macs == macs_by_hand(**CASViT.arch_settings[arch], side=224)
    # The paper counts norms and the classifier as well.
    assert 0.97 * published < cost.macs < published


def test_a_training_pass_and_a_batch_cost_what_they_should():
    plain, batch = (count_variant(Variant('xs', batch=n, size=(64, 64))) for n in (1, 3))
    assert batch.macs == 3 * plain.macs
    # The backward pass has two products per convolution, but the first one needs no gradient of the image.
    train = count_variant(Variant('xs', mode='train', size=(64, 64)))
    assert train.macs == 3 * plain.macs - 9 * 3 * 24 * 32**2
    half = count_variant(Variant('xs', precision='bf16', size=(64, 64)))
    assert half.traffic * 2 == plain.traffic


def test_traffic_is_what_goes_in_and_out_of_convolutions():
    conv = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU())
    with torch.no_grad():
        cost = count(conv, lambda: conv(torch.zeros(2, 4, 8, 8)))
    assert cost.macs == 2 * 8 * 8 * 4 * 6 * 9
    assert cost.traffic == 4 * (2 * 4 * 64 + 6 * 4 * 9 + 6 + 2 * 6 * 64)
