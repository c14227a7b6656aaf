"""Which entries of an XML file are faults, and which are just within bounds."""

import pytest
from mmengine.config import ConfigDict

from mmcasvit.datasets.checks.problems import CheckedDataset
from mmcasvit.datasets.checks.voc import read_xml
from mmcasvit.datasets.sources import ListedImage

SIZE = '<size><width>96</width><height>64</height></size>'


def thing(left=10, top=10, right=30, bottom=30, name='disc', difficult=''):
    corners = ''.join(
        f'<{side}>{value}</{side}>'
        for side, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), (left, top, right, bottom))
        if value is not None
    )
    return f'<object><name>{name}</name>{difficult}<bndbox>{corners}</bndbox></object>'


def read(tmp_path, *parts, image='x.jpg', folders=()):
    (tmp_path / 'x.xml').write_text(f'<annotation>{"".join(parts)}</annotation>')
    data = CheckedDataset('train', 'x', ConfigDict(), 'voc', ('disc',), list(folders))
    return *read_xml(data, ListedImage('x', str(tmp_path / 'x.xml'), image), 7), data.problems


def test_sizes_and_names_are_read(tmp_path):
    names = thing(name='disc') + thing(name='other', right=None) + '<object></object>'
    size, found, [problem] = read(tmp_path, SIZE, names)
    assert (size, found) == ((96, 64), ['disc', 'other'])
    assert (problem.kind, problem.where, problem.image_index) == ('malformed', f'{tmp_path}/x.xml, object 2', 7)
    assert read(tmp_path)[:2] == (None, [])


@pytest.mark.parametrize(
    'corners, found',
    [
        ((1, 1, 96, 64), []),
        ((0, 0, 97, 65), []),  # counted from 0 instead of 1
        ((-1, 1, 96, 64), ['box_outside']),
        ((1, -1, 96, 64), ['box_outside']),
        ((1, 1, 98, 64), ['box_outside']),
        ((1, 1, 96, 66), ['box_outside']),
        ((10, 10, 11, 11), []),
        ((10, 10, 10, 30), ['empty_box']),
        ((10, 10, 30, 10), ['empty_box']),
        ((30, 10, 10, 30), ['empty_box']),
        ((10, 10, 30, None), ['malformed']),
        ((10, 10, 30, 'x'), ['malformed']),
        ((10, 10, 30, '1.1e9'), ['malformed']),
        (('10.9', 10, 11, 30), []),  # mmdet cuts off decimals
    ],
)
def test_boxes_may_leave_their_image_by_a_pixel(tmp_path, corners, found):
    problems = read(tmp_path, SIZE, thing(*corners))[2]
    assert [problem.kind for problem in problems] == found
    if found == ['box_outside']:
        left, top, right, bottom = corners
        assert problems[0].box == (left - 1, top - 1, right - left, bottom - top)
        assert problems[0].detail == f'from ({left}, {top}) to ({right}, {bottom}) in an image of 96 x 64'
        assert problems[0].where == f'{tmp_path}/x.xml, object 0'
        assert read(tmp_path, thing(*corners))[2] == [], 'the size is not known'


@pytest.mark.parametrize('value, valid', [('0', True), ('1', True), ('2', False), ('-1', False), ('x', False)])
def test_difficult_is_0_or_1(tmp_path, value, valid):
    problems = read(tmp_path, SIZE, thing(difficult=f'<difficult>{value}</difficult>'))[2]
    assert [problem.kind for problem in problems] == ([] if valid else ['malformed'])


@pytest.mark.parametrize(
    'width, height, size',
    [
        ('1', '1', (1, 1)),
        ('0', '64', None),
        ('96', '-1', None),
        ('96', 'x', None),
        ('x', '64', None),
        ('9e9', '9', None),
    ],
)
def test_the_size_of_an_image_is_positive(tmp_path, width, height, size):
    found, _, problems = read(tmp_path, f'<size><width>{width}</width><height>{height}</height></size>')
    assert (found, [problem.kind for problem in problems]) == (size, [] if size else ['malformed'])


def test_no_example_is_drawn_from_a_file_outside_the_dataset(tmp_path):
    for folders, drawn in (((), '/secret/x.jpg'), (('/data',), '')):
        [problem] = read(tmp_path, thing(10, 10, 10, 10), image='/secret/x.jpg', folders=folders)[2]
        assert problem.image == drawn


@pytest.mark.parametrize(
    'content, words', [(None, 'missing'), (b'<a>', 'ParseError: '), (b'\xff\xfe\x00', 'ParseError')]
)
def test_an_xml_that_cannot_be_read_is_named(tmp_path, content, words):
    data = CheckedDataset('train', 'x', ConfigDict(), 'voc', ('disc',), [])
    if content is not None:
        (tmp_path / 'x.xml').write_bytes(content)
    assert read_xml(data, ListedImage('x', str(tmp_path / 'x.xml'), 'x.jpg'), 7) == (None, [])
    [problem] = data.problems
    assert (problem.kind, problem.image, problem.image_index) == ('broken_xml', 'x.jpg', 7)
    assert problem.detail.startswith(words)
