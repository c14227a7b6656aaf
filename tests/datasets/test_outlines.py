import inspect

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mmcasvit.datasets.outlines import (
    decode_runs,
    guard_pycocotools,
    is_coordinate,
    outline_fault,
    polygon_fault,
    rle_fault,
)
from mmcasvit.utils.errors import DataError


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


@pytest.mark.parametrize(
    'value, valid',
    [(0, True), (-1e9, True), (1e9, True), (1.1e9, False), (-1.1e9, False), (True, False), ('1', False), (None, False)],
)
def test_a_coordinate_is_a_number_of_at_most_a_billion(value, valid):
    assert is_coordinate(value) == valid


@pytest.mark.parametrize(
    'size, reach', [((64, 96), 1000), ((64, 101), 1010), ((300, 96), 3000), ((8, 8), 1000), (None, 100_000)]
)
def test_a_corner_may_be_ten_times_the_longer_side_away(size, reach):
    for far in (reach, -reach):
        assert polygon_fault([0, 0, 4, 0, far, 4], size) == ''
        assert polygon_fault([0, 0, 4, 0, 1.01 * far, 4], size) == (
            f'a corner is at {1.01 * far:g}, farther than {reach} pixels'
        )


@pytest.mark.parametrize(
    'points, words',
    [
        ([], '0 numbers'),
        ([1, 2, 3, 4], '4 numbers'),
        ([1, 2, 3, 4, 5, 6, 7], '7 numbers'),
        ([1, 2, 1, 2, 1, 2], 'all corners are the same point'),
        ([1, 2, 1, 2, 1, 3], ''),
        ([1, 2, 1, 2, 3, 2], ''),
        ([1, 1, 2, 2, 3, 3, 4, 4], ''),
        ((1, 2, 3, 4, 5, 6), 'not numbers'),
        ([1, 2, 3, 4, 5, '6'], 'not numbers'),
        ([1, 2, 3, 4, 5, [6]], 'not numbers'),
    ],
)
def test_polygons_have_three_different_corners(points, words):
    assert words in polygon_fault(points, (64, 96))
    assert bool(words) == bool(polygon_fault(points, (64, 96)))


def test_polygons_that_are_read_are_those_of_at_least_six_numbers_in_pairs():
    assert 'not numbers' in outline_fault([[0] * 4, ['x'] * 6], (64, 96))
    assert 'not numbers' in outline_fault([[0] * 6, ['x'] * 8], (64, 96))
    for ignored in (['x'] * 7, ['x'] * 9, ['x'] * 4):
        assert outline_fault([ignored], (64, 96)) == ''


def rle(counts, size=(4, 6)):
    return rle_fault(dict(size=list(size), counts=counts), (4, 6))


def test_runs_fill_the_image():
    assert rle([24]) == rle([0, 24]) == rle([20, 4]) == ''
    assert rle([20, 5]) == 'its runs add up to 25 pixels, but the image has 24'
    assert 'not integers of at least 0' in rle([25, -1])
    assert 'not integers of at least 0' in rle([23, True])
    assert 'not integers of at least 0' in rle([23.0, 1])
    assert rle([24], (6, 4)) == 'its size is [6, 4], but the image has [4, 6] (height, width)'
    assert rle_fault(dict(size=(4, 6), counts=[24]), (4, 6)) == ''
    assert 'its size is None' in rle_fault(dict(counts=[24]), (4, 6))
    for counts in (3, None, b'X', 'é'):
        assert rle(counts) == 'its counts cannot be decoded'
    assert rle_fault(dict(size=[4, 6]), (4, 6)) == 'its counts cannot be decoded'
    assert outline_fault(dict(size=[4, 6], counts='0'), (4, 6)) == 'its runs add up to 0 pixels, but the image has 24'


@pytest.mark.parametrize(
    'text, runs',
    [('', []), ('05', [0, 5]), ('P1', [32]), ('1111', [1, 1, 1, 2]), ('11O1', [1, 1, -1, 2]), ('1110', [1, 1, 1, 1])],
)
def test_runs_are_five_bits_a_character_and_differences_from_the_fourth_on(text, runs):
    assert decode_runs(text) == runs


@pytest.mark.parametrize('text, words', [('/', "'/' is not a character"), ('p', "'p' is not"), ('P', 'is incomplete')])
def test_what_is_no_run_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        decode_runs(text)


def test_a_run_has_at_most_twelve_characters():
    assert decode_runs('P' * 11 + '1') == [1 << 59 - 4]
    with pytest.raises(ValueError, match='a run is too long'):
        decode_runs('P' * 13 + '1')


@pytest.fixture
def guarded(monkeypatch):
    from pycocotools.cocoeval import COCOeval

    for place, name in ((coco_mask, 'frPyObjects'), (coco_mask, 'decode'), (COCOeval, '_prepare')):
        monkeypatch.setattr(place, name, inspect.unwrap(getattr(place, name)))
    guard_pycocotools()


FAR = [[0, 0, 4, 0, 1e9, 4]]
SQUARE = [[2, 2, 6, 2, 6, 6, 2, 6]]
OVERLONG = dict(size=[64, 96], counts=coco_mask.encode(np.ones((200, 200), np.uint8, 'F'))['counts'].decode())


@pytest.mark.parametrize('width', [0, -1, None, 2**40, True])
def test_an_image_without_a_width_never_reaches_pycocotools(width, guarded):
    """pycocotools would never end for a width of 0."""
    with pytest.raises(DataError, match='height and width 64'):
        coco_mask.frPyObjects(SQUARE, 64, width)


def test_pycocotools_reads_checked_outlines_only(guarded):
    assert coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(SQUARE, 64, 96))).sum() == 16
    assert coco_mask.frPyObjects(np.array([[1.0, 1, 4, 4]]), 64, 96)
    assert coco_mask.frPyObjects([np.array(SQUARE[0], float)], *np.array([64, 96]))  # of mmdet's PolygonMasks
    for outline in (FAR, [np.array(FAR[0])]):
        with pytest.raises(DataError, match='a corner is at'):
            coco_mask.frPyObjects(outline, 64, 96)
    with pytest.raises(DataError, match='add up to 40000 pixels'):
        coco_mask.decode(OVERLONG)


@pytest.mark.parametrize('outline, width', [(FAR, 96), (OVERLONG, 96), (SQUARE, 0), (None, 96)])
def test_an_evaluation_names_the_annotation_that_it_cannot_use(outline, width, guarded):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    entry = dict(id=7, image_id=1, category_id=1, iscrowd=0, area=16, bbox=[2, 2, 4, 4], segmentation=SQUARE)
    truth.dataset = dict(images=[dict(id=1, height=64, width=96)], annotations=[entry], categories=[dict(id=1)])
    truth.createIndex()
    found = truth.loadRes(
        [
            dict(
                image_id=1,
                category_id=1,
                score=1.0,
                segmentation=coco_mask.merge(coco_mask.frPyObjects(SQUARE, 64, 96)),
            )
        ]
    )
    evaluation = COCOeval(truth, found, 'segm')
    evaluation.evaluate()
    entry['segmentation'], truth.imgs[1]['width'] = outline, width
    with pytest.raises(DataError, match='annotation 7 of the evaluation cannot be used'):
        evaluation.evaluate()
    COCOeval(truth, found, 'bbox').evaluate()
