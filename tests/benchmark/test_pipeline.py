"""Parts of a prediction; nothing depends on how long they take."""

import time

import cv2
import numpy as np
import pytest
import torch
from helpers.tiny_models import export, tiny
from mmengine.config import Config

from mmcasvit import deploy
from mmcasvit.benchmark.pipeline import ORDER, OTHER, measure_pipeline, pipeline_in_words
from mmcasvit.benchmark.steps import step_table
from mmcasvit.datasets.shapes import draw_scene
from mmcasvit.models.deployed_casvit import DeployedCASViT

FIRST = {'decoding', 'rest of the test pipeline', 'normalizing'}
LAST = {'writing JSON or PNG', 'drawing', 'writing the drawing', 'other'}
NETWORK = {'backbone', 'neck', 'head'}


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photos')
    paths = [str(folder / f'{number}.jpg') for number in range(2)]
    for number, path in enumerate(paths):
        cv2.imwrite(path, draw_scene(np.random.default_rng(number), 64, 96).image)
    return paths


def measured(twin, photos, **options):
    return measure_pipeline(Config(tiny(twin).cfg.to_dict()), photos, rounds=1, **options)


@pytest.mark.parametrize(
    'twin, parts',
    [
        ('retinanet', {*NETWORK, 'resizing', 'NMS'}),
        ('mask_rcnn', {*NETWORK, 'resizing', 'NMS', 'mask pasting'}),
        ('semantic_fpn', {*NETWORK, 'scaling of the logits'}),  # its images are not resized
    ],
)
def test_the_parts_are_those_of_the_model_and_add_up(twin, parts, photos, tmp_path):
    checkpoint = tmp_path / 'a.pth'
    torch.save(dict(state_dict=tiny(twin).state_dict(), meta={}), checkpoint)
    began = time.perf_counter()
    found = measured(twin, photos, checkpoint=str(checkpoint), compare_drawing=True)
    seconds = time.perf_counter() - began
    assert len(found.parts) == 2
    assert set().union(*found.parts) == FIRST | parts | LAST
    total = sum(sum(part.values()) for part in found.parts)
    assert all(value > 0 for part in found.parts for name, value in part.items() if name != OTHER)
    assert 0 < total < seconds
    rows = step_table(found.parts, ORDER, 'whole image')
    assert rows[-1]['part'] == 'whole image'
    assert sum(row['ms'] for row in rows[:-1]) == pytest.approx(rows[-1]['ms']) == pytest.approx(500 * total)
    text = pipeline_in_words(found)
    assert 'images/s' in text
    assert 'A drawing by matplotlib takes' in text
    assert ('Detections of an image' in text) == (twin != 'semantic_fpn')


def test_the_deploy_form_has_the_same_parts(photos, monkeypatch):
    deployed = []
    monkeypatch.setattr(
        'mmcasvit.benchmark.pipeline.deploy', lambda model: deployed.append(deploy(model)) or deployed[0]
    )
    found = measured('retinanet', photos, deployed=True)
    assert set().union(*found.parts) == FIRST | NETWORK | {'resizing', 'NMS'} | LAST
    assert isinstance(deployed[0].backbone, DeployedCASViT)


@pytest.mark.slow
@pytest.mark.parametrize(
    'twin, what, parts',
    [('mask_rcnn', 'detector', {'mask pasting'}), ('semantic_fpn', 'segmentor', {'scaling of the logits'})],
)
def test_an_exported_model_is_one_part(twin, what, parts, photos, tmp_path):
    file = export(tiny(twin), tmp_path / 'a.pt', what=what)
    found = measured(twin, photos, exported=str(file), clock=time.process_time)
    assert set().union(*found.parts) == FIRST | parts | LAST | {'resizing', 'exported model'}
    assert found.overlapped is None
    assert 'overlapped' not in pipeline_in_words(found)
