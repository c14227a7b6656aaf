"""The figure of the README shows the labels of a scene, and predictions of whatever models there are."""

import sys

import cv2
import mmcv
import numpy as np
import pytest
import torch
from helpers.repository import load_tool
from helpers.tiny_models import tiny

TWINS = dict(zip(('RetinaNet', 'Mask R-CNN', 'Semantic FPN'), ('retinanet', 'mask_rcnn', 'semantic_fpn')))


@pytest.fixture
def scene(shapes):
    name = f'{1:012}'
    mask = cv2.imread(str(shapes / f'ade/annotations/validation/{name}.png'), cv2.IMREAD_UNCHANGED)
    return mmcv.imread(shapes / f'coco/val2017/{name}.jpg', channel_order='rgb'), mask, name


def test_the_labels_are_drawn_where_the_annotations_have_them(shapes, scene):
    tool = load_tool('draw_overview', 'dev')
    image, mask, name = scene
    model = tiny('semantic_fpn')
    drawn = mmcv.imresize(tool.draw_classes(model, image, shapes, name), image.shape[1::-1], interpolation='area')
    color = np.array(model.dataset_meta['palette'])[mask.astype(int) - 1]
    expected = (1 - tool.OPACITY) * image + tool.OPACITY * color
    assert np.median(np.abs(drawn - expected)[mask > 0]) < 4
    large = mmcv.imrescale(image, 512 // max(image.shape))
    changed = (tool.draw_objects(tiny('mask_rcnn'), image, shapes, 1) != large).any(2)
    objects = mmcv.imresize((mask > 2).astype(np.uint8), large.shape[1::-1], interpolation='nearest') > 0
    assert changed[objects].mean() > 0.9 > changed[~objects].mean()


def test_the_figure_is_written(shapes, tmp_path, monkeypatch):
    tool = load_tool('draw_overview', 'dev')
    models = {}
    for title, twin in TWINS.items():
        model, folder = tiny(twin), tmp_path / twin
        folder.mkdir()
        model.cfg.dump(tmp_path / f'{twin}.py')
        torch.save(
            dict(state_dict=model.state_dict(), meta=dict(dataset_meta=model.dataset_meta)), folder / 'iter_1.pth'
        )
        (folder / 'last_checkpoint').write_text('/elsewhere/iter_1.pth')
        models[title] = str(tmp_path / f'{twin}.py')
    monkeypatch.setattr(tool, 'MODELS', models)
    plot = np.zeros((40, 100, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'plot.png'), plot)
    arguments = [
        '--work-dir',
        tmp_path,
        '--data',
        shapes,
        '--plot',
        tmp_path / 'plot.png',
        '--out',
        tmp_path / 'out.png',
    ]
    monkeypatch.setattr(sys, 'argv', ['draw_overview.py', *map(str, arguments)])
    tool.main()
    drawn = cv2.imread(str(tmp_path / 'out.png'))
    assert drawn.shape[1] == tool.DPI * tool.WIDTH
    assert (drawn[-drawn.shape[0] // 5, drawn.shape[1] // 2] == 0).all()  # the plot
    assert drawn[: drawn.shape[0] // 2].std() > 20  # the panels
