"""Which entries of a COCO file are faults, and which are just within bounds."""

import pytest
from mmengine.config import ConfigDict

from mmcasvit.datasets.checks.annotations import check_annotations
from mmcasvit.datasets.checks.problems import CheckedDataset

POLYGON = [[10, 10, 30, 10, 30, 30]]


def image(number=1, **changes):
    return dict(id=number, file_name=f'{number}.jpg', width=96, height=64) | changes


def annotation(number=1, **changes):
    entry = dict(id=number, image_id=1, category_id=5, bbox=[10, 10, 20, 20], area=400, segmentation=POLYGON) | changes
    return {key: value for key, value in entry.items() if value is not None}


def checked(images=None, annotations=None, categories=('disc',), classes=('disc',), **config):
    content = dict(
        images=[image()] if images is None else images,
        annotations=[annotation()] if annotations is None else annotations,
        categories=[dict(id=number, name=name) for number, name in enumerate(categories, 5)],
    )
    config = ConfigDict(dict(data_root='root', data_prefix=dict(img='train')) | config)
    data = CheckedDataset('train', 'x', config, 'coco', tuple(classes), ['root'], 'root/x.json', content=content)
    check_annotations(data)
    return data.problems


def kinds(**entries):
    return [problem.kind for problem in checked(**entries)]


MASKS = dict(pipeline=[dict(type='LoadAnnotations', with_mask=True)])


def test_a_faultless_file_has_no_problems():
    assert kinds(images=[image(1), image('two')], annotations=[annotation(1), annotation('b', image_id='two')]) == []
    data = CheckedDataset('train', 'x', ConfigDict(), 'voc', (), [])
    check_annotations(data)
    assert data.problems == []


@pytest.mark.parametrize(
    'box, found',
    [
        ([-1, -1, 98, 66], []),  # a pixel beyond each side
        ([-1.1, 0, 20, 20], ['box_outside']),
        ([0, -1.1, 20, 20], ['box_outside']),
        ([0, 0, 97, 65], []),
        ([0, 0, 97.1, 20], ['box_outside']),
        ([0, 0, 20, 65.1], ['box_outside']),
        ([90, 60, 7, 5], []),
        ([90, 60, 7.1, 5], ['box_outside']),
        ([90, 60, 7, 5.1], ['box_outside']),
        ([10, 10, 1, 1], []),
        ([10, 10, 0.9, 20], ['empty_box']),
        ([10, 10, 20, 0.9], ['empty_box']),
        ([10, 10, 20], ['malformed']),
        ((10, 10, 20, 20), ['malformed']),
        ([10, 10, 20, '20'], ['malformed']),
        ([10, 10, 20, True], ['malformed']),
        ([10, 10, 20, 1.1e9], ['malformed']),
    ],
)
def test_boxes_may_leave_their_image_by_a_pixel(box, found):
    [*problems] = checked(annotations=[annotation(bbox=box)])
    assert [problem.kind for problem in problems] == found
    if found == ['box_outside']:
        assert problems[0].box == tuple(box)
        assert problems[0].detail == f'bbox {box} in an image of 96 x 64'


@pytest.mark.parametrize('area, found', [(0.1, []), (0, ['empty_box']), (-1, ['empty_box']), ('9', ['empty_box'])])
def test_an_area_is_a_positive_number(area, found):
    assert kinds(annotations=[annotation(area=area)]) == found


@pytest.mark.parametrize('change', [dict(width=None), dict(height=0), dict(width=True)])
def test_what_needs_the_size_of_the_image_is_left_out_without_it(change):
    far = annotation(bbox=[900, 900, 20, 20], segmentation=dict(size=[64, 96], counts=[5]))
    assert kinds(images=[image(**change)], annotations=[far]) == []
    polygon = annotation(segmentation=[[0, 0, 5000, 0, 5000, 5000]])
    assert kinds(images=[image(**change)], annotations=[polygon]) == []
    assert kinds(annotations=[polygon]) == ['broken_polygon']


@pytest.mark.parametrize(
    'segmentation, found, with_masks',
    [
        (None, [], ['no_outline']),
        ([], [], ['no_outline']),
        (POLYGON, [], []),
        ([*POLYGON, [1, 2]], ['broken_polygon'], ['broken_polygon']),
        ('outline', ['broken_polygon'], ['broken_polygon']),
        (dict(size=[64, 96], counts=[64 * 96]), [], []),
        (dict(size=[96, 64], counts=[64 * 96]), ['broken_rle'], ['broken_rle']),
    ],
)
def test_outlines_are_checked_and_needed_for_masks(segmentation, found, with_masks):
    entry = annotation(segmentation=segmentation)
    assert kinds(annotations=[entry]) == found
    assert kinds(annotations=[entry], **MASKS) == with_masks


@pytest.mark.parametrize('key', ['id', 'image_id', 'category_id', 'bbox', 'area'])
def test_an_entry_needs_its_fields(key):
    [problem] = checked(annotations=[annotation(), annotation(2, **{key: None})])
    assert (problem.kind, problem.where, problem.annotation_index) == ('malformed', 'annotations[1]', 1)


def test_each_entry_is_checked_though_the_one_before_is_faulty():
    broken = [
        annotation(1, image_id=7),
        3,
        annotation(1),
        annotation(2, category_id=6),
        annotation(3, bbox=[1, 2, 0, 4]),
    ]
    problems = checked(annotations=broken)
    assert [(problem.kind, problem.annotation_index) for problem in problems] == [
        ('no_such_image', 0),
        ('malformed', 1),
        ('duplicate_annotation_id', 2),
        ('unknown_category', 3),
        ('empty_box', 4),
    ]
    assert [problem.image for problem in problems] == ['', '', '', 'root/train/1.jpg', 'root/train/1.jpg']
    assert problems[-1].where == '1.jpg, annotation 3'


def test_no_example_is_drawn_from_a_file_outside_the_dataset():
    [problem] = checked(images=[image(file_name='../../x.jpg')], annotations=[annotation(bbox=[1, 2, 0, 4])])
    assert (problem.kind, problem.image) == ('empty_box', '')


def test_images_that_are_listed_twice_are_told_from_ids_that_are_used_twice():
    same = [image(1), image(2, file_name='1.jpg'), image(3, file_name='1.jpg'), dict(file_name=4)]
    assert [(problem.kind, problem.where, problem.image_index, problem.detail) for problem in checked(images=same)] == [
        ('duplicate_file', '1.jpg', 1, 'listed with ids 1 and 2'),
        ('duplicate_file', '1.jpg', 2, 'listed with ids 1 and 3'),
    ]
    other = [image(1), image(1, file_name='b.jpg'), image(2)]
    assert [(problem.kind, problem.where, problem.image_index) for problem in checked(images=other)] == [
        ('duplicate_image_id', '1.jpg', 0),
        ('duplicate_image_id', 'b.jpg', 1),
    ]
    assert kinds(images=[image(1), image(1)]) == ['duplicate_file']


def test_the_first_image_of_an_id_is_that_of_its_annotations():
    found = checked(images=[image(1), image(1, file_name='b.jpg', width=9)], annotations=[annotation()])
    assert {problem.kind for problem in found} == {'duplicate_image_id'}


@pytest.mark.parametrize(
    'categories, classes, found',
    [
        (('disc', 'box'), ('disc', 'box'), []),
        (('box', 'disc'), ('disc', 'box'), ['class_order']),
        (('disc',), ('disc', 'box'), ['class_missing']),
        (('disc', 'other'), ('disc',), []),
        (('disc', 'disc'), ('disc',), ['duplicate_category']),
        (('disc', 'x', 'x'), ('disc',), []),
    ],
)
def test_categories_are_those_of_the_config(categories, classes, found):
    assert kinds(categories=categories, classes=classes) == found


@pytest.mark.parametrize('entries', [dict(images=[], annotations=[]), dict(annotations=[])])
def test_a_file_without_instances_is_named(entries):
    [problem] = checked(**entries)
    assert problem.kind == 'no_instances'
    assert problem.detail == f'{len(entries.get("images", [1]))} images, 0 annotations'


def test_classes_without_an_object_are_known():
    content = dict(images=[image()], annotations=[annotation(), annotation(2, category_id=7)])
    content['categories'] = [dict(id=5 + number, name=name) for number, name in enumerate(['disc', 'ring', 'star'])]
    data = CheckedDataset('val', 'x', ConfigDict(), 'coco', ('disc', 'ring', 'star'), [], 'x.json', content=content)
    check_annotations(data)
    assert data.absent == ['ring']
