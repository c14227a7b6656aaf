import copy
import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.repository import load_tool, write_tiny_config
from helpers.tiny_models import CHANNELS, TWINS, export, tiny
from mmengine.config import Config
from torch import nn

from mmcasvit import CASViT
from mmcasvit.apis.config import config_path, get_config
from mmcasvit.export import comparison as checking
from mmcasvit.export.evaluation import ResizeInto, fitted_pipeline, substitute
from mmcasvit.export.formats import FORMATS, load_exported
from mmcasvit.export.graphs import AdaptiveAveragePool, build_graph
from mmcasvit.export.quantization import check_quantiser, export_quantised, quantise
from mmcasvit.export.signature import KEY, Signature
from mmcasvit.utils.errors import UsageError

ODD = (75, 110)


def has(name):
    return not FORMATS[name].missing() and FORMATS[name].here()


def formats(*names):
    return [
        pytest.param(name, marks=pytest.mark.skipif(not has(name), reason=f'{name} is not installed'))
        for name in names or FORMATS
    ]


def check(model, path, sizes, tolerance=1e-4):
    """Compares a file with PyTorch on pictures of some sizes."""
    pictures = [picture for size in sizes for picture in checking.drawn_pictures(2, size)]
    difference = checking.compare(load_exported(path), model, pictures)
    assert difference.largest <= tolerance, difference
    return difference.by_output


@pytest.mark.parametrize('name', formats('onnx', 'openvino', 'torchscript', 'pt2', 'executorch'))
def test_a_backbone_agrees_in_every_format(name, tmp_path):
    path = export(tiny('semantic_fpn'), tmp_path / f'model{FORMATS[name].suffix}', size=ODD)
    found = check(tiny('semantic_fpn'), path, [ODD])
    assert list(found) == ['stage1', 'stage2', 'stage3', 'stage4']


@pytest.mark.slow
@pytest.mark.parametrize('name', formats('onnx', 'torchscript'))
def test_a_segmentor_takes_any_size_and_batch(name, tmp_path):
    model = tiny('upernet')
    path = export(
        model, tmp_path / f'model{FORMATS[name].suffix}', what='segmentor', dynamic_batch=True, dynamic_size=True
    )
    check(model, path, [(64, 96), ODD, (100, 65)])
    images = torch.randn(3, 3, *ODD)
    with torch.no_grad():
        wanted = model.encode_decode(images, [dict(img_shape=ODD)])
    torch.testing.assert_close(load_exported(path)(images)['logits'], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not has('executorch'), reason='executorch is not installed')
@pytest.mark.parametrize('pixels', [None, 'rgb'])
def test_a_segmentor_in_executorch_takes_images_or_pixels(pixels, tmp_path):
    path = export(tiny('semantic_fpn'), tmp_path / 'model.pte', what='segmentor', pixels=pixels)
    assert list(check(tiny('semantic_fpn'), path, [(64, 96)])) == ['logits']


@pytest.mark.parametrize(
    'twin, outputs',
    [('retinanet', {'detections', 'boxes', 'scores'}), ('mask_rcnn', {'detections', 'boxes', 'scores', 'masks'})],
)
@pytest.mark.parametrize('name', formats('torchscript', 'onnx'))
def test_a_detector_finds_what_mmdet_finds(name, twin, outputs, tmp_path):
    """The size is no multiple of 32, so that the graph pads and clips as mmdet does."""
    free = name == 'torchscript'  # with ONNX it works too, but takes a minute
    path = export(tiny(twin), tmp_path / f'model{FORMATS[name].suffix}', what='detector', size=ODD, dynamic_size=free)
    assert set(check(tiny(twin), path, [ODD, (64, 96)] if free else [ODD], tolerance=1e-3)) == outputs
    found = load_exported(path)(torch.randn(1, 3, *ODD))
    assert found['boxes'].shape == (1, 100, 4)
    assert found['labels'].dtype == torch.int64
    assert (found['scores'] > 0).any()
    assert (found['labels'] == -1).eq(found['scores'] == 0).all()


@pytest.mark.skipif(not has('openvino'), reason='OpenVINO is not installed')
def test_a_detector_in_openvino_takes_a_batch(tmp_path):
    model = tiny('mask_rcnn')
    path = export(model, tmp_path / 'model.xml', what='detector', dynamic_batch=True)
    check(model, path, [(64, 96)], tolerance=1e-3)
    run, images = load_exported(path), torch.randn(3, 3, 64, 96)
    together, alone = run(images), [run(image[None]) for image in images]
    torch.testing.assert_close(together['scores'], torch.cat([one['scores'] for one in alone]))


@pytest.mark.parametrize('pixels, resize', [('rgb', False), ('bgr', True)])
def test_a_graph_takes_pixels(pixels, resize, tmp_path):
    model = tiny('retinanet')
    path = export(model, tmp_path / 'model.pt', what='detector', pixels=pixels, resize=resize)
    check(model, path, [(64, 96), (90, 100)] if resize else [(64, 96)], tolerance=1e-3)
    assert load_exported(path).signature.pixels == pixels


@pytest.mark.parametrize(
    'name, precision',
    [pytest.param('onnx', 'fp16', marks=pytest.mark.skipif(not has('onnx'), reason='no ONNX')), ('pt2', 'bf16')],
)
def test_a_lower_precision_is_smaller_and_not_far_off(name, precision, tmp_path):
    model = tiny('semantic_fpn')
    suffix = FORMATS[name].suffix
    full = export(model, tmp_path / f'full{suffix}', what='segmentor')
    less = export(model, tmp_path / f'less{suffix}', what='segmentor', precision=precision)
    found = check(model, less, [(64, 96)], checking.TOLERANCES[precision])
    assert found['logits'] > 1e-5  # it was really computed in less
    assert load_exported(less).bytes < load_exported(full).bytes


def test_argmax_inside_gives_the_same_classes(tmp_path):
    model = tiny('semantic_fpn')
    check(model, export(model, tmp_path / 'model.pt', what='segmentor', argmax=True), [(64, 96)], tolerance=1e-3)
    found = load_exported(tmp_path / 'model.pt')(torch.randn(1, 3, 64, 96))['classes']
    assert found.shape == (1, 64, 96)
    assert found.dtype == torch.int64


needs_int8 = pytest.mark.skipif(
    not has('openvino') or importlib.util.find_spec('nncf') is None, reason='no OpenVINO or NNCF'
)


def export_int8(model, what, path):
    """Quantises a tiny model on made-up pictures."""
    signature = Signature('openvino', what, (64, 96), precision='int8')
    export_quantised(
        model,
        signature,
        path,
        [
            checking.feed(picture, model.data_preprocessor, signature)
            for picture in checking.drawn_pictures(2, (64, 96))
        ],
    )
    return path


@pytest.mark.slow
@needs_int8
def test_int8_is_smaller_and_not_far_off(tmp_path):
    model = tiny('semantic_fpn')
    path = export_int8(model, 'backbone', tmp_path / 'model.xml')
    found = check(model, path, [(64, 96)], checking.TOLERANCES['int8'])
    assert max(found.values()) > 1e-3  # it was really computed in less
    assert load_exported(path).signature.precision == 'int8'
    weights = sum(parameter.nbytes for parameter in model.backbone.parameters())
    assert path.with_suffix('.bin').stat().st_size < 0.6 * weights


@pytest.mark.slow
@needs_int8
def test_int8_rounds_layers_of_a_second_stage_and_nothing_else_behind_the_selection(tmp_path):
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
    quantise(tmp_path / 'full.xml', tmp_path / 'model.xml', [torch.rand(1, 3, 8, 8)])
    assert load_exported(tmp_path / 'model.xml').signature.precision == 'int8'
    with pytest.raises(UsageError, match=r'activations reach \de.08: the model itself is unstable there'):
        quantise(tmp_path / 'full.xml', tmp_path / 'other.xml', [torch.full((1, 3, 8, 8), 1e8)])
    assert not (tmp_path / 'other.xml').exists()


def test_int8_names_what_it_needs(monkeypatch, tmp_path):
    with pytest.raises(UsageError, match=r'pictures to calibrate on|needs onnx'):
        export(tiny('semantic_fpn'), tmp_path / 'model.xml', precision='int8')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "mmcasvit\[quantization\]"'):
        check_quantiser()


@pytest.mark.skipif(bool(FORMATS['coreml'].missing()), reason='coremltools is not installed')
@pytest.mark.parametrize('what', ['backbone', 'segmentor'])
def test_core_ml_gets_an_image_and_known_operators(what, tmp_path):
    import coremltools

    from mmcasvit.export.coreml import operators_of, output_shapes, outside_neural_engine

    path = export(tiny('semantic_fpn'), tmp_path / 'model.mlpackage', what=what, pixels='rgb', precision='fp16')
    model = coremltools.models.MLModel(str(path), skip_model_load=True)
    description = model.get_spec().description
    assert (description.input[0].type.imageType.height, description.input[0].type.imageType.width) == (64, 96)
    assert output_shapes(path) == (
        dict(logits=(1, 8, 64, 96))
        if what == 'segmentor'
        else {f'stage{i + 1}': (1, CHANNELS[i], 16 // 2**i, 24 // 2**i) for i in range(4)}
    )
    operators = operators_of(path)
    assert operators['conv'] >= 50
    # coremltools makes norms of scale and shift; of the backbone's own, those of the four outputs are left.
    assert operators['batch_norm'] == (4 if what == 'backbone' else 0)
    outside = outside_neural_engine(path)
    assert all('rank 5' in name for name in outside), outside
    if not FORMATS['coreml'].here():
        with pytest.raises(UsageError, match='cannot be run on this machine'):
            load_exported(path)


@pytest.mark.parametrize('length, side', [(7, 3), (16, 6), (2, 6), (12, 4)])
def test_adaptive_pooling_as_products(length, side):
    x = torch.randn(2, 3, length, length + 5)
    torch.testing.assert_close(AdaptiveAveragePool(side)(x), nn.functional.adaptive_avg_pool2d(x, side))


def perturbed(model):
    """A model whose boxes or logits are a little off."""
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data *= 1.02
    return other


@pytest.mark.parametrize('twin, what', [('retinanet', 'detector'), ('semantic_fpn', 'segmentor')])
def test_the_comparison_sees_another_model(twin, what, tmp_path):
    path = export(perturbed(tiny(twin)), tmp_path / 'model.pt', what=what)
    with pytest.raises(AssertionError):
        check(tiny(twin), path, [(64, 96)], tolerance=1e-3)


def test_differences_of_detections():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    wanted = dict(boxes=boxes, scores=torch.tensor([0.9, 0.5]), labels=torch.tensor([0, 1]))
    difference = checking.Difference()
    difference.add({**wanted, 'boxes': boxes + torch.tensor([0.5, 0, 0, 0])}, wanted, diagonal=50)
    assert difference.by_output == dict(detections=0, boxes=pytest.approx(0.01), scores=0)
    difference.add({**wanted, 'labels': torch.tensor([0, 2])}, wanted, diagonal=50)
    assert difference.by_output['detections'] == pytest.approx(0.5 / 1.4)
    difference.add({name: value[:0] for name, value in wanted.items()}, wanted, diagonal=50)
    assert difference.by_output['detections'] == 1


@pytest.mark.parametrize(
    'twin, options',
    [
        ('mask_rcnn', {}),
        ('mask_rcnn', dict(pixels='bgr')),
        ('semantic_fpn', {}),
        ('semantic_fpn', dict(argmax=True)),
        ('retinanet', dict(what='backbone')),
    ],
)
def test_an_exported_model_takes_the_place_of_its_model(twin, options, tmp_path):
    """With pictures that are scaled and padded into the fixed size, as in an evaluation."""
    model = tiny(twin)
    what = 'segmentor' if 'fpn' in twin else 'detector'
    path = export(model, tmp_path / 'model.pt', **{'what': what, 'size': (64, 96), **options})
    substituted = substitute(model, load_exported(path))
    data = dict(inputs=[torch.from_numpy(picture).permute(2, 0, 1) for picture in checking.drawn_pictures(2, (64, 96))])
    if what == 'detector':
        from mmdet.structures import DetDataSample as Sample
    else:
        from mmseg.structures import SegDataSample as Sample

    def predictions(model):
        meta = dict(img_shape=(64, 96), ori_shape=(128, 192), scale_factor=(0.5, 0.5))
        return model.test_step({**data, 'data_samples': [Sample(metainfo=meta) for _ in data['inputs']]})

    for found, wanted in zip(predictions(substituted), predictions(model)):
        if what == 'segmentor':
            share = (found.pred_sem_seg.data == wanted.pred_sem_seg.data).float().mean()
            assert share > (0.9 if options else 0.999)  # classes are enlarged, not logits
            continue
        found, wanted = found.pred_instances, wanted.pred_instances
        assert len(found) == len(wanted) > 0
        torch.testing.assert_close(found.scores, wanted.scores, rtol=0, atol=1e-4)
        difference = checking.Difference()
        difference.add(
            *({('boxes' if key == 'bboxes' else key): value for key, value in one.items()} for one in (found, wanted)),
            diagonal=100,
        )
        assert difference.largest < 1e-3, difference


def test_a_pipeline_is_fitted_to_a_fixed_size():
    pipeline = get_config('retinanet_casvit-xs_fpn_1x_coco').test_dataloader.dataset.pipeline
    fixed = fitted_pipeline(pipeline, Signature('onnx', 'detector', (320, 480)))
    assert [step for step in fixed if 'Resize' in step['type']] == [dict(type='mmcasvit.ResizeInto', size=(320, 480))]
    without = [step for step in pipeline if 'Resize' not in step['type']]
    assert fitted_pipeline(without, Signature('onnx', 'detector', (320, 480)))[1]['type'] == 'mmcasvit.ResizeInto'
    assert fitted_pipeline(pipeline, Signature('onnx', 'detector', (320, 480), dynamic_size=True)) == list(pipeline)


@pytest.mark.parametrize(
    'given, fitted, factor',
    [
        ((100, 150), (64, 96), 0.64),
        ((150, 100), (64, 43), 64 / 150),
        ((20, 90), (21, 96), 96 / 90),
        ((64, 96), (64, 96), 1),
    ],
)
def test_a_picture_is_scaled_into_a_size_lying_or_upright(given, fitted, factor):
    found = ResizeInto((64, 96))(dict(img=np.zeros((*given, 3), np.uint8)))
    assert found['img'].shape[:2] == found['img_shape'] == fitted
    assert found['scale_factor'] == pytest.approx((factor, factor), rel=0.03)


def test_a_file_of_someone_else_is_refused(tmp_path):
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


def test_what_cannot_be_exported_is_refused():
    model = copy.deepcopy(tiny('retinanet'))
    model.bbox_head.test_cfg = Config(dict(nms=dict(type='soft_nms', iou_threshold=0.5), nms_pre=10, max_per_img=5))
    with pytest.raises(UsageError, match='soft_nms'):
        build_graph(model, Signature('pt2', 'detector', (64, 96)))
    other = SimpleNamespace(signature=Signature('pt2', 'segmentor', (64, 96)), path='x.pt2')
    with pytest.raises(UsageError, match='holds a segmentor'):
        substitute(tiny('retinanet'), other)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp('checkpoint')
    write_tiny_config(folder / 'tiny.py', config_path(TWINS['semantic_fpn']), CHANNELS)
    torch.save(dict(state_dict=tiny('semantic_fpn').state_dict()), folder / 'tiny.pth')
    return folder


@pytest.mark.slow
def test_the_tool_exports_compares_and_exits_with_one_where_it_differs(run_tool, checkpoint, shapes):
    common = ['tiny.py', 'tiny.pth', '--size', 64, 96, '--count', 2, '--format', 'torchscript']
    done = run_tool('export.py', *common, '--images', shapes / 'coco/val2017', cwd=checkpoint)
    assert '| tiny.pt | fp32 |' in done.stdout
    done = run_tool('export.py', *common, '--precision', 'bf16', '--tolerance', 1e-6, cwd=checkpoint, expect=1)
    assert 'differs from PyTorch by' in done.stderr.splitlines()[-1]
    done = run_tool(
        'test.py',
        'tiny.py',
        'tiny.pth',
        '--exported',
        'tiny.pt',
        '--work-dir',
        'test',
        '--cfg-options',
        f'data_root={shapes}/ade',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
        cwd=checkpoint,
    )
    assert 'mIoU' in done.stdout + done.stderr


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--format', 'coreml', '--dynamic', 'size'], 'fixed batch and size'),
        (['--format', 'onnx', '--precision', 'bf16'], 'not in bf16'),
        (['--format', 'pt2', '--precision', 'int8'], 'not in int8'),
        (['--format', 'openvino', '--precision', 'int8'], 'int8 needs'),
        (['--format', 'pt2', '--what', 'backbone', '--argmax'], 'for segmentors'),
        (['--format', 'pt2', '--resize'], '--resize needs --preprocess'),
        (['--format', 'pt2', '--out', 'x.onnx'], r'ends in .pt2'),
        (['--format', 'pt2', '--size', '8', '8'], 'at least 32'),
        (['--format', 'pt2', '--out', 'nowhere/x.pt2'], 'no folder'),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_arguments_that_cannot_work_are_refused(arguments, words, monkeypatch):
    tool = load_tool('export')
    if {'coreml', 'onnx', 'openvino'} & {*arguments}:
        monkeypatch.setattr(type(FORMATS['onnx']), 'missing', lambda self: [])
    monkeypatch.setattr(sys, 'argv', ['export.py', 'config.py', 'x.pth', *arguments])
    with pytest.raises(UsageError, match=words):
        tool.check_arguments(tool.parse_args(), 'segmentor')


def test_pictures_are_padded_with_their_mean():
    preprocessor = tiny('retinanet').data_preprocessor
    picture = np.zeros((40, 50, 3), np.uint8)
    fitted = checking.fit(picture, preprocessor, Signature('pt2', 'detector', (64, 96)))
    assert fitted.shape == (64, 96, 3)
    assert fitted[-1, -1].tolist() == [104, 116, 124]
    with pytest.raises(UsageError, match='does not fit'):
        checking.fit(picture, preprocessor, Signature('pt2', 'detector', (32, 96)))


def test_a_bare_backbone_is_exported_from_python(tmp_path):
    backbone = CASViT(dict(depths=(1, 1, 1, 1), channels=CHANNELS), out_indices=(1, 3)).eval()
    path = export(backbone, tmp_path / 'model.pt2', size=(64, 96))
    x = torch.randn(1, 3, 64, 96)
    found = load_exported(path)(x)
    with torch.no_grad():
        torch.testing.assert_close(list(found.values()), list(backbone(x)), rtol=1e-4, atol=1e-5)
    assert list(found) == ['stage2', 'stage4']
