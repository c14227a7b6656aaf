import json
import logging
import re
import sys
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import torch
from helpers.repository import ROOT, load_tool, write_tiny_config

from mmcasvit.report import figures
from mmcasvit.report.hook import ReportHook
from mmcasvit.report.logs import class_table, join, last_config, plain_values, read_runs
from mmcasvit.report.page import report, write_report
from mmcasvit.report.recording import (
    ImageCollector,
    dense,
    iou_per_class,
    judge_boxes,
    judge_map,
    match_boxes,
    rank,
    watch_classes,
    write_record,
)
from mmcasvit.utils.errors import UsageError

NASTY = '<script>alert("x")</script> & $\\frac{$ | {{ 7 * 7 }}'


class Page(HTMLParser):
    """Raises where tags are not closed in order; keeps the tags and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.images, self.text = [], [], [], ''
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == 'img':
            self.images.append(dict(attributes))
        if tag not in ('meta', 'img'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        self.text += data


def log_line(clock, message):
    return f'2026/01/31 {clock} - mmengine - INFO - {message}\n'


def write_run(work_dir, name, training=(), validation=(), log=(), test=None):
    folder = work_dir / name
    (folder / 'vis_data').mkdir(parents=True)
    entries = [dict(lr=0.1, loss=loss, time=0.5, data_time=0.1, iter=step, step=step) for step, loss in training]
    entries += [dict(metrics, data_time=0.1, time=0.2, step=step) for step, metrics in validation]
    if entries:
        (folder / 'vis_data' / 'scalars.json').write_text('\n'.join(map(json.dumps, entries)) + '\n')
    if log:
        (folder / f'{name}.log').write_text(''.join(log_line(*line) for line in log))
    if test is not None:
        (folder / f'{name}.json').write_text(json.dumps(test))
    return folder


def test_runs_are_joined_by_steps_and_what_was_replayed_counts_once(tmp_path):
    write_run(
        tmp_path,
        '20260131_100000',
        [(10, 4.0), (20, 3.0), (30, 9.0)],
        [(20, dict(mIoU=50.0)), (30, dict(mIoU=1.0))],
        [('10:00:05', 'Iter(train) [ 10/60]  loss: 4.0')],
    )
    # From the checkpoint of iteration 24: what was logged at 20 stays, what was logged at 30 is replaced.
    second = write_run(
        tmp_path,
        '20260131_110000',
        [(30, 2.0), (40, float('nan'))],
        [(40, dict(mIoU=60.0))],
        [('11:00:01', 'resumed epoch: 0, iter: 24'), ('11:00:05', 'Iter(train) [ 30/60]  loss: 2.0')],
    )
    with open(second / 'vis_data' / 'scalars.json', 'a') as file:
        file.write('{"lr": 0.1, "loss": 7.0, "st')  # killed
    write_run(tmp_path, '20260131_120000', log=[('12:00:01', 'resumed epoch: 0, iter: 40')])  # died before a step
    history = join(read_runs(tmp_path))
    steps, losses = history.training['loss']
    assert steps == [10, 20, 30, 40]
    assert losses[:3] == [4.0, 3.0, 2.0]
    assert np.isnan(losses[3])
    assert history.validation['mIoU'] == ([20, 40], [50.0, 60.0])
    assert history.resumed == [24]
    assert history.dropped == []
    assert history.data_share == pytest.approx(0.2)

    write_run(tmp_path, '20260131_130000', [(10, 5.0)], log=[('13:00:05', 'Iter(train) [ 10/60]  loss: 5.0')])
    history = join(read_runs(tmp_path))
    assert history.training['loss'] == ([10], [5.0])
    assert history.validation == {}
    assert history.resumed == []
    assert history.dropped == ['20260131_100000', '20260131_110000']


def test_validations_of_epochs_are_joined_by_epochs(tmp_path):
    write_run(
        tmp_path,
        '20260131_100000',
        [(100, 4.0), (200, 3.0)],
        [(1, {'coco/bbox_mAP': 0.1, 'coco/bbox_mAP_l': -1.0}), (2, {'coco/bbox_mAP': 0.9})],
        [('10:00:05', 'Epoch(train) [2][ 50/100]  loss: 3.0')],
    )
    write_run(
        tmp_path,
        '20260131_110000',
        [(200, 2.0)],
        [(2, {'coco/bbox_mAP': 0.2})],
        [('11:00:01', 'resumed epoch: 1, iter: 100'), ('11:00:05', 'Epoch(train) [2][100/100]  loss: 2.0')],
    )
    history = join(read_runs(tmp_path))
    assert history.by_epoch
    assert history.validation['coco/bbox_mAP'] == ([1, 2], [0.1, 0.2])
    assert 'coco/bbox_mAP_l' not in history.validation, '-1 means that there is no large object'
    assert history.training['loss'] == ([100, 200], [4.0, 2.0])


def test_the_phases_of_a_run_add_up_to_its_time(tmp_path):
    write_run(
        tmp_path,
        '20260131_100000',
        [(10, 4.0)],
        log=[
            ('10:00:03', '\n' + '-' * 60 + '\nSystem environment:\n    Python: 3.11'),
            ('10:00:04', "Config:\nmodel = dict(type='RetinaNet')"),
            ('10:00:10', 'Checkpoints will be saved to /tmp.'),
            ('10:00:30', 'Epoch(train) [1][10/15]  loss: 4.0'),
            ('10:00:40', 'Exp name: x'),
            ('10:00:40', 'Saving checkpoint at 1 epochs'),
            ('10:00:50', 'Epoch(val) [1][10/13]  eta: 0:00:01'),
            ('10:00:55', 'Evaluating bbox...'),
            ('10:01:00', 'Epoch(val) [1][13/13]  coco/bbox_mAP: 0.5'),
            ('10:01:02', 'The best checkpoint with 0.5 is saved to best.pth.'),
            ('10:01:10', 'killed soon'),
        ],
    )
    (run,) = read_runs(tmp_path)
    assert run.seconds == {'start-up': 10, 'training': 30, 'validation': 28, 'best checkpoint': 2}
    times = Page(report(tmp_path)).text.replace('\n', '')
    assert '01-31 10:00:000:00:100:00:300:00:280:00:020:01:10' in times
    assert run.environment.startswith('System environment:')
    assert run.reached == (1, 10, 15)
    assert plain_values(last_config([run])) == dict(model=dict(type='RetinaNet'))


def test_a_config_is_read_without_executing_it(tmp_path):
    text = f"a = dict(b=[1, (2, -3.5)], **{{}})\nc = __import__('os').mkdir('{tmp_path}/made')"
    assert plain_values(text) == {}
    assert list(tmp_path.iterdir()) == []
    assert plain_values('x = dict(a=[1, (2, -3.5)], b={0: None})\ny = True') == dict(
        x=dict(a=[1, [2, -3.5]], b={0: None}), y=True
    )
    assert plain_values('def broken(') == {}


def test_tables_of_classes_are_read_from_logs():
    from prettytable import PrettyTable

    table = PrettyTable()
    table.add_column('Class', ['sky', 'a | b'])
    table.add_column('IoU', [97.41, float('nan')])
    table.add_column('Acc', [98.7, 1.5])
    assert class_table(f'\n{table.get_string()}') == (
        ['Class', 'IoU', 'Acc'],
        [['sky', '97.41', '98.7'], ['a | b', 'nan', '1.5']],
    )
    assert class_table('| something | else |') is None


@pytest.mark.parametrize('content', ['nothing', 'no-log', 'file'])
def test_other_folders_are_refused(tmp_path, content):
    folder = tmp_path / 'folder'
    if content == 'no-log':
        (folder / 'pictures').mkdir(parents=True)
    elif content == 'file':
        folder.write_text('')
    with pytest.raises(UsageError, match=r'not found|no work directory'):
        write_report(folder, tmp_path / 'report.html')
    assert not (tmp_path / 'report.html').exists()


def run_report(monkeypatch, *arguments):
    module = load_tool('report')
    monkeypatch.setattr(sys, 'argv', ['report.py', *map(str, arguments)])
    module.main()


def test_the_tool_writes_one_page_or_says_in_one_line_what_is_wrong(monkeypatch, capsys, tmp_path):
    work_dir = tmp_path / 'run'
    (work_dir / '20260131_100000').mkdir(parents=True)
    (tmp_path / 'weights.pth').write_text('weights')
    for arguments, words in [
        ((tmp_path,), 'no work directory'),
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


def test_what_is_missing_is_named(tmp_path):
    (tmp_path / '20260131_100000').mkdir()
    page = Page(report(tmp_path))
    for words in (
        'No training has logged anything',
        'No test and no validation',
        'No numbers of single classes',
        'No confusion matrix',
        'No scores and pictures',
        'No log of any run',
        'No config',
        'No log says',
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
    page = Page(report(tmp_path))
    assert 'No training has logged anything' in page.text
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
def test_a_broken_record_is_left_out(tmp_path, record):
    folder = write_run(tmp_path, '20260131_100000', [(10, 4.0)], log=[('10:00:05', 'Iter(train) [10/60]  loss: 4.0')])
    (folder / 'evaluation').mkdir()
    (folder / 'evaluation' / 'record.json').write_text(record)
    assert 'No confusion matrix' in Page(report(tmp_path)).text


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def detection(truth, found, ignored=()):
    """What mmdet hands to a metric: objects as (box, class), detections as (box, class, score)."""

    def labels(rows):
        return torch.tensor([row[1] for row in rows], dtype=int)

    return dict(
        gt_instances=dict(bboxes=boxes(*(box for box, _ in truth)), labels=labels(truth)),
        pred_instances=dict(
            bboxes=boxes(*(box for box, *_ in found)),
            labels=labels(found),
            scores=torch.tensor([score for *_, score in found], dtype=torch.float32),
        ),
        ignored_instances=dict(bboxes=boxes(*ignored)),
    )


A, B, C, D = (0, 0, 10, 10), (20, 0, 30, 10), (0, 20, 10, 30), (20, 20, 30, 30)


def test_boxes_of_an_image_are_judged():
    found = judge_boxes(
        detection(
            truth=[(A, 0), (B, 1), (C, 2)],
            found=[(A, 1, 0.95), (A, 0, 0.9), (A, 0, 0.8), (B, 2, 0.7), (D, 1, 0.6), (C, 2, 0.2)],
        ),
        3,
        0.3,
        0.5,
    )
    # A was found, and called 1 by a box that has nothing left to belong to; a double; B was called 2; D is nothing;
    # C has a score below the threshold.
    np.testing.assert_array_equal(dense([found['counts']], 4), [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 2, 0, 0]])
    assert found['score'] == pytest.approx(2 / (2 + 4 + 2))  # TP 1, FP 4, FN 2
    assert found['objects'] == 3


def test_boxes_in_ignored_areas_do_not_count():
    sample = detection([(A, 0)], [(A, 0, 0.9), (B, 1, 0.8), (D, 0, 0.7)], ignored=[(15, 0, 40, 12)])
    assert judge_boxes(sample, 2, 0.3, 0.5)['score'] == pytest.approx(2 / 3)  # D alone is wrong
    assert judge_boxes(detection([], []), 2, 0.3, 0.5) == dict(score=1.0, errors=0, objects=0, counts=[])
    assert judge_boxes(detection([], [(A, 1, 0.9)]), 2, 0.3, 0.5)['counts'] == [[2, 1, 1]]
    assert judge_boxes(detection([(A, 1)], []), 2, 0.3, 0.5)['counts'] == [[1, 2, 1]]


def test_true_positives_are_those_of_each_class_alone():
    generator = np.random.default_rng(0)
    for _ in range(50):
        ious = generator.random((6, 9))
        truth, found = generator.integers(0, 3, 6), generator.integers(0, 3, 9)
        pairs = match_boxes(ious, truth, found, 0.5)
        assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
        assert all(ious[i, j] >= 0.5 for i, j in pairs)
        expected = set()
        for label in range(3):
            free = [i for i in range(6) if truth[i] == label]
            for j in np.flatnonzero(found == label):
                fits = [i for i in free if ious[i, j] >= 0.5]
                if fits:
                    best = max(fits, key=lambda i, j=j: ious[i, j])
                    free.remove(best)
                    expected.add((best, int(j)))
        assert {pair for pair in pairs if truth[pair[0]] == found[pair[1]]} == expected


def segmentation(truth, found):
    return dict(gt_sem_seg=dict(data=truth[None]), pred_sem_seg=dict(data=found[None]))


def test_a_map_is_judged_as_mmseg_does():
    from mmseg.evaluation import IoUMetric

    generator = torch.Generator().manual_seed(0)
    truth, found = (torch.randint(0, 4, (2, 12, 16), generator=generator) for _ in range(2))
    truth[:, :3] = 255
    images = [judge_map(segmentation(*pair), 5, 255) for pair in zip(truth, found)]
    areas = [IoUMetric.intersect_and_union(found[i], truth[i], 5, 255) for i in range(2)]
    for image, (intersect, union, *_) in zip(images, areas):
        assert image['score'] == pytest.approx(float(torch.nanmean(intersect / union)))
    whole = [sum(parts) for parts in zip(*areas)]
    metrics = IoUMetric.total_area_to_metrics(*whole, ['mIoU'])
    matrix = dense([image['counts'] for image in images], 5)
    assert matrix.sum() == (truth != 255).sum()
    assert matrix[1, 2] == ((truth == 1) & (found == 2)).sum()
    for name, values in iou_per_class(matrix).items():
        np.testing.assert_allclose(values, metrics[name] * 100, rtol=1e-5)
    assert judge_map(segmentation(torch.full((2, 2), 255), torch.zeros(2, 2)), 5, 255) is None
    # A value between the last class and the ignored one ends no evaluation: it is no class either.
    truth, found = torch.tensor([[0, 7], [1, 1]]), torch.tensor([[0, 0], [1, 0]])
    judged = judge_map(segmentation(truth, found), 5, 255)
    assert judged == dict(score=0.5, errors=1, objects=2, counts=[[0, 0, 1], [1, 0, 1], [1, 1, 1]])


def test_only_the_best_and_the_worst_keep_their_predictions():
    collector = ImageCollector(3, 0.3, 0.5)
    collector.dataset_meta = dict(classes=['a', 'b'])
    generator = torch.Generator().manual_seed(1)
    for _ in range(40):
        truth, found = torch.randint(0, 2, (2, 6, 6), generator=generator)
        collector.process(None, [dict(segmentation(truth, found), img_path='x.png')])
        assert sum('sample' in entry for entry in collector.results) <= 6
    collector.process(None, [dict(img_path='no-annotations.png')])
    assert collector.evaluate(41) == {}
    judged = sorted((entry for entry in collector.collected if entry['score'] is not None), key=rank)
    assert len(judged) == 40
    kept = ['sample' in entry for entry in judged]
    assert kept == [True] * 3 + [False] * 34 + [True] * 3
    assert collector.results == []


def evaluated(tmp_path, classes, images):
    """A work directory with a record that the collector made of images."""
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
def test_names_are_shown_as_they_are_and_run_nothing(tmp_path, kind):
    classes = ['plain', NASTY]
    truth = torch.zeros(32, 40, dtype=int)
    images = [detection([(A, 0), (D, 1)], [(A, 1, 0.9)])] if kind == 'boxes' else [segmentation(truth, truth ^ 1)]
    work_dir = evaluated(tmp_path, classes, images)
    text = report(work_dir)
    page = Page(text)
    assert 'script' not in page.tags
    assert classes[1] in page.text, 'a name is not what it was'
    assert 'test of <x>.pth' in page.text
    assert len(page.images) == 5  # matrix, histogram, best, worst, phases
    assert all(image['src'].startswith('data:image/') for image in page.images)
    assert '://' not in re.sub(r'base64,[^"]*', '', text)
    assert '<b>photo &amp;.png' in page.text


def test_pictures_come_from_the_folder_of_the_record_alone(tmp_path):
    truth = torch.zeros(32, 40, dtype=int)
    work_dir = evaluated(tmp_path, ['a', 'b'], [segmentation(truth, truth + 1)])
    (tmp_path / 'secret').write_text('secret')
    file = work_dir / '20260131_100000' / 'evaluation' / 'record.json'
    record = json.loads(file.read_text())
    assert record['per_class'] == {'IoU': [0.0, 0.0], 'Acc': [0.0, None]}
    record['pictures']['best'][0]['file'] = '../../../secret'
    file.write_text(json.dumps(record))
    assert 'c2VjcmV0' not in report(work_dir)


def test_a_matrix_of_150_classes_stays_readable(tmp_path):
    classes = [f'class {i}' for i in range(150)]
    truth = torch.arange(32 * 40).reshape(32, 40) % 150
    work_dir = evaluated(tmp_path, classes, [segmentation(truth, torch.where(truth == 7, 8, truth))])
    page = Page(report(work_dir))
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


def test_classes_of_boxes_and_masks_are_kept_apart(tmp_path):
    expected = coco_metric(tmp_path).evaluate(1)
    metric = coco_metric(tmp_path)
    watch_classes(metric)
    assert metric.evaluate(1) == expected, 'the metrics are not what they are without a report'
    # The box of b is wrong, its mask is right.
    assert metric.per_class == {'box AP': [1.0, 0.0], 'mask AP': [1.0, 1.0]}
    assert metric.metrics == ['bbox', 'segm']
    assert metric.classwise is False


def test_the_hook_refuses_what_makes_no_sense():
    for wrong in (dict(pictures=0), dict(score_thr=2), dict(iou_thr=-1)):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ReportHook(**wrong)


def test_a_report_that_fails_ends_no_run(tmp_path, caplog):
    from types import SimpleNamespace

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
def test_training_a_detector_leaves_a_report(run_tool, tmp_path, shapes):
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
    assert 'Of the validation after iteration 4 of the training, 4 images.' in page.text
    assert 'mmcasvit.CASViT' in page.text
    assert 'epoch 1 of 1, batch 4 of 4' in page.text
    folder = next((tmp_path / 'run').glob('*/evaluation'))
    record = json.loads((folder / 'record.json').read_text())
    assert [len(record['pictures'][kind]) for kind in ('best', 'worst')] == [4, 4]
    assert len(list(folder.glob('*.jpg'))) == 8
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= set(record['metrics'])
    assert page.tags.count('img') == 2 + 2 + 8 + 1


@pytest.mark.slow
def test_testing_a_segmentor_leaves_a_report(monkeypatch, tmp_path, shapes):
    from mmcasvit import get_model

    base = ROOT / 'configs/segmentation/semantic-fpn_casvit-xs_600i_shapes.py'
    config = write_tiny_config(tmp_path / 'tiny.py', base)
    torch.save(dict(state_dict=get_model(str(config)).state_dict()), tmp_path / 'tiny.pth')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setattr('mmengine.runner.runner.collect_env', lambda: {})  # which takes seconds
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
    assert 'Of the test of tiny.pth, 4 images.' in page.text
    assert 'No training has logged anything' in page.text
    metrics = json.loads(next((tmp_path / 'run').glob('*/2*.json')).read_text())
    record = json.loads(next((tmp_path / 'run').glob('*/evaluation/record.json')).read_text())
    assert np.nanmean(np.array(record['per_class']['IoU'], float)) == pytest.approx(metrics['mIoU'], abs=0.01)
    pixels = sum(number for *_, number in record['confusion'])
    annotations = [cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in shapes.glob('ade/annotations/val*/*.png')]
    assert pixels == sum(np.count_nonzero(annotation) for annotation in annotations)  # 0 is no class
    right = sum(number for row, column, number in record['confusion'] if row == column)
    assert 100 * right / pixels == pytest.approx(metrics['aAcc'], abs=0.01)
