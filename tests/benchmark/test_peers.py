from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from mmcasvit.benchmark.forms import Setting, parse_form
from mmcasvit.benchmark.models import CASVITS, build_subject
from mmcasvit.benchmark.peers import PEERS, WHOLE_PEERS
from mmcasvit.benchmark.preparation import count_variant, deviation
from mmcasvit.benchmark.published import PUBLISHED, margins, reported
from mmcasvit.benchmark.variants import Variant
from mmcasvit.models.deployed_casvit import DeployedCASViT
from mmcasvit.plugin.source import config_file
from mmcasvit.utils.errors import NotApplicable
from mmcasvit.utils.timing import spread


def test_the_softmax_variant_differs_only_in_its_mixers():
    plain, twin = (set(build_subject(name).module.state_dict()) for name in ('xs', 'xs-softmax'))
    assert all('.attn.' in key for key in plain ^ twin)
    assert [tuple(out.shape[1:]) for out in build_subject('xs-softmax').infer(torch.zeros(1, 3, 64, 64))] == [
        (48, 16, 16),
        (56, 8, 8),
        (112, 4, 4),
        (220, 2, 2),
    ]
    # With four times the pixels, CATM costs four times as much, except for its channel gates. Attention costs more.
    small, large = (
        {name: count_variant(Variant(name, size=(side, side))).macs for name in ('xs', 'xs-softmax')}
        for side in (128, 256)
    )
    growth = {name: large[name] / small[name] for name in small}
    assert 3.98 < growth['xs'] <= 4
    assert growth['xs-softmax'] > 6


@pytest.mark.parametrize(
    'name, params, maps',
    [
        ('resnet-18', 11176512, 4),
        ('resnet-50', 23508032, 4),
        ('mobilenetv2', 2223872, 4),
        ('swin-t', 27520698, 4),
        ('mit-b0', 3319392, 4),
        ('van-b0', 3848800, 4),
        ('poolformer-s12', 11401152, 4),
        ('swiftformer-l1', 11287152, 4),
        ('fastvit-sa12', 10409472, 4),
        ('repvit-m1.1', 7774864, 4),
        ('efficientformer-l1', 11390672, 4),
        ('efficientformerv2-s1', 5732232, 4),
        ('efficientvit-m4', 8417788, 3),
        ('edgenext-small', 5281224, 4),
        ('mobilenetv3-large', 2971952, 4),
    ],
)
def test_peers_have_the_expected_parameters_and_maps(name, params, maps):
    pytest.importorskip(PEERS[name].library)
    subject = build_subject(name, (64, 64))
    assert sum(p.numel() for p in subject.module.parameters()) == params
    outputs = subject.infer(torch.zeros(1, 3, 64, 64))
    strides = [64 // out.shape[2] for out in outputs]
    assert strides == ([4, 8, 16, 32] if maps == 4 else [16, 32, 64])
    assert subject.outputs == f'{maps} maps'


@pytest.mark.parametrize(
    'name', ['fastvit-sa12', 'repvit-m0.9', 'efficientvit-m4', 'iformer-m', 'nextvit-s', 'shvit-s4']
)
def test_the_fused_form_of_a_peer_has_fewer_norms_and_the_same_outputs(name):
    pytest.importorskip('timm')
    plain, fused = build_subject(name, (64, 64)), build_subject(name, (64, 64))
    parse_form('fused')[0].apply(fused, Setting(None, 'fp32', 'cpu', 1, train=False, file=Path('unused')))
    norms = [sum(isinstance(module, _BatchNorm) for module in one.module.modules()) for one in (plain, fused)]
    assert norms[1] < 0.6 * norms[0]
    image = fused.example(2, (64, 64))
    with torch.no_grad():
        assert deviation(fused.infer(image), plain.infer(image)) < 1e-4


def test_other_models_have_a_fused_form_too():
    setting = Setting(None, 'fp32', 'cpu', 1, train=False, file=Path('unused'))
    casvit, resnet = build_subject('xs'), build_subject('resnet-18')
    before = resnet.module
    for subject in (casvit, resnet):
        parse_form('fused')[0].apply(subject, setting)
    assert isinstance(casvit.module, DeployedCASViT)
    assert resnet.module is before
    with pytest.raises(NotApplicable, match='cannot be trained'):
        parse_form('fused')[0].apply(resnet, replace(setting, train=True))


def test_published_figures_belong_to_known_models_and_have_sources():
    assert set(PUBLISHED) <= {*CASVITS, *PEERS}
    assert all('arXiv' in figures.source or 'model zoo' in figures.source for figures in PUBLISHED.values())
    assert {figures.pretraining for figures in PUBLISHED.values()} == {
        '300 epochs',
        '300 epochs, distilled',
        '450 epochs, distilled',
        'not stated',
    }


def test_margins_are_those_at_equal_time():
    times = {'xs': 0.1, 's': 0.4, 'resnet-18': 0.2, 'van-b1': 0.05, 'shvit-s4': 0.05, 'poolformer-s12': 0.05}
    times['repvit-m2.3'] = 0.8
    rows = [
        dict(model=model, threads=threads, seconds=spread([seconds / threads]))
        for threads in (1, 2)
        for model, seconds in times.items()
    ]
    found = margins(rows, ['model', 'threads'])
    assert [row['model'] for row in found] == list(times)[2:]
    for words in ('1 thread', '2 threads'):
        # In the middle of 0.1 and 0.4 by the logarithm, CAS-ViT has (37.4 + 39.8) / 2. Of those faster than xs, only
        # the more accurate ones are compared; slower than s, all are compared with s.
        assert [row[f'COCO box AP, {words}'] for row in found] == ['-4.6', '+5.2', '+1.6', None, '+4.8']
    assert [row['ADE20K mIoU, 2 threads'] for row in found] == ['-6.3', '+5.8', None, '+0.1', '+4.8']
    assert found[-1]['pretraining'] == '450 epochs, distilled'
    assert margins(rows[2:6], ['model']) == []


@pytest.mark.parametrize('kind', WHOLE_PEERS)
def test_whole_peers_exist_with_what_their_libraries_report(kind):
    found = [reported(config_file(name)) for name in WHOLE_PEERS[kind]]
    assert (
        found
        == dict(
            detectors=['box AP 40.9, COCO', 'box AP 32.0, COCO', None, 'box AP 21.3, COCO'],
            segmentors=[
                'mIoU 37.41, ADE20K',
                'mIoU 78.74, Cityscapes',
                'mIoU 73.21, Cityscapes',
                'mIoU 70.96, Cityscapes',
                'mIoU 69.54, Cityscapes',
            ],
        )[kind]
    )
