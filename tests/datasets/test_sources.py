"""Files that a dataset reads when it is built hold only data."""

import os

import numpy as np
import pytest
from helpers.attack import Attack
from mmengine.config import ConfigDict

from mmcasvit.datasets import sources
from mmcasvit.datasets.sources import (
    ListedImage,
    check_listed,
    check_sources,
    listed_images,
    listed_outside,
    read_names,
)
from mmcasvit.utils.errors import UsageError


@pytest.mark.parametrize('key', ['ann_file', 'proposal_file'])
@pytest.mark.parametrize('suffix', ['pkl', 'pickle'])
def test_pickled_annotations_are_refused(key, suffix):
    with pytest.raises(UsageError, match=f'{key} of the train split is a pickle'):
        check_sources(ConfigDict({'type': 'CocoDataset', key: f'x.{suffix}'}), 'the train split')


def test_an_array_of_objects_is_refused_and_not_executed(tmp_path):
    """mmdet reads the class hierarchy of the OpenImages challenge with allow_pickle."""
    trace = tmp_path / 'was_here'
    config = ConfigDict(type='OpenImagesChallengeDataset', data_root=str(tmp_path), hierarchy_file='x.npy')
    np.save(tmp_path / 'x.npy', np.array([Attack(str(trace))], object))
    with pytest.raises(UsageError, match='is not a plain array, and reading it can run code'):
        check_sources(config, 'the train split')
    assert not trace.exists()
    np.save(tmp_path / 'x.npy', np.eye(3))
    check_sources(config, 'the train split')
    np.save(tmp_path / 'x.npy', np.array([Attack(str(trace))], object))
    np.load(tmp_path / 'x.npy', allow_pickle=True)
    assert trace.exists(), 'the attack must work where pickles are trusted, or this test shows nothing'


def test_names_are_the_lines_of_a_text_file(tmp_path):
    (tmp_path / 'x.txt').write_text('a\nb/c\n')
    assert read_names(str(tmp_path / 'x.txt')) == ['a', 'b/c']
    (tmp_path / 'x.txt').write_bytes(b'caf\xe9')
    os.mkfifo(tmp_path / 'pipe.txt')
    for name, words in (('x', 'is not UTF-8 text'), ('pipe', 'cannot be read: not a file'), ('gone', 'cannot be read')):
        with pytest.raises(UsageError, match=words):
            read_names(str(tmp_path / f'{name}.txt'))


class WIDERFaceDataset:
    pass


class XMLDataset:
    def __init__(self, img_subdir='JPEGImages', ann_subdir='Annotations'):
        pass


class VOC:
    __module__ = 'mmpretrain.datasets.voc'

    def __init__(self, split='trainval'):
        pass


class Faces(WIDERFaceDataset, XMLDataset):
    pass


@pytest.mark.parametrize(
    'kind, config, file, xml, image',
    [
        (Faces, dict(ann_file='x.txt', data_prefix=dict(img='faces')), 'x.txt', 'faces/Annotations/a.xml', ''),
        (XMLDataset, dict(ann_file='x.txt'), 'x.txt', '/Annotations/a.xml', '/JPEGImages/a.jpg'),
        (
            XMLDataset,
            dict(ann_file='x.txt', data_prefix=dict(sub_data_root='sub'), img_subdir='i', ann_subdir='n'),
            'x.txt',
            'sub/n/a.xml',
            'sub/i/a.jpg',
        ),
        (VOC, {}, 'ImageSets/Main/trainval.txt', 'Annotations/a.xml', 'JPEGImages/a.jpg'),
        (VOC, dict(split='val'), 'ImageSets/Main/val.txt', 'Annotations/a.xml', 'JPEGImages/a.jpg'),
        (VOC, dict(image_set_path='x.txt', data_prefix='all'), 'x.txt', 'all/a.xml', 'all/a.jpg'),
        (VOC, dict(image_set_path='x.txt', data_prefix=dict(img_path='i')), 'x.txt', 'i/a.xml', 'i/a.jpg'),
    ],
)
def test_the_files_of_a_list_are_those_that_the_dataset_opens(tmp_path, kind, config, file, xml, image):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text('a\nb\n')
    first, second = listed_images(ConfigDict(data_root=str(tmp_path), **config), kind)
    root = '' if xml.startswith('/') else f'{tmp_path}/'
    assert first == ListedImage('a', root + xml.lstrip('/'), image and root + image.lstrip('/'))
    assert second.name == 'b'


def test_other_datasets_list_nothing():
    assert list(listed_images(ConfigDict(ann_file='gone.txt'), dict)) == []


def test_files_outside_the_folders_are_those_of_either_kind(tmp_path):
    (tmp_path / 'x.txt').write_text('a\n../../b\n')
    config = ConfigDict(data_root=str(tmp_path), ann_file='x.txt', data_prefix=dict(sub_data_root='sub'))
    outside = [
        f'{tmp_path}/sub/{folder}/../../b.{end}' for folder, end in (('Annotations', 'xml'), ('JPEGImages', 'jpg'))
    ]
    assert listed_outside(config, XMLDataset) == []
    (tmp_path / 'x.txt').write_text('a\n../../../b\n')
    outside = [path.replace('/../../', '/../../../') for path in outside]
    assert listed_outside(config, XMLDataset) == outside
    with pytest.raises(UsageError, match=r'the list of x names a file outside the dataset: .*b\.xml is not in'):
        check_listed(config, XMLDataset, 'x')
    faces = ConfigDict(data_root=str(tmp_path), ann_file='x.txt', data_prefix=dict(img='faces'))
    assert listed_outside(faces, Faces) == [f'{tmp_path}/faces/Annotations/../../../b.xml']
    assert listed_outside(ConfigDict(ann_file='gone.txt'), XMLDataset) == [], 'a config that names no folder'


@pytest.mark.parametrize(
    'config',
    [
        dict(type='CocoDataset', ann_file='x.json', proposal_file=None),
        dict(type='OpenImagesChallengeDataset'),
        dict(type='OpenImagesChallengeDataset', hierarchy_file='gone.npy'),
        dict(type='OpenImagesDataset', hierarchy_file='x.npy'),
    ],
)
def test_what_is_no_pickle_passes(config, tmp_path):
    (tmp_path / 'x.npy').write_text('not an array')
    check_sources(ConfigDict(config, data_root=str(tmp_path)), 'x')


@pytest.mark.parametrize('place', ['{}/x.npy', 'x.npy'])
def test_an_array_is_found_with_and_without_the_data_root(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / 'x.npy')
    config = ConfigDict(type='OpenImagesChallengeDataset', data_root='root', hierarchy_file=place.format(tmp_path))
    with pytest.raises(UsageError, match=r'is not a plain array.*not a file'):
        check_sources(config, 'x')


def test_pickles_and_images_are_read_as_data(monkeypatch):
    called = []
    for name in ('read_pickles_as_data', 'read_named_formats_only'):
        monkeypatch.setattr(sources, name, lambda name=name: called.append(name))
    sources.read_data_as_data()
    assert called == ['read_pickles_as_data', 'read_named_formats_only']
