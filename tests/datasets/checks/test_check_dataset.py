"""tools/check_dataset.py finds each kind of problem once, draws it, and removes it with --fix."""

import json
import os
import pickle
import shutil
import sys

import numpy as np
import pytest
from helpers.attack import Attack
from helpers.repository import ROOT, load_tool
from mmengine.config import Config
from PIL import Image

from mmcasvit.apis.preflight import check_data
from mmcasvit.datasets.checks.fixed_files import fix_coco
from mmcasvit.datasets.checks.problems import KINDS
from mmcasvit.datasets.shapes import write_dataset
from mmcasvit.utils.errors import UsageError

CONFIGS = [
    ROOT / 'configs/detection/mask-rcnn_casvit-xs_fpn_6e_shapes.py',
    ROOT / 'configs/segmentation/semantic-fpn_casvit-xs_300i_shapes.py',
]
WIDTH, HEIGHT = 96, 64


@pytest.fixture(scope='module')
def tool():
    return load_tool('check_dataset')


@pytest.fixture(scope='module')
def configs(tmp_path_factory):
    """Configs of a detector and a segmentor without their bases, which take a second to resolve."""
    folder = tmp_path_factory.mktemp('configs')
    for path in CONFIGS:
        cfg = Config.fromfile(path, import_custom_modules=False)
        (folder / path.name).write_text(''.join(f'{key} = {part!r}\n' for key, part in cfg.to_dict().items()))
    return [folder / path.name for path in CONFIGS]


@pytest.fixture(scope='module')
def detector(configs):
    return configs[0]


@pytest.fixture(scope='module')
def segmentor(configs):
    return configs[1]


@pytest.fixture(scope='module')
def faultless(tmp_path_factory):
    root = tmp_path_factory.mktemp('faultless') / 'shapes'
    write_dataset(root, train=4, val=2, seed=3, height=HEIGHT, width=WIDTH)
    return root


@pytest.fixture
def data(faultless, tmp_path):
    return shutil.copytree(faultless, tmp_path / 'shapes')


@pytest.fixture
def check(tool, monkeypatch, capsys):
    """Run the tool in this process and return its exit status, stdout, and stderr."""

    def run(*arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, 'argv', ['check_dataset.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            tool.main()
        printed = capsys.readouterr()
        return end.value.code, printed.out, printed.err

    return run


class Coco:
    """Training split of a COCO dataset to plant faults in."""

    def __init__(self, root):
        self.images = root / 'coco/train2017'
        self.file = root / 'coco/annotations/instances_train2017.json'
        self.content = json.loads(self.file.read_text())
        self.image = self.content['images'][0]
        self.path = self.images / self.image['file_name']
        self.annotations = [a for a in self.content['annotations'] if not a['iscrowd']]

    def save(self):
        self.file.write_text(json.dumps(self.content))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def grow(path, mode='RGB'):
    Image.new(mode, (WIDTH + 1, HEIGHT), 1).save(path)


def turn(path, orientation=6, **options):
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **options)


def first(coco, **values):
    coco.annotations[0].update(values)


COCO_FAULTS = dict(
    bad_file=[
        lambda c: c.content.pop('images'),
        lambda c: c.content.update(categories=[{}]),
        lambda c: c.content['categories'][0].update(name=['x']),
        lambda c: c.content['categories'][0].update(id='x'),
        lambda c: c.image.update(id='x'),
    ],
    no_instances=[lambda c: c.content.update(annotations=[])],
    class_missing=[lambda c: c.content['categories'][0].update(name='cube')],
    class_order=[lambda c: c.content['categories'].reverse()],
    duplicate_category=[
        lambda c: c.content['categories'].append(dict(c.content['categories'][-1], id=77)),
        lambda c: c.content['categories'].append(dict(c.content['categories'][0], id=77)),
        lambda c: c.content['categories'].append(dict(c.content['categories'][0], name='unused')),
    ],
    duplicate_image_id=[
        lambda c: (
            shutil.copy(c.path, c.images / 'new.jpg'),
            c.content['images'].append(dict(c.image, file_name='new.jpg')),
        )
    ],
    duplicate_file=[lambda c: c.content['images'].append(dict(c.image, id=99))],
    duplicate_annotation_id=[lambda c: c.annotations[1].update(id=c.annotations[0]['id'])],
    malformed=[
        lambda c: first(c, bbox=[1, 2, 3]),
        lambda c: first(c, bbox=[1, 2, 3, float('nan')]),
        lambda c: c.annotations[0].pop('area'),
        lambda c: c.content['annotations'].append(3),
        lambda c: c.image.pop('width'),
        lambda c: c.content['images'].append({'id': 98}),
        lambda c: c.image.update(width=True),
        lambda c: c.image.update(file_name='http://example.org/x.jpg'),
        lambda c: first(c, bbox=[1, 2, 3, 10**400]),
        lambda c: first(c, bbox=[1e10, 2, 3, 4]),
        lambda c: first(c, id=2**63),
    ],
    path_outside=[lambda c: c.image.update(file_name='../../../x.jpg'), lambda c: c.image.update(file_name='/x.jpg')],
    missing_image=[lambda c: c.path.unlink()],
    unreadable_image=[
        lambda c: truncate(c.path),
        lambda c: c.path.write_bytes(b''),
        lambda c: c.path.write_text('no image'),
        lambda c: Image.new('F', (WIDTH, HEIGHT)).save(c.path, 'PPM'),
        lambda c: (c.path.unlink(), c.path.mkdir()),
    ],
    wrong_size=[lambda c: grow(c.path), lambda c: turn(c.path)],
    orientation=[lambda c: turn(c.path, 3, format='WEBP')],
    no_such_image=[lambda c: first(c, image_id=12345)],
    unknown_category=[lambda c: first(c, category_id=77)],
    iscrowd=[
        lambda c: first(c, iscrowd='x'),
        lambda c: first(c, iscrowd=None),
        lambda c: first(c, iscrowd=[1]),
        lambda c: first(c, iscrowd=2),
    ],
    empty_box=[
        lambda c: first(c, bbox=[3, 4, 0, 5]),
        lambda c: first(c, bbox=[3, 4, -5, 5]),
        lambda c: first(c, area=0),
    ],
    box_outside=[lambda c: first(c, bbox=[90, 10, 20, 20]), lambda c: first(c, bbox=[500, 500, 20, 20])],
    broken_polygon=[
        lambda c: first(c, segmentation=[[1, 2, 3, 4]]),
        lambda c: first(c, segmentation=[[1, 2] * 3]),
        lambda c: first(c, segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
        lambda c: first(c, segmentation=[['a'] * 6]),
        lambda c: first(c, segmentation='outline'),
        lambda c: first(c, segmentation=[[1, 2, 3, 4, 3e7, 6]]),
        lambda c: first(c, segmentation=[[1, 2, 3, 4, 10**400, 6]]),
    ],
    broken_rle=[
        lambda c: first(c, segmentation=dict(size=[HEIGHT, WIDTH], counts=[5, 5])),
        lambda c: first(c, segmentation=dict(size=[WIDTH, HEIGHT], counts=[HEIGHT * WIDTH])),
        lambda c: first(c, segmentation=dict(size=[HEIGHT, WIDTH], counts='~~~')),
    ],
    no_outline=[lambda c: c.annotations[0].pop('segmentation')],
    overlap=[lambda c: shutil.copy(c.images.parent / 'val2017' / c.image['file_name'], c.path)],
)


@pytest.mark.parametrize(
    'kind, plant',
    [
        pytest.param(kind, plant, id=f'{kind}-{number}')
        for kind, plants in COCO_FAULTS.items()
        for number, plant in enumerate(plants)
    ],
)
def test_coco_fault_is_found_drawn_and_fixed(kind, plant, data, check, detector, tmp_path):
    coco = Coco(data)
    plant(coco)
    coco.save()
    before = coco.file.read_bytes()
    options = ['--cfg-options', f'data_root={data}/coco/']
    status, out, _ = check(
        detector, '--workers', 1, '--sheet', tmp_path / 'sheet.png', '--json', tmp_path / 'x.json', '--fix', *options
    )
    assert status == 1
    assert KINDS[kind] in out
    found = json.loads((tmp_path / 'x.json').read_text())['train_dataloader.dataset']['problems']
    assert {problem['kind'] for problem in found} == {kind}
    assert coco.file.read_bytes() == before
    if found[0]['image']:
        assert np.asarray(Image.open(tmp_path / 'sheet.png')).std() > 10
    fixed = coco.file.with_name('instances_train2017.fixed.json')
    if kind in ('bad_file', 'class_missing', 'duplicate_category', 'no_instances'):
        assert not fixed.exists()
        return
    use = out.split('to use it: --cfg-options ')[1].split()[0]
    assert use == 'train_dataloader.dataset.ann_file=annotations/instances_train2017.fixed.json'
    status, out, _ = check(detector, '--workers', 1, *options, use)
    assert (status, out.splitlines()[-1]) == (0, 'no problems found')
    left = json.loads(fixed.read_text())
    assert len(left['images']) >= 2
    assert 'already exists' in check(detector, '--fix', *options)[2]


def relabel(path, value):
    labels = np.asarray(Image.open(path)).copy()
    labels[:4, :4] = value
    Image.fromarray(labels).save(path)


MASK_FAULTS = dict(
    missing_mask=lambda image, mask: mask.unlink(),
    unreadable_mask=lambda image, mask: mask.write_bytes(mask.read_bytes()[:60]),
    mask_size=lambda image, mask: grow(mask, 'L'),
    mask_format=lambda image, mask: Image.open(mask).convert('RGB').save(mask),
    mask_labels=lambda image, mask: relabel(mask, 9),
    mask_without_image=lambda image, mask: shutil.copy(mask, mask.with_name('stray.png')),
    unreadable_image=lambda image, mask: image.write_bytes(image.read_bytes()[:300]),
    orientation=lambda image, mask: turn(image, 3),
    overlap=lambda image, mask: shutil.copy(image.parent.parent / 'validation' / image.name, image),
)


@pytest.mark.parametrize('kind', MASK_FAULTS)
def test_mask_fault_is_found_drawn_and_fixed(kind, data, check, segmentor, tmp_path):
    image, mask = (
        next(iter(sorted((data / 'ade' / folder / 'training').iterdir()))) for folder in ('images', 'annotations')
    )
    MASK_FAULTS[kind](image, mask)
    options = ['--cfg-options', f'data_root={data}/ade']
    status, out, _ = check(
        segmentor, '--workers', 1, '--fix', '--sheet', tmp_path / 'x.png', '--json', tmp_path / 'x.json', *options
    )
    assert status == 1
    found = json.loads((tmp_path / 'x.json').read_text())['train_dataloader.dataset']['problems']
    assert [problem['kind'] for problem in found] == [kind]
    assert KINDS[kind] in out
    if kind == 'mask_without_image':
        return
    use = out.split('to use it: --cfg-options ')[1].split()[0]
    assert use == 'train_dataloader.dataset.ann_file=images/training.fixed.txt'
    assert len((data / 'ade/images/training.fixed.txt').read_text().split()) == 3
    assert check(segmentor, '--workers', 1, *options, use)[0] == 0


def test_a_mask_with_a_side_of_one_pixel_is_found(data, check, segmentor):
    for folder, suffix in dict(images='jpg', annotations='png').items():
        Image.new('L', (1, 9)).save(data / f'ade/{folder}/training/000000000001.{suffix}')
    status, out, _ = check(segmentor, '--workers', 1, '--cfg-options', f'data_root={data}/ade')
    assert (status, KINDS['mask_size'] in out) == (1, True)


def test_labels_are_checked_as_the_dataset_reads_them(data, check, segmentor):
    """0 is unlabeled with reduce_zero_label and the first class without. 255 is ignored with both."""
    for mask in (data / 'ade/annotations/training').iterdir():
        relabel(mask, 255)
    options = ['--cfg-options', f'data_root={data}/ade']
    assert check(segmentor, '--workers', 1, *options)[0] == 0
    status, out, _ = check(
        segmentor, '--workers', 1, '--splits', 'train', *options, 'train_dataloader.dataset.reduce_zero_label=False'
    )
    assert (status, '8; 8 classes, reduce_zero_label=False' in out) == (1, True)


def test_datasets_inside_wrappers_are_checked_in_parallel(data, check, detector, tmp_path):
    coco = Coco(data)
    coco.path.unlink()
    first(coco, category_id=77)
    coco.save()
    cfg = Config.fromfile(detector, import_custom_modules=False)
    part = cfg.train_dataloader.dataset
    part.data_root = f'{data}/coco/'
    cfg.val_dataloader.dataset.data_root = f'{data}/coco/'
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset',
        times=2,
        dataset=dict(
            type='ConcatDataset',
            datasets=[
                part,
                dict(part, ann_file='annotations/instances_val2017.json', data_prefix=dict(img='val2017/')),
            ],
        ),
    )
    cfg.dump(tmp_path / 'nested.py')
    status, out, err = check(tmp_path / 'nested.py', '--workers', 2, '--splits', 'train', 'val', '--fix')
    assert status == 1
    assert 'reading images' in err
    assert 'annotations of categories that are not listed: 1' in out
    assert 'training images that are also in another split: 2' in out
    assert 'train_dataloader.dataset.dataset.datasets.0.ann_file=annotations/instances_train2017.fixed.json' in out
    assert 'left out missing images: 1' in out


def test_invalid_arguments_exit_with_status_2_and_write_nothing(data, check, detector, tmp_path):
    options = ['--cfg-options', f'data_root={data}/coco/']
    present = tmp_path / 'present.json'
    present.write_text('mine')
    for arguments, words in [
        (['--workers', 0], 'at least 1'),
        (['--limit', 0], 'at least 1'),
        (['--limit', 2, '--fix'], '--limit'),
        (['--sheet', 'x.txt'], '.png'),
        (['--json', present], 'already exists'),
        (['--json', tmp_path / 'no/x.json'], 'folder not found'),
    ]:
        status, _, err = check(detector, *arguments, *options)
        assert status == 2
        assert err.startswith('error: ')
        assert words in err
    assert present.read_text() == 'mine'
    status, out, _ = check(detector, '--limit', 1, '--workers', 1, *options)
    assert (status, out.count(': 1 images')) == (0, 2)


def test_boxes_are_clipped_and_ids_made_unique(data, tool, detector):
    coco = Coco(data)
    first(coco, bbox=[-3, 60, 10, 10])
    coco.annotations[1]['id'] = coco.annotations[0]['id']
    coco.save()
    cfg = tool.load_config(detector, {'data_root': f'{data}/coco/'})
    (dataset,) = tool.load_datasets(cfg, ['train'])
    tool.check_annotations(dataset)
    content, done = fix_coco(dataset)
    ids = [annotation['id'] for annotation in content['annotations']]
    assert len(set(ids)) == len(ids) == len(coco.content['annotations'])
    assert next(a for a in content['annotations'] if a['id'] == coco.annotations[0]['id'])['bbox'] == [0, 60, 7, 4]
    assert done == ['clipped boxes to their image, or left them out: 1', 'gave annotations a new id: 1']


@pytest.mark.parametrize(
    'harm',
    [
        lambda text: b'\xef\xbb\xbf' + text,
        lambda text: text.decode().encode('utf-16'),
        lambda text: b'[' * 100_000,
        lambda text: text[:-1] + b', "x": ' + b'9' * 5000 + b'}',
        lambda text: text.replace(b'000000000001.jpg', b'caf\xe9.jpg'),
    ],
    ids=['byte order mark', 'UTF-16', 'deeply nested', '5000 digits', 'Latin-1'],
)
def test_a_json_that_training_cannot_read_is_named(harm, data, check, detector):
    file = Coco(data).file
    file.write_bytes(harm(file.read_bytes()))
    status, out, _ = check(detector, '--workers', 1, '--splits', 'train', '--cfg-options', f'data_root={data}/coco/')
    assert status == 1
    assert KINDS['bad_file'] in out


@pytest.mark.parametrize('place', ['coco/annotations/instances_train2017.json', 'coco/train2017/000000000001.jpg'])
def test_a_pipe_is_named_and_not_read(place, data, check, detector):
    (data / place).unlink()
    os.mkfifo(data / place)
    status, out, _ = check(detector, '--workers', 1, '--splits', 'train', '--cfg-options', f'data_root={data}/coco/')
    assert status == 1
    assert (data / place).name in out


def test_file_names_in_latin_1_are_checked_and_printed(data, check, segmentor, capsys):
    for folder, suffix in (('images', 'jpg'), ('annotations', 'png')):
        file = data / f'ade/{folder}/training/000000000001.{suffix}'
        file.rename(file.with_name(os.fsdecode(f'café.{suffix}'.encode('latin-1'))))
    options = ['--workers', 1, '--splits', 'train', '--cfg-options', f'data_root={data}/ade']
    status, out, err = check(segmentor, *options)
    assert (status, out.splitlines()[-1]) == (0, 'no problems found'), err
    (data / 'ade/annotations/training' / os.fsdecode('café.png'.encode('latin-1'))).unlink()
    status, out, _ = check(segmentor, *options)
    assert status == 1
    assert 'caf\\udce9.png: missing' in out


def test_a_list_in_latin_1_is_named(data, check, segmentor):
    (data / 'ade/list.txt').write_bytes('café\n'.encode('latin-1'))
    options = [f'data_root={data}/ade', 'train_dataloader.dataset.ann_file=list.txt']
    status, out, _ = check(segmentor, '--workers', 1, '--splits', 'train', '--cfg-options', *options)
    assert (status, 'is not UTF-8 text' in out) == (1, True)


@pytest.mark.parametrize(
    'harm, kind', [(lambda a: a.pop('iscrowd'), 'iscrowd'), (lambda a: a.update(id='x'), 'malformed')]
)
def test_an_evaluation_needs_more_than_training(harm, kind, data, check, detector):
    for split, problems in dict(train=0, val=1).items():
        file = data / f'coco/annotations/instances_{split}2017.json'
        content = json.loads(file.read_text())
        harm(content['annotations'][0])
        file.write_text(json.dumps(content))
        options = ['--workers', 1, '--splits', split, '--fix', '--cfg-options', f'data_root={data}/coco/']
        status, out, _ = check(detector, *options)
        assert (status, KINDS[kind] in out) == (problems, bool(problems))
    fixed = json.loads(file.with_name('instances_val2017.fixed.json').read_text())['annotations']
    assert fixed == [dict(content['annotations'][0], iscrowd=0)] * (kind == 'iscrowd') + content['annotations'][1:]


@pytest.mark.parametrize('in_dataset', [True, False])
def test_another_reduce_zero_label_in_the_pipeline_is_named(in_dataset, data, check, segmentor):
    cfg = Config.fromfile(segmentor, import_custom_modules=False)
    cfg.train_dataloader.dataset.update(data_root=f'{data}/ade', reduce_zero_label=in_dataset)
    cfg.train_dataloader.dataset.pipeline[0] = dict(
        type='mmcasvit.SkipUnreadable',
        transforms=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=not in_dataset)],
    )
    with pytest.raises(UsageError, match=f'reduce_zero_label is {in_dataset} in the dataset but {not in_dataset}'):
        check_data(cfg, 'train')
    (data / 'x.py').write_text(''.join(f'{key} = {part!r}\n' for key, part in cfg.to_dict().items()))
    status, out, _ = check(data / 'x.py', '--workers', 1, '--splits', 'train')
    assert (status, KINDS['zero_label'] in out) == (1, True)


def test_pickled_annotations_are_refused_as_in_training(data, check, detector):
    (data / 'coco/x.pkl').write_bytes(pickle.dumps(Attack(str(data / 'was_here'))))
    options = [f'data_root={data}/coco/', 'train_dataloader.dataset.ann_file=x.pkl']
    status, _, err = check(detector, '--workers', 1, '--cfg-options', *options)
    assert (status, err.count('\n')) == (2, 1)
    assert 'is a pickle, and reading one can run code' in err
    assert not (data / 'was_here').exists()


def test_a_pickle_under_another_key_is_not_executed(data, check, tmp_path):
    (data / 'meta.pkl').write_bytes(pickle.dumps(Attack(str(data / 'was_here'))))
    (data / 'names.csv').write_text('/m/0,disc\n')
    tree = dict(LabelName='/m/0', Subcategory=[dict(LabelName='/m/0')])
    (data / 'tree.json').write_text(json.dumps(tree))
    (data / 'boxes.csv').write_text(
        'ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n'
        '000000000001,x,/m/0,1,0.1,0.5,0.1,0.5,0,0,0,0,0\n'
    )
    dataset = dict(
        type='OpenImagesDataset',
        data_root=f'{data}/',
        ann_file='boxes.csv',
        label_file='names.csv',
        meta_file='meta.pkl',
        hierarchy_file='tree.json',
        data_prefix=dict(img='coco/train2017/'),
    )
    text = f"default_scope = 'mmdet'\nmodel = dict()\ntrain_dataloader = dict(dataset={dataset!r})\n"
    (tmp_path / 'x.py').write_text(text)
    status, out, _ = check(tmp_path / 'x.py', '--workers', 1)
    assert not (data / 'was_here').exists()
    assert (status, KINDS['bad_file'] in out) == (1, True)
    assert 'holds posix.mkdir' in out


def test_what_is_not_checked_is_said(data, check, tmp_path):
    dataset = dict(type='CustomDataset', data_root=f'{data}/coco', data_prefix='', with_label=False)
    (tmp_path / 'x.py').write_text(
        f"default_scope = 'mmpretrain'\nmodel = dict()\ntrain_dataloader = dict(dataset={dataset!r})\n"
    )
    status, out, _ = check(tmp_path / 'x.py', '--workers', 1)
    assert status == 0
    assert 'not checked: boxes, masks and labels of CustomDataset' in out.splitlines()[1]
    assert out.splitlines()[-1].startswith('no problems found in what was checked; not checked: ')
