"""Tables of rows: Markdown, CSV and JSON."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .timing import Spread


def markdown(rows: Sequence[Mapping[str, object]], columns: Iterable[str] | None = None) -> str:
    """Format rows as a Markdown table.

    None becomes a dash. Floats are written with three significant digits, or as whole numbers from 100 on.
    """
    columns = list(columns or rows[0])
    lines = [f'| {" | ".join(columns)} |', f'|{"---|" * len(columns)}']
    lines += [f'| {" | ".join(_text(row.get(column)) for column in columns)} |' for row in rows]
    return '\n'.join(lines)


def three_digits(number: float) -> str:
    """Format a number with three significant digits, or as a whole number from 100 on."""
    return f'{number:.0f}' if abs(number) >= 100 else f'{number:.3g}'


def _text(value) -> str:
    if value is None:
        return '-'
    return three_digits(value) if isinstance(value, float) else str(value)


def count_of(number: int, noun: str) -> str:
    """Write a number with its noun, which gets an ``s`` unless the number is 1."""
    return f'{number} {noun}' if number == 1 else f'{number} {noun}s'


def settings_in_words(settings: Mapping[str, object]) -> str:
    """Describe settings of a measurement by their names and values."""
    words = dict(threads=lambda number: count_of(number, 'thread'), batch='batch {}'.format, size='{} pixels'.format)
    return ', '.join(words.get(name, str)(value) for name, value in settings.items())


def split_constant(rows: Sequence[Mapping[str, object]], fields: Iterable[str]) -> tuple[dict, list[str]]:
    """Split fields into those with the same value in all rows, as a dict, and the names of the others."""
    constant, varying = {}, []
    for field in fields:
        values = {row[field] for row in rows}
        if len(values) == 1:
            constant[field] = values.pop()
        else:
            varying.append(field)
    return constant, varying


def _flat(row: Mapping[str, object]) -> dict[str, object]:
    """Replace each :class:`Spread` by three columns, and drop nested values."""
    result = {}
    for key, value in row.items():
        if isinstance(value, Spread):
            result |= {key: value.median, f'{key}_q1': value.low, f'{key}_q3': value.high}
        elif not isinstance(value, (list, tuple)):
            result[key] = value
    return result


def write_csv(path: str | Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows without their lists. A :class:`Spread` takes three columns: ``x``, ``x_q1`` and ``x_q3``."""
    rows = [_flat(row) for row in rows]
    with open(path, 'w', newline='') as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: str | Path, rows: Sequence[Mapping[str, object]], **about) -> None:
    """Write rows as in :func:`write_csv`, but with their lists, next to the entries of ``about``."""
    plain = [{**_flat(row), **{key: value for key, value in row.items() if isinstance(value, list)}} for row in rows]
    Path(path).write_text(json.dumps(dict(**about, rows=plain), indent=1) + '\n')
