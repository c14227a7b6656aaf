import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mmcasvit.datasets.checks.annotations import decode_runs, polygon_fault, rle_fault


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
