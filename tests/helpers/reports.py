"""Logs and samples that reports are made from, and a parser of the page."""

import json
from html.parser import HTMLParser

import torch


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
