import importlib.util

import pytest

from mmcasvit.benchmark.forms import FORMS, parse_form
from mmcasvit.benchmark.peers import check_library
from mmcasvit.benchmark.preparation import prepare
from mmcasvit.benchmark.variants import Variant
from mmcasvit.utils.errors import NotApplicable, UsageError


def test_forms_are_checked(monkeypatch):
    for form, words in [
        ('folded', "unknown form 'folded'. Valid: eager"),
        ('openvino+eager', 'nothing can follow'),
        ('compiled+openvino', 'compiles by itself'),
    ]:
        with pytest.raises(UsageError, match=words):
            parse_form(form)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UsageError, match=r'needs onnx, onnxscript, onnxruntime: pip install "mmcasvit\[benchmark\]"'):
        parse_form('onnxruntime')
    with pytest.raises(NotApplicable, match='needs timm, which is not installed'):
        check_library('fastvit-sa12')


@pytest.mark.parametrize('form', ['onnxruntime', 'openvino'])
def test_an_exported_form_agrees_with_the_eager_model(form):
    for package in FORMS[form].packages:
        pytest.importorskip(package)
    assert prepare(Variant('xs', form=form, size=(64, 64))).deviation < 1e-4
    with pytest.raises(NotApplicable, match='measured only for inference on the CPU'):
        prepare(Variant('xs', form=form, mode='train', size=(64, 64)))


def test_int8_quantizes_an_exported_form():
    for package in ('nncf', 'openvino', 'onnx'):
        pytest.importorskip(package)
    prepared = prepare(Variant('xs', form='openvino', precision='int8', batch=2, size=(64, 64)))
    assert 1e-3 < prepared.deviation < 0.3
    assert [tuple(out.shape[:2]) for out in prepared.run()] == [(2, 48), (2, 56), (2, 112), (2, 220)]
    for variant, words in [
        (Variant('xs', precision='int8'), 'int8 is for exported forms'),
        (Variant('xs', form='onnxruntime', precision='int8'), 'has no int8 convolutions here'),
    ]:
        with pytest.raises(NotApplicable, match=words):
            prepare(variant)
