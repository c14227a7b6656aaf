import importlib.util
from dataclasses import replace

import pytest
import torch
from helpers.repository import ROOT, write_tiny_config
from torch.utils.flop_counter import FlopCounterMode

from mmcasvit import CASViT
from mmcasvit.benchmark.forms import FORMS, parse_form
from mmcasvit.benchmark.peers import check_library
from mmcasvit.benchmark.preparation import prepare
from mmcasvit.benchmark.variants import Variant
from mmcasvit.utils.errors import NotApplicable, UsageError


def test_forms_are_checked(monkeypatch):
    for form, words in [
        ('folded', "unknown form 'folded'. Valid: eager"),
        ('openvino+eager', 'nothing can follow'),
        ('products+eager', 'nothing can follow'),
        ('compiled+openvino', 'compiles by itself'),
    ]:
        with pytest.raises(UsageError, match=words):
            parse_form(form)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UsageError, match=r'needs onnx, onnxscript, onnxruntime: pip install "mmcasvit\[benchmark\]"'):
        parse_form('onnxruntime')
    with pytest.raises(UsageError, match=r'needs pnnx, ncnn: pip install "mmcasvit\[ncnn\]"'):
        parse_form('deploy+ncnn')
    with pytest.raises(NotApplicable, match='needs timm, which is not installed'):
        check_library('fastvit-sa12')


@pytest.mark.parametrize('form', ['onnxruntime', 'openvino', 'deploy+litert', 'deploy+ncnn'])
def test_an_exported_form_agrees_with_the_eager_model(form, tmp_path):
    *_, runtime = form.split('+')
    for package in FORMS[runtime].packages:
        pytest.importorskip(package)
    one = Variant('xs', form=form, size=(64, 64))
    assert prepare(one, folder=tmp_path).deviation < 1e-4
    written = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert prepare(replace(one, threads=2), folder=tmp_path).deviation < 1e-4
    assert written == {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}  # exported once
    with pytest.raises(NotApplicable, match='measured only for inference on the CPU'):
        prepare(Variant('xs', form=runtime, mode='train', size=(64, 64)))


@pytest.mark.parametrize(
    'base', ['realtime/rtmdet_casvit-xs_24e_shapes.py', 'segmentation/semantic-fpn_casvit-xs_300i_shapes.py']
)
def test_an_exported_whole_model_agrees_with_the_eager_model(base, tmp_path):
    for package in FORMS['onnxruntime'].packages:
        pytest.importorskip(package)
    config = write_tiny_config(tmp_path / 'tiny.py', ROOT / 'configs' / base, stages=3 if 'rtmdet' in base else 4)
    assert prepare(Variant(str(config), form='deploy+onnxruntime', size=(64, 96))).deviation < 1e-4


def test_a_two_stage_detector_is_not_exported_whole():
    for package in FORMS['onnxruntime'].packages:
        pytest.importorskip(package)
    with pytest.raises(NotApplicable, match='no two-stage detectors'):
        prepare(Variant(str(ROOT / 'configs/detection/mask-rcnn_casvit-xs_fpn_6e_shapes.py'), form='onnxruntime'))


@pytest.mark.parametrize('form, packages', [('openvino', ('nncf',)), ('deploy+litert', ())])
def test_int8_quantizes_an_exported_form(form, packages):
    for package in (*packages, *FORMS[form.split('+')[-1]].packages):
        pytest.importorskip(package)
    prepared = prepare(Variant('xs', form=form, precision='int8', batch=2, size=(64, 64)))
    assert 1e-3 < prepared.deviation < 0.3
    assert [tuple(out.shape[:2]) for out in prepared.run()] == [(2, 48), (2, 56), (2, 112), (2, 220)]


def test_int8_is_not_for_every_form():
    for package in FORMS['onnxruntime'].packages:
        pytest.importorskip(package)
    for variant, words in [
        (Variant('xs', precision='int8'), 'int8 is for exported forms'),
        (Variant('xs', form='onnxruntime', precision='int8'), 'has no int8 convolutions here'),
    ]:
        with pytest.raises(NotApplicable, match=words):
            prepare(variant)


def test_products_are_those_of_the_dense_convolutions():
    model, images = CASViT(), torch.zeros(1, 3, 64, 96)
    dense = 0

    def add(conv, inputs, output):
        nonlocal dense
        dense += output.numel() * conv.weight[0].numel() * (conv.groups == 1)

    for part in model.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.register_forward_hook(add)
    model.eval()(images)
    prepared = prepare(Variant('xs', form='products', size=(64, 96)))
    assert prepared.deviation is None
    with FlopCounterMode(display=False) as counter:
        prepared.run()
    assert counter.get_total_flops() == 2 * dense


def test_products_are_not_for_training():
    with pytest.raises(NotApplicable, match='products are measured only for the inference of backbones'):
        prepare(Variant('xs', form='products', mode='train', size=(64, 96)))
