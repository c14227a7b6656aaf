"""CSV files with one box in a row."""

import csv
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mmcasvit.start.files import Files, image_sizes, split_of
from mmcasvit.utils.errors import UsageError

from .labels import Boxes, Collector, Thing, splits_of

_COLUMNS = dict(
    file=('filename', 'file', 'image', 'imageid', 'img', 'path', 'imagepath', 'imagename', 'imgpath'),
    name=('class', 'label', 'category', 'name', 'classname', 'labelname', 'classid'),
    left=('xmin', 'x1', 'left'),
    top=('ymin', 'y1', 'top'),
    right=('xmax', 'x2', 'right'),
    bottom=('ymax', 'y2', 'bottom'),
    box=('bbox',),
    split=('split', 'set', 'subset'),
)
_SIDES = ('left', 'top', 'right', 'bottom')


def _columns(header: Sequence[str]) -> dict[str, int]:
    plain = [re.sub(r'[^a-z0-9]', '', str(name).lower()) for name in header]
    return {key: plain.index(name) for key, names in _COLUMNS.items() for name in reversed(names) if name in plain}


def _csv_rows(file: Path) -> tuple[dict[str, int], list[list[str]]]:
    """Return the columns of a CSV file of boxes and its rows, or nothing if it is another file."""
    try:
        with file.open(encoding='utf-8-sig', newline='') as stream:
            sample = stream.read(4096)
            stream.seek(0)
            delimiter = max(',;\t', key=sample.count)
            rows = [row for row in csv.reader(stream, delimiter=delimiter) if any(row)]
    except (OSError, ValueError, csv.Error):
        return {}, []
    columns = _columns(rows[0]) if rows else {}
    if {'file', *_SIDES} <= columns.keys() or {'file', 'box'} <= columns.keys():
        return columns, rows[1:]
    # keras-retinanet has no header: path, x1, y1, x2, y2, class, and no numbers for background.
    if rows and all(len(row) == 6 and all(_is_number(v) for v in row[1:5] if v) for row in rows[:20]):
        return dict(file=0, left=1, top=2, right=3, bottom=4, name=5), rows
    return {}, []


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def is_csv(file: Path) -> bool:
    """Return whether a file is a CSV of boxes."""
    return bool(_csv_rows(file)[0])


def read_csv(files: Files, found: Sequence[Path], unlabeled: str) -> Boxes:
    """Read CSV files with one box in a row.

    Raises:
        UsageError: If a row has coordinates that are not numbers.
    """
    collector = Collector('CSV', files)
    named, missing = {}, Counter()
    by_stem = {path.stem: path for path in files.images}
    for file in found:
        columns, rows = _csv_rows(file)
        for number, row in enumerate(rows, 1):
            cells = {key: row[place].strip() for key, place in columns.items() if place < len(row)}
            path = files.named(cells.get('file', ''), file) or by_stem.get(cells.get('file', ''))
            if path is None:
                missing[cells.get('file', '')] += 1
                continue
            named[path] = split_of(cells.get('split', '')) or split_of(file.relative_to(files.root).with_suffix(''))
            things = collector.found.setdefault(path, [])
            # A box in one cell is [x, y, width, height], as Kaggle writes it.
            inside = cells.get('box', '').strip('[]()').replace(',', ' ').split()
            corners = inside if 'box' in columns else [cells.get(side, '') for side in _SIDES]
            if not any(corners):
                continue
            if len(corners) != 4 or not all(map(_is_number, corners)):
                raise UsageError(f'{file}, row {number}: expected four numbers, got {corners}.')
            x, y, w, h = map(float, corners)
            box = (x, y, w, h) if 'box' in columns else (x, y, w - x, h - y)
            things.append(Thing(cells.get('name') or 'object', box))
    if missing:
        collector.notes.append(
            f'images of the CSV that are not in the folder: {len(missing)}, such as {next(iter(missing))}'
        )
    everything = [thing for things in collector.found.values() for thing in things]
    if everything and all(max(thing.box) <= 1 for thing in everything):  # shares of the image, as in Open Images
        for path, size in zip(collector.found, image_sizes(collector.found)):
            width, height = size or (1, 1)
            for thing in collector.found[path]:
                x, y, w, h = thing.box
                thing.box = (x * width, y * height, w * width, h * height)
    collector.add_unlabeled(unlabeled)
    splits = {path: named.get(path) or files.split(path) for path in collector.found}
    if set(splits.values()) == {''}:
        splits = splits_of(files, collector.found)
    return collector.boxes(splits)
