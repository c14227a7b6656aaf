"""What is read from images and masks, and what of it is a fault."""

import os

import numpy as np
import pytest
from mmengine.config import ConfigDict
from PIL import Image

from mmcasvit.datasets.checks import files
from mmcasvit.datasets.checks.files import FileReport, check_files, read_sample
from mmcasvit.datasets.checks.problems import CheckedDataset, Sample
from mmcasvit.utils.errors import UsageError


def picture(path, orientation=None, size=(6, 4), mode='RGB', **options):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new(mode, size).save(path, exif=exif, **options)
    return str(path)


@pytest.mark.parametrize(
    'orientation, size, rotated, turned',
    [
        (None, (6, 4), False, False),
        (0, (6, 4), False, False),
        (1, (6, 4), False, False),
        (2, (6, 4), False, True),
        (3, (6, 4), False, True),
        (6, (4, 6), True, True),
    ],
)
def test_an_image_has_the_size_that_its_exif_entry_asks_for(tmp_path, orientation, size, rotated, turned):
    report = read_sample(Sample(picture(tmp_path / 'x.png', orientation)))
    assert (report.size, report.rotated, report.turned, report.format) == (size, rotated, turned, 'PNG')
    assert (report.error, report.mask_error, report.mask_size, report.mask_mode) == ('', '', None, '')


def test_images_have_equal_digests_if_their_bytes_are_equal(tmp_path):
    paths = [picture(tmp_path / f'{name}.png', size=(size, 4)) for name, size in (('a', 6), ('b', 6), ('c', 5))]
    first, second, third = (read_sample(Sample(path)).digest for path in paths)
    assert first == second != third
    assert len(first) == 32


@pytest.mark.parametrize(
    'content, words',
    [
        (b'', 'the file is empty'),
        (b'x', 'not an image, or in a format that Pillow does not support'),
        (None, 'FileNotFoundError: '),
        ('pipe', 'OSError: not a file: '),
    ],
)
def test_what_cannot_be_read_is_described(tmp_path, content, words):
    path = tmp_path / 'x.png'
    if content == 'pipe':
        os.mkfifo(path)
    elif content is not None:
        path.write_bytes(content)
    assert read_sample(Sample(str(path))).error.startswith(words)


@pytest.mark.parametrize('mode, words', [('RGB', ''), ('F', 'OpenCV, which mmcv reads images with, does not support')])
def test_images_that_only_pillow_reads_are_named(tmp_path, monkeypatch, mode, words):
    monkeypatch.setattr(files.cv2, 'imdecode', lambda content, flags: None if mode == 'F' else content)
    assert read_sample(Sample(picture(tmp_path / 'x.tif', mode='RGB'))).error.startswith(words)
    assert read_sample(Sample(picture(tmp_path / 'x.png'))).error == '', 'a format that OpenCV reads'


@pytest.mark.parametrize('mode, labels', [('L', (0,)), ('RGB', ())])
def test_masks_are_single_channels_of_labels(tmp_path, mode, labels):
    report = read_sample(Sample(picture(tmp_path / 'x.png'), picture(tmp_path / 'm.png', mode=mode, size=(5, 4))))
    assert (report.mask_mode, report.mask_size, report.labels, report.mask_error) == (mode, (5, 4), labels, '')


def test_a_thousand_labels_of_a_mask_are_kept(tmp_path):
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40)).save(tmp_path / 'm.png')
    report = read_sample(Sample(picture(tmp_path / 'x.png'), str(tmp_path / 'm.png')))
    assert report.labels == tuple(range(1000))


@pytest.mark.parametrize('content, words', [(None, 'missing'), (b'x', 'UnidentifiedImageError: ')])
def test_a_mask_that_cannot_be_read_is_described(tmp_path, content, words):
    if content:
        (tmp_path / 'm.png').write_bytes(content)
    report = read_sample(Sample(picture(tmp_path / 'x.png'), str(tmp_path / 'm.png')))
    assert report.mask_error.startswith(words)
    assert report.error == ''


GOOD = dict(digest='d', size=(6, 4), mask_size=(6, 4), mask_mode='L', labels=(0, 1, 255), format='JPEG')


def problems_of(tmp_path, monkeypatch, mask=True, size=(6, 4), config=None, classes=('a', 'b'), **report):
    monkeypatch.setattr(files, 'read_sample', lambda sample: FileReport(**GOOD | report))
    sample = Sample(picture(tmp_path / 'x.jpg'), str(tmp_path / 'm.png') if mask else '', size, 3)
    config = ConfigDict(dict(type='BaseSegDataset', pipeline=[]) | (config or {}))
    data = CheckedDataset('train', 'x', config, 'masks', classes, [], samples=[sample])
    check_files([data], 1)
    assert all(problem.image == sample.image and problem.image_index == 3 for problem in data.problems)
    return [(problem.kind, problem.detail) for problem in data.problems]


@pytest.mark.parametrize('reduces, absent', [(False, ['b']), (True, ['a'])])
def test_classes_without_a_pixel_are_known(tmp_path, monkeypatch, reduces, absent):
    monkeypatch.setattr(files, 'read_sample', lambda sample: FileReport(**GOOD | dict(labels=(0, 2, 255))))
    config = ConfigDict(dict(type='BaseSegDataset', pipeline=[], reduce_zero_label=reduces))
    sample = Sample(picture(tmp_path / 'x.jpg'), str(tmp_path / 'm.png'), (6, 4), 3)
    data = CheckedDataset('val', 'x', config, 'masks', ('a', 'b', 'c')[: 2 if reduces else 3], [], samples=[sample])
    check_files([data], 1)
    assert data.absent == absent


IGNORING = dict(pipeline=[dict(type='LoadImageFromFile', imdecode_backend='ignore_orientation')])


@pytest.mark.parametrize(
    'options, kinds',
    [
        ({}, []),
        (dict(error='broken'), ['unreadable_image']),
        (dict(turned=True), ['orientation']),
        (dict(turned=True, config=IGNORING), []),
        (dict(turned=True, rotated=True), []),  # the mask has the size of the turned image
        (dict(turned=True, rotated=True, mask_size=(4, 6)), ['orientation', 'mask_size']),
        (dict(turned=True, mask=False), []),
        (dict(turned=True, mask=False, format='WEBP'), ['orientation']),
        (dict(mask=False, format='WEBP'), []),
        (dict(size=(4, 6)), ['wrong_size']),
        (dict(size=None), []),
        (dict(mask_error='missing'), ['missing_mask']),
        (dict(mask_error='OSError: x'), ['unreadable_mask']),
        (dict(mask_error='some other error'), ['unreadable_mask']),
        (dict(mask_mode='RGB', labels=(9,)), ['mask_format']),
        *((dict(mask_mode=mode), []) for mode in ('P', '1', 'I', 'I;16', 'I;16B')),
        (dict(mask_size=(5, 4)), ['mask_size']),
        (dict(mask_size=(5, 4), labels=(9,)), ['mask_size', 'mask_labels']),
        (dict(labels=(0, 1, 2)), ['mask_labels']),
        (dict(labels=(0, 1, 2), config=dict(reduce_zero_label=True)), []),
        (dict(labels=(0, 1, 3), config=dict(reduce_zero_label=True)), ['mask_labels']),
        (dict(labels=(7,), config=dict(ignore_index=7)), []),
        (dict(labels=(254,)), ['mask_labels']),
        (dict(labels=(254,), classes=()), []),
        (dict(labels=(256,), classes=()), ['mask_labels']),
        (dict(labels=(0, 150), config=dict(type='ADE20KDataset'), classes=('wall',)), []),
        (dict(labels=(151,), config=dict(type='ADE20KDataset'), classes=('wall',)), ['mask_labels']),
    ],
    ids=str,
)
def test_what_was_read_is_judged(tmp_path, monkeypatch, options, kinds):
    assert [kind for kind, _ in problems_of(tmp_path, monkeypatch, **options)] == kinds


def test_the_details_name_what_was_found_and_expected(tmp_path, monkeypatch):
    assert problems_of(tmp_path, monkeypatch, size=(4, 7), rotated=True) == [
        ('wrong_size', '6 x 4 after the rotation in its EXIF entry, recorded as 4 x 7')
    ]
    assert problems_of(tmp_path, monkeypatch, size=(4, 7))[0][1] == '6 x 4, recorded as 4 x 7'
    assert problems_of(tmp_path, monkeypatch, mask_size=(5, 3))[0][1] == 'mask 5 x 3, image 6 x 4'
    assert problems_of(tmp_path, monkeypatch, labels=range(1, 11))[0][1] == (
        '2, 3, 4, 5, 6, 7, 8, 9; 2 classes, reduce_zero_label=False'
    )


def test_files_outside_the_folders_are_named_and_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'read_sample', None)
    samples = [Sample('/elsewhere/x.jpg', '', None, 0), Sample(str(tmp_path / 'x.jpg'), '/elsewhere/m.png', None, 1)]
    data = CheckedDataset('train', 'x', ConfigDict(), 'masks', (), [str(tmp_path), '/b'], samples=samples)
    check_files([data], 1)
    assert [(problem.kind, problem.where, problem.image_index) for problem in data.problems] == [
        ('path_outside', '/elsewhere/x.jpg', 0),
        ('path_outside', '/elsewhere/m.png', 1),
    ]
    assert data.problems[0].detail == f'not in {tmp_path} or /b'


def split_of(tmp_path, split, *names):
    samples = [Sample(str(tmp_path / name), index=index) for index, name in enumerate(names)]
    return CheckedDataset(split, split, ConfigDict(), 'images', (), [], samples=samples)


def test_training_images_in_another_split_are_named(tmp_path):
    for name, size in (('a.png', 1), ('b.png', 2), ('copy.png', 1), ('c.png', 3)):
        picture(tmp_path / name, size=(size, 1))
    train = split_of(tmp_path, 'train', 'c.png', 'a.png', 'b.png', 'gone.png')
    val, test = split_of(tmp_path, 'val', 'copy.png', 'gone.png'), split_of(tmp_path, 'test', 'b.png', 'a.png')
    check_files([train, val, test], 1)
    found = [(problem.where, problem.detail) for problem in train.problems if problem.kind == 'overlap']
    assert found == [
        (str(tmp_path / 'a.png'), f'in val: {tmp_path}/copy.png'),
        (str(tmp_path / 'b.png'), 'in test: the same file'),
    ]
    assert [problem.kind for problem in val.problems + test.problems] == ['missing_image']
    assert [problem.image_index for problem in train.problems] == [3, 1, 2]


def die(item):
    os._exit(1)


@pytest.mark.parametrize('workers', [1, 2])
def test_files_are_read_in_order_by_any_number_of_workers(workers):
    assert list(files._map(str, list(range(20)), workers)) == [str(number) for number in range(20)]


def test_a_worker_that_dies_is_named():
    with pytest.raises(UsageError, match='Use --workers 1'):
        list(files._map(die, [1], 2))
