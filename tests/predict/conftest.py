"""A tiny detector and segmentor with their files, and a video."""

import cv2
import numpy as np
import pytest
import torch
from helpers.tiny_models import tiny

from mmcasvit.datasets.shapes import draw_scene

TWINS = dict(det='mask_rcnn', seg='semantic_fpn')


@pytest.fixture(scope='session')
def files(tmp_path_factory):
    """Return a folder with a config and a checkpoint of each model: det.py, det.pth, seg.py, seg.pth."""
    folder = tmp_path_factory.mktemp('models')
    for name, twin in TWINS.items():
        model = tiny(twin)
        text = ''.join(f'{key} = {part!r}\n' for key, part in model.cfg.to_dict().items())
        (folder / f'{name}.py').write_text(text)
        torch.save(
            dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(model.dataset_meta))),
            folder / f'{name}.pth',
        )
    return folder


def panorama(frames, height=64, width=96, step=8):
    """Return frames of a camera that turns over a scene."""
    scene = draw_scene(np.random.default_rng(5), height, width + step * frames).image
    return [np.ascontiguousarray(scene[:, step * i : step * i + width]) for i in range(frames)]


@pytest.fixture(scope='session')
def clip(tmp_path_factory):
    """Return a video of 7 frames at 5 frames a second."""
    path = tmp_path_factory.mktemp('video') / 'clip.mp4'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 5, (96, 64))
    for frame in panorama(7):
        writer.write(frame)
    writer.release()
    return path
