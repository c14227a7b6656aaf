"""COCO's metric judges the images that were evaluated, and no others."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.structures import InstanceData

from mmcasvit.engine.hooks.evaluated_images import EvaluatedImagesHook


@pytest.mark.parametrize('indices', [None, 2, [1, 3]])
def test_a_part_of_the_images_is_judged_by_that_part(shapes, indices):
    datasets, metrics = pytest.importorskip('mmdet.datasets'), pytest.importorskip('mmdet.evaluation')
    file = shapes / 'coco/annotations/instances_val2017.json'
    from mmcasvit.datasets.shapes import THINGS

    dataset = datasets.CocoDataset(
        ann_file=str(file), data_prefix=dict(img=''), metainfo=dict(classes=THINGS), indices=indices, test_mode=True
    )
    metric = metrics.CocoMetric(ann_file=str(file), metric='bbox')
    metric.dataset_meta = dataset.metainfo
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset), evaluator=Evaluator(metric))
    EvaluatedImagesHook().before_val_epoch(SimpleNamespace(val_loop=loop))
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        found = InstanceData(
            bboxes=torch.tensor([part['bbox'] for part in info['instances']]).reshape(-1, 4),
            labels=torch.tensor([part['bbox_label'] for part in info['instances']], dtype=torch.long),
            scores=torch.ones(len(info['instances'])),
        )
        metric.process({}, [dict(pred_instances=found, img_id=info['img_id'], ori_shape=(64, 96))])
    assert metric.evaluate(len(dataset))['coco/bbox_mAP_50'] == 1
