"""dev/search_data.py judges mutated datasets, and finds a fault that is planted. Its 1,000 cases take half an hour."""

import os
import sys
import time

import pytest
from helpers.repository import load_tool

strategies = pytest.importorskip('hypothesis').strategies


@pytest.fixture(scope='module')
def tool():
    return load_tool('search_data', 'dev')


@pytest.fixture(scope='module')
def trial(tool, tmp_path_factory):
    from mmengine.logging import MMLogger
    from mmengine.runner import runner
    from yapf.yapflib import yapf_api

    with pytest.MonkeyPatch.context() as patch:  # the search replaces both functions for good
        patch.setattr(runner, 'collect_env', runner.collect_env)
        patch.setattr(yapf_api, 'FormatCode', yapf_api.FormatCode)
        patch.setattr(MMLogger, '_instance_dict', {})  # those of other tests write to streams that are closed
        patch.setattr(tool, 'LAYOUTS', {'index masks': tool.LAYOUTS['index masks']})
        yield tool.Trial(tmp_path_factory.mktemp('trial'))


HARMLESS, EMPTY = ('label', 'train', 0, 3), ('image_bytes', 'train', 1, ('odd', 'empty'))
CASES = dict(trained=[HARMLESS], named=[('exif', 'train', 0, 'JPEG', 3)], refused=[EMPTY])


@pytest.mark.slow
@pytest.mark.parametrize('verdict', CASES)
def test_the_verdict_follows_from_the_check_and_the_training(verdict, tool, trial):
    assert tool.verdict(*trial.run('index masks', CASES[verdict])) == verdict


@pytest.mark.slow
def test_a_planted_fault_is_found_shrunk_kept_and_printed(tool, trial, tmp_path, monkeypatch, capsys):
    """A check that reads no images passes an empty file, which training skips."""
    monkeypatch.setattr(trial.tools['check_dataset'], 'check_files', lambda datasets, workers: None)
    lists = strategies.lists(strategies.sampled_from([HARMLESS, EMPTY]), min_size=1, max_size=2)
    monkeypatch.setattr(tool, 'cases', lists.map(lambda part: ('index masks', part)))
    search = tool.Search(trial, tmp_path)
    search.run(6, seed=0)
    ((finding, case),) = search.found.items()
    assert finding.startswith('disagreement: ')
    assert case == ('index masks', [EMPTY])
    assert search.counts['index masks']['disagreement'] >= 1
    assert finding in capsys.readouterr().out
    assert (tmp_path / '001/data/ade').is_dir()
    assert 'empty' in (tmp_path / '001/case.txt').read_text()


@pytest.mark.parametrize('layout', ['coco masks', 'voc', 'index masks'])
def test_every_kind_of_mutation_changes_the_files(layout, tool, tmp_path):
    """A mutation that fails is left out, so a mistake in one would go unnoticed."""
    import mutated_data

    def digest():
        return {path: path.lstat().st_ino if path.is_fifo() else path.read_bytes() for path in root.rglob('*.*')}

    root = tmp_path / 'data'
    tool.write_dataset(root, train=4, val=1, seed=3, height=64, width=96)
    dataset, before, changed = mutated_data.Dataset(root, layout), digest(), set()
    for name, *arguments in MUTATIONS[layout]:
        getattr(dataset, name)(*arguments)
        if (after := digest()) != before:
            changed.add(name)
        before = after
    assert changed == {name for name, *_ in MUTATIONS[layout]}


ANY = [('image', 'train', 0, 'PNG', 'P', (15, 15), True), ('exif', 'train', 1, 'JPEG', 6), ('name', 'train', 2, 'a b')]
ANY += [('image_bytes', 'train', 3, ('flip', 0.5))]
MUTATIONS = {
    'coco masks': [
        ('entry', 'train', 'annotations', 0, 'bbox', [1]),
        ('renumber', 'train', 'categories', 0, 77),
        ('drop', 'train', 'images', 3, 'id'),
        ('listing', 'train', 'categories', 0, 'reverse'),
        ('top', 'train', 'x', 1),
        *ANY,
        ('text', 'train', ('prepend', '\ufeff')),
    ],
    'voc': [
        *ANY,
        ('tag', 'train', 0, 'size', 'remove'),
        ('doctype', 'train', 0, '<!DOCTYPE a [<!ENTITY e "x">]>'),
        ('other_bytes', 'train', 1, ('odd', 'missing')),
        ('line', 'train', 'x'),
        ('text', 'train', ('truncate', 0.5)),
    ],
    'index masks': [
        *ANY,
        ('mask', 'train', 0, 'PNG', 'RGB', None),
        ('label', 'train', 1, 256),
        ('other_bytes', 'train', 2, ('encode', 'utf-16')),
    ],
}


def test_a_forked_call_is_bounded(tool):
    def eat():
        return len([bytearray(2**20) for _ in range(10**6)])

    assert tool.run_forked(dict, dict(a=1)).result == dict(a=1)
    end = tool.run_forked(sys.exit, 3)
    assert (end.status, end.result, end.exceeded) == (3, None, '')
    end = tool.run_forked(int, 'x')
    assert (end.status, 'ValueError' in end.output) == (1, True)
    assert tool.run_forked(os.abort).status == -6
    end = tool.run_forked(time.sleep, 60, seconds=2)
    assert (end.status, end.exceeded, 'most recent call' in end.output) == (-9, 'time', True)
    end = tool.run_forked(eat, megabytes=500, seconds=60)
    assert (end.result, end.exceeded) == (None, 'memory')
    assert 500 < end.megabytes < 2000
