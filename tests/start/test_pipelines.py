"""Pipelines of written configs on the objects that they are hard on."""

import random

import numpy as np
import pytest
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope

from mmcasvit.start.config import write_config
from mmcasvit.start.machine import Machine
from mmcasvit.start.prepare import Data
from mmcasvit.start.recipe import Choices, choose_schedule, choose_shape


@pytest.mark.parametrize('task, model', [('instances', 'mask-rcnn'), ('instances', 'rtmdet'), ('detect', 'retinanet')])
def test_crops_leave_no_object_without_an_area(tmp_path, task, model):
    split = dict(ann_file='a.json', data_prefix=dict(img=''))
    data = Data(
        tmp_path,
        task,
        'COCO',
        ['frame'],
        dict(train=split, val=split),
        dict(train=8, val=2),
        sizes=[(96, 96)] * 8,
        objects=np.array([[60, 60, 96, 96]], float),
    )
    choices, machine = Choices(model), Machine(False, 1, 2**33)
    recipe = choose_shape(data, choices, machine)
    choose_schedule(data, choices, machine, recipe)
    file = tmp_path / 'config.py'
    file.write_text(write_config(data, choices, recipe, tmp_path))
    cfg = Config.fromfile(file)
    init_default_scope('mmdet')
    pipeline = Compose(cfg.train_pipeline[1:])
    # Two edges of the image: a crop that begins a pixel further leaves nothing of the mask, though its box is large.
    mask = np.zeros((96, 96), np.uint8)
    mask[:1], mask[:, :1] = 1, 1
    random.seed(0)
    np.random.seed(0)
    lost = 0
    for _ in range(60):
        sample = pipeline(
            dict(
                img=np.zeros((96, 96, 3), np.uint8),
                img_shape=(96, 96),
                ori_shape=(96, 96),
                img_path='a.jpg',
                img_id=1,
                gt_bboxes=HorizontalBoxes(np.array([[0, 0, 96, 96]], np.float32)),
                gt_bboxes_labels=np.zeros(1, np.int64),
                gt_ignore_flags=np.zeros(1, bool),
                **(dict(gt_masks=BitmapMasks(mask[None], 96, 96)) if task == 'instances' else {}),
            )
        )
        found = sample['data_samples'].gt_instances
        assert (found.bboxes.areas > 1).all()
        assert len(found.labels) == len(found.bboxes) == len(found.get('masks', found.bboxes))
        lost += not len(found)
    assert (lost > 0) == (task == 'instances')
