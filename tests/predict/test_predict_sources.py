"""Images, videos and cameras are found, each once, under names that keep their folders."""

import os
from pathlib import Path

import pytest

from mmcasvit.predict.outputs import plan_outputs
from mmcasvit.predict.sources import Source, find_sources
from mmcasvit.utils.errors import UsageError


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in (
        'in/b.PNG',
        'in/a/x.jpg',
        'in/a/c/clip.mp4',
        'in/notes.txt',
        'in/.hidden.png',
        'in/out/x.jpg',
        'z.jpg',
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*inputs):
    return [str(source.name) for source in find_sources(inputs, leave_out=Path('in/out'))]


def test_a_folder_has_its_images_and_videos_in_its_subfolders(place):
    assert names('in') == ['a/c/clip.mp4', 'a/x.jpg', 'b.PNG']
    assert names('in', 'in', 'z.jpg') == ['a/c/clip.mp4', 'a/x.jpg', 'b.PNG', 'z.jpg']


def test_a_pattern_keeps_the_folders_after_its_first_wildcard(place):
    assert names('in/*/*.jpg') == ['a/x.jpg', 'out/x.jpg']
    assert names('in/**/*') == ['a/c/clip.mp4', 'a/x.jpg', 'b.PNG', 'out/x.jpg']
    assert names(f'{place}/in/a/*') == ['x.jpg']


def test_a_name_with_brackets_is_a_name_first(place):
    (place / 'in/[1].jpg').touch()
    assert names('in/[1].jpg') == ['[1].jpg']


def test_a_number_is_a_camera_unless_it_is_a_file(place):
    [camera] = find_sources(['2'])
    assert (camera.path, camera.is_video) == (2, True)
    (place / '2').touch()
    assert find_sources(['2']) == [Source('2', Path('2'))]


def test_a_link_to_a_folder_around_it_is_not_followed(place):
    os.symlink('..', place / 'in/a/up')
    os.symlink('.', place / 'in/here')
    os.symlink('a', place / 'in/other')
    assert names('in') == ['a/c/clip.mp4', 'a/x.jpg', 'b.PNG', 'other/c/clip.mp4', 'other/x.jpg']


@pytest.mark.parametrize('text, words', [('in/*.bmp', 'matches'), ('missing', 'not found'), ('empty', 'no image in')])
def test_an_input_that_names_nothing_is_an_error(text, words, place):
    (place / 'empty').mkdir()
    with pytest.raises(UsageError, match=words):
        find_sources([text])


def test_results_are_named_after_their_sources():
    sources = [Source('in/a/x.jpg', Path('a/x.jpg')), Source('v.AVI', Path('v.AVI')), Source(0, Path('camera0.mp4'))]
    outputs = plan_outputs('mmseg', sources, Path('out'))
    assert [str(path) for output in outputs for path in output[1:]] == [
        'out/vis/a/x.jpg',
        'out/pred/a/x.png',
        'out/vis/v.mp4',
        'out/preds/v.jsonl',
        'out/vis/camera0.mp4',
        'out/preds/camera0.jsonl',
    ]


def test_two_sources_with_one_result_are_refused():
    sources = [Source('a/x.jpg', Path('x.jpg')), Source('b/x.jpg', Path('x.jpg'))]
    with pytest.raises(UsageError, match=r'a/x.jpg and b/x.jpg have the same name'):
        plan_outputs('mmdet', sources, Path('out'))
