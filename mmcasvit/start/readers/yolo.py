"""Text files of YOLO, with the names of their classes and their splits."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from mmcasvit.start.files import Files, image_sizes, read_lines
from mmcasvit.utils.errors import UsageError

from .labels import Boxes, Collector, Thing, box_of, sniff, splits_of

_ROW = re.compile(rb'^\s*\d+(\s+-?[\d.]+(e-?\d+)?){4,}\s*$', re.IGNORECASE)


def is_yolo(file: Path) -> bool:
    """Return whether a text file has rows of a class number and at least four other numbers."""
    lines = sniff(file, 4096).splitlines()
    return bool(lines) and _ROW.match(lines[0]) is not None


def read_yolo(files: Files, found: Sequence[Path], unlabeled: str, classes: Sequence[str]) -> Boxes:
    """Read YOLO's text files with boxes or outlines, as ultralytics, Darknet, CVAT and Roboflow write them.

    Raises:
        UsageError: If a row cannot be read, or the classes have no names.
    """
    settings, settings_file = _yolo_settings(files)
    names = dict(enumerate(classes)) or _yolo_names(files, settings, settings_file)
    collector = Collector('YOLO', files)
    keypoints = 'kpt_shape' in settings
    # Empty files belong to background images.
    labels = {path: file for file in files.labels['.txt'] if (path := files.of_label(file))}
    known = {file.parent for file in found}
    labels = {path: file for path, file in labels.items() if file.parent in known}
    rows = {path: [_yolo_row(line, file) for line in read_lines(file)] for path, file in labels.items()}
    numbers = {number for objects in rows.values() for number, _ in objects}
    if not names:
        raise UsageError(
            f'no names for the {len(numbers)} classes of the YOLO labels: neither a data.yaml nor a classes.txt with '
            'names was found. Give them in the order of their numbers: --classes NAME ...'
        )
    if max(numbers, default=0) == max(names) + 1 and 0 not in numbers and min(names) == 0:
        names = {number + 1: name for number, name in names.items()}
        collector.notes.append('the class numbers of the YOLO labels count from 1')
    if unknown := sorted(numbers - set(names)):
        file = next(labels[path] for path, objects in rows.items() if any(n == unknown[0] for n, _ in objects))
        raise UsageError(
            f'{file}: class number {unknown[0]}, but the names are {dict(sorted(names.items()))}. Give names for all '
            'numbers from 0 on: --classes NAME ...'
        )
    paths = list(rows)
    for path, size in zip(paths, image_sizes(paths)):
        width, height = size or (1, 1)
        collector.found[path] = [
            _yolo_thing(names[number], values, width, height, keypoints) for number, values in rows[path]
        ]
    collector.add_unlabeled(unlabeled)
    splits = _yolo_splits(files, list(collector.found), settings, settings_file)
    return collector.boxes(splits, [names[number] for number in sorted(names)])


def _yolo_settings(files: Files) -> tuple[dict, Path]:
    for file in files.labels['.yaml'] + files.labels['.yml']:
        try:
            content = yaml.safe_load(file.read_text(encoding='utf-8-sig'))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UsageError(f'{file} cannot be read as YAML: {" ".join(str(error).split())}') from error
        if isinstance(content, dict) and 'names' in content:
            return content, file
    return {}, files.root / 'data.yaml'


def _yolo_names(files: Files, settings: dict, file: Path) -> dict[int, str]:
    names = settings.get('names')
    if isinstance(names, list):
        return {number: str(name) for number, name in enumerate(names)}
    if isinstance(names, dict):
        try:
            return {int(number): str(name) for number, name in names.items()}
        except ValueError as error:
            raise UsageError(f'{file}: the keys of names must be numbers, got {list(names)}.') from error
    lists = files.labels['.names'] + files.labels['.labels']
    lists += [file for file in files.labels['.txt'] if file.stem.lower() in ('classes', 'labels', 'names')]
    return dict(enumerate(read_lines(lists[0]))) if lists else {}


def _yolo_row(line: str, file: Path) -> tuple[int, list[float]]:
    try:
        number, *values = [float(value) for value in line.split()]
    except ValueError:
        number, values = -1.0, []
    if number < 0 or number != int(number) or len(values) < 4 or not all(map(math.isfinite, values)):
        raise UsageError(f'{file}: expected a class number and 4 or more numbers, got {line[:80]!r}.')
    if max(values) > 2 or min(values) < -1:
        raise UsageError(f'{file}: YOLO coordinates are shares of the image from 0 to 1, got {line[:80]!r}.')
    return int(number), values


def _yolo_thing(name: str, values: list[float], width: int, height: int, keypoints: bool) -> Thing:
    if len(values) in (4, 5) or keypoints:  # a fifth number is a confidence
        x, y, w, h = values[0] * width, values[1] * height, values[2] * width, values[3] * height
        return Thing(name, (x - w / 2, y - h / 2, w, h))
    corners = np.asarray(values[: len(values) // 2 * 2]).reshape(-1, 2).clip(0, 1) * (width, height)
    polygon = corners.round(2).ravel().tolist()
    return Thing(name, box_of([polygon]), [polygon])


def _yolo_splits(files: Files, paths: list[Path], settings: dict, file: Path) -> dict[Path, str]:
    """Return the split of each image, by its folder, the entries of the YAML file, or lists of names."""
    splits = splits_of(files, paths)
    if set(splits.values()) != {''}:
        return splits
    named: dict[str, set[Path]] = {}
    for split in ('train', 'val', 'test'):
        entries = settings.get(split) or (settings.get('valid') if split == 'val' else None) or []
        named[split] = {
            path
            for entry in ([entries] if isinstance(entries, str) else entries)
            for path in _under(files, entry, file)
        }
    if not named['train'] or named['train'] == named['val'] or not named['val'] | named['test']:
        return splits
    return {path: split for split in ('test', 'val', 'train') for path in named[split] & set(paths)}


def _under(files: Files, entry: str, file: Path) -> list[Path]:
    """Return the images of a folder that a YAML file names, from any of the places that it may be relative to."""
    parts = [part for part in str(entry).replace('\\', '/').split('/') if part not in ('', '.', '..')]
    for start in (file.parent, files.root):
        for skip in range(len(parts)):
            folder = start.joinpath(*parts[skip:])
            if folder.is_dir():
                return [path for path in files.images if folder in path.parents]
    return []
