"""One bad annotation does not end training: its image is skipped and counted."""

import os

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image

from mmcasvit.datasets.unreadable import SkipUnreadable
from mmcasvit.utils.errors import DataError

POLYGON = [[10, 10, 30, 10, 30, 30]]


@pytest.fixture
def image(tmp_path):
    Image.new('RGB', (96, 64)).save(tmp_path / 'x.png')
    return str(tmp_path / 'x.png')


@pytest.fixture
def skip():
    import mmdet.datasets  # noqa: F401  # registers the transforms

    init_default_scope('mmdet')

    def build(**options):
        loads = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]
        return SkipUnreadable(loads, **options)

    return build


def entry(image, **changes):
    instance = dict(bbox=[10, 10, 30, 30], bbox_label=0, ignore_flag=0, mask=POLYGON)
    instance.update(changes)
    return dict(img_path=image, instances=[{k: v for k, v in instance.items() if v is not None}], img_id=1)


FAULTS = dict(
    no_segmentation=(dict(mask=None), 'has no segmentation'),
    far_corner=(dict(mask=[[1, 2, 3, 4, 1e9, 6]]), 'a corner is at'),
    infinite_corner=(dict(mask=[[1, 2, 3, 4, float('inf'), 6]]), 'not numbers'),
    text=(dict(mask='outline'), 'neither a list of polygons'),
    rle_too_long=(dict(mask=dict(size=[64, 96], counts=[5, 10**9])), 'add up to'),
    rle_of_another_image=(dict(mask=dict(size=[10**6, 10**6], counts=[10**12])), 'its size is'),
    rle_cut_off=(dict(mask=dict(size=[64, 96], counts='~~~')), 'cannot be decoded'),
    no_area=(dict(bbox=[10, 10, 10, 30]), 'has no area'),
    nan=(dict(bbox=[10, float('nan'), 30, 30]), 'expected numbers'),
    huge=(dict(bbox=[10, 10, 30, 10**400]), 'too large'),
)


@pytest.mark.parametrize('fault', FAULTS)
def test_an_image_with_a_bad_annotation_is_skipped_and_counted(fault, skip, image):
    changes, words = FAULTS[fault]
    step = skip(limit=1)
    assert step(entry(image))['gt_masks'].masks.sum() > 100
    assert step(entry(image, **changes)) is None
    assert words in step.skipped.read()[image]
    with pytest.raises(DataError, match='at most 1 may be skipped'):
        step(entry(image, **changes))


def test_what_mmdet_ignores_is_not_skipped(skip, image):
    assert skip()(entry(image, mask=[[1, 2, 3]])) is not None
    assert skip()(entry(image, bbox=[10, 10, 10, 30], ignore_flag=1)) is not None
    assert skip()(entry(image, bbox=np.array([10, 10, 30, 30], np.float32))) is not None


def test_addresses_and_pipes_are_skipped_and_not_opened(skip, tmp_path):
    os.mkfifo(tmp_path / 'pipe.jpg')
    step = skip()
    paths = [str(tmp_path / 'pipe.jpg'), 'http://127.0.0.1:9/x.jpg', f'{tmp_path}/s3://a://b.jpg']
    assert [step(entry(path)) for path in paths] == [None] * 3
    assert list(step.skipped.read()) == paths


def test_a_file_name_in_latin_1_can_be_written_down(skip, tmp_path):
    name = str(tmp_path / os.fsdecode('café.jpg'.encode('latin-1')))
    step = skip()
    assert step(entry(name)) is None
    ''.join(f'{key}: {reason}' for key, reason in step.skipped.read().items()).encode()
