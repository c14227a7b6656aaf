"""Files for phones, LiteRT's and ncnn's: they give the outputs of PyTorch, and detectors end at their head."""

import pytest
import torch
from helpers.tiny_models import check_export, export, has, needs, tiny

from mmcasvit.export.comparison import TOLERANCES, detect, graph_input, synthetic_images
from mmcasvit.export.formats import FORMATS, load_exported
from mmcasvit.export.formats import export as export_model
from mmcasvit.export.quantization import export_quantized
from mmcasvit.export.runtimes.operators import count_operators
from mmcasvit.export.signature import Signature
from mmcasvit.export.summary import summarize
from mmcasvit.utils.errors import UsageError

ODD = (75, 110)


@needs('litert')
@pytest.mark.slow
def test_a_segmentor_in_litert_takes_pixels_and_returns_classes(tmp_path):
    model = tiny('semantic_fpn')
    path = export(model, tmp_path / 'model.tflite', what='segmentor', size=ODD, pixels='rgb', argmax=True)
    check_export(model, path, [ODD], tolerance=1e-3)
    found = load_exported(path)(torch.zeros(2, *ODD, 3, dtype=torch.uint8))['classes']
    assert found.shape == (2, *ODD)
    assert f'{path}: ' in summarize('litert', path)


@needs('litert')
@pytest.mark.slow
@pytest.mark.parametrize('precision', ['fp16', 'int8'])
def test_a_lower_precision_in_litert_is_smaller_and_not_far_off(precision, tmp_path):
    model, size = tiny('semantic_fpn'), (64, 96)
    full = export(model, tmp_path / 'full.tflite', what='segmentor')
    path = tmp_path / 'less.tflite'
    signature = Signature('litert', 'segmentor', size, precision=precision)
    if precision == 'int8':
        inputs = [graph_input(image, model.data_preprocessor, signature) for image in synthetic_images(2, size)]
        export_quantized(model, signature, path, inputs)
    else:
        export(model, path, what='segmentor', precision=precision)
    found = check_export(model, path, [size], TOLERANCES[precision])
    assert found['logits'] > 1e-5  # it was really computed in a lower precision
    assert load_exported(path).signature.precision == precision
    assert path.stat().st_size < 0.8 * full.stat().st_size


@pytest.mark.slow
@pytest.mark.parametrize('name', [pytest.param(name, marks=needs(name)) for name in ('litert', 'ncnn')])
def test_a_detector_ends_at_its_head_and_finds_what_mmdet_finds(name, tmp_path):
    """The size is not a multiple of 32, so that the graph has to pad, and the boxes are clipped."""
    model = tiny('retinanet')
    path = export(model, tmp_path / f'model{FORMATS[name].suffix}', what='detector', size=ODD)
    assert set(check_export(model, path, [ODD], tolerance=1e-3)) == {'detections', 'boxes', 'scores'}
    exported = load_exported(path)
    assert [output.rsplit('_', 1)[0] for output in exported.signature.outputs] == ['cls_scores'] * 3 + [
        'bbox_preds'
    ] * 3
    images = torch.randn(2, 3, *ODD)
    found = detect(exported, model, images)
    assert len(found['boxes']) == 2
    assert (found['scores'] > 0).any()
    assert (found['labels'] == -1).eq(found['scores'] == 0).all()
    for i, image in enumerate(images.split(1)):
        [one] = detect(exported, model, image)['scores']
        torch.testing.assert_close(found['scores'][i][: len(one)], one)


@needs('ncnn')
@pytest.mark.slow
def test_a_backbone_in_ncnn_takes_any_size(tmp_path):
    model = tiny('semantic_fpn')
    path = export(model, tmp_path / 'model.ncnn.param', dynamic_size=True)
    check_export(model, path, [(64, 96), ODD, (160, 40)])
    text = path.read_text()
    path.write_text(text.replace('in0', 'in0 # other', 1))
    with pytest.raises(UsageError, match='cannot be loaded'):
        load_exported(path)
    path.write_text('\n'.join(text.splitlines()[:-1]))
    with pytest.raises(UsageError, match=r'was not written by tools/export\.py'):
        load_exported(path)


@needs('ncnn')
@pytest.mark.slow
def test_a_segmentor_in_ncnn_in_half_precision(tmp_path):
    model = tiny('semantic_fpn')
    full, half = (
        export(model, tmp_path / f'{precision}.ncnn.param', what='segmentor', size=ODD, precision=precision)
        for precision in ('fp32', 'fp16')
    )
    check_export(model, full, [ODD], tolerance=1e-3)
    assert 1e-6 < check_export(model, half, [ODD], TOLERANCES['fp16'])['logits']
    assert load_exported(half).bytes < 0.7 * load_exported(full).bytes
    assert '\n0 of them are known to stay off Vulkan' in summarize('ncnn', full)


@needs('ncnn')
@pytest.mark.slow
def test_what_ncnn_has_no_layer_for_is_refused(tmp_path):
    class Model(torch.nn.Module):
        out_indices = (0,)

        def forward(self, x):
            return (x.cumprod(3),)

    with pytest.raises(UsageError, match=r'ncnn has no layer for parts of this model, which pnnx calls .*cumprod'):
        export_model(Model().eval(), Signature('ncnn', 'backbone', (64, 96)), tmp_path / 'model.ncnn.param')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['litert', 'ncnn'])
def test_a_two_stage_detector_is_refused(name, tmp_path):
    if not has(name):
        pytest.skip(f'{name} is not installed')
    with pytest.raises(UsageError, match=f'{name} can hold one-stage detectors'):
        export(tiny('mask_rcnn'), tmp_path / f'model{FORMATS[name].suffix}', what='detector')


def test_operators_that_accelerators_do_not_take_are_counted():
    found, outside = count_operators(
        [('Conv', 4, False), ('Conv', 4, False), ('Reshape', 5, False), ('GatherElements', 2, True), ('Add', 1, True)]
    )
    assert found == dict(Conv=2, Reshape=1, GatherElements=1, Add=1)
    assert outside == {'Reshape of rank 5': 1, 'GatherElements': 1, 'Add in int64': 1}
