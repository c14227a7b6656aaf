"""What the scripts of tools/ share: options of the config, and the ends of a program in one line."""

import argparse
import sys

import pytest
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmcasvit.cli import add_config_options, exits_cleanly
from mmcasvit.utils.errors import UsageError


def parse(*values):
    parser = argparse.ArgumentParser()
    add_config_options(parser, 'text')
    return parser.parse_args(['--cfg-options', *values]).cfg_options


def test_options_have_the_types_of_their_values():
    assert parse('a=1', 'b.c=1.5', 'd=true', 'e=None', 'f=[1,2]', 'g=(1,2)', 'h=x', 'i=1,2') == {
        'a': 1, 'b.c': 1.5, 'd': True, 'e': None, 'f': [1, 2], 'g': (1, 2), 'h': 'x', 'i': [1, 2]
    }  # fmt: skip


def test_a_path_keeps_its_spaces():
    assert parse('data_root=/my data/all of it') == {'data_root': '/my data/all of it'}


@pytest.mark.parametrize('option', ['foo', '=1', 'a=[1,2', 'a=(1', 'a=1]'])
def test_a_malformed_option_is_named(option):
    with pytest.raises(UsageError, match='--cfg-options: '):
        parse(option)


@pytest.mark.parametrize(
    'error, status, line',
    [
        (UsageError('wrong'), 2, 'error: wrong\n'),
        (UsageError('wrong.\n  details\nadvice'), 2, 'error: wrong.\n  details\n  advice\n'),
        (FileNotFoundError(2, 'No such file', 'x.txt'), 2, 'error: No such file: x.txt\n'),
        (KeyboardInterrupt(), 130, 'interrupted.\n'),
        (KeyboardInterrupt('The last good checkpoint is x.'), 130, 'interrupted. The last good checkpoint is x.\n'),
    ],
)
def test_a_program_ends_with_one_line_and_a_status(error, status, line, capsys):
    @exits_cleanly
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == status
    assert capsys.readouterr().err == line


class Failing(Runner):
    """A runner of which one step fails in PyTorch or here."""

    def __init__(self, failure):
        self.failure = failure
        self._train_loop = None

    @property
    def model(self):
        return self.failure()


def in_a_framework():
    import json

    json.loads('[')


def here():
    raise ValueError('a bug')


@pytest.mark.parametrize(
    'failure, arguments, words',
    [
        (in_a_framework, [], 'training failed: JSONDecodeError: Expecting value'),
        (here, ['--cfg-options', 'a=1'], 'training failed: ValueError: a bug'),
    ],
)
def test_a_setting_that_fails_in_use_is_one_line_and_a_traceback_in_the_log(
    failure, arguments, words, capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr(sys, 'argv', ['train.py', *arguments])
    MMLogger.get_instance(tmp_path.name, logger_name='mmengine', log_file=str(tmp_path / 'run.log'))
    with pytest.raises(SystemExit) as ended:
        exits_cleanly(lambda: Failing(failure).train())()
    line = capsys.readouterr().err
    assert ended.value.code == 2
    assert line.startswith(f'error: {words}')
    assert line.count('\n') == 1
    assert str(tmp_path / 'run.log') in line
    assert 'Traceback (most recent call last)' in (tmp_path / 'run.log').read_text()


def test_an_option_that_fails_before_the_run_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['test.py', '--cfg-options', 'a=1'])
    MMLogger.get_instance('without_file', logger_name='mmengine')
    with pytest.raises(SystemExit):
        exits_cleanly(here)()
    assert 'the config with these --cfg-options cannot be used: ValueError: a bug' in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['train.py'])
    with pytest.raises(ValueError, match='a bug'):
        exits_cleanly(here)()


def test_a_value_where_a_part_belongs_is_named(capsys):
    with pytest.raises(SystemExit):
        exits_cleanly(lambda: HOOKS.build('{}'))()
    assert "error: '{}' of the config cannot be built: TypeError: " in capsys.readouterr().err
