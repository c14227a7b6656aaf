"""tools/check_dataset.py reads the XML files of VOC-style datasets, and none outside the dataset."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from helpers.repository import load_tool
from mmengine.config import Config

from mmcasvit.apis.preflight import check_data
from mmcasvit.datasets.checks.problems import KINDS
from mmcasvit.datasets.shapes import THINGS, write_dataset
from mmcasvit.utils.errors import UsageError


@pytest.fixture(scope='module')
def faultless(tmp_path_factory):
    root = tmp_path_factory.mktemp('faultless') / 'shapes'
    write_dataset(root, train=3, val=1, seed=3, height=64, width=96)
    return root / 'voc'


@pytest.fixture
def voc(faultless, tmp_path):
    return shutil.copytree(faultless, tmp_path / 'data/voc')


def config_of(voc, **options):
    dataset = dict(
        type='XMLDataset',
        data_root=f'{voc}/',
        ann_file='ImageSets/Main/train.txt',
        data_prefix=dict(sub_data_root=''),
        metainfo=dict(classes=THINGS),
        pipeline=[],
    )
    return Config(dict(default_scope='mmdet', model={}, train_dataloader=dict(dataset=dict(dataset, **options))))


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    def run(cfg):
        (tmp_path / 'x.py').write_text(''.join(f'{key} = {part!r}\n' for key, part in cfg.to_dict().items()))
        monkeypatch.setattr(sys, 'argv', ['check_dataset.py', str(tmp_path / 'x.py'), '--workers', '1'])
        with pytest.raises(SystemExit) as end:
            load_tool('check_dataset').main()
        return end.value.code, capsys.readouterr().out

    return run


def xml_of(voc):
    return next(file for file in sorted((voc / 'Annotations').iterdir()) if '<xmin>' in file.read_text())


def change(old, new):
    return lambda xml: xml.write_text(re.sub(old, new, xml.read_text(), count=1))


FAULTS = dict(
    empty_box=[change(r'<xmax>\d+', '<xmax>0'), change(r'(?s)<xmin>(\d+)(.*?)<xmax>\d+', r'<xmin>\1\2<xmax>\1')],
    box_outside=[change(r'<xmax>\d+', '<xmax>500'), change(r'<xmin>\d+', '<xmin>-9')],
    malformed=[
        change(r'<xmin>\d+', '<xmin>x'),
        change(r'<xmin>\d+', '<xmin>nan'),
        change(r'<xmin>\d+', '<xmin>1e999'),
        change(r'<xmin>\d+</xmin>', ''),
        change('<width>96', '<width>-96'),
        change('<width>96', '<width>96.0'),
        change('<name>[a-z]+</name>', ''),
    ],
    unknown_class=[change('<name>[a-z]+', '<name>dics')],
    wrong_size=[change('<width>96', '<width>97')],
    broken_xml=[
        Path.unlink,
        lambda xml: xml.write_text('<annotation>'),
        lambda xml: (xml.unlink(), os.mkfifo(xml)),
        lambda xml: xml.write_bytes(b'\xff\xfe\x00'),
    ],
)


def test_a_faultless_dataset_has_no_problems(voc, check):
    status, out = check(config_of(voc))
    assert (status, out.splitlines()[-1]) == (0, 'no problems found')


@pytest.mark.parametrize(
    'kind, harm', [pytest.param(kind, harm, id=f'{kind}-{i}') for kind in FAULTS for i, harm in enumerate(FAULTS[kind])]
)
def test_a_fault_is_found(kind, harm, voc, check):
    harm(xml_of(voc))
    status, out = check(config_of(voc))
    assert status == 1
    assert KINDS[kind] in out
    assert sum(meaning in out for meaning in KINDS.values()) == 1, out


def test_classes_without_any_object_are_named(voc, check):
    status, out = check(config_of(voc, metainfo=dict(classes=('cube',))))
    assert status == 1
    assert KINDS['no_instances'] in out


def test_a_pipeline_that_loads_masks_is_named(voc, check):
    status, out = check(config_of(voc, pipeline=[dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]))
    assert (status, KINDS['no_outline'] in out) == (1, True)


def test_a_list_in_latin_1_is_named(voc, check):
    (voc / 'ImageSets/Main/train.txt').write_bytes('café\n'.encode('latin-1'))
    status, out = check(config_of(voc))
    assert (status, 'is not UTF-8 text' in out) == (1, True)
    with pytest.raises(UsageError, match='is not UTF-8 text'):
        check_data(config_of(voc), 'train')


@pytest.mark.parametrize('kind', ['XMLDataset', 'VOCDataset', 'WIDERFaceDataset'])
@pytest.mark.parametrize('name', ['../../../secret', '{root}/secret'])
def test_nothing_outside_the_data_root_is_opened(name, kind, voc, check, tmp_path):
    """The files outside are pipes: opening one would never end."""
    for suffix in ('xml', 'jpg'):
        os.mkfifo(tmp_path / f'secret.{suffix}')
    with (voc / 'ImageSets/Main/train.txt').open('a') as file:
        file.write(name.format(root=tmp_path) + '\n')
    cfg = config_of(voc, type=kind)
    if kind == 'WIDERFaceDataset':
        cfg.train_dataloader.dataset.data_prefix = dict(img='')
    status, out = check(cfg)
    assert status == 1
    assert KINDS['path_outside'] in out
    assert 'secret' in out
    with pytest.raises(UsageError, match=r'names a file outside the dataset: .*secret'):
        check_data(cfg, 'train')


def test_a_classifier_of_voc_opens_nothing_outside(voc, check, tmp_path):
    os.mkfifo(tmp_path / 'secret.xml')
    (voc / 'ImageSets/Main/train.txt').write_text('../../../secret\n')
    dataset = dict(type='VOC', data_root=str(voc), split='train', pipeline=[])
    cfg = Config(dict(default_scope='mmpretrain', model={}, train_dataloader=dict(dataset=dataset)))
    status, out = check(cfg)
    assert (status, KINDS['path_outside'] in out) == (1, True)
    with pytest.raises(UsageError, match='names a file outside the dataset'):
        check_data(cfg, 'train')
