"""Which datasets of a config are checked, and what their lists name."""

import json
import os

import pytest
from mmengine.config import Config, ConfigDict
from PIL import Image

from mmcasvit.datasets.checks.listing import has_size, is_id, is_image, load_datasets
from mmcasvit.datasets.checks.problems import CheckedDataset, Sample
from mmcasvit.utils.errors import UsageError


@pytest.mark.parametrize(
    'width, height, sized',
    [
        (1, 1, True),
        (10**9, 5, True),
        (0, 5, False),
        (5, -1, False),
        (5, True, False),
        (5.0, 5, False),
        (2 * 10**9, 5, False),
    ],
)
def test_a_size_is_two_positive_integers(width, height, sized):
    assert has_size(dict(width=width, height=height)) == has_size(dict(width=height, height=width)) == sized
    assert not has_size(dict(width=width))


def test_an_entry_of_an_image_has_an_id_and_a_name():
    assert is_image(dict(id=1, file_name='x'))
    for entry in (dict(id=1, file_name=1), dict(file_name='x'), dict(id=None, file_name='x'), dict(id=1), 'x'):
        assert not is_image(entry)
    assert [is_id(value) for value in (1, 'a', 1.5, None)] == [True, True, False, False]


def config(scope, **splits):
    return Config(
        dict(default_scope=scope, **{f'{split}_dataloader': dict(dataset=dataset) for split, dataset in splits.items()})
    )


def coco(root, **options):
    return dict(
        type='CocoDataset',
        data_root=str(root),
        ann_file='x.json',
        data_prefix=dict(img='images'),
        metainfo=dict(classes=('disc',)),
        **options,
    )


@pytest.fixture
def written(tmp_path):
    def write(images=(), **changes):
        content = dict(images=images, annotations=[], categories=[dict(id=1, name='disc')]) | changes
        (tmp_path / 'x.json').write_text(json.dumps(content))
        return coco(tmp_path)

    return write


def kinds(data):
    return [problem.kind for problem in data.problems]


def test_a_split_with_the_same_data_is_checked_once(written):
    first = written([dict(id=number, file_name=f'{number}.jpg', width=4, height=4) for number in range(3)])
    other = dict(first, ann_file='y.json')
    cfg = config(
        'mmdet', train=dict(type='RepeatDataset', dataset=first), val=first, test=dict(datasets=[first, other])
    )
    found = load_datasets(cfg, ['train', 'val', 'test'])
    assert [data.name for data in found] == [
        'train_dataloader.dataset.dataset',
        'test_dataloader.dataset.datasets.0',
        'test_dataloader.dataset.datasets.1',
    ]
    assert [data.split for data in found] == ['train', 'test', 'test']
    assert (found[0].reads, found[0].classes, kinds(found[2])) == ('coco', ('disc',), ['bad_file'])
    assert [len(load_datasets(cfg, ['val'], limit)[0].samples) for limit in (None, 2)] == [3, 2]
    with pytest.raises(UsageError, match=r'no data for val, test\.'):
        load_datasets(config('mmdet', train=first), ['val', 'test'])


def test_data_that_is_not_on_a_local_disk_is_refused(written):
    with pytest.raises(UsageError, match='has backend_args, but only data on a local disk'):
        load_datasets(config('mmdet', train=dict(written(), backend_args=dict(backend='petrel'))), ['train'])


def test_images_of_a_coco_file_are_listed_with_their_sizes(written, tmp_path):
    entries = [
        dict(id=1, file_name='a.jpg', width=6, height=4),
        dict(id=2),
        dict(id=3, file_name='b.jpg', width=6),
        dict(id=4, file_name='s3://c.jpg', width=6, height=4),
        dict(id=5, file_name='d.jpg', width=6, height=4),
    ]
    [data] = load_datasets(config('mmdet', train=written(entries)), ['train'])
    assert data.samples == [
        Sample(f'{tmp_path}/images/a.jpg', size=(6, 4), index=0),
        Sample(f'{tmp_path}/images/b.jpg', size=None, index=2),
        Sample(f'{tmp_path}/images/d.jpg', size=(6, 4), index=4),
    ]
    assert [(problem.kind, problem.image_index) for problem in data.problems] == [('malformed', i) for i in (1, 2, 3)]


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(images=3), 'it has no list of images'),
        (dict(annotations=None), 'it has no list of annotations'),
        (dict(categories={}), 'it has no list of categories'),
        (dict(categories=[3]), 'a category lacks its id or name'),
        (dict(categories=[dict(name='disc')]), 'a category lacks its id or name'),
        (dict(categories=[dict(id=1, name=3)]), 'a category lacks its id or name'),
    ],
)
def test_a_coco_file_of_another_form_is_named(written, changes, words):
    dataset = written(**changes)
    [data] = load_datasets(config('mmdet', train=dataset), ['train'])
    assert [(problem.kind, problem.detail) for problem in data.problems] == [('bad_file', words)]
    assert (data.content, data.samples) == ({}, [])


def test_a_pipe_is_not_opened(written, tmp_path):
    dataset = written()
    (tmp_path / 'x.json').unlink()
    os.mkfifo(tmp_path / 'x.json')
    [data] = load_datasets(config('mmdet', train=dataset), ['train'])
    assert data.problems[0].detail == 'neither a file nor a folder'


def masks(root, **options):
    return dict(
        type='BaseSegDataset',
        data_root=str(root),
        data_prefix=dict(img_path='i', seg_map_path='m'),
        metainfo=dict(classes=('a',)),
        pipeline=[],
        **options,
    )


def test_images_are_listed_with_their_masks_and_masks_without_images_named(tmp_path):
    for name in ('i/b.jpg', 'i/sub/a.jpg', 'i/x.png', 'm/b.png', 'm/z.png', 'm/c.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    [data] = load_datasets(config('mmseg', train=masks(tmp_path)), ['train'])
    assert data.samples == [
        Sample(f'{tmp_path}/i/{name}.jpg', f'{tmp_path}/m/{name}.png', index=index)
        for index, name in enumerate(['b', 'sub/a'])
    ]
    assert [(problem.kind, problem.where, problem.detail) for problem in data.problems] == [
        ('mask_without_image', f'{tmp_path}/m/{name}.png', f'no {name}.jpg') for name in 'cz'
    ]
    [data] = load_datasets(config('mmseg', train=masks(tmp_path, img_suffix='.png', seg_map_suffix='.x')), ['train'])
    assert data.samples == [Sample(f'{tmp_path}/i/x.png', f'{tmp_path}/m/x.x', index=0)]
    [data] = load_datasets(config('mmseg', train=masks(tmp_path, img_suffix='.bmp')), ['train'])
    assert kinds(data)[-1] == 'no_instances'
    [data] = load_datasets(config('mmseg', train=masks(tmp_path / 'gone')), ['train'])
    assert kinds(data) == ['bad_file']


def test_a_list_of_names_is_read_and_what_it_repeats_named(tmp_path):
    (tmp_path / 'i').mkdir()
    (tmp_path / 'x.txt').write_text('b\n a\nb\nb\n')
    [data] = load_datasets(config('mmseg', train=masks(tmp_path, ann_file='x.txt')), ['train'])
    assert [os.path.basename(sample.image) for sample in data.samples] == ['b.jpg', 'a.jpg', 'b.jpg', 'b.jpg']
    [problem] = data.problems
    assert (problem.kind, problem.where, problem.detail) == (
        'duplicate_file',
        'b',
        f'listed 3 times in {tmp_path}/x.txt',
    )
    (tmp_path / 'x.txt').write_bytes(b'caf\xe9')
    [data] = load_datasets(config('mmseg', train=masks(tmp_path, ann_file='x.txt')), ['train'])
    assert kinds(data) == ['bad_file']


def test_names_of_a_voc_list_are_read(tmp_path):
    (tmp_path / 'Annotations').mkdir()
    body = '<size><width>6</width><height>4</height></size>'
    things = ''.join(
        f'<object><name>{name}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></object>'
        for name in ('cube', 'disc', 'cube')
    )
    for name in ('a', 'b'):
        (tmp_path / f'Annotations/{name}.xml').write_text(f'<annotation>{body}{things}</annotation>')
    (tmp_path / 'x.txt').write_text('a\nb\na\n../../c\ns3://d\n')
    dataset = dict(
        type='XMLDataset',
        data_root=str(tmp_path),
        ann_file='x.txt',
        data_prefix=dict(sub_data_root=''),
        metainfo=dict(classes=('disc',)),
    )
    [data] = load_datasets(config('mmdet', train=dataset), ['train'])
    assert [(sample.size, sample.index) for sample in data.samples] == [
        ((6, 4), 0),
        ((6, 4), 1),
        ((6, 4), 2),
        (None, 3),
    ]
    assert [
        (problem.kind, problem.image_index, problem.detail) for problem in data.problems if problem.detail != 'missing'
    ] == [
        ('duplicate_file', None, f'listed 2 times in {tmp_path}/x.txt'),
        ('path_outside', 3, f'not in {tmp_path}'),
        ('malformed', 4, 'mmengine takes :// for an address'),
        ('unknown_class', None, "'cube': 6 objects"),
    ]
    dataset['metainfo'] = dict(classes=('ball',))
    [data] = load_datasets(config('mmdet', train=dataset), ['train'])
    assert data.problems[-1].detail == '5 images, no object of the classes of the config'


def test_images_of_other_datasets_are_listed(tmp_path):
    for name in ('a/x.jpg', 'b/y.jpg'):
        (tmp_path / name).parent.mkdir()
        Image.new('RGB', (4, 4)).save(tmp_path / name)
    dataset = dict(type='CustomDataset', data_root=str(tmp_path), data_prefix='', pipeline=[dict(type='Nowhere')])
    [data] = load_datasets(config('mmpretrain', train=dataset), ['train'])
    assert data.samples == [
        Sample(f'{tmp_path}/{name}', index=index) for index, name in enumerate(['a/x.jpg', 'b/y.jpg'])
    ]
    [data] = load_datasets(config('mmpretrain', train=dict(dataset, data_root=str(tmp_path / 'gone'))), ['train'])
    assert kinds(data) == ['bad_file']


def test_a_dataset_says_what_it_needs_and_what_is_not_checked():
    def made(reads='coco', folders=(), file='', **options):
        return CheckedDataset(
            'train', 'x', ConfigDict(type='X', data_root='r', **options), reads, (), list(folders), file
        )

    nested = [dict(type='SkipUnreadable', transforms=[dict(type='LoadAnnotations', with_mask=True)])]
    assert made(pipeline=nested).needs_masks
    assert not made(pipeline=[dict(type='LoadAnnotations', with_mask=False)]).needs_masks
    assert made(file='x.json').source == 'x.json'
    assert made(data_prefix=dict(img_path='i')).source == 'r/i'
    assert not made().is_outside('/x')
    assert made(folders=['/a']).is_outside('/x')
    assert not made(folders=['/a']).is_outside('/a/x')
    assert (made('images').not_checked, made('coco').not_checked) == ('boxes, masks and labels of X', '')
