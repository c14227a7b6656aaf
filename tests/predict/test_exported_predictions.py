"""Exported models predict in the place of PyTorch."""

import numpy as np
import pytest
from helpers.tiny_models import export, tiny

from mmcasvit.apis.config import load_config
from mmcasvit.apis.inference import get_inferencer
from mmcasvit.datasets.shapes import draw_scene
from mmcasvit.predict.predictor import Predictor, get_exported_inferencer
from mmcasvit.predict.tiles import TiledPredictor
from mmcasvit.utils.errors import UsageError

TWINS = dict(det='mask_rcnn', seg='semantic_fpn')
IMAGE = draw_scene(np.random.default_rng(2), 64, 96).image


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """Return a folder with both models, whole, and the backbone of each."""
    folder = tmp_path_factory.mktemp('exported')
    for name, what in dict(det='detector', seg='segmentor').items():
        export(tiny(TWINS[name]), folder / f'{name}.pt', what=what)
    for name in TWINS:
        export(tiny(TWINS[name]), folder / f'{name}-backbone.pt', dynamic_size=True)
    return folder


def config(files, name):
    return load_config(str(files / f'{name}.py'))


def pytorch(files, name):
    cfg = config(files, name)
    cfg.test_dataloader.dataset.pipeline[1] = dict(type='Resize', scale=(96, 64), keep_ratio=True)  # as the exported
    return Predictor(get_inferencer(cfg, str(files / f'{name}.pth'), 'cpu'), cfg.default_scope, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize('name, part', [('det', ''), ('seg', ''), ('det', '-backbone'), ('seg', '-backbone')])
def test_the_predictions_are_those_of_pytorch(name, part, files, exported):
    expected = pytorch(files, name)
    [wanted] = map(expected.values, expected.predict([IMAGE]))
    checkpoint = str(files / f'{name}.pth') if part else None
    cfg = config(files, name)
    if part:
        cfg.test_dataloader.dataset.pipeline[1] = dict(type='Resize', scale=(96, 64), keep_ratio=True)
    inferencer = get_exported_inferencer(cfg, str(exported / f'{name}{part}.pt'), checkpoint)
    predictor = Predictor(inferencer, cfg.default_scope, 0.0)
    [sample] = predictor.predict([IMAGE])
    found = predictor.values(sample)
    assert len(wanted['labels']) > 1
    assert found['labels'] == wanted['labels']
    assert found['label_names'] == wanted['label_names']
    for key in {'scores', 'bboxes', 'pixels'} & wanted.keys():
        np.testing.assert_allclose(found[key], wanted[key], rtol=1e-3, atol=1e-2)
    assert (predictor.draw(IMAGE, sample) != IMAGE).any()


@pytest.mark.slow
def test_an_exported_segmentor_predicts_tile_by_tile(files, exported):
    inferencer = get_exported_inferencer(config(files, 'seg'), str(exported / 'seg.pt'))
    tiled = TiledPredictor(Predictor(inferencer, 'mmseg'), 64, 0.25)
    wide = np.hstack([IMAGE, IMAGE[:, ::-1]])
    [labels] = tiled.predict([wide])
    assert labels.shape == wide.shape[:2]
    assert len(np.unique(labels)) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    'name, file, words',
    [('seg', 'seg-backbone.pt', 'CHECKPOINT'), ('seg', 'det.pt', 'segmentor'), ('det', 'no.onnx', 'not found')],
)
def test_files_that_do_not_belong_together_are_refused(name, file, words, files, exported):
    with pytest.raises(UsageError, match=words):
        get_exported_inferencer(config(files, name), str(exported / file))
