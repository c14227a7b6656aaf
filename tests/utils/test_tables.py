import csv
import json

import pytest

from mmcasvit.utils.tables import count_of, markdown, split_constant, three_digits, write_csv, write_json
from mmcasvit.utils.timing import spread

SAMPLES = [[0.2, 0.4, 0.2], [0.1, 0.2, 0.1]]
ROWS = [dict(form=form, seconds=spread(samples), samples=samples) for form, samples in zip('ab', SAMPLES)]


def test_a_markdown_table_rounds_numbers_and_marks_gaps():
    rows = [dict(a='x', b=1234.5, c=None), dict(a=7, b=0.012345)]
    assert markdown(rows).splitlines() == ['| a | b | c |', '|---|---|---|', '| x | 1234 | - |', '| 7 | 0.0123 | - |']
    assert markdown(rows, ['b']).splitlines() == ['| b |', '|---|', '| 1234 |', '| 0.0123 |']
    assert [three_digits(number) for number in (99.96, 100.4, -250.0)] == ['100', '100', '-250']
    assert (count_of(1, 'thread'), count_of(2, 'thread')) == ('1 thread', '2 threads')


def test_constant_fields_are_split_off():
    rows = [dict(model='xs', size='512x512'), dict(model='s', size='512x512')]
    assert split_constant(rows, ['model', 'size']) == ({'size': '512x512'}, ['model'])


def test_csv_has_three_columns_per_spread_and_no_lists(tmp_path):
    write_csv(tmp_path / 'a.csv', ROWS)
    with open(tmp_path / 'a.csv') as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == ['form', 'seconds', 'seconds_q1', 'seconds_q3']
    assert float(read[1]['seconds']) == 0.1
    assert float(read[1]['seconds_q3']) == pytest.approx(0.15)


def test_json_has_every_sample_and_further_entries(tmp_path):
    write_json(tmp_path / 'a.json', ROWS, machine='this')
    read = json.loads((tmp_path / 'a.json').read_text())
    assert read['machine'] == 'this'
    assert [row['samples'] for row in read['rows']] == SAMPLES
