"""Reports: records of evaluations, the page, the tool and the hook."""

import json
import logging
import re
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from helpers.reports import A, B, D, Page, boxes, detection, log_line, segmentation, write_run
from helpers.repository import ROOT, load_tool, write_tiny_config

from mmcasvit.report import figures
from mmcasvit.report.hook import ReportHook
from mmcasvit.report.page import render_report, write_report
from mmcasvit.report.record import ImageCollector, watch_classes, write_record
from mmcasvit.report.scores import rank
from mmcasvit.utils.errors import UsageError

NASTY = '<script>alert("x")</script> & $\\frac{$ | {{ 7 * 7 }}'


@pytest.mark.parametrize('content', ['nothing', 'no-log', 'file'])
def test_other_folders_are_refused(tmp_path, content):
    folder = tmp_path / 'folder'
    if content == 'no-log':
        (folder / 'images').mkdir(parents=True)
    elif content == 'file':
        folder.write_text('')
    with pytest.raises(UsageError, match=r'not found|not a work directory'):
        write_report(folder, tmp_path / 'report.html')
    assert not (tmp_path / 'report.html').exists()


def run_report(monkeypatch, *arguments):
    module = load_tool('report')
    monkeypatch.setattr(sys, 'argv', ['report.py', *map(str, arguments)])
    module.main()


def test_tool_writes_one_page_or_a_one_line_error(monkeypatch, capsys, tmp_path):
    work_dir = tmp_path / 'run'
    (work_dir / '20260131_100000').mkdir(parents=True)
    (tmp_path / 'weights.pth').write_text('weights')
    for arguments, words in [
        ((tmp_path,), 'not a work directory'),
        ((tmp_path / 'none',), 'not found'),
        ((work_dir, '--out', tmp_path / 'weights.pth'), 'must be a file that ends in .html'),
        ((work_dir, '--out', tmp_path / 'weights.pth' / 'x.html'), 'is a file'),
    ]:
        with pytest.raises(SystemExit) as ended:
            run_report(monkeypatch, *arguments)
        said = capsys.readouterr().err
        assert ended.value.code == 2
        assert said.startswith('error: ')
        assert words in said
        assert said.count('\n') == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ['run', 'weights.pth']
    assert (tmp_path / 'weights.pth').read_text() == 'weights'
    run_report(monkeypatch, work_dir, '--out', tmp_path / 'pages' / 'x.html')
    assert [path.name for path in (tmp_path / 'pages').iterdir()] == ['x.html']
    run_report(monkeypatch, work_dir)
    assert sorted(path.name for path in work_dir.iterdir()) == ['20260131_100000', 'report.html']


def test_page_names_what_is_missing(tmp_path):
    (tmp_path / '20260131_100000').mkdir()
    page = Page(render_report(tmp_path))
    for words in (
        'No training has been logged',
        'No test or validation has left metrics',
        'No results per class',
        'No confusion matrix',
        'No image scores',
        'No log can be read',
        'No config was saved',
        'No log describes the machine',
    ):
        assert words in page.text
    assert page.images == []

    write_run(
        tmp_path,
        '20260131_110000',
        test=dict(mIoU=41.25, time=0.5),
        log=[('11:00:05', 'Load checkpoint from x.pth'), ('11:00:09', 'Iter(test) [4/4]  mIoU: 41.25')],
    )
    with open(tmp_path / '20260131_110000' / '20260131_110000.log', 'a') as file:
        file.write(log_line('11:00:09', '\n| Class |  IoU  |\n| sky | 60.5 |\n| sea | nan |'))
    page = Page(render_report(tmp_path))
    assert 'No training has been logged' in page.text
    assert '41.25' in page.text
    assert re.search(r'sky\s*60.50', page.text)
    assert 'No confusion matrix' in page.text


@pytest.mark.parametrize(
    'record',
    [
        '',
        '[]',
        '{"classes": 3}',
        '{"classes": ["a"], "unit": "pixels", "confusion": [[5, 0, 1]]}',
        '{"classes": ["a"], "unit": "pixels", "confusion": [[0, 0, 1]]}',
    ],
)
def test_broken_record_is_left_out(tmp_path, record):
    folder = write_run(tmp_path, '20260131_100000', [(10, 4.0)], log=[('10:00:05', 'Iter(train) [10/60]  loss: 4.0')])
    (folder / 'evaluation').mkdir()
    (folder / 'evaluation' / 'record.json').write_text(record)
    assert 'No confusion matrix' in Page(render_report(tmp_path)).text


def test_only_the_best_and_the_worst_images_keep_their_predictions():
    collector = ImageCollector(3, 0.3, 0.5)
    collector.dataset_meta = dict(classes=['a', 'b'])
    generator = torch.Generator().manual_seed(1)
    for _ in range(40):
        truth, found = torch.randint(0, 2, (2, 6, 6), generator=generator)
        collector.process(None, [dict(segmentation(truth, found), img_path='x.png')])
        assert sum('sample' in entry for entry in collector.results) <= 6
    collector.process(None, [dict(img_path='no-annotations.png')])
    assert collector.evaluate(41) == {}
    scored = sorted((entry for entry in collector.collected if entry['score'] is not None), key=rank)
    assert len(scored) == 40
    kept = ['sample' in entry for entry in scored]
    assert kept == [True] * 3 + [False] * 34 + [True] * 3
    assert collector.results == []


def evaluated(tmp_path, classes, images):
    """Return a work directory with the record of these images."""
    photo = tmp_path / '<b>photo &amp;.png'
    cv2.imwrite(str(photo), np.full((32, 40, 3), 90, np.uint8))
    folder = write_run(tmp_path / 'run', '20260131_100000', log=[('10:00:05', 'Iter(test) [1/1]  x')], test=dict(x=1.0))
    collector = ImageCollector(2, 0.3, 0.5)
    collector.dataset_meta = dict(classes=classes, palette=[(9 * i % 255, 80, 120) for i in range(len(classes))])
    collector.process(None, [dict(image, img_path=str(photo)) for image in images])
    collector.evaluate(len(images))
    per_class = {'box AP': [float('nan')] + [0.5] * (len(classes) - 1)}
    write_record(folder / 'evaluation', collector.collected, collector, dict(x=0.25), per_class, 'test of <x>.pth')
    return tmp_path / 'run'


@pytest.mark.parametrize('kind', ['boxes', 'maps'])
def test_names_are_escaped_and_shown_unchanged(tmp_path, kind):
    classes = ['plain', NASTY]
    truth = torch.zeros(32, 40, dtype=int)
    images = [detection([(A, 0), (D, 1)], [(A, 1, 0.9)])] if kind == 'boxes' else [segmentation(truth, truth ^ 1)]
    work_dir = evaluated(tmp_path, classes, images)
    text = render_report(work_dir)
    page = Page(text)
    assert 'script' not in page.tags
    assert classes[1] in page.text, 'a name was changed'
    assert 'test of <x>.pth' in page.text
    assert len(page.images) == 5  # matrix, histogram, best, worst, phases
    assert all(image['src'].startswith('data:image/') for image in page.images)
    assert '://' not in re.sub(r'base64,[^"]*', '', text)
    assert '<b>photo &amp;.png' in page.text


def test_images_come_only_from_the_folder_of_the_record(tmp_path):
    truth = torch.zeros(32, 40, dtype=int)
    work_dir = evaluated(tmp_path, ['a', 'b'], [segmentation(truth, truth + 1)])
    (tmp_path / 'secret').write_text('secret')
    file = work_dir / '20260131_100000' / 'evaluation' / 'record.json'
    record = json.loads(file.read_text())
    assert record['per_class'] == {'IoU': [0.0, 0.0], 'Acc': [0.0, None]}
    record['pictures']['best'][0]['file'] = '../../../secret'
    file.write_text(json.dumps(record))
    assert 'c2VjcmV0' not in render_report(work_dir)


def test_page_with_150_classes(tmp_path):
    classes = [f'class {i}' for i in range(150)]
    truth = torch.arange(32 * 40).reshape(32, 40) % 150
    work_dir = evaluated(tmp_path, classes, [segmentation(truth, torch.where(truth == 7, 8, truth))])
    page = Page(render_report(work_dir))
    assert re.search(r'class 7\s*class 8\s*9\s*100.0 %', page.text)
    np.testing.assert_allclose(figures.shares(np.array([[3, 1], [0, 0]])), [[0.75, 0.25], [0, 0]])


def coco_metric(tmp_path):
    from mmdet.evaluation import CocoMetric

    categories = [dict(id=3, name='a'), dict(id=5, name='b')]
    images = [dict(id=1, file_name='1.jpg', width=40, height=40)]
    annotations = [
        dict(
            id=i,
            image_id=1,
            category_id=c,
            bbox=[x, y, 10, 10],
            area=100,
            iscrowd=0,
            segmentation=[[x, y, x + 10, y, x + 10, y + 10, x, y + 10]],
        )
        for i, (c, x, y) in enumerate([(3, 0, 0), (5, 20, 20)], 1)
    ]
    file = tmp_path / 'annotations.json'
    file.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    metric = CocoMetric(ann_file=str(file), metric=['bbox', 'segm'])
    metric.dataset_meta = dict(classes=('a', 'b'))
    masks = torch.zeros(2, 40, 40, dtype=torch.bool)
    masks[0, :10, :10] = True
    masks[1, 20:30, 20:30] = True
    predicted = dict(bboxes=boxes(A, B), labels=torch.tensor([0, 1]), scores=torch.tensor([0.9, 0.8]), masks=masks)
    metric.process({}, [dict(img_id=1, ori_shape=(40, 40), pred_instances=predicted)])
    return metric


def test_ap_per_class_of_boxes_and_masks_is_kept_apart(tmp_path):
    expected = coco_metric(tmp_path).evaluate(1)
    metric = coco_metric(tmp_path)
    watch_classes(metric)
    assert metric.evaluate(1) == expected, 'a report changes the metrics'
    # The box of b is wrong, but its mask is right.
    assert metric.per_class == {'box AP': [1.0, 0.0], 'mask AP': [1.0, 1.0]}
    assert metric.metrics == ['bbox', 'segm']
    assert metric.classwise is False


def test_hook_refuses_arguments_out_of_range():
    for wrong in (dict(images=0), dict(score_thr=2), dict(iou_thr=-1)):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ReportHook(**wrong)


def test_report_that_fails_does_not_end_the_run(tmp_path, caplog):
    logger = logging.getLogger('report-test')
    runner = SimpleNamespace(work_dir=str(tmp_path / 'none'), logger=logger)
    with caplog.at_level(logging.ERROR, logger='report-test'):
        ReportHook().after_run(runner)
    assert 'the report could not be written' in caplog.text


OPTIONS = [
    'train_dataloader.batch_size=2',
    'default_hooks.logger.interval=1',
    'train_dataloader.num_workers=0',
    'val_dataloader.num_workers=0',
    'test_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.persistent_workers=False',
    'test_dataloader.persistent_workers=False',
]


@pytest.mark.slow
def test_training_a_detector_writes_a_report(run_tool, tmp_path, shapes):
    config = write_tiny_config(tmp_path / 'tiny.py', ROOT / 'configs/detection/mask-rcnn_casvit-xs_fpn_6e_shapes.py')
    run_tool(
        'train.py',
        config,
        '--work-dir',
        'run',
        '--report',
        '--cfg-options',
        f'data_root={shapes}/coco/',
        'train_cfg.max_epochs=1',
        'train_cfg.val_interval=1',
        *OPTIONS,
        cwd=tmp_path,
    )
    page = Page((tmp_path / 'run' / 'report.html').read_text())
    assert 'From the validation after iteration 4 (4 images).' in page.text
    assert 'mmcasvit.CASViT' in page.text
    assert 'epoch 1 of 1, batch 4 of 4' in page.text
    folder = next((tmp_path / 'run').glob('*/evaluation'))
    record = json.loads((folder / 'record.json').read_text())
    assert [len(record['pictures'][kind]) for kind in ('best', 'worst')] == [4, 4]
    assert len(list(folder.glob('*.jpg'))) == 8
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= set(record['metrics'])
    assert page.tags.count('img') == 2 + 2 + 8 + 1


@pytest.mark.slow
def test_testing_a_segmentor_writes_a_report(monkeypatch, tmp_path, shapes):
    from mmcasvit import get_model

    base = ROOT / 'configs/segmentation/semantic-fpn_casvit-xs_300i_shapes.py'
    config = write_tiny_config(tmp_path / 'tiny.py', base)
    torch.save(dict(state_dict=get_model(str(config)).state_dict()), tmp_path / 'tiny.pth')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setattr('mmengine.runner.runner.collect_env', lambda: {})  # it takes seconds
    monkeypatch.setattr(
        sys,
        'argv',
        [
            'test.py',
            str(config),
            'tiny.pth',
            '--work-dir',
            'run',
            '--report',
            '--cfg-options',
            f'data_root={shapes}/ade/',
            *OPTIONS,
        ],
    )
    load_tool('test').main()
    page = Page((tmp_path / 'run' / 'report.html').read_text())
    assert 'From the test of tiny.pth (4 images).' in page.text
    assert 'No training has been logged' in page.text
    metrics = json.loads(next((tmp_path / 'run').glob('*/2*.json')).read_text())
    record = json.loads(next((tmp_path / 'run').glob('*/evaluation/record.json')).read_text())
    assert np.nanmean(np.array(record['per_class']['IoU'], float)) == pytest.approx(metrics['mIoU'], abs=0.01)
    pixels = sum(number for *_, number in record['confusion'])
    annotations = [cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in shapes.glob('ade/annotations/val*/*.png')]
    assert pixels == sum(np.count_nonzero(annotation) for annotation in annotations)  # 0 is not a class
    right = sum(number for row, column, number in record['confusion'] if row == column)
    assert 100 * right / pixels == pytest.approx(metrics['aAcc'], abs=0.01)
