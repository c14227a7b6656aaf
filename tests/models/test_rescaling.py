"""Activations that fp16 cannot hold, moved by powers of two: where, how far, and that nothing else changes."""

import pytest
import torch
from helpers import tiny_backbone
from helpers.reference import image
from helpers.tiny_backbone import TINY
from helpers.tiny_models import tiny
from torch import nn
from torch.testing import assert_close

import mmcasvit.models.deploy as deploying
from mmcasvit import CASViT, deploy
from mmcasvit.export.graphs import build_graph
from mmcasvit.export.half import LARGEST, simulate_half
from mmcasvit.export.signature import Signature
from mmcasvit.models.rescaling import LIMIT, measured_peaks


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def factors(channels, largest):
    """Return factors of channels that are no powers of two."""
    return torch.logspace(1, torch.tensor(largest).log10(), channels)


def write(layer, by):
    """Multiply the outputs of a convolution or norm."""
    for x in (layer.weight, layer.bias):
        if x is not None:
            x *= by.view(-1, *[1] * (x.ndim - 1))


def read(conv, by):
    """Divide the weights of a convolution, depthwise or not, so that it reads inputs that are multiplied."""
    conv.weight /= by[:, None, None, None] if conv.groups > 1 else by[None, :, None, None]


def read_norm(norm, by):
    norm.running_mean *= by
    norm.running_var *= by**2


def grow_stem(backbone):
    by = factors(CHANNELS[0] // 2, 1e6)
    write(backbone.patch_embed[1], by)
    read(backbone.patch_embed[3], by)


CHANNELS = tiny_backbone.CHANNELS


def grow_stream(backbone, stage=2, largest=1e6):
    by = factors(CHANNELS[stage], largest)
    write(backbone.network[2 * stage - 1].norm, by)
    for block in backbone.network[2 * stage]:
        read(block.local_perception.network[0], by)
        for norm in (block.norm1, block.norm2):
            read_norm(norm, by)
        for conv in (block.local_perception.network[-1], block.attn.proj, block.mlp.fc2):
            write(conv, by)
    read_norm(getattr(backbone, f'norm{2 * stage}'), by)
    if stage < 3:
        read(backbone.network[2 * stage + 1].proj, by)


def grow_local(backbone):
    by, layers = factors(CHANNELS[1], 1e6), backbone.network[2][0].local_perception.network
    write(layers[1], by)
    read(layers[2], by)


def grow_query_key(backbone):
    by, mixer = factors(CHANNELS[1], 1e6), backbone.network[2][0].attn
    mixer.qkv.weight *= torch.cat([by, by, torch.ones_like(by)])[:, None, None, None]
    for gates in (mixer.oper_q, mixer.oper_k):
        read(gates[0].block[0], by)
        read(gates[1].block[1], by)
    read(mixer.dwc, by)


def grow_gates(backbone):
    by, gate = factors(CHANNELS[3], 1e6), backbone.network[6][0].attn.oper_k[0].block
    write(gate[1], by)
    read(gate[3], by)


def grow_product(backbone):
    by, mixer = factors(CHANNELS[0], 1e4), backbone.network[0][0].attn
    write(mixer.dwc, by)
    mixer.qkv.weight *= torch.cat([torch.ones(2 * len(by)), by])[:, None, None, None]
    read(mixer.proj, by**2)


GROWING = [grow_stem, grow_stream, grow_local, grow_query_key, grow_gates, grow_product]


def grown(*growing):
    """Return a backbone whose activations are large at some places, and whose outputs are not."""
    backbone = tiny_backbone.tiny().eval()
    for grow in growing:
        grow(backbone)
    return backbone


def relative(found, wanted):
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted))


@pytest.mark.parametrize(
    'growing', [*[[grow] for grow in GROWING], GROWING], ids=lambda g: '+'.join(f.__name__ for f in g)
)
def test_what_overflows_is_moved_and_the_outputs_stay_the_same(growing):
    x, backbone = image(0, (2, 3, 64, 96)).float(), grown(*growing)
    truth = tiny_backbone.tiny().eval()(x)
    deployed = deploy(backbone)
    with measured_peaks(deployed) as peaks:
        wanted = deployed(x)
    assert relative(wanted, truth) < 1e-4
    assert max(float(peak.max()) for peak in peaks.values()) > LARGEST
    assert not all(output.isfinite().all() for output in simulate_half(deployed)(x))

    rescaled = deploy(backbone, peaks)
    with measured_peaks(rescaled) as after:
        found = rescaled(x)
    assert relative(found, wanted) <= 1e-6
    assert after.keys() == peaks.keys()
    assert all(float(peak.max()) <= LIMIT for peak in after.values())
    assert all(x.abs().max() <= LARGEST for x in rescaled.parameters())
    assert relative(simulate_half(rescaled)(x), truth) < 0.02
    # The plain path of compilers and exporters computes the same.
    assert relative(torch.jit.trace(rescaled, x)(x), wanted) < 1e-5


@pytest.mark.parametrize('growing, rescaled', [((), False), ((grow_stem, grow_product), True)], ids=['usual', 'large'])
def test_an_export_in_fp16_is_rescaled_only_if_images_need_it(growing, rescaled, monkeypatch):
    said = []
    monkeypatch.setattr(deploying, 'print_log', lambda message, **_: said.append(message))
    x, backbone = image(0, (1, 3, 64, 96)).float(), grown(*growing)
    signature = Signature('torchscript', 'backbone', (64, 96), precision='fp16')
    graph = build_graph(backbone, signature, images=[x])
    assert relative(simulate_half(graph.inner.float())(x), backbone(x)) < 0.02
    assert len(said) == rescaled


def test_channels_in_range_are_left_alone():
    x, backbone = image(0, (1, 3, 64, 64)).float(), tiny_backbone.tiny().eval()
    deployed = deploy(backbone)
    with measured_peaks(deployed) as peaks:
        deployed(x)
    for found, wanted in zip(deploy(backbone, peaks).parameters(), deployed.parameters()):
        assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize('twin', ['semantic_fpn', 'retinanet', 'mask_rcnn', 'upernet'])
def test_the_neck_takes_up_what_a_stage_returns(twin):
    model = tiny(twin)
    saved = {name: x.clone() for name, x in model.state_dict().items()}
    try:
        for stage in (2, 3):
            grow_stream(model.backbone, stage)
        x = image(0, (1, 3, 64, 96)).float()
        deployed = deploy(model)
        with measured_peaks(deployed) as peaks:
            wanted = deployed.extract_feat(x)
        assert not all(output.isfinite().all() for output in simulate_half(deployed).extract_feat(x))
        rescaled = deploy(model, peaks)
        assert relative(rescaled.extract_feat(x), wanted) <= 1e-6
        assert relative(simulate_half(rescaled).extract_feat(x), wanted) < 0.03
    finally:
        model.load_state_dict(saved)


@pytest.mark.parametrize(
    'kwargs',
    [dict(token_mixer='pooling'), dict(norm_cfg=dict(type='GN', num_groups=4)), dict(out_indices=(1, 3))],
    ids=str,
)
def test_other_forms_keep_what_cannot_be_moved(kwargs):
    x, backbone = 100 * image(0, (1, 3, 64, 64)).float(), tiny_backbone.tiny(**kwargs).eval()
    deployed = deploy(backbone)
    with measured_peaks(deployed) as peaks:
        wanted = deployed(x)
    assert relative(deploy(backbone, peaks)(x), wanted) <= 1e-6


def test_wrong_peaks_are_refused():
    backbone, x = tiny_backbone.tiny().eval(), image(0, (1, 3, 64, 64)).float()
    with measured_peaks(deploy(backbone)) as peaks:
        pass
    with pytest.raises(ValueError, match='not those of the deploy form'):
        deploy(backbone, peaks)
    deployed = deploy(backbone)
    with measured_peaks(deployed) as peaks:
        deployed(x)
    with pytest.raises(ValueError, match='not those of the deploy form'):
        deploy(CASViT(dict(TINY, depths=(1, 1, 3, 1))).eval(), peaks)
    peaks['/2.1.local'][0] = float('inf')
    with pytest.raises(ValueError, match=r'activations of 2\.1\.local are not finite'):
        deploy(backbone, peaks)
    peaks['/2.1.local'][0] = 1e12
    with pytest.raises(ValueError, match=r'weights of stages\.2\.1\.local\.1\.weight would leave the range'):
        deploy(backbone, peaks)


def test_hooks_are_removed():
    deployed = deploy(tiny_backbone.tiny().eval())
    with measured_peaks(deployed):
        assert any(part._forward_hooks for part in deployed.modules())
    assert not any(
        part._forward_hooks or part._forward_pre_hooks for part in deployed.modules() if isinstance(part, nn.Conv2d)
    )
