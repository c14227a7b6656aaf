import importlib.util
import io

import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from torch.testing import assert_close

from mmcasvit import WeightsError
from mmcasvit.utils.errors import UsageError
from mmcasvit.visualization.explore import (
    MAX_SIDE,
    confidence_of,
    draw_maps,
    draw_over,
    enlarge,
    legend,
    list_found,
    load_model,
    measure,
    predict,
    read_upload,
)


def load(work, name):
    return load_model(str(work / name / f'tiny-{name}.py'), str(work / name / 'epoch_1.pth'))


@pytest.fixture(scope='module')
def models(work):
    return {name: load(work, name) for name in ('detector', 'segmentor')}


def encoded(size, kind='PNG', **settings):
    file = io.BytesIO()
    Image.new('RGB', size, (200, 30, 90)).save(file, kind, **settings)
    return file.getvalue()


def test_an_upload_is_decoded_as_the_tools_decode_a_file(image_file):
    wanted = mmcv.imread(str(image_file), channel_order='rgb')
    np.testing.assert_array_equal(read_upload(image_file.read_bytes()), wanted)
    large = read_upload(encoded((MAX_SIDE * 2, 400)))
    assert large.shape == (200, MAX_SIDE, 3)
    assert large[7, 7].tolist() == [200, 30, 90]


@pytest.mark.parametrize(
    'content, words',
    [
        (None, 'drop in an image'),
        (b'', 'drop in an image'),
        (b'<html>', 'not an image of a supported format'),
        (encoded((64, 64))[:-30], 'damaged'),
        (encoded((1, 1)), 'a single pixel'),
        (encoded((9000, 9000), compress_level=1), '9000x9000 pixels'),
    ],
    ids=['none', 'empty', 'text', 'cut off', 'one pixel', 'too large'],
)
def test_a_bad_upload_is_refused(content, words):
    with pytest.raises(UsageError, match=words):
        read_upload(content)


def test_a_detector_runs_once_for_all_thresholds(models, pixels):
    model, runs = models['detector'], []
    handle = model.backbone.register_forward_hook(lambda *_: runs.append(1))
    found = predict(model, pixels)
    drawn = {thr: draw_over(model, found, thr, 0.8) for thr in (0.0, 0.3, 1.0)}
    handle.remove()
    assert len(runs) == 1
    scores = found.sample.pred_instances.scores
    assert 0 < (scores > 0.3).sum() < len(scores)
    assert drawn[0.0].shape == pixels.shape
    np.testing.assert_array_equal(drawn[1.0], pixels)
    assert (drawn[0.0] != drawn[0.3]).any()
    faint, strong = (
        np.abs(draw_over(model, found, 0.3, opacity).astype(int) - pixels).mean() for opacity in (0.1, 0.9)
    )
    assert faint < strong
    rows = list_found(model, found, 0.3)
    assert len(rows) == (scores > 0.3).sum()
    best = found.sample.pred_instances[int(scores.argmax())]
    assert rows[0]['class'] == model.dataset_meta['classes'][int(best.labels)]
    assert rows[0]['score'] == pytest.approx(float(best.scores), abs=5e-4)
    box = [rows[0][side] for side in ('left', 'top', 'right', 'bottom')]
    assert box == pytest.approx(best.bboxes[0].tolist(), abs=0.06)
    assert legend(model)['disc'] == '#dc143c'


def test_a_small_image_is_drawn_large(models, pixels):
    found = predict(models['detector'], pixels)
    large = enlarge(found, 200)
    assert large.image.shape == (128, 192, 3)
    before, after = found.sample.pred_instances, large.sample.pred_instances
    assert_close(after.bboxes, 2 * before.bboxes)
    assert_close(after.masks[:, 1::2, 1::2], before.masks)
    assert before.masks.shape[1:] == (64, 96)
    assert draw_over(models['detector'], large, 0.3, 0.8).shape == (128, 192, 3)
    assert enlarge(found, 191) is found
    found = predict(models['segmentor'], pixels)
    large = enlarge(found, 200)
    for thr in (0.0, float(np.median(found.confidence))):
        drawn = draw_over(models['segmentor'], large, thr, 1.0)[::2, ::2]
        sure = found.confidence > thr
        np.testing.assert_array_equal(drawn[sure], draw_over(models['segmentor'], found, thr, 1.0)[sure])


def test_a_segmentation_is_drawn_where_it_is_probable(models, pixels):
    model = models['segmentor']
    found = predict(model, pixels)
    with torch.no_grad():
        logits = model(
            model.data_preprocessor(
                dict(inputs=[torch.from_numpy(pixels[..., ::-1].copy()).permute(2, 0, 1)], data_samples=None)
            )['inputs']
        )
        logits = torch.nn.functional.interpolate(logits, pixels.shape[:2], mode='bilinear', align_corners=False)
    wanted, labels = logits.softmax(1)[0].max(0)
    assert_close(torch.from_numpy(found.confidence), wanted, rtol=1e-4, atol=1e-5)
    palette = np.array(model.dataset_meta['palette'], np.uint8)
    np.testing.assert_array_equal(draw_over(model, found, 0.0, 1.0), palette[labels.numpy()])
    np.testing.assert_array_equal(draw_over(model, found, 0.0, 0.0), pixels)
    middle = float(np.median(found.confidence))
    sure = found.confidence > middle
    assert 0.4 < sure.mean() < 0.6
    drawn = draw_over(model, found, middle, 1.0)
    np.testing.assert_array_equal(drawn[sure], palette[labels.numpy()][sure])
    np.testing.assert_array_equal(drawn[~sure], pixels[~sure])
    rows = list_found(model, found, middle)
    assert sum(row['share of the pixels, %'] for row in rows) == pytest.approx(100 * sure.mean(), abs=0.5)
    label = model.dataset_meta['classes'].index(rows[0]['class'])
    assert rows[0]['share of the pixels, %'] == pytest.approx(100 * (sure & (labels.numpy() == label)).mean(), abs=0.06)


def test_one_channel_holds_the_probability_of_the_second_class():
    scores = torch.tensor([[[0.9, 0.2]]])
    assert_close(torch.from_numpy(confidence_of(scores, torch.tensor([[1.0, 0.0]]))), torch.tensor([[0.9, 0.8]]))


def test_models_of_two_frameworks_take_turns(models, pixels):
    first = predict(models['detector'], pixels)
    predict(models['segmentor'], pixels)
    again = predict(models['detector'], pixels)
    assert_close(again.sample.pred_instances.scores, first.sample.pred_instances.scores)


def test_both_forms_are_measured_in_turns(models, pixels):
    model, runs = models['segmentor'], []
    handle = model.backbone.register_forward_hook(lambda *_: runs.append(1))
    rows = measure(model, pixels, rounds=3)
    handle.remove()
    assert [row['form'] for row in rows] == ['eager', 'deploy']
    for row in rows:
        low, high = map(float, row['quartiles, ms'].split(' to '))
        assert low - 0.1 <= row['median, ms'] <= high + 0.1
        assert row['images per second'] == pytest.approx(1000 / row['median, ms'], rel=0.1)
    # Two to warm up, one to estimate the time, and in each round one to fill the caches and one that is measured.
    assert len(runs) == 3 + 2 * 3


def test_what_cannot_be_shown_is_refused(work, pixels, tmp_path):
    detector, segmentor = (str(work / name / f'tiny-{name}.py') for name in ('detector', 'segmentor'))
    with pytest.raises(WeightsError):
        load_model(detector, str(work / 'broken.pth'))
    with pytest.raises(WeightsError, match='missing'):
        load_model(segmentor, str(work / 'detector/epoch_1.pth'))
    cfg = Config.fromfile(segmentor)
    del cfg.test_dataloader.dataset['metainfo']
    cfg.dump(tmp_path / 'nameless.py')
    with pytest.raises(UsageError, match=r'nameless\.py names the classes: add metainfo'):
        load_model(str(tmp_path / 'nameless.py'), str(work / 'segmentor/epoch_1.pth'))
    model = load_model(segmentor, str(work / 'segmentor/epoch_1.pth'))
    model.backbone = torch.nn.Sequential()
    with pytest.raises(UsageError, match='whose backbone is a CASViT'):
        draw_maps(model, pixels, None, 0.3, 'HiResCAM')
    assert load(work, 'segmentor').cfg.default_scope == 'mmseg'  # the lock is free again


def test_the_config_of_a_classifier_is_refused(work):
    if importlib.util.find_spec('mmpretrain') is None:
        pytest.skip('needs mmpretrain')
    with pytest.raises(UsageError, match=r'config of a classifier|importing that failed'):
        load_model('casvit-xs_8e_shapes', str(work / 'detector/epoch_1.pth'))
