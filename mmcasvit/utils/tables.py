"""Tables of rows: Markdown, CSV and JSON."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .timing import Spread


def markdown(rows: Sequence[Mapping[str, object]], columns: Iterable[str] | None = None) -> str:
    """A Markdown table. None is written as a dash, a float to three significant digits or whole."""
    columns = list(columns or rows[0])
    lines = [f'| {" | ".join(columns)} |', f'|{"---|" * len(columns)}']
    lines += [f'| {" | ".join(_text(row.get(column)) for column in columns)} |' for row in rows]
    return '\n'.join(lines)


def _text(value) -> str:
    if value is None:
        return '-'
    if isinstance(value, float):
        return f'{value:.0f}' if abs(value) >= 100 else f'{value:.3g}'
    return str(value)


def split_constant(rows: Sequence[Mapping[str, object]], fields: Iterable[str]) -> tuple[dict, list[str]]:
    """Of some fields those that are the same in all rows, with their values, and the names of the others."""
    constant, varying = {}, []
    for field in fields:
        values = {row[field] for row in rows}
        if len(values) == 1:
            constant[field] = values.pop()
        else:
            varying.append(field)
    return constant, varying


def flat(row: Mapping[str, object]) -> dict[str, object]:
    """Spreads as three columns, for files that hold nothing nested."""
    result = {}
    for key, value in row.items():
        if isinstance(value, Spread):
            result |= {key: value.median, f'{key}_q1': value.low, f'{key}_q3': value.high}
        elif not isinstance(value, (list, tuple)):
            result[key] = value
    return result


def write_csv(path: str | Path, rows: Sequence[Mapping[str, object]]) -> None:
    rows = [flat(row) for row in rows]
    with open(path, 'w', newline='') as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: str | Path, rows: Sequence[Mapping[str, object]], **about) -> None:
    """All of it, the single samples too."""
    plain = [{**flat(row), **{key: value for key, value in row.items() if isinstance(value, list)}} for row in rows]
    Path(path).write_text(json.dumps(dict(**about, rows=plain), indent=1) + '\n')
