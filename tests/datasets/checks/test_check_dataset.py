"""tools/check_dataset.py finds each kind of problem once, draws it, and removes it with --fix."""

import json
import shutil
import sys

import numpy as np
import pytest
from helpers.repository import ROOT, load_tool
from mmengine.config import Config
from PIL import Image

from mmcasvit.datasets.checks.fixed_files import fix_coco
from mmcasvit.datasets.checks.problems import KINDS
from mmcasvit.datasets.shapes import write_dataset

CONFIGS = [
    ROOT / 'configs/detection/mask-rcnn_casvit-xs_fpn_6e_shapes.py',
    ROOT / 'configs/segmentation/semantic-fpn_casvit-xs_600i_shapes.py',
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


def turn(path):
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)


def first(coco, **values):
    coco.annotations[0].update(values)


COCO_FAULTS = dict(
    bad_file=[lambda c: c.content.pop('images'), lambda c: c.content.update(categories=[{}])],
    no_instances=[lambda c: c.content.update(annotations=[])],
    class_missing=[lambda c: c.content['categories'][0].update(name='cube')],
    class_order=[lambda c: c.content['categories'].reverse()],
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
    ],
    path_outside=[lambda c: c.image.update(file_name='../../../x.jpg'), lambda c: c.image.update(file_name='/x.jpg')],
    missing_image=[lambda c: c.path.unlink()],
    unreadable_image=[
        lambda c: truncate(c.path),
        lambda c: c.path.write_bytes(b''),
        lambda c: c.path.write_text('no image'),
        lambda c: (c.path.unlink(), c.path.mkdir()),
    ],
    wrong_size=[lambda c: grow(c.path), lambda c: turn(c.path)],
    no_such_image=[lambda c: first(c, image_id=12345)],
    unknown_category=[lambda c: first(c, category_id=77)],
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
    if kind in ('bad_file', 'class_missing', 'no_instances'):
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
