"""What the values of masks mean, with names and without."""

from collections import Counter

import pytest

from mmcasvit.start.files import list_files
from mmcasvit.start.masks import Masks, explain
from mmcasvit.utils.errors import UsageError


def meaning_of(root, values, colored=False, classes=(), zero=''):
    (root / 'a.jpg').touch()
    masks = Masks([(root / 'a.jpg', root / 'masks' / 'a.png', '')], Counter(dict.fromkeys(values, 10)), colored)
    return explain(list_files(root, root / 'out'), masks, classes, zero)


@pytest.mark.parametrize(
    'values, options, classes, labels, native',
    [
        ((0, 1, 2), {}, ['class_0', 'class_1', 'class_2'], [0, 1, 2], True),
        ((0, 1, 255), {}, ['class_0', 'class_1'], [0, 1, 255], True),
        ((1, 2, 255), {}, ['class_1', 'class_2'], [0, 1, 255], True),
        ((0, 1, 2), dict(zero='ignore'), ['class_1', 'class_2'], [255, 0, 1], True),
        ((0, 1, 2), dict(zero='background'), ['background', 'class_1', 'class_2'], [0, 1, 2], True),
        # Values that are in no mask are no classes.
        ((0, 3, 11), {}, ['class_0', 'class_3', 'class_11'], [0, 1, 2], False),
        ((0, 15, 255), {}, ['class_0', 'class_15'], [0, 1, 255], False),
        # Gray levels. 255 is one of them here.
        ((0, 128, 255), {}, ['class_0', 'class_128', 'class_255'], [0, 1, 2], False),
        ((0, 128, 255), dict(zero='ignore'), ['class_128', 'class_255'], [255, 0, 1], False),
        ((0, 128, 255), dict(zero='background'), ['background', 'class_128', 'class_255'], [0, 1, 2], False),
        ((0, 128, 255), dict(classes=('a', 'b', 'c')), ['a', 'b', 'c'], [0, 1, 2], False),
        ((0, 255), {}, ['background', 'foreground'], [0, 1], False),
    ],
)
@pytest.mark.parametrize('colored', [False, True])
def test_values_become_classes(tmp_path, values, options, classes, labels, native, colored):
    shown = [value * 0x010101 for value in values] if colored else values
    meaning = meaning_of(tmp_path, shown, colored, **options)
    assert meaning.classes == classes
    assert [meaning.labels[value] for value in shown] == labels
    if not colored:  # of three channels, mmseg reads none
        assert meaning.native == native


@pytest.mark.parametrize(
    'text, values, classes',
    [
        ('street\nhouse\n', (0, 255), ['street', 'house']),
        ('house\n', (0, 255), ['background', 'house']),
        ('a\nb\nc\n', (0, 255), ['background', 'foreground']),
        ('street 0 0 0\nhouse 255 255 255\n', (0, 255), ['street', 'house']),
        ('street 0 0 0\ncar 128 128 128\nhouse 255 255 255\n', (0, 128, 255), ['street', 'car', 'house']),
        ('street 0 0 0\ncar 128 0 0\nhouse 0 128 0\n', (0, 1, 2, 255), ['street', 'car', 'house']),
    ],
)
def test_names_of_black_and_white_gray_and_indices(tmp_path, text, values, classes):
    (tmp_path / 'classes.txt').write_text(text)
    meaning = meaning_of(tmp_path, values)
    assert meaning.classes == classes
    assert [meaning.labels[value] for value in values][: len(classes)] == list(range(len(classes)))


def test_a_color_makes_gray_a_color(tmp_path):
    meaning = meaning_of(tmp_path, (0, 0x808080, 0x800000), True)
    assert meaning.classes == ['background', 'color_800000', 'color_808080']
    assert meaning.colors == [(0, 0, 0), (128, 0, 0), (128, 128, 128)]


TABLES = {
    'label_colors.txt': '0 0 0 Void\n128 0 0\tcar\n0 128 0 big tree\n',
    'labelmap.txt': '# label:color_rgb:parts:actions\nVoid:0,0,0::\ncar:128,0,0::\nbig tree:0,128,0::\n',
    'class_dict.csv': 'name, r, g, b\nVoid, 0, 0, 0\ncar, 128, 0, 0\nbig tree, 0, 128, 0\n',
}


@pytest.mark.parametrize('name', TABLES)
def test_tables_of_colors(tmp_path, name):
    (tmp_path / name).write_text(TABLES[name])
    meaning = meaning_of(tmp_path, (0, 0x800000, 0x008000), True)
    assert meaning.classes == ['car', 'big tree']
    assert meaning.labels == {0: 255, 0x800000: 0, 0x008000: 1}


@pytest.mark.parametrize(
    'name, text',
    [
        ('class_names.txt', '_background_\ncar\nbig tree\n'),
        ('labels.txt', '__ignore__\n_background_\ncar\nbig tree\n'),
        ('classes.txt', '0: _background_\n1: car\n2: big tree\n'),
        ('_classes.csv', 'Pixel Value, Class\n0, _background_\n1, car\n2, big tree\n'),
        ('labels.json', '["_background_", "car", "big tree"]'),
        ('label2id.json', '{"_background_": 0, "car": 1, "big tree": 2}'),
    ],
)
def test_lists_of_names(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert meaning_of(tmp_path, (0, 1, 2, 255)).classes == ['_background_', 'car', 'big tree']


def test_names_must_be_as_many_as_gray_levels(tmp_path):
    with pytest.raises(UsageError, match=r'3 gray levels \(0, 128, 255\), but there are 2 names'):
        meaning_of(tmp_path, (0, 128, 255), classes=('a', 'b'))
