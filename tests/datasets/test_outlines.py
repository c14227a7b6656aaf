import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mmcasvit.datasets.outlines import decode_runs, outline_fault, polygon_fault, rle_fault


@pytest.mark.parametrize('seed', range(5))
def test_decoded_runs_match_pycocotools(seed):
    rng = np.random.default_rng(seed)
    mask = np.asfortranarray(np.repeat(rng.random((30, 20)) < 0.5, rng.integers(1, 9), axis=0).astype(np.uint8))
    code = coco_mask.encode(mask)
    text = code['counts'].decode()
    flat = mask.flatten(order='F')
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    assert decode_runs(text) == np.diff(np.concatenate([[0], changes])).tolist()
    assert rle_fault(dict(size=list(mask.shape), counts=text), mask.shape) == ''
    assert 'add up to' in rle_fault(dict(size=list(mask.shape), counts=text + '1'), mask.shape)


def test_polygon_needs_three_finite_corners():
    assert polygon_fault([0, 0, 4, 0, 4.5, 4]) == ''
    assert polygon_fault([0, 0, 4, 0]) != ''
    assert polygon_fault([0, 0, 4, 0, float('inf'), 4]) != ''


@pytest.mark.parametrize('far', [1e9, -3e7, 10**400, float('nan'), 1e4])
def test_corners_far_away_never_reach_pycocotools(far):
    """pycocotools takes 5 GB for a corner at 3e7, and crashes at 1e9."""
    outline = [[0, 0, 4, 0, far, 4]]
    assert outline_fault(outline, (64, 96)) != ''
    assert polygon_fault(outline[0], (64, 96)) != ''
    assert far == 1e4 or polygon_fault(outline[0]) != ''


def test_corners_may_leave_a_small_image():
    assert outline_fault([[-50, -50, 900, 0, 4.5, 900]], (8, 8)) == ''


def test_outlines_that_mmdet_ignores_are_no_fault():
    assert outline_fault([[1, 2, 3, 4], [1e9] * 5], (64, 96)) == ''
    assert outline_fault(dict(size=[64, 96], counts=None), (64, 96)) == ''


@pytest.mark.parametrize('outline', ['outline', 3, [3], dict(size=[64, 96], counts=[5]), dict(size=5, counts=[5])])
def test_outlines_of_another_form_are_faults(outline):
    assert outline_fault(outline, (64, 96)) != ''


def test_a_run_without_an_end_is_refused_at_once():
    """Each character would make the number longer, which takes 40 s for a megabyte."""
    with pytest.raises(ValueError, match='too long'):
        decode_runs('o' * 10**6)
    assert rle_fault(dict(size=[64, 96], counts='o' * 10**6), (64, 96)) != ''
