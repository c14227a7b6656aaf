"""Which entries a fixed copy of an annotation file leaves out, and which it corrects."""

from pathlib import Path

import pytest
from mmengine.config import ConfigDict

from mmcasvit.datasets.checks.fixed_files import check_no_fixed_files, fix_coco, fix_names, fixed_path, write_fixed
from mmcasvit.datasets.checks.problems import KINDS, CheckedDataset, Sample
from mmcasvit.utils.errors import UsageError


def dataset(reads='coco', split='train', file='x.json', **config):
    content = dict(
        images=[dict(id=number, width=96, height=64) for number in range(3)],
        annotations=[dict(id=10 + n, image_id=n // 2, bbox=[10, 10, 20, 20]) for n in range(6)],
        categories=[dict(name='a'), dict(name='other'), dict(name='b')],
    )
    config = ConfigDict(dict(type='BaseSegDataset', data_root='', data_prefix=dict(img_path='img')) | config)
    samples = [Sample(f'img/{name}.jpg', index=index) for index, name in enumerate(['a', 'b/c', 'd', 'a'])]
    return CheckedDataset(split, f'{split}_loader', config, reads, ('b', 'a'), [], file, samples, content)


def fixed(*problems):
    data = dataset()
    for kind, place in problems:
        data.add(kind, 'x', 'y', **place)
    before = repr(data.content)
    content, done = fix_coco(data)
    assert repr(data.content) == before
    return content, done


def image(index):
    return dict(image_index=index)


def annotation(index):
    return dict(annotation_index=index)


def ids(entries):
    return [entry['id'] for entry in entries]


@pytest.mark.parametrize('kind', ['missing_image', 'malformed', 'overlap', 'wrong_size', 'duplicate_file'])
def test_an_image_is_left_out_with_its_annotations(kind):
    content, done = fixed((kind, image(1)), ('missing_image', image(1)))
    assert (ids(content['images']), ids(content['annotations'])) == ([0, 2], [10, 11, 14, 15])
    assert done == [f'left out {KINDS[kind]}: 1', 'left out annotations whose image was left out: 2']


@pytest.mark.parametrize('kind', ['malformed', 'no_such_image', 'unknown_category', 'empty_box', 'broken_rle'])
def test_an_annotation_is_left_out(kind):
    content, done = fixed((kind, annotation(0)), ('empty_box', annotation(0)), (kind, annotation(3)))
    assert (ids(content['images']), ids(content['annotations'])) == ([0, 1, 2], [11, 12, 14, 15])
    assert done == [f'left out {KINDS[kind]}: 2']


@pytest.mark.parametrize(
    'box, clipped',
    [
        ([-5, -6, 20, 20], [0, 0, 15, 14]),
        ([90, 60, 20, 20], [90, 60, 6, 4]),
        ([95, 63, 20, 20], [95, 63, 1, 1]),
        ([95.1, 60, 20, 20], None),
        ([90, 63.1, 20, 20], None),
        ([-19, -19, 20, 20], [0, 0, 1, 1]),
        ([-19.1, 0, 20, 20], None),
    ],
)
def test_a_box_is_clipped_or_left_out(box, clipped):
    data = dataset()
    data.content['annotations'][2]['bbox'] = box
    data.add('box_outside', 'x', 'y', annotation_index=2)
    content, done = fix_coco(data)
    found = {entry['id']: entry['bbox'] for entry in content['annotations']}
    assert found.pop(12, None) == clipped
    assert list(found) == [10, 11, 13, 14, 15]
    assert done[-1] == 'clipped boxes to their image, or left them out: 1'
    assert ('left out boxes that are outside their image: 1' in done) == (clipped is None)


def test_an_id_that_is_used_twice_is_replaced_by_new_ones():
    content, done = fixed(('duplicate_annotation_id', annotation(1)), ('duplicate_annotation_id', annotation(4)))
    assert ids(content['annotations']) == [10, 16, 12, 13, 17, 15]
    assert done == ['gave annotations a new id: 2']
    data = dataset()
    data.content['annotations'] = [3, dict(id='x', image_id=0)]
    data.add('malformed', 'x', 'y', annotation_index=0)
    data.add('duplicate_annotation_id', 'x', 'y', annotation_index=1)
    assert ids(fix_coco(data)[0]['annotations']) == [1]


def test_categories_are_sorted_and_unknown_ones_go_last():
    content, done = fixed(('class_order', {}))
    assert [category['name'] for category in content['categories']] == ['b', 'a', 'other']
    assert done == ['sorted the categories into the order of the classes of the config']
    assert fixed()[1] == []


def test_the_names_of_faultless_images_are_kept_once():
    data = dataset('masks')
    for kind, index in (('mask_labels', 2), ('missing_mask', 2), ('class_missing', 1), ('overlap', None)):
        data.add(kind, 'x', 'y', image_index=index)
    assert fix_names(data) == (['a', 'b/c'], [f'left out {KINDS["mask_labels"]}: 1'])
    data.config.img_suffix = 'jpg'
    assert fix_names(data)[0] == ['a.', 'b/c.']


@pytest.mark.parametrize(
    'reads, file, path',
    [
        ('coco', 'a/x.json', 'a/x.fixed.json'),
        ('masks', '', 'img.fixed.txt'),
        ('masks', 'a/x.lst', 'a/x.fixed.lst'),
        ('voc', 'a/x.txt', None),
        ('images', 'a/x.txt', None),
    ],
)
def test_the_fixed_file_is_next_to_the_original(reads, file, path):
    assert fixed_path(dataset(reads, file=file, data_prefix=dict(img_path='img/'))) == (path and Path(path))


def test_a_fixed_file_that_exists_is_not_overwritten(tmp_path):
    data = [dataset('voc'), dataset(file=str(tmp_path / 'x.json'))]
    check_no_fixed_files(data)
    (tmp_path / 'x.fixed.json').touch()
    with pytest.raises(UsageError, match=r'x\.fixed\.json already exists'):
        check_no_fixed_files(data)


@pytest.mark.parametrize('split, evaluator', [('train', False), ('val', True)])
def test_the_message_says_how_to_use_the_fixed_file(tmp_path, split, evaluator):
    data = dataset(split=split, file=str(tmp_path / 'a/x.json'), data_root=str(tmp_path))
    (tmp_path / 'a').mkdir()
    path = tmp_path / 'a/x.fixed.json'
    assert write_fixed(data) == f'{split}_loader: none of the problems can be fixed by leaving entries out'
    data.add('empty_box', 'x', 'y', annotation_index=0)
    lines = write_fixed(data).splitlines()
    assert lines[0] == f'{split}_loader: left out {KINDS["empty_box"]}: 1'
    assert lines[1] == f'  written: {path}'
    option = f'  to use it: --cfg-options {split}_loader.ann_file=a/x.fixed.json'
    assert lines[2] == option + (f' {split}_evaluator.ann_file={path}' if evaluator else '')
    assert '"id": 11' in path.read_text()


@pytest.mark.parametrize('kind', ['bad_file', 'duplicate_category'])
def test_some_files_cannot_be_fixed(tmp_path, kind):
    data = dataset(file=str(tmp_path / 'x.json'))
    data.add('empty_box', 'x', 'y', annotation_index=0)
    data.add(kind, 'x', 'y')
    assert write_fixed(data) == write_fixed(dataset('voc')) == 'train_loader: cannot be fixed automatically'
    assert list(tmp_path.iterdir()) == []
