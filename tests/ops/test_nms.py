"""Boxes that are kept, against the compiled operators."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmcasvit.ops import nms as ours


def random_boxes(count, seed, spread=60, step=None):
    """Return boxes and scores. With a step, coordinates and scores are multiples of it, so that many are equal."""
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=rng) * spread
    boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=rng) * 30], 1)
    scores = torch.rand(count, generator=rng)
    return (boxes, scores) if step is None else ((boxes / step).round() * step, (scores * 8).round() / 8)


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize('count', [0, 1, 2, 63, 64, 65, 300])
def test_nms_keeps_the_boxes_of_the_compiled_operator(compiled, count, threshold, offset):
    for step in (None, 4.0):
        boxes, scores = random_boxes(count, count, step=step)
        wanted = compiled.nms(boxes, scores, iou_threshold=threshold, offset=offset)
        assert ours.nms(boxes, scores, threshold, offset).tolist() == wanted.tolist()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 400),
    spread=st.sampled_from([5, 100, 3000]),
    threshold=st.floats(-0.125, 1.0, width=32),
)
def test_nms_of_any_boxes(compiled, seed, count, spread, threshold):
    boxes, scores = random_boxes(count, seed, spread, step=1.0)
    wanted = compiled.nms(boxes, scores, iou_threshold=threshold, offset=0)
    assert ours.nms(boxes, scores, threshold, 0).tolist() == wanted.tolist()


def test_nms_of_many_classes_without_the_compiled_operator():
    boxes, scores = random_boxes(600, 0)
    ids = torch.arange(600) % 7
    keep = ours.nms(boxes + ids[:, None] * 200.0, scores, 0.5, 0)
    alone = torch.cat(
        [(ids == i).nonzero()[:, 0][ours.nms(boxes[ids == i], scores[ids == i], 0.5, 0)] for i in range(7)]
    )
    assert sorted(keep.tolist()) == sorted(alone.tolist())
    assert (scores[keep].diff() <= 0).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_nms_of_other_types_and_strides(dtype):
    boxes, scores = random_boxes(200, 1, step=2.0)
    strided = boxes.to(dtype).T.contiguous().T
    assert ours.nms(strided, scores.to(dtype), 0.5, 0).tolist() == ours.nms(boxes, scores, 0.5, 0).tolist()


def test_a_box_without_area_suppresses_nothing():
    boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 9, 9]])
    assert ours.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5, 0).tolist() == [0, 1, 2]


@pytest.mark.parametrize('method', [0, 1, 2])
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('count', [0, 1, 7, 150])
def test_soft_nms(compiled, count, offset, method):
    boxes, scores = random_boxes(count, count, step=2.0)
    boxes[:, 2:] += 2  # of two boxes without any area, the compiled operator makes NaN
    results = []
    for nms in (compiled.softnms, ours.softnms):
        dets = boxes.new_zeros(count, 5)
        index = nms(boxes, scores, dets, iou_threshold=0.3, sigma=0.5, min_score=0.05, method=method, offset=offset)
        results.append((dets[: len(index)], index))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-6, atol=1e-6)
    assert results[1][1].tolist() == results[0][1].tolist()


@pytest.mark.parametrize('threshold', [0.0, 0.4, 0.8])
@pytest.mark.parametrize('count', [1, 2, 200])
def test_nms_match(compiled, count, threshold):
    boxes, scores = random_boxes(count, count)
    dets = torch.cat([boxes, scores[:, None]], 1)
    assert ours.nms_match(dets, threshold) == compiled.nms_match(dets, iou_threshold=threshold)


def test_soft_nms_of_boxes_without_area_keeps_their_scores():
    boxes, scores, dets = torch.full((3, 4), 5.0), torch.tensor([0.5, 0.9, 0.7]), torch.zeros(3, 5)
    index = ours.softnms(boxes, scores, dets, iou_threshold=0.3, sigma=0.5, min_score=0.05, method=2, offset=0)
    assert index.tolist() == [1, 2, 0]
    assert dets[:, 4].tolist() == scores[index].tolist()
