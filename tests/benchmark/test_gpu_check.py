"""Parts of the GPU check that fail or are killed become rows, and all parts run on a CPU."""

import json
import sys

import pytest
from helpers.repository import load_tool

from mmcasvit.benchmark import gpu_check
from mmcasvit.benchmark.gpu_check import Part, check_gpu, plan_parts
from mmcasvit.utils.errors import UsageError


def python(name, *codes, seconds=60.0, **more):
    return Part(name, [['-c', code] for code in codes], seconds, **more)


def results_of(folder):
    return {result['part']: result for result in json.loads((folder / 'gpu-check.json').read_text())['parts']}


def test_a_part_that_ends_badly_is_a_row_and_the_next_one_runs(tmp_path, monkeypatch):
    def read(folder, printed):
        return [dict(line=line) for line in printed.split()], f'read: {printed}'

    def fails(folder, printed):
        raise ValueError('no such table')

    log = 'tests/gpu/test_a.py::test_x[1] PASSED   [ 50%]\ntests/gpu/test_a.py::test_y SKIPPED (no GPU) [100%]\n'
    log += 'tests/gpu/test_a.py::test_z FAILED [100%]\nFAILED tests/gpu/test_a.py::test_z - assert 1 == 2\n'
    parts = [
        python('raises', 'print(1)', 'raise ValueError("no | luck")', 'print(2)', read=read),
        python('hangs', 'import time\nprint(1)\ntime.sleep(60)', seconds=0.2, read=read),
        python('killed', 'import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)'),
        python('silent', 'raise SystemExit(3)'),
        python('needs', 'print(1)', packages=['torch', 'no_such_package']),
        python('unreadable', 'print(1)', read=fails),
        python('works', 'print(1)', 'print(2)', read=read),
        python('tests-x', f'print({log!r})', read=gpu_check._read_tests),
    ]
    monkeypatch.setattr(gpu_check, '_plot', lambda *args: 1 / 0)
    lines = []
    results = check_gpu(tmp_path / 'new', parts, 600, True, lines.append)
    assert [(result['part'], result['status'], result['reason']) for result in results] == [
        ('raises', 'failed', 'ValueError: no | luck'),
        ('hangs', 'stopped', 'not finished after 2 s'),
        ('killed', 'failed', 'killed by SIGSEGV'),
        ('silent', 'failed', 'exit status 3'),
        ('needs', 'not installed', 'needs no_such_package'),
        ('unreadable', 'failed', 'its results cannot be read: ValueError: no such table'),
        ('works', 'ok', ''),
        ('tests-x', 'ok', ''),
        ('plot', 'failed', 'ZeroDivisionError: division by zero'),
    ]
    assert [len(result['rows']) for result in results] == [1, 1, 0, 0, 0, 0, 2, 3, 0]
    assert [tuple(row.values()) for row in results[-2]['rows']] == [
        ('test_a.py::test_x[1]', 'passed', None),
        ('test_a.py::test_y', 'skipped', 'no GPU'),
        ('test_a.py::test_z', 'failed', 'assert 1 == 2'),
    ]
    assert list(results_of(tmp_path / 'new').values()) == results
    page = (tmp_path / 'new/gpu-check.md').read_text()
    assert '| raises | failed | 0 | ValueError: no \\| luck; 1 row |' in page
    assert '## works\n\nread: 1\n2\n' in page
    assert lines[1].startswith('hangs: stopped, 2 s')


def test_nothing_starts_when_the_time_is_over(tmp_path):
    results = check_gpu(tmp_path, [python('late', 'print(1)')], 0, True, lambda line: None)
    assert (results[0]['status'], results[0]['reason']) == ('not run', 'the time is over')


def test_a_page_of_the_finished_parts_exists_while_the_next_one_runs(tmp_path):
    look = f'print(open({str(tmp_path / "gpu-check.md")!r}).read())'
    check_gpu(tmp_path, [python('first', 'print(1)'), python('second', look)], 600, True, lambda line: None)
    assert '| first | ok |' in (tmp_path / 'second.out').read_text()


def test_wrong_arguments(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check.torch.cuda, 'is_available', lambda: False)
    with pytest.raises(UsageError, match='no GPU is visible'):
        check_gpu(tmp_path / 'new', [], 1, False, print)
    tool = load_tool('gpu_check')
    (tmp_path / 'file').touch()
    for arguments, words in (
        (['--out', tmp_path], 'is not empty'),
        (['--out', tmp_path / 'file'], 'is not empty'),
        (['--out', tmp_path / 'new', '--only', 'peer', 'data'], 'unknown part peer. Valid: tests-models, '),
    ):
        monkeypatch.setattr(sys, 'argv', ['gpu_check.py', *map(str, arguments)])
        with pytest.raises(SystemExit):
            tool.main()
        assert words in capsys.readouterr().err


def test_the_parts_for_a_gpu_are_those_of_the_dry_run(tmp_path):
    planned = {dry_run: plan_parts(tmp_path, dry_run) for dry_run in (True, False)}
    names = {dry_run: [part.name for part in parts] for dry_run, parts in planned.items()}
    assert len(names[True]) == len(set(names[True])) == len(names[False]) == len(set(names[False]))
    words = ' '.join(str(word) for part in planned[False] for command in part.commands for word in command)
    assert words.count('--devices cuda') == 6
    assert ' cpu' not in words


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(run_tool, tool_server, tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHON_EXEC', str(tool_server.python))  # the parts are forked as well
    run_tool('gpu_check.py', '--dry-run', '--minutes', 30, '--out', 'new', cwd=tmp_path)
    results = results_of(tmp_path / 'new')
    assert list(results) == [*(part.name for part in plan_parts(tmp_path, True)), 'plot']
    for name, result in results.items():
        assert result['status'] == 'ok' or (result['status'] == 'not installed' and result['reason']), (name, result)
        assert result['rows'] or name in ('data', 'plot') or result['status'] != 'ok', name
    assert (tmp_path / 'new/gpu-check.png').read_bytes().startswith(b'\x89PNG')
