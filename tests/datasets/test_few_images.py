"""Training and evaluation on some of the images, for every kind of dataset and wrapper."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, DefaultScope
from mmengine.structures import InstanceData, PixelData

from mmcasvit.apis.options import limit_images
from mmcasvit.datasets.shapes import STUFF, THINGS
from mmcasvit.engine.hooks.evaluated_images import EvaluatedImagesHook
from mmcasvit.utils.errors import UsageError

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
XML = """<annotation><size><width>96</width><height>64</height></size>
<object><name>disc</name><difficult>0</difficult>
<bndbox><xmin>11</xmin><ymin>11</ymin><xmax>40</xmax><ymax>40</ymax></bndbox></object></annotation>"""


@pytest.fixture
def kinds(shapes, tmp_path):
    """Return a config of a dataset for each kind, and the number of its images."""
    from mmdet.registry import DATASETS  # noqa: F401  registers its wrappers

    (tmp_path / 'Annotations').mkdir()
    (tmp_path / 'list.txt').write_text(''.join(f'{number}\n' for number in range(6)))
    for number in range(6):
        (tmp_path / f'Annotations/{number}.xml').write_text(XML)
    coco = dict(
        type='mmdet.CocoDataset',
        ann_file=str(shapes / 'coco/annotations/instances_train2017.json'),
        data_prefix=dict(img=str(shapes / 'coco/train2017')),
        metainfo=dict(classes=THINGS),
        filter_cfg=dict(filter_empty_gt=True),
    )
    masks = dict(
        type='mmseg.BaseSegDataset',
        data_root=str(shapes / 'ade'),
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        metainfo=dict(classes=(*STUFF, *THINGS)),
    )
    voc = dict(
        type='mmdet.XMLDataset',
        data_root=str(tmp_path),
        ann_file='list.txt',
        data_prefix=dict(sub_data_root=str(tmp_path)),
        metainfo=dict(classes=('disc',)),
    )
    mixed = dict(type='mmdet.MultiImageMixDataset', dataset=coco, pipeline=[])
    return dict(
        coco=coco,
        voc=voc,
        masks=masks,
        repeated=dict(type='RepeatDataset', times=4, dataset=coco),
        together=dict(type='ConcatDataset', datasets=[coco, dict(coco, test_mode=True)]),
        mixed=mixed,
        mixed_masks=dict(
            type='mmseg.MultiImageMixDataset', dataset=dict(type='ConcatDataset', datasets=[masks]), pipeline=[]
        ),
        nested=dict(type='RepeatDataset', times=2, dataset=dict(mixed, dataset=dict(mixed))),
    )


def limited(dataset, images):
    return DATASETS.build(ConfigDict(type='mmcasvit.FewImages', dataset=dataset, images=images))


def paths(dataset):
    return [dataset.get_data_info(index)['img_path'] for index in range(len(dataset))]


@pytest.mark.parametrize(
    'kind', ['coco', 'voc', 'masks', 'repeated', 'together', 'mixed', 'mixed_masks', 'nested'], ids=str
)
def test_as_many_different_images_are_used_as_asked_for_and_the_same_every_time(kinds, kind):
    whole, few = DATASETS.build(ConfigDict(kinds[kind])), limited(kinds[kind], 3)
    times = dict(repeated=4, nested=2).get(kind, 1)
    assert type(few) is type(whole)
    assert len(few) == 3 * times
    found = paths(few)
    assert len(set(found)) == 3 or kind == 'together'  # which has every image twice
    assert set(found) <= set(paths(whole))
    assert paths(limited(kinds[kind], 3)) == found
    assert len(limited(kinds[kind], 1000)) == len(whole)


def test_the_part_is_spread_over_all_datasets_and_grows_by_new_images_only(kinds):
    together = dict(type='ConcatDataset', datasets=[kinds['coco']] * 3)
    few = [limited(together, images) for images in (4, 9)]
    assert [sum(map(len, part.datasets)) for part in few] == [4, 9]
    assert all(len(part) for part in few[1].datasets)
    assert {(i, path) for i, part in enumerate(few[0].datasets) for path in paths(part)} <= {
        (i, path) for i, part in enumerate(few[1].datasets) for path in paths(part)
    }
    assert paths(limited(kinds['masks'], 4)) != paths(DATASETS.build(ConfigDict(kinds['masks'])))[:4]


def perfect(metric, dataset):
    """Evaluate predictions that are the ground truth of the images of a dataset, through the hook of a run."""
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset), evaluator=Evaluator(metric))
    metric.dataset_meta = dataset.metainfo
    EvaluatedImagesHook().before_val_epoch(SimpleNamespace(val_loop=loop))
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        boxes = torch.tensor([part['bbox'] for part in info['instances']]).float().reshape(-1, 4)
        labels = torch.tensor([part['bbox_label'] for part in info['instances']], dtype=torch.long)
        sample = dict(
            pred_instances=InstanceData(bboxes=boxes, labels=labels, scores=torch.ones(len(boxes))),
            gt_instances=InstanceData(bboxes=boxes, labels=labels),
            ignored_instances=InstanceData(bboxes=boxes[:0], labels=labels[:0]),
            img_id=info['img_id'],
            ori_shape=(64, 96),
        )
        metric.process({}, [sample])
    return metric.evaluate(len(dataset))


def test_detectors_are_judged_by_exactly_these_images(kinds):
    from mmdet.evaluation import CocoMetric, VOCMetric

    assert perfect(CocoMetric(ann_file=kinds['coco']['ann_file']), limited(kinds['coco'], 3))['coco/bbox_mAP'] == 1
    assert perfect(VOCMetric(), limited(dict(kinds['voc'], test_mode=True), 3))['pascal_voc/mAP'] == 1


def test_segmentors_are_judged_by_exactly_these_images(kinds):
    from mmseg.evaluation import IoUMetric

    metric, dataset = IoUMetric(), limited(kinds['masks'], 3)
    metric.dataset_meta = dataset.metainfo
    for index in range(len(dataset)):
        truth = torch.full((1, 2, 2), index)
        sample = dict(gt_sem_seg=PixelData(data=truth).to_dict(), pred_sem_seg=PixelData(data=truth).to_dict())
        metric.process({}, [sample])
    assert metric.evaluate(len(dataset))['mIoU'] == 100


def config(**changes):
    data = dict(batch_size=2, dataset=dict(type='CocoDataset'))
    base = dict(default_scope='mmdet', train_dataloader=data, val_dataloader=data)
    return Config(base | dict(val_evaluator=dict(type='CocoMetric', ann_file='a.json')) | changes)


def test_the_config_says_how_many_images_are_used():
    cfg = config()
    for split, images in (('train', 200), ('val', 50)):
        limit_images(cfg, split, images)
        dataset = cfg[f'{split}_dataloader'].dataset
        assert dataset == dict(type='mmcasvit.FewImages', dataset=dict(type='CocoDataset'), images=images)
    limit_images(cfg, 'test', None)


@pytest.mark.parametrize(
    'changes, split, text',
    [
        (dict(val_evaluator=dict(type='CocoPanopticMetric', ann_file='a.json')), 'val', 'judges by all images'),
        (dict(val_evaluator=[dict(type='VOCMetric'), dict(type='RefExpMetric', ann_file='a')]), 'val', 'RefExpMetric'),
        (dict(val_evaluator=dict(type='MultiDatasetsEvaluator', metrics=[])), 'val', 'MultiDatasetsEvaluator'),
        ({}, 'test', r'--limit-eval: the config has no test_dataloader'),
        (dict(train_dataloader=dict(batch_size=4, drop_last=True)), 'train', 'a batch of 4 images cannot be filled'),
    ],
)
def test_what_would_be_judged_or_trained_wrongly_is_refused(changes, split, text):
    import mmdet.evaluation  # noqa: F401  registers the metrics

    with pytest.raises(UsageError, match=text):
        limit_images(config(**changes), split, 3)


def test_a_dataset_that_cannot_be_divided_is_named():
    with (
        DefaultScope.overwrite_default_scope('mmengine'),
        pytest.raises(UsageError, match='dict is not a dataset of mm'),
    ):
        limited(dict(type=lambda: {1: 2}), 1)
