"""The search over command lines and checkpoints: every way to break a promise is found, and shrunk."""

import os
import signal
import sys
import time

import pytest
import torch
from helpers.repository import ROOT, load_tool


@pytest.fixture(scope='module')
def search_cli():
    return load_tool('search_cli', 'dev')


@pytest.fixture
def base(search_cli, tmp_path, monkeypatch):
    """Return a folder as the search prepares it, with one tensor as a model, and tools that do nothing."""
    monkeypatch.setenv('TRACE', str(tmp_path / 'executed'))
    for name in ('in', 'beside'):
        (tmp_path / name).mkdir()
    (tmp_path / 'beside/note.txt').write_text('old')
    for name in ('det', 'seg'):
        torch.save(dict(state_dict={'backbone.weight': torch.ones(3)}), tmp_path / f'in/{name}.pth')
    monkeypatch.setattr(search_cli, 'MAINS', dict.fromkeys(search_cli.TOOLS, lambda: None))
    return tmp_path


def refuse(text, status=2):
    print(text, file=sys.stderr)
    sys.exit(status)


ENDS = {
    'ValueError in test_search_cli.py ': lambda base: int('x'),
    'signal 11': lambda base: os.kill(os.getpid(), signal.SIGSEGV),
    'status 3': lambda base: sys.exit(3),
    'no reason given': lambda base: sys.exit(2),
    'a reason of several lines': lambda base: refuse('error: wrong\nand more'),
    'code was executed': lambda base: (base / 'executed').mkdir(),
    'touched ': lambda base: (base / 'beside/note.txt').write_text('new'),
    'exceeded time': lambda base: time.sleep(60),
    'exceeded memory': lambda base: (b'x' * 2**30, time.sleep(60)),
}


@pytest.mark.parametrize('found', ENDS)
def test_every_bad_end_is_noticed(found, search_cli, base, monkeypatch):
    monkeypatch.setattr(search_cli, 'LIMITS', dict(seconds=3, megabytes=512 if 'memory' in found else 2**20))
    search_cli.MAINS['serve'] = lambda: ENDS[found](base)
    case = search_cli.Case('serve', (), (), 'det', (), (), None)
    assert search_cli.judge(case, base)[0].startswith(found)


@pytest.mark.parametrize('end', [lambda: None, lambda: refuse('error: wrong\n  details'), lambda: sys.exit('error: x')])
def test_good_ends_are_none_of_them(end, search_cli, base):
    search_cli.MAINS['serve'] = end
    assert search_cli.judge(search_cli.Case('serve', (), (), 'det', (), (), None), base)[0] == ''


@pytest.mark.parametrize(
    'change, damage, bad',
    [
        ((), (), False),
        (('weights', 0, 'float64'), (), False),
        (('weights', 0, 'sparse'), (), True),
        (('weights', 0, 'drop'), (), True),
        (('wrap', 'prefix', ''), (), False),
        (('wrap', 'nested', ''), (), True),
        ((), ('cut', 0.5), True),
        ((), ('attack',), True),
        ((), ('legacy',), False),
    ],
)
def test_success_without_the_weights_is_noticed(change, damage, bad, search_cli, base):
    case = search_cli.Case('test', ('BAD.pth',), (), 'det', (change,) if change else (), damage, None)
    found, printed = search_cli.judge(case, base)
    assert (found != '') == ('without the weights' in printed) == bad


def test_a_planted_fault_is_found_and_shrunk(search_cli, base, monkeypatch):
    def planted():
        if '--resume' in sys.argv:
            raise ZeroDivisionError

    monkeypatch.setattr(search_cli, 'must_refuse', lambda *_: False)  # no tool here reads a checkpoint
    search_cli.MAINS['train'] = planted
    search = search_cli.Search(base)
    search.search(100, 0, search_cli.cases(dict(det=['a'], seg=['a'])))
    (found, (case, _)), = search.smallest.items()  # fmt: skip
    assert found == 'train: ZeroDivisionError in test_search_cli.py planted'
    assert ' '.join(case.arguments).rstrip() == 'CONFIG --work-dir run --resume'  # an empty value is as short as none
    assert sum(sum(counts.values()) for counts in search.counts.values()) == 100
    assert f'| {search.counts["train"]["findings"]} |' in search.table()


@pytest.mark.slow
def test_it_runs(tmp_path, run_tool):
    done = run_tool(ROOT / 'dev/search_cli.py', '--cases', 3, cwd=tmp_path)
    assert '| all | 3 |' in done.stdout
    assert not list(tmp_path.iterdir())
