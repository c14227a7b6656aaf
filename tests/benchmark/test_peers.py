import pytest
import torch

from mmcasvit.benchmark.models import CASVITS, build_subject
from mmcasvit.benchmark.peers import PEERS, WHOLE_PEERS
from mmcasvit.benchmark.preparation import count_variant
from mmcasvit.benchmark.published import PUBLISHED, reported
from mmcasvit.benchmark.variants import Variant
from mmcasvit.plugin.source import config_file


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
        ('poolformer-s12', 11401024, 1),
        ('swiftformer-l1', 11287261, 1),
        ('fastvit-sa12', 10409472, 4),
        ('repvit-m1.1', 7774864, 4),
        ('efficientformerv2-s1', 5732232, 4),
        ('edgenext-small', 5281224, 4),
        ('mobilenetv3-large', 2971952, 5),
    ],
)
def test_peers_have_the_expected_parameters_and_maps(name, params, maps):
    pytest.importorskip(PEERS[name].library)
    subject = build_subject(name, (64, 64))
    assert sum(p.numel() for p in subject.module.parameters()) == params
    outputs = subject.infer(torch.zeros(1, 3, 64, 64))
    assert len(outputs) == maps
    assert outputs[-1].shape[2:] == (2, 2)


def test_published_figures_belong_to_known_models_and_have_sources():
    assert set(PUBLISHED) <= {*CASVITS, *PEERS}
    assert all('arXiv' in figures.source or 'model zoo' in figures.source for figures in PUBLISHED.values())


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
