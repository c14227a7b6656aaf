"""An exported model in place of the PyTorch model, and the pipeline that fits images to it."""

from types import SimpleNamespace

import mmcv
import numpy as np
import pytest
import torch
from helpers.tiny_models import export, tiny
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement

from mmcasvit.apis.config import get_config
from mmcasvit.export.comparison import Difference, synthetic_images
from mmcasvit.export.evaluation import ResizeInto, fitted_pipeline, size_in_tests, substitute
from mmcasvit.export.formats import load_exported
from mmcasvit.export.hook import ExportedHook
from mmcasvit.export.signature import Signature
from mmcasvit.utils.errors import UsageError


@pytest.mark.parametrize(
    'twin, options, stretch',
    [
        ('mask_rcnn', {}, 1.0),
        ('mask_rcnn', {}, 2.0),
        ('mask_rcnn', dict(pixels='bgr'), 1.0),
        ('rtmdet_ins', {}, 1.0),
        ('rtmdet_ins', {}, 2.0),
        ('semantic_fpn', {}, 1.0),
        ('semantic_fpn', dict(argmax=True), 2.0),
        ('retinanet', dict(what='backbone'), 1.0),
    ],
)
def test_an_exported_model_takes_the_place_of_its_model(twin, options, stretch, tmp_path):
    """Images are resized to the fixed size, some without keeping their aspect ratio, as in an evaluation."""
    model = tiny(twin)
    what = 'segmentor' if 'fpn' in twin else 'detector'
    path = export(model, tmp_path / 'model.pt', **{'what': what, 'size': (64, 96), **options})
    substituted = substitute(model, load_exported(path))
    data = dict(inputs=[torch.from_numpy(image).permute(2, 0, 1) for image in synthetic_images(2, (64, 96))])
    if what == 'detector':
        from mmdet.structures import DetDataSample as Sample
    else:
        from mmseg.structures import SegDataSample as Sample

    def predictions(model):
        original = (128, round(192 / stretch))
        meta = dict(img_shape=(64, 96), ori_shape=original, scale_factor=(0.5 * stretch, 0.5))
        return model.test_step({**data, 'data_samples': [Sample(metainfo=meta) for _ in data['inputs']]})

    for found, wanted in zip(predictions(substituted), predictions(model)):
        if what == 'segmentor':
            share = (found.pred_sem_seg.data == wanted.pred_sem_seg.data).float().mean()
            assert share > (0.9 if options else 0.999)  # classes are upsampled, not logits
            continue
        found, wanted = found.pred_instances, wanted.pred_instances
        assert len(found) == len(wanted) > 0
        torch.testing.assert_close(found.scores, wanted.scores, rtol=0, atol=1e-4)
        difference = Difference()
        difference.add(
            *({('boxes' if key == 'bboxes' else key): value for key, value in one.items()} for one in (found, wanted)),
            diagonal=100,
        )
        assert difference.largest < 1e-3, difference


def test_a_file_of_another_kind_is_not_substituted():
    other = SimpleNamespace(signature=Signature('pt2', 'segmentor', (64, 96)), path='x.pt2')
    with pytest.raises(UsageError, match='holds a segmentor'):
        substitute(tiny('retinanet'), other)


@pytest.mark.parametrize(
    'name, keep_ratio',
    [
        ('retinanet_casvit-xs_fpn_1x_coco', True),
        ('semantic-fpn_casvit-xs_8xb4-40k_ade20k-512x512', True),
        ('ssdlite_casvit-xs_8xb24-600e_coco-320', False),
    ],
)
def test_a_pipeline_is_fitted_to_a_fixed_size(name, keep_ratio):
    pipeline = get_config(name).test_dataloader.dataset.pipeline
    fixed = fitted_pipeline(pipeline, Signature('onnx', 'detector', (320, 480)))
    wanted = dict(type='mmcasvit.ResizeInto', size=(320, 480), keep_ratio=keep_ratio)
    assert [step for step in fixed if step['type'].endswith('ResizeInto')] == [wanted]
    assert not any(step['type'].endswith('Resize') for step in fixed)


def test_a_pipeline_without_a_size_keeps_the_aspect_ratio():
    pipeline = get_config('retinanet_casvit-xs_fpn_1x_coco').test_dataloader.dataset.pipeline
    without = [step for step in pipeline if 'Resize' not in step['type']]
    resize = dict(type='mmcasvit.ResizeInto', size=(320, 480), keep_ratio=True)
    assert fitted_pipeline(without, Signature('onnx', 'detector', (320, 480)))[1] == resize
    assert fitted_pipeline(pipeline, Signature('onnx', 'detector', (320, 480), dynamic_size=True)) == list(pipeline)


@pytest.mark.parametrize(
    'name, size',
    [
        ('mask-rcnn_casvit-xs_fpn_1x_coco', (800, 1088)),
        ('rtmdet_casvit-xs_8xb32-300e_coco-320', (320, 320)),
        ('semantic-fpn_casvit-xs_8xb4-40k_ade20k-512x512', (512, 704)),
        ('semantic-fpn_casvit-xs_300i_shapes', (480, 640)),
        ('casvit-xs_8xb128-300e_in1k-224', (224, 224)),
    ],
)
def test_the_size_in_tests_is_that_of_the_pipeline(name, size, tmp_path):
    cfg = get_config(name)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        pipeline = cfg.test_dataloader.dataset.pipeline
        assert size_in_tests(pipeline) == size
        mmcv.imwrite(np.zeros((640, 480, 3), np.uint8), str(tmp_path / 'portrait.png'))
        assert size_in_tests(pipeline, str(tmp_path / 'portrait.png')) == size[::-1]


@pytest.mark.parametrize('size, warns', [((64, 96), True), ((128, 192), False), ((128, 224), False)])
def test_an_evaluation_warns_if_the_file_changes_the_size_of_images(size, warns, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr('mmcasvit.export.hook.print_log', lambda text, **_: told.append(text))
    mmcv.imwrite(np.zeros((128, 192, 3), np.uint8), str(tmp_path / 'scene.png'))
    path = export(tiny('semantic_fpn'), tmp_path / 'model.pt', what='segmentor', size=size)
    cfg = get_config('semantic-fpn_casvit-xs_300i_shapes')
    hook = ExportedHook(path, cfg.test_dataloader.dataset.pipeline)
    fitted = ResizeInto(size)(dict(img=np.zeros((128, 192, 3), np.uint8)))['img_shape']
    samples = [BaseDataElement(metainfo=dict(img_path=str(tmp_path / 'scene.png'), img_shape=fitted))]
    with DefaultScope.overwrite_default_scope('mmseg'):
        hook.after_test_iter(None, 1, outputs=samples)
        hook.after_test_iter(None, 0, outputs=[BaseDataElement(metainfo=dict(img_shape=fitted))])
        assert not told
        hook.after_test_iter(None, 0, outputs=samples)
    assert len(told) == warns
    if warns:
        assert 'was resized to 64x96 pixels to fit into the file, and the config tests it at 128x192' in told[0]
        assert told[0].endswith('export with --size 128 192.')


@pytest.mark.parametrize(
    'given, fitted, factor',
    [
        ((100, 150), (64, 96), 0.64),
        ((150, 100), (64, 43), 64 / 150),
        ((20, 90), (21, 96), 96 / 90),
        ((64, 96), (64, 96), 1),
    ],
)
def test_an_image_is_resized_to_fit_in_landscape_or_portrait(given, fitted, factor):
    found = ResizeInto((64, 96))(dict(img=np.zeros((*given, 3), np.uint8)))
    assert found['img'].shape[:2] == found['img_shape'] == fitted
    assert found['scale_factor'] == pytest.approx((factor, factor), rel=0.03)


def test_an_image_is_resized_to_an_exact_size():
    found = ResizeInto((64, 96), keep_ratio=False)(dict(img=np.zeros((128, 48, 3), np.uint8)))
    assert found['img'].shape[:2] == found['img_shape'] == (64, 96)
    assert found['scale_factor'] == (2, 0.5)
