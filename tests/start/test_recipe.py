"""Choices follow the images, the objects, and the machine."""

import numpy as np
import pytest

from mmcasvit.start.config import epochs_and_times, make_palette
from mmcasvit.start.files import list_files, listed_splits, split_of
from mmcasvit.start.machine import Machine
from mmcasvit.start.prepare import Data
from mmcasvit.start.recipe import Choices, affordable_size, choose_schedule, choose_shape
from mmcasvit.start.split import choose_validation
from mmcasvit.utils.errors import UsageError

CPU = dict(accelerated=False, workers=1, free=8 * 2**30)


def data_of(sides=(20, 30, 80), size=(640, 480), images=200, task='detect'):
    objects = np.array([(side, side, *size) for side in sides] * 20, float)
    return Data('data', task, 'COCO', ['a', 'b'], counts=dict(train=images, val=50), sizes=[size] * 9, objects=objects)


def recipe_of(data, machine=None, **choices):
    choices, machine = Choices('retinanet', **choices), machine or Machine(**CPU)
    recipe = choose_shape(data, choices, machine)
    choose_schedule(data, choices, machine, recipe)
    return recipe


def test_the_size_follows_the_images_up_to_a_limit():
    assert [recipe_of(data_of(size=size)).size for size in ((192, 128), (500, 333), (4000, 3000))] == [192, 512, 640]
    assert recipe_of(data_of(size=(4000, 3000)), Machine(True, 8, 2**36)).size == 1024
    assert recipe_of(data_of(), size=320).size == 320
    assert recipe_of(data_of(size=(192, 128), task='semantic')).crop == (128, 192)


def test_anchors_follow_the_objects():
    small, large = recipe_of(data_of((10, 20, 40))), recipe_of(data_of((60, 200, 500)))
    assert small.scale < large.scale
    assert small.levels < large.levels
    assert 'small' not in small.why
    assert '--size' in recipe_of(data_of((4, 20, 40))).why['small']


def test_the_batch_follows_memory_and_images():
    assert recipe_of(data_of()).batch == 4
    assert recipe_of(data_of(), Machine(True, 8, 2**36)).batch == 16
    assert recipe_of(data_of(images=12)).batch == 3
    tight = Machine(**CPU, fixed=2**28, per_image=2**31)
    assert recipe_of(data_of(), tight).batch == 2
    assert 'GroupNorm' in recipe_of(data_of(), tight).why['norm']
    assert 'norm' not in recipe_of(data_of(), tight, pretrained='xs').why
    assert recipe_of(data_of(), tight, batch=6).batch == 6


def test_the_schedule_follows_images_and_time():
    quick, slow = Machine(**CPU, seconds_per_image=1e-4), Machine(**CPU, seconds_per_image=1)
    assert recipe_of(data_of(images=200), quick).samples == 16000
    assert recipe_of(data_of(images=20), quick).samples == 2000
    assert recipe_of(data_of(images=5000), quick).samples == 120000
    assert recipe_of(data_of(), slow).samples == 480
    assert recipe_of(data_of(), slow, minutes=20).samples == 960
    assert recipe_of(data_of(), slow, epochs=3).samples == 600
    assert recipe_of(data_of(), slow, epochs=3).seconds == 600


@pytest.mark.parametrize(
    'seconds, sides, choices, size',
    [
        (0.1, (60, 80, 200), {}, None),  # 4800 images in 8 minutes
        (0.4, (60, 80, 200), {}, 352),  # 1200 images: a share of 0.3 of the pixels
        (9, (60, 80, 200), {}, 256),
        (0.4, (20, 40, 80), {}, 512),  # a quarter of the objects would be smaller than 16 pixels
        (0.4, (8, 10, 12), {}, None),
        (0.4, (60, 80, 200), dict(pretrained='xs'), 512),
        (0.4, (60, 80, 200), dict(minutes=40), None),
        (0.4, (60, 80, 200), dict(size=640), None),
        (0.4, (60, 80, 200), dict(epochs=3), None),
    ],
)
def test_images_shrink_where_time_is_short(seconds, sides, choices, size):
    data, machine = data_of(sides), Machine(**CPU, seconds_per_image=seconds)
    choices = Choices('retinanet', **choices)
    recipe = choose_shape(data, choices, machine)
    assert affordable_size(data, choices, machine, recipe) == size
    if size:
        smaller = choose_shape(data, choices, machine, size)
        assert (smaller.size, '--size 640' in smaller.why['size']) == (size, True)


def test_a_gpu_has_time_for_all_pixels():
    data, choices, machine = data_of(), Choices('retinanet'), Machine(True, 8, 2**36, seconds_per_image=9)
    assert affordable_size(data, choices, machine, choose_shape(data, choices, machine)) is None


@pytest.mark.parametrize('images, samples', [(30, 3000), (600, 6000), (5000, 10000), (7, 5)])
def test_repeated_images_keep_evaluations_rare(images, samples):
    recipe = recipe_of(data_of(images=images))
    recipe.samples, recipe.evaluations = samples, 10
    epochs, times = epochs_and_times(images, recipe)
    assert epochs <= 10
    assert max(1, samples / images) == pytest.approx(epochs * times, rel=0.2)


def test_a_split_has_the_classes_in_the_same_shares():
    rng = np.random.default_rng(0)
    classes = [{label for label in range(5) if rng.random() < 0.5 / 2**label} for _ in range(200)]
    chosen = choose_validation(classes, range(200))
    assert 38 <= sum(chosen) <= 42
    for label in range(5):
        count = sum(label in found for found in classes)
        held = sum(label in found for found, validation in zip(classes, chosen) if validation)
        assert abs(held - 0.2 * count) <= 1
    assert choose_validation(classes, range(200)) == chosen
    assert choose_validation(classes, range(200), seed=1) != chosen


def test_a_split_keeps_families_together_and_both_sides_filled():
    chosen = choose_validation([{0}] * 40, [number // 4 for number in range(40)])
    assert sum(chosen) == 8
    assert all(len(set(chosen[start : start + 4])) == 1 for start in range(0, 40, 4))
    assert sorted(choose_validation([{0}, {1}], 'ab')) == [False, True]
    with pytest.raises(UsageError, match='only one image'):
        choose_validation([{0}, {0}], 'aa')


@pytest.mark.parametrize(
    'path, split',
    [
        ('train2017', 'train'),
        ('annotations/instances_val2017', 'val'),
        ('valid/labels', 'val'),
        ('images/test', 'test'),
        ('trainannot', 'train'),
        ('ImageSets/trainval', ''),
        ('contest/latest', ''),
        ('.', ''),
    ],
)
def test_a_path_names_a_split(path, split):
    assert split_of(path) == split


@pytest.mark.parametrize(
    'lists, splits',
    [
        ({}, {}),
        (dict(train='ab'), dict(a='', b='')),
        (dict(val='a'), dict(a='val', b='train', c='train', d='train')),
        (dict(val='abcd'), dict(a='', b='', c='', d='')),
        (dict(val='a', test='b'), dict(a='val', b='test', c='train', d='train')),
        (dict(train='ab', val='c'), dict(a='train', b='train', c='val')),
        (dict(trainval='abc', test='d'), dict(a='train', b='train', c='train', d='test')),
        (dict(trainval='abc', train='ab', val='c'), dict(a='train', b='train', c='val')),
    ],
)
def test_lists_name_splits(tmp_path, lists, splits):
    for name in 'abcd':
        (tmp_path / f'{name}.jpg').touch()
    for split, names in lists.items():
        (tmp_path / f'{split}.txt').write_text(''.join(f'/somewhere/{name}.jpg\n' for name in names))
    files = list_files(tmp_path, tmp_path / 'out')
    assert {path.stem: split for path, split in listed_splits(files, files.images).items()} == splits


def test_a_palette_has_different_colors():
    assert len(set(make_palette(40))) == 40
