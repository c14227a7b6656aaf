"""Logs and samples that reports are made from, and a parser of the page."""

import json
from html.parser import HTMLParser

import cv2
import numpy as np
import torch

_PALETTE = [(37 * i % 256, 90 * i % 256, 200 - 20 * i) for i in range(8)]


class Page(HTMLParser):
    """Parser that checks that tags are closed in order, and keeps tags, images and text."""

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


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def detection(truth, found, ignored=()):
    """Return a sample as mmdet passes it to a metric, from (box, class) objects and (box, class, score) detections."""

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


def segmentation(truth, found):
    return dict(gt_sem_seg=dict(data=truth[None]), pred_sem_seg=dict(data=found[None]))


def write_evaluation(work_dir, shapes, noise, seed=0, scope='mmdet'):
    """Write the record of an evaluation on the synthetic validation images whose predictions are noisy ground truth.

    Args:
        work_dir: Work directory to write.
        shapes: Folder of the dataset.
        noise: Size of the errors: pixels of the corners of boxes, or the share of wrong labels.
        seed: Seed of the errors.
        scope: ``'mmdet'`` or ``'mmseg'``.
    """
    from mmcasvit.datasets.shapes import STUFF, THINGS
    from mmcasvit.report.record import FOLDER, ImageCollector, watch_classes, write_record

    rng = np.random.default_rng(seed)
    collector, matches, metrics = ImageCollector(2, 0.3, 0.5), {}, {}
    if scope == 'mmseg':
        collector.dataset_meta = dict(classes=(*STUFF, *THINGS), palette=_PALETTE)
        for file in sorted((shapes / 'ade/images/validation').glob('*')):
            mask = shapes / 'ade/annotations/validation' / f'{file.stem}.png'
            truth = cv2.imread(str(mask), cv2.IMREAD_UNCHANGED).astype(np.int64) - 1
            wrong = rng.integers(0, 8, truth.shape)
            found = np.where(rng.random(truth.shape) < noise, wrong, truth)
            sample = segmentation(torch.from_numpy(truth), torch.from_numpy(found))
            collector.process(None, [dict(sample, img_path=str(file))])
    else:
        from mmdet.evaluation import CocoMetric

        annotations = shapes / 'coco/annotations/instances_val2017.json'
        content = json.loads(annotations.read_text())
        metric = CocoMetric(ann_file=str(annotations), metric='bbox')
        metric.dataset_meta = collector.dataset_meta = dict(classes=THINGS, palette=_PALETTE[:6])
        watch_classes(metric)
        for image in content['images']:
            own = [part for part in content['annotations'] if part['image_id'] == image['id']]
            rows = [((x, y, x + w, y + h), part['category_id'] - 1) for part in own for x, y, w, h in [part['bbox']]]
            found = [(np.array(box) + rng.normal(0, noise, 4), label, rng.uniform(0.4, 1)) for box, label in rows]
            found = [(tuple(box.tolist()), label, score) for box, label, score in found]
            sample = dict(detection(rows, found), img_id=image['id'], ori_shape=(image['height'], image['width']))
            sample['img_path'] = str(shapes / 'coco/val2017' / image['file_name'])
            collector.process(None, [sample])
            metric.process(None, [sample])
        metrics, matches = metric.evaluate(len(content['images'])), metric.matches
    collector.evaluate(len(collector.results))
    folder = work_dir / '20260131_100000' / FOLDER
    write_record(folder, collector.collected, collector, metrics, {}, 'made up', matches)
    return metrics
