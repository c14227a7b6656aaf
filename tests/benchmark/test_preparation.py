from dataclasses import replace

import pytest
import torch
from helpers.repository import ROOT, write_tiny_config
from torch.testing import assert_close

from mmcasvit.benchmark.counts import on_meta
from mmcasvit.benchmark.models import build_subject
from mmcasvit.benchmark.preparation import count_variant, deviation, prepare
from mmcasvit.benchmark.variants import Variant
from mmcasvit.utils.errors import NotApplicable


@pytest.mark.parametrize(
    'variant',
    [
        Variant('xs', size=(64, 96)),
        Variant('xs', form='channels_last', size=(64, 96)),
        Variant('xs', form='deploy', size=(64, 96)),
        Variant('xs', precision='bf16', size=(64, 96)),
        Variant('xs-softmax', mode='train', size=(64, 96)),
        Variant('xs', mode='train', precision='bf16', size=(64, 96)),
    ],
    ids=str,
)
def test_a_variant_runs_and_agrees_with_the_eager_model(variant):
    prepared = prepare(variant)
    prepared.run()
    if variant.mode == 'train':
        assert prepared.deviation is None
    else:
        assert prepared.deviation < (0.1 if variant.precision == 'bf16' else 1e-5)
        assert [out.shape[1] for out in prepared.run()] == [48, 56, 112, 220]
        assert prepared.run()[0].dtype == (torch.bfloat16 if variant.precision == 'bf16' else torch.float32)


@pytest.mark.parametrize(
    'base', ['detection/mask-rcnn_casvit-xs_fpn_6e_shapes.py', 'segmentation/semantic-fpn_casvit-xs_300i_shapes.py']
)
def test_a_whole_model_runs_and_counts(tmp_path, base):
    config = str(write_tiny_config(tmp_path / 'tiny.py', ROOT / 'configs' / base))
    infer, train = (Variant(config, mode=mode, size=(96, 128)) for mode in ('infer', 'train'))
    for variant in (infer, train, replace(infer, form='channels_last')):
        prepared = prepare(variant)
        prepared.run()
        assert (prepared.library, prepared.deviation) == ('mmdet' if 'detection' in base else 'mmseg', None)
    backbone = build_subject(config).module.backbone
    alone = on_meta(backbone, torch.zeros(1, 3, 96, 128), lambda module, x: module(x))
    assert count_variant(infer).macs > alone.macs > 0
    with pytest.raises(NotApplicable, match='only a CAS-ViT'):
        prepare(Variant('resnet-18', form='deploy'))
    with pytest.raises(NotApplicable, match='cannot be trained'):
        prepare(replace(train, form='deploy'))


def test_deviation_is_relative():
    maps = [torch.ones(1, 2, 3, 3)]
    assert deviation(maps, maps) == 0
    assert_close(deviation([1.01 * maps[0]], maps), 0.01, rtol=1e-4, atol=0)
