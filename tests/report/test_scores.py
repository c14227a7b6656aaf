"""Scores of single images, and confusion matrices."""

import numpy as np
import pytest
import torch
from helpers.reports import A, B, C, D, detection, segmentation

from mmcasvit.report.scores import confusion_matrix, iou_per_class, match_boxes, score_boxes, score_label_map


def test_score_and_counts_of_boxes():
    found = score_boxes(
        detection(
            truth=[(A, 0), (B, 1), (C, 2)],
            found=[(A, 1, 0.95), (A, 0, 0.9), (A, 0, 0.8), (B, 2, 0.7), (D, 1, 0.6), (C, 2, 0.2)],
        ),
        3,
        0.3,
        0.5,
    )
    # Of the three boxes on A one is right, one has a wrong class, and one is a duplicate. The class on B is wrong.
    # There is no object at D. The score on C is below the threshold.
    np.testing.assert_array_equal(
        confusion_matrix([found['counts']], 4), [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 2, 0, 0]]
    )
    assert found['score'] == pytest.approx(2 / (2 + 4 + 2))  # TP 1, FP 4, FN 2
    assert found['objects'] == 3


def test_boxes_in_ignored_areas_do_not_count():
    sample = detection([(A, 0)], [(A, 0, 0.9), (B, 1, 0.8), (D, 0, 0.7)], ignored=[(15, 0, 40, 12)])
    assert score_boxes(sample, 2, 0.3, 0.5)['score'] == pytest.approx(2 / 3)  # only D is wrong
    assert score_boxes(detection([], []), 2, 0.3, 0.5) == dict(score=1.0, errors=0, objects=0, counts=[])
    assert score_boxes(detection([], [(A, 1, 0.9)]), 2, 0.3, 0.5)['counts'] == [[2, 1, 1]]
    assert score_boxes(detection([(A, 1)], []), 2, 0.3, 0.5)['counts'] == [[1, 2, 1]]


def test_true_positives_equal_those_of_each_class_matched_separately():
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


def test_score_and_counts_of_a_label_map_agree_with_mmseg():
    from mmseg.evaluation import IoUMetric

    generator = torch.Generator().manual_seed(0)
    truth, found = (torch.randint(0, 4, (2, 12, 16), generator=generator) for _ in range(2))
    truth[:, :3] = 255
    images = [score_label_map(segmentation(*pair), 5, 255) for pair in zip(truth, found)]
    areas = [IoUMetric.intersect_and_union(found[i], truth[i], 5, 255) for i in range(2)]
    for image, (intersect, union, *_) in zip(images, areas):
        assert image['score'] == pytest.approx(float(torch.nanmean(intersect / union)))
    whole = [sum(parts) for parts in zip(*areas)]
    metrics = IoUMetric.total_area_to_metrics(*whole, ['mIoU'])
    matrix = confusion_matrix([image['counts'] for image in images], 5)
    assert matrix.sum() == (truth != 255).sum()
    assert matrix[1, 2] == ((truth == 1) & (found == 2)).sum()
    for name, values in iou_per_class(matrix).items():
        np.testing.assert_allclose(values, metrics[name] * 100, rtol=1e-5)
    assert score_label_map(segmentation(torch.full((2, 2), 255), torch.zeros(2, 2)), 5, 255) is None
    # Labels between the last class and ignore_index are ignored too.
    truth, found = torch.tensor([[0, 7], [1, 1]]), torch.tensor([[0, 0], [1, 0]])
    scored = score_label_map(segmentation(truth, found), 5, 255)
    assert scored == dict(score=0.5, errors=1, objects=2, counts=[[0, 0, 1], [1, 0, 1], [1, 1, 1]])
