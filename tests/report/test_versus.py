"""Comparison of runs: the page, what it concludes, and what it refuses."""

import shutil

import numpy as np
import pytest
from helpers.reports import Page, write_evaluation

from mmcasvit.report import versus
from mmcasvit.report.images import RecordedImages
from mmcasvit.report.versus import image_names, read_side, write_comparison
from mmcasvit.utils.errors import UsageError

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    from mmcasvit.datasets.shapes import write_dataset

    root = tmp_path_factory.mktemp('scenes') / 'shapes'
    write_dataset(root, train=1, val=24, seed=3, height=96, width=128)
    return root


@pytest.fixture(scope='module')
def runs(scenes, tmp_path_factory):
    """Return a folder of evaluations: good and bad ones of a detector and a segmentor, and two seeds of a recipe."""
    folder = tmp_path_factory.mktemp('runs')
    for name, noise, seed in [('good', 1, 1), ('bad', 4, 2), ('recipe/seed-1', 1, 3), ('recipe/seed-2', 1.5, 4)]:
        write_evaluation(folder / name, scenes, noise, seed)
    for name, noise in [('clean', 0.1), ('dirty', 0.4)]:
        write_evaluation(folder / name, scenes, noise, scope='mmseg')
    return folder


def test_a_record_gives_the_metrics_of_the_evaluation(scenes, tmp_path):
    metrics = write_evaluation(tmp_path, scenes, 2.0)
    (run,) = read_side(tmp_path).runs
    found = run.measured['bbox'].measure(np.ones(24, int))
    assert np.nanmean(found['box AP']) == pytest.approx(metrics['coco/bbox_mAP'], abs=6e-4)  # rounded by mmdet
    assert np.nanmean(found['box AP50']) == pytest.approx(metrics['coco/bbox_mAP_50'], abs=6e-4)
    kept = run.drawable(3, (96, 128))
    assert len(kept['gt_instances']['labels']) == run.measured['bbox'].objects[3].sum()
    assert np.abs(kept['gt_instances']['bboxes'] - kept['pred_instances']['bboxes']).max() < 10


@pytest.mark.slow
@pytest.mark.parametrize(
    'first, second, metrics', [('bad', 'good', ['box AP', 'box AP50']), ('dirty', 'clean', ['mIoU'])]
)
def test_the_better_run_is_named_and_the_images_are_shown(runs, tmp_path, first, second, metrics):
    lines = write_comparison([runs / first, runs / second], tmp_path / 'page.html', resamples=60, examples=2)
    assert [line.split(' and ')[0].rpartition(' ')[0] for line in lines] == metrics
    begin = '' if metrics == ['mIoU'] else '0.'  # in percent, or as a share
    assert all(f': {second} is better than {first} (95 % interval of the difference +{begin}' in line for line in lines)
    if metrics == ['mIoU']:
        assert all(1 < float(value) <= 100 for value in lines[0].split(':')[0].split()[1::2])  # in percent
    page = Page((tmp_path / 'page.html').read_text())
    assert 'script' not in page.tags
    assert all(line in page.text for line in lines)
    drawn = [image for image in page.images if image['src'].startswith('data:image/jpeg')]
    assert len(drawn) == 2
    assert 'There is none.' in page.text  # no image in which the worse one is better
    backward = write_comparison([runs / second, runs / first], tmp_path / 'page.html', resamples=60, examples=1)
    words = f': {second} is better than {first} (95 % interval of the difference -{begin}'
    assert all(words in line for line in backward)


@pytest.mark.slow
def test_a_run_is_not_better_than_itself_and_seeds_are_one_side(runs, tmp_path):
    shutil.copytree(runs / 'good', tmp_path / 'same')
    lines = write_comparison(
        [runs / 'good', tmp_path / 'same', runs / 'recipe'], tmp_path / 'page.html', resamples=40, examples=1
    )
    assert (
        'no difference between good and same can be told (95 % interval of the difference +0.000 to +0.000)' in lines[0]
    )
    assert len(lines) == 4
    text = Page((tmp_path / 'page.html').read_text()).text
    assert 'each resample also draws among them' in text
    assert len(read_side(runs / 'recipe').runs) == 2


def test_images_of_data_that_lies_elsewhere_have_the_same_names():
    assert image_names(['/a/data/x/1.jpg', '/a/data/y/2.jpg']) == ['x/1.jpg', 'y/2.jpg']
    assert image_names(['/b/x/1.jpg', '/b/y/2.jpg']) == ['x/1.jpg', 'y/2.jpg']
    assert image_names(['/a/1.jpg']) == ['1.jpg']


def change(run, **changes):
    (file,) = run.rglob('images.npz')
    with np.load(file) as content:
        np.savez(file, **{name: changes.get(name, content[name]) for name in content.files})


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(classes=np.array(list('abcdef'))), 'have other classes'),
        (dict(paths=np.array([f'/other/{i}.jpg' for i in range(24)])), '24 images and 24, of which 0 have the same'),
        (dict(bbox_objects=np.ones((24, 6), np.int32)), 'evaluated on other annotations'),
        (dict(paths=np.array([None])), 'cannot be read: Object arrays cannot be loaded'),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path, changes, words):
    shutil.copytree(runs / 'good', tmp_path / 'other')
    change(tmp_path / 'other', **changes)
    with pytest.raises(UsageError, match=words):
        write_comparison([runs / 'bad', tmp_path / 'other'], tmp_path / 'page.html', resamples=5)
    assert not (tmp_path / 'page.html').exists()


def test_a_detector_is_not_compared_with_a_segmentor(runs, tmp_path):
    with pytest.raises(UsageError, match='have other classes'):
        write_comparison([runs / 'good', runs / 'clean'], tmp_path / 'page.html', resamples=5)


def test_a_damaged_record_is_named(runs, tmp_path):
    shutil.copytree(runs / 'good', tmp_path / 'cut')
    (file,) = (tmp_path / 'cut').rglob('images.npz')
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(UsageError, match=r'images.npz cannot be read: .*Evaluate the run again with --report'):
        RecordedImages(file)


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['good'], 'give at least two runs.'),
        (['good', 'nowhere'], 'there is no folder'),
        (['good', 'empty'], 'has no evaluation with predictions. Make one: tools/test.py CONFIG CHECKPOINT --report'),
        (['good', 'bad', '--out', 'page.pdf'], '--out must be a file that ends in .html'),
        (['good', 'bad', '--out', 'there.html'], 'there.html exists; use --force'),
        (['good', 'bad', '--level', '95'], '--level must be between 0 and 1'),
    ],
)
def test_wrong_arguments_are_one_line(runs, run_main, tmp_path, arguments, words):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'there.html').write_text('mine')
    places = [tmp_path / name if name in ('empty', 'nowhere') else name for name in arguments]
    status, printed = run_main('compare', *[runs / name if name in ('good', 'bad') else name for name in places])
    assert status == 2
    assert words in printed.err
    assert printed.err.count('\n') == 1
    assert (tmp_path / 'there.html').read_text() == 'mine'


@pytest.mark.slow
def test_the_tool_prints_what_the_page_says(runs, run_main, tmp_path):
    status, printed = run_main('compare', runs / 'bad', runs / 'good', '--resamples', 40, '--images', 1)
    assert status == 0
    verdict, *_, file = printed.out.splitlines()
    assert verdict.startswith('box AP 0.')
    assert file == str(tmp_path / 'comparison.html')
    assert verdict in Page((tmp_path / 'comparison.html').read_text()).text


def test_the_page_shows_what_differs_in_the_configs(runs, tmp_path):
    for name, rate in [('good', 0.002), ('bad', 0.0004)]:
        shutil.copytree(runs / name, tmp_path / name)
        config = read_side(tmp_path / name).runs[0].file.parents[1] / 'vis_data' / 'config.py'
        config.parent.mkdir(exist_ok=True)
        config.write_text(f"lr = {rate}\nseed = 0\nwork_dir = '{name}'\n")
    write_comparison([tmp_path / 'good', tmp_path / 'bad'], tmp_path / 'page.html', resamples=20, examples=1)
    text = (tmp_path / 'page.html').read_text()
    assert '<pre>-lr = 0.002\n+lr = 0.0004</pre>' in text
    # An evaluation of a checkpoint is shown with the config of its training.
    training = tmp_path / 'training'
    training.mkdir()
    (training / 'recipe.py').write_text('lr = 0.01\nseed = 0\n')
    config.write_text(f"lr = 0.0004\nload_from = '{training}/iter_1.pth'\n")
    write_comparison([tmp_path / 'good', tmp_path / 'bad'], tmp_path / 'page.html', resamples=20, examples=1)
    assert '<pre>-lr = 0.002\n+lr = 0.01</pre>' in (tmp_path / 'page.html').read_text()


def test_an_interval_from_a_few_images_is_not_trusted(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(versus, '_FEW', 25)
    for name, noise in [('a', 1), ('b', 2)]:
        write_evaluation(tmp_path / name, scenes, noise)
    lines = write_comparison([tmp_path / 'a', tmp_path / 'b'], tmp_path / 'page.html', resamples=20, examples=1)
    assert lines[-1] == 'Only 24 images: do not rely on these intervals.'
    assert lines[-1] in (tmp_path / 'page.html').read_text()
