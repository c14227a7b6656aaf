"""Exported files give the outputs of PyTorch, in every format."""

import importlib.util

import pytest
import torch
from helpers.tiny_models import CHANNELS, check_export, export, formats, needs, tiny
from torch import nn

from mmcasvit import CASViT
from mmcasvit.export.comparison import TOLERANCES
from mmcasvit.export.formats import FORMATS, load_exported
from mmcasvit.utils.errors import UsageError

ODD = (75, 110)


@pytest.mark.parametrize('name', formats('onnx', 'openvino', 'torchscript', 'pt2', 'executorch', 'litert', 'ncnn'))
def test_a_backbone_agrees_in_every_format(name, tmp_path):
    path = export(tiny('semantic_fpn'), tmp_path / f'model{FORMATS[name].suffix}', size=ODD)
    found = check_export(tiny('semantic_fpn'), path, [ODD])
    assert list(found) == ['stage1', 'stage2', 'stage3', 'stage4']


@pytest.mark.slow
@pytest.mark.parametrize('twin', ['upernet', 'semantic_fpn'])
@pytest.mark.parametrize('name', formats('onnx', 'torchscript'))
def test_a_segmentor_takes_any_size_and_batch(name, twin, tmp_path):
    model = tiny(twin)
    path = export(
        model, tmp_path / f'model{FORMATS[name].suffix}', what='segmentor', dynamic_batch=True, dynamic_size=True
    )
    check_export(model, path, [(64, 96), ODD, (100, 65)])
    images = torch.randn(3, 3, *ODD)
    with torch.no_grad():
        wanted = model.encode_decode(images, [dict(img_shape=ODD)])
    torch.testing.assert_close(load_exported(path)(images)['logits'], wanted, rtol=1e-4, atol=1e-5)


@needs('executorch')
@pytest.mark.parametrize('pixels', [None, 'rgb'])
def test_a_segmentor_in_executorch_takes_images_or_pixels(pixels, tmp_path):
    path = export(tiny('semantic_fpn'), tmp_path / 'model.pte', what='segmentor', pixels=pixels)
    assert list(check_export(tiny('semantic_fpn'), path, [(64, 96)])) == ['logits']


@pytest.mark.parametrize(
    'twin, outputs, boxes',
    [
        ('retinanet', {'detections', 'boxes', 'scores'}, 100),
        ('mask_rcnn', {'detections', 'boxes', 'scores', 'masks'}, 100),
        ('rtmdet', {'detections', 'boxes', 'scores'}, 300),
        ('rtmdet_ins', {'detections', 'boxes', 'scores', 'masks'}, 100),
        ('ssdlite', {'detections', 'boxes', 'scores'}, 200),
    ],
)
@pytest.mark.parametrize('name', formats('torchscript', 'onnx'))
def test_a_detector_finds_what_mmdet_finds(name, twin, outputs, boxes, tmp_path):
    """The size is not a multiple of 32, so that the graph has to pad and clip as mmdet does."""
    free = name == 'torchscript'  # ONNX supports it too, but takes a minute
    path = export(tiny(twin), tmp_path / f'model{FORMATS[name].suffix}', what='detector', size=ODD, dynamic_size=free)
    assert set(check_export(tiny(twin), path, [ODD, (64, 96)] if free else [ODD], tolerance=1e-3)) == outputs
    found = load_exported(path)(torch.randn(1, 3, *ODD))
    assert found['boxes'].shape == (1, boxes, 4)
    assert found['labels'].dtype == torch.int64
    assert (found['scores'] > 0).any()
    assert (found['labels'] == -1).eq(found['scores'] == 0).all()


@needs('openvino')
def test_a_detector_in_openvino_takes_a_batch(tmp_path):
    model = tiny('mask_rcnn')
    path = export(model, tmp_path / 'model.xml', what='detector', dynamic_batch=True)
    check_export(model, path, [(64, 96)], tolerance=1e-3)
    run, images = load_exported(path), torch.randn(3, 3, 64, 96)
    together, alone = run(images), [run(image[None]) for image in images]
    torch.testing.assert_close(together['scores'], torch.cat([one['scores'] for one in alone]))


@pytest.mark.parametrize('twin, pixels, resize', [('retinanet', 'rgb', False), ('mask_rcnn', 'bgr', True)])
def test_a_graph_takes_pixels(twin, pixels, resize, tmp_path):
    model = tiny(twin)
    path = export(model, tmp_path / 'model.pt', what='detector', pixels=pixels, resize=resize)
    check_export(model, path, [(64, 96), (90, 100)] if resize else [(64, 96)], tolerance=1e-3)
    assert load_exported(path).signature.pixels == pixels


@pytest.mark.parametrize('name, precision', [pytest.param('onnx', 'fp16', marks=needs('onnx')), ('pt2', 'bf16')])
def test_a_lower_precision_is_smaller_and_not_far_off(name, precision, tmp_path):
    model = tiny('semantic_fpn')
    path = export(model, tmp_path / f'model{FORMATS[name].suffix}', what='segmentor', precision=precision)
    found = check_export(model, path, [(64, 96)], TOLERANCES[precision])
    assert found['logits'] > 1e-5  # it was really computed in a lower precision
    assert load_exported(path).bytes < sum(parameter.nbytes for parameter in model.parameters())


def test_argmax_in_the_graph_returns_the_same_classes(tmp_path):
    model = tiny('semantic_fpn')
    check_export(model, export(model, tmp_path / 'model.pt', what='segmentor', argmax=True), [(64, 96)], tolerance=1e-3)
    found = load_exported(tmp_path / 'model.pt')(torch.randn(1, 3, 64, 96))['classes']
    assert found.shape == (1, 64, 96)
    assert found.dtype == torch.int64


def test_a_bare_backbone_is_exported_from_python(tmp_path):
    backbone = CASViT(dict(depths=(1, 1, 1, 1), channels=CHANNELS), out_indices=(1, 3)).eval()
    path = export(backbone, tmp_path / 'model.pt2', size=(64, 96))
    x = torch.randn(1, 3, 64, 96)
    found = load_exported(path)(x)
    with torch.no_grad():
        torch.testing.assert_close(list(found.values()), list(backbone(x)), rtol=1e-4, atol=1e-5)
    assert list(found) == ['stage2', 'stage4']


def test_a_file_that_was_not_exported_is_refused(tmp_path):
    torch.jit.trace(nn.ReLU(), torch.ones(1)).save(tmp_path / 'model.pt')
    with pytest.raises(UsageError, match=r'was not written by tools/export\.py'):
        load_exported(tmp_path / 'model.pt')
    (tmp_path / 'broken.pt2').write_bytes(b'broken')
    with pytest.raises(UsageError, match='cannot be loaded'):
        load_exported(tmp_path / 'broken.pt2')
    with pytest.raises(UsageError, match='not found'):
        load_exported(tmp_path / 'none.pt')
    with pytest.raises(UsageError, match=r'one of \.onnx'):
        load_exported('model.h5')


def test_a_missing_runtime_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    (tmp_path / 'model.onnx').write_bytes(b'')
    with pytest.raises(UsageError, match=r'pip install "mmcasvit\[export\]"'):
        load_exported(tmp_path / 'model.onnx')
