"""What the scripts of tools/ share: options of the config, and the ends of a program in one line."""

import argparse

import pytest

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
