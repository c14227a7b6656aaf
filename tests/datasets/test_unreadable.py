"""One bad annotation does not end training: its image is skipped and counted."""

import copy
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image

from mmcasvit.datasets.unreadable import SkippedFiles, SkipUnreadable
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


@pytest.fixture
def read(monkeypatch):
    """Return a transform around a step that returns the given results, or raises the given error."""
    said = []
    monkeypatch.setattr('mmcasvit.datasets.unreadable.print_log', lambda text, **_: said.append(text))

    def build(step=None, limit=2):
        made = SkipUnreadable([], limit)
        made.transforms.transforms = [step or raising(OSError('broken'))]
        return made, said

    return build


def raising(error):
    def step(results):
        raise error

    return step


def test_a_limit_is_not_negative():
    SkipUnreadable([], 0)
    with pytest.raises(ValueError, match='limit must be at least 0, got -1'):
        SkipUnreadable([], -1)


def test_each_file_is_counted_and_named_once(read):
    step, said = read(limit=3)
    for name in ('a', 'b', 'a'):
        assert step(dict(img_path=name)) is None
    assert said == [
        f'skipped unreadable training image ({number} so far, 3 allowed): {name}: OSError: broken'
        for number, name in ((1, 'a'), (2, 'b'))
    ]
    assert list(step.skipped.read()) == ['a', 'b']


def test_the_limit_is_for_different_files_and_for_files_in_a_row(read):
    step, _ = read(limit=2)
    fine = SkipUnreadable([], 2)
    for name in ('a', 'b'):
        assert step(dict(img_path=name)) is None
    with pytest.raises(
        DataError, match=r'^3 images could not be read, but at most 2 may be skipped\. The last one was c'
    ):
        step(dict(img_path='c'))
    step, _ = read(limit=2)
    for _ in range(2):
        assert step(dict(img_path='a')) is None
    with pytest.raises(DataError, match=r'^1 images could not be read'):
        step(dict(img_path='a'))
    assert fine.transform(dict(x=1)) == dict(x=1)


def test_a_readable_image_ends_a_row(read):
    step, _ = read(limit=2)
    broken, fine = step.transforms.transforms, [lambda results: results]
    for _ in range(3):
        for step.transforms.transforms in (broken, broken, fine):
            found = step(dict(img_path='a'))
        assert found == dict(img_path='a')


@pytest.mark.parametrize(
    'error', [OSError, EOFError, SyntaxError, ValueError, AssertionError, cv2.error, Image.DecompressionBombError]
)
def test_errors_of_readers_are_skipped_and_others_are_not(read, error):
    step, _ = read(raising(error('  much\n text ')))
    assert step(dict(img_path='a')) is None
    assert step.skipped.read() == dict(a=f'{error.__name__}: much text')
    with pytest.raises(KeyError):
        read(raising(KeyError('x')))[0](dict(img_path='a'))


def test_a_step_that_gives_nothing_ends_the_pipeline(read):
    step, said = read(lambda results: None)
    step.transforms.transforms.append(raising(KeyError('never called')))
    assert step(dict(img_path='a')) is None
    assert said == []


@pytest.mark.parametrize('key', ['img_path', 'seg_map_path'])
def test_an_address_is_read_by_a_remote_backend_only(read, key):
    step, _ = read(lambda results: results)
    assert step({key: 's3://a/x.jpg'}) is None
    assert 'which mmengine takes for an address: s3://a/x.jpg' in next(iter(step.skipped.read().values()))
    step._remote = True
    assert step({key: 's3://a/x.jpg'}) == {key: 's3://a/x.jpg'}


@pytest.mark.parametrize('key', ['with_mask', 'backend_args', None])
def test_masks_and_remote_files_are_those_of_the_transforms(key):
    made = SkipUnreadable([dict(type=Step, **({key: True} if key else {})), dict(type=Step)])
    assert (made._with_masks, made._remote) == (key == 'with_mask', key == 'backend_args')
    assert repr(made).startswith('SkipUnreadable(transforms=Compose(')
    assert repr(made).endswith('limit=100)')


class Step:
    """Transform with the options of those that read files."""

    def __init__(self, with_mask=False, backend_args=None):
        self.with_mask, self.backend_args = with_mask, backend_args

    def __call__(self, results):
        return results


def faults(instances, with_masks=True, size=(64, 96)):
    made = SkipUnreadable([])
    made._with_masks = with_masks
    made._check_instances(instances, size)


GOOD = dict(bbox=[10, 10, 30, 30], mask=POLYGON)


@pytest.mark.parametrize(
    'box, words',
    [
        ([10, 10, 10.5, 30], ''),
        ([10, 10, 10, 30], 'box 1 has no area'),
        ([10, 10, 30, 10], 'box 1 has no area'),
        ([30, 10, 10, 30], 'box 1 has no area'),
        ([0, 0, 1e9, 1e9], ''),
        ([0, 0, 1.1e9, 9], 'expected numbers of at most 1e'),
        ([-1.1e9, 0, 1, 9], 'expected numbers of at most 1e'),
        ([10, 10, None, dict], 'box 1 is '),
        ([1, 2, 3, 4, 0.5], ''),  # a turned box
        (None, ''),
    ],
)
def test_boxes_are_numbers_with_an_area(box, words):
    instances = [GOOD, dict(GOOD, bbox=box)]
    if not words:
        faults(instances)
        return
    with pytest.raises(ValueError, match=words):
        faults(instances)
    if 'area' in words:
        faults([GOOD, dict(GOOD, bbox=box, ignore_flag=1)])


def test_outlines_are_needed_and_checked_for_masks_only():
    for entry, words in ((dict(bbox=[1, 2, 3, 4]), 'annotation 1 has no seg'), (dict(mask='x'), 'annotation 1: the')):
        with pytest.raises(ValueError, match=words):
            faults([GOOD, entry])
        faults([GOOD, entry], with_masks=False)
    far = dict(mask=[[0, 0, 4, 0, 1001, 4]])
    with pytest.raises(ValueError, match='farther than 1000'):
        faults([far])
    faults([far], size=(64, 101))


def test_annotations_are_checked_once_as_soon_as_the_size_is_known(monkeypatch):
    sizes = []
    monkeypatch.setattr(SkipUnreadable, '_check_instances', lambda self, instances, size: sizes.append(size))
    step = SkipUnreadable([dict(type=Step)] * 3)
    step.transforms.transforms[1] = lambda results: results | dict(ori_shape=(64, 96, 3))
    step(dict(instances=[GOOD]))
    assert sizes == [(64, 96)]
    step(dict(instances=[]))
    step(dict(ori_shape=(1, 2)))
    assert sizes == [(64, 96)]


def test_the_record_is_shared_by_copies_and_removed_with_its_owner():
    record = SkippedFiles()
    assert record.read() == {}
    assert [record.add(name, f'{name}  why\n') for name in 'aba'] == [1, 2, None]
    copied = copy.deepcopy(record)
    assert copied.read() == dict(a='a why', b='b why')
    file = record._list
    assert file.stat().st_mode & 0o777 == 0o600
    worker = os.fork()
    if worker == 0:
        del copied, record
        os._exit(0)
    assert os.waitpid(worker, 0)[1] == 0
    assert file.exists()
    del copied, record
    assert not file.exists()


def test_the_record_is_removed_at_the_end_although_something_still_refers_to_it(tmp_path):
    code = 'import mmcasvit.datasets.unreadable as m; m.kept = m.SkippedFiles(); assert m.kept.add("a", "why")'
    subprocess.run([sys.executable, '-c', code], check=True, env=dict(os.environ, TMPDIR=str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_a_record_leaves_no_file_open():
    record, handles = SkippedFiles(), len(os.listdir('/proc/self/fd'))
    record.add('a', 'b')
    assert len(os.listdir('/proc/self/fd')) == handles


@pytest.mark.parametrize('size', [(1, 1), (1, 9), (9, 1), (9, 9)])
def test_a_mask_with_a_side_of_one_pixel_is_skipped(size, tmp_path):
    """mmseg removes such a side from the array."""
    import mmseg.datasets  # noqa: F401  # registers the transforms

    for name, mode in dict(image='RGB', mask='L').items():
        Image.new(mode, size).save(tmp_path / f'{name}.png')
    init_default_scope('mmseg')
    step = SkipUnreadable([dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')])
    image, mask = str(tmp_path / 'image.png'), str(tmp_path / 'mask.png')
    loaded = step(dict(img_path=image, seg_map_path=mask, reduce_zero_label=True, label_map=None, seg_fields=[]))
    assert (loaded is None) == (1 in size)
    assert list(step.skipped.read()) == [image] * (1 in size)


def test_an_image_that_opencv_reads_as_one_channel_is_skipped(skip, tmp_path):
    step = skip()
    for mode, kept in dict(L=True, F=False).items():
        path = str(tmp_path / f'{mode}.jpg')
        Image.new(mode, (96, 64)).save(path, 'PPM')
        assert (step(entry(path)) is not None) == kept
        assert (path in step.skipped.read()) != kept
