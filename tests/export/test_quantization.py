"""Quantization to int8, and its refusal of models that int8 cannot represent."""

import importlib.util

import numpy as np
import pytest
import torch
from helpers.tiny_models import check_export, export, has, tiny

from mmcasvit.export.comparison import TOLERANCES, graph_input, synthetic_images
from mmcasvit.export.formats import load_exported
from mmcasvit.export.quantization import check_quantizer, export_quantized
from mmcasvit.export.runtimes.openvino import quantize
from mmcasvit.export.signature import KEY, Signature
from mmcasvit.utils.errors import UsageError

needs_int8 = pytest.mark.skipif(
    not has('openvino') or importlib.util.find_spec('nncf') is None, reason='no OpenVINO or NNCF'
)


def export_int8(model, what, path):
    signature = Signature('openvino', what, (64, 96), precision='int8')
    inputs = [graph_input(image, model.data_preprocessor, signature) for image in synthetic_images(2, (64, 96))]
    export_quantized(model, signature, path, inputs)
    return path


@pytest.mark.slow
@needs_int8
def test_int8_is_smaller_and_not_far_off(tmp_path):
    model = tiny('semantic_fpn')
    path = export_int8(model, 'backbone', tmp_path / 'model.xml')
    found = check_export(model, path, [(64, 96)], TOLERANCES['int8'])
    assert max(found.values()) > 1e-3  # it was really computed in a lower precision
    assert load_exported(path).signature.precision == 'int8'
    weights = sum(parameter.nbytes for parameter in model.backbone.parameters())
    assert path.with_suffix('.bin').stat().st_size < 0.6 * weights


@pytest.mark.slow
@needs_int8
def test_int8_rounds_layers_of_a_second_stage_and_nothing_else_after_the_selection(tmp_path):
    import openvino

    path = export_int8(tiny('mask_rcnn'), 'detector', tmp_path / 'model.xml')
    fed = {
        target.get_node().get_type_name()
        for node in openvino.Core().read_model(path).get_ordered_ops()
        if node.get_type_name() == 'FakeQuantize'
        for target in node.output(0).get_target_inputs()
    }
    assert {'Convolution', 'MatMul', 'ConvolutionBackpropData'} <= fed
    assert not fed & {'Sqrt', 'Gather', 'ScatterNDUpdate', 'Subtract', 'ROIAlign', 'TopK'}


@needs_int8
def test_int8_refuses_activations_that_explode(tmp_path):
    import openvino
    from openvino import opset13

    image = opset13.parameter([1, 3, 8, 8])
    conv = opset13.convolution(image, np.ones((4, 3, 1, 1), np.float32), [1, 1], [0, 0], [0, 0], [1, 1])
    network = openvino.Model([opset13.relu(conv)], [image])
    network.set_rt_info(Signature('openvino', 'backbone', (8, 8)).to_json(), [KEY])
    openvino.save_model(network, tmp_path / 'full.xml', compress_to_fp16=False)
    quantize(tmp_path / 'full.xml', tmp_path / 'model.xml', [torch.rand(1, 3, 8, 8)])
    assert load_exported(tmp_path / 'model.xml').signature.precision == 'int8'
    with pytest.raises(UsageError, match=r'activations reach \de.08: the model itself is unstable there'):
        quantize(tmp_path / 'full.xml', tmp_path / 'other.xml', [torch.full((1, 3, 8, 8), 1e8)])
    assert not (tmp_path / 'other.xml').exists()


def test_int8_names_what_it_needs(monkeypatch, tmp_path):
    with pytest.raises(UsageError, match=r'images to calibrate on|needs onnx'):
        export(tiny('semantic_fpn'), tmp_path / 'model.xml', precision='int8')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "mmcasvit\[quantization\]"'):
        check_quantizer('openvino')
