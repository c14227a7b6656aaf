"""Predictions on image files: threads and batches change nothing."""

import json

import cv2
import numpy as np
import pytest

from mmcasvit.apis.config import load_config
from mmcasvit.apis.inference import get_inferencer
from mmcasvit.datasets.shapes import draw_scene
from mmcasvit.predict.images import predictions
from mmcasvit.predict.outputs import plan_outputs
from mmcasvit.predict.predictor import Predictor
from mmcasvit.predict.sources import find_sources


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Return a folder of images of two sizes."""
    folder = tmp_path_factory.mktemp('photos')
    for number, (height, width) in enumerate([(64, 96), (96, 64), (64, 96), (64, 96), (96, 64)]):
        image = draw_scene(np.random.default_rng(number), height, width).image
        cv2.imwrite(str(folder / f'{number}.png'), image)
    return folder


def written(predictor, photos, folder, **options):
    """Return the content of all files that a prediction writes."""
    outputs = plan_outputs(predictor.scope, find_sources([str(photos)]), folder)
    np.random.seed(0)  # mmdet varies the colors of masks
    assert len(list(predictions(predictor, outputs, **options))) == len(outputs)
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob('*') if file.is_file()}


@pytest.mark.parametrize('name', ['det', 'seg'])
def test_threads_change_nothing(name, files, photos, tmp_path):
    cfg = load_config(str(files / f'{name}.py'))
    predictor = Predictor(get_inferencer(cfg, str(files / f'{name}.pth'), 'cpu'), cfg.default_scope, 0.1)
    in_turn = written(predictor, photos, tmp_path / 'in-turn', readers=0)
    assert len(in_turn) == 10
    assert written(predictor, photos, tmp_path / 'threads', readers=2) == in_turn
    batches = written(predictor, photos, tmp_path / 'batches', batch_size=3)
    assert batches.keys() == in_turn.keys()
    for number in range(5):
        path = str(photos / f'{number}.png')
        theirs = predictor.inferencer(path)['predictions']
        if name == 'seg':
            for found in (in_turn, batches):
                mask = cv2.imdecode(np.frombuffer(found[f'pred/{number}.png'], np.uint8), cv2.IMREAD_UNCHANGED)
                np.testing.assert_array_equal(mask, theirs)
            continue
        ours = json.loads(in_turn[f'preds/{number}.json'])
        assert len(ours['scores']) > 1
        assert {key: ours[key] for key in theirs[0]} == json.loads(json.dumps(theirs[0]))
        np.testing.assert_allclose(
            json.loads(batches[f'preds/{number}.json'])['scores'], ours['scores'], rtol=1e-4, atol=1e-5
        )


def test_drawings_without_a_box_are_explained(files, photos, tmp_path):
    cfg = load_config(str(files / 'det.py'))
    inferencer = get_inferencer(cfg, str(files / 'det.pth'), 'cpu')
    predictor = Predictor(inferencer, cfg.default_scope, 0.999)
    written(predictor, photos, tmp_path / 'none')
    assert ', without a box: the highest score is 0.' in predictor.describe_drawings()
    predictor = Predictor(inferencer, cfg.default_scope, 0.01)
    written(predictor, photos, tmp_path / 'some')
    assert predictor.drawn > 0
    assert predictor.describe_drawings() == ''
