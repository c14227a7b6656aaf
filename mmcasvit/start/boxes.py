"""Readers of labels with boxes or outlines: COCO, Pascal VOC, YOLO, LabelMe, and CSV. All become COCO files."""

import base64
import csv
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from mmcasvit.datasets.outlines import is_coordinate
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.images import open_image
from mmcasvit.utils.text import shorten

from .files import Files, image_sizes, listed_splits, read_lines, split_of


@dataclass
class Thing:
    """Labeled object.

    Attributes:
        name: Name of its class.
        box: ``(x, y, w, h)`` in pixels.
        outline: Polygons or run-length encoding in COCO's form, if there are any.
        ignored: Whether it counts neither for nor against a detector, as difficult objects of VOC.
    """

    name: str
    box: tuple[float, float, float, float]
    outline: list | dict | None = None
    ignored: bool = False


@dataclass
class Part:
    """Images and labels of one split.

    Attributes:
        split: ``'train'``, ``'val'``, ``'test'``, or ``''`` if the folder has no splits.
        content: Content of a COCO file. Names of images are relative to ``prefix``.
        prefix: Folder of the images, relative to the data folder.
        file: Annotation file that mmdet can read as it is, if there is one.
    """

    split: str
    content: dict[str, Any]
    prefix: str = ''
    file: Path | None = None


@dataclass
class Boxes:
    """Labels with boxes or outlines of a folder.

    Attributes:
        layout: Name of the layout.
        parts: One part for each split.
        notes: Remarks for the user on what was read and how.
    """

    layout: str
    parts: list[Part]
    notes: list[str] = field(default_factory=list)

    @property
    def outlined(self) -> tuple[int, int]:
        """Number of objects with an outline, and of all objects, without crowds."""
        objects = [a for part in self.parts for a in part.content['annotations'] if not a.get('iscrowd')]
        return sum(bool(a.get('segmentation')) for a in objects), len(objects)


def _box_of(polygons: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    x = [value for polygon in polygons for value in polygon[::2]]
    y = [value for polygon in polygons for value in polygon[1::2]]
    return min(x), min(y), max(x) - min(x), max(y) - min(y)


def _rectangle(x: float, y: float, w: float, h: float) -> list[float]:
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def _area(thing: Thing) -> float:
    if isinstance(thing.outline, list):
        corners = [np.asarray(polygon, float).reshape(-1, 2) for polygon in thing.outline]
        return float(sum(cv2.contourArea(points.astype(np.float32)) for points in corners))
    return thing.box[2] * thing.box[3]


class _Collector:
    """Images with their objects, gathered into parts."""

    def __init__(self, layout: str, files: Files):
        self.layout, self.files = layout, files
        self.found: dict[Path, list[Thing]] = {}
        self.recorded: dict[Path, tuple[int, int]] = {}
        self.notes: list[str] = []
        self.clipped = self.dropped = 0

    def add_unlabeled(self, unlabeled: str) -> None:
        """Add the images without labels that are in the folders of labeled ones, or leave them out.

        Raises:
            UsageError: If it is unclear what they are: most images have no labels.
        """
        folders = {path.parent for path in self.found}
        lacking = [path for path in self.files.images if path.parent in folders and path not in self.found]
        if not lacking:
            return
        if not unlabeled and len(lacking) > len(self.found):
            raise UsageError(
                f'{len(lacking)} images have no labels, such as {self.files.relative(lacking[0])}, and '
                f'{len(self.found)} have some. Say what the former are: --unlabeled background if they show no object, '
                '--unlabeled skip to leave them out.'
            )
        kept = unlabeled != 'skip'
        if kept:
            self.found.update((path, []) for path in lacking)
        self.notes.append(
            f'{len(lacking)} images without labels '
            + ('count as background (--unlabeled skip leaves them out)' if kept else 'are left out')
        )

    def boxes(self, splits: dict[Path, str], names: Sequence[str] | None = None) -> Boxes:
        """Return the parts.

        Args:
            splits: Split of each image. Others are left out.
            names: Names of the classes in order. By default those of the objects, sorted.
        """
        used = Counter(thing.name for path, things in self.found.items() if path in splits for thing in things)
        names = [name for name in names or sorted(used) if name in used]
        numbers = {name: number for number, name in enumerate(names, 1)}
        paths = sorted(path for path in self.found if path in splits)
        parts: dict[str, Part] = {}
        categories = [dict(id=number, name=name, supercategory='') for name, number in numbers.items()]
        for path, size in zip(paths, image_sizes(paths)):
            part = parts.setdefault(
                splits[path], Part(splits[path], dict(images=[], annotations=[], categories=categories))
            )
            width, height = self.recorded.get(path) or size or (1, 1)
            image = dict(
                id=len(part.content['images']) + 1, file_name=self.files.relative(path), width=width, height=height
            )
            part.content['images'].append(image)
            for thing in self.found[path]:
                self._add(part.content['annotations'], thing, image, numbers[thing.name])
        if self.clipped:
            self.notes.append(f'{self.clipped} boxes reached beyond their image and were clipped')
        if self.dropped:
            self.notes.append(f'{self.dropped} objects smaller than a pixel were left out')
        if unlisted := len(self.found) - len(paths):
            self.notes.append(f'{unlisted} labeled images are in no list of a split and were left out')
        return Boxes(self.layout, list(parts.values()), self.notes)

    def _add(self, annotations: list[dict], thing: Thing, image: dict, category: int) -> None:
        x, y, w, h = thing.box
        left, top = max(x, 0.0), max(y, 0.0)
        right, bottom = min(x + w, image['width']), min(y + h, image['height'])
        if (image['width'], image['height']) == (1, 1):  # it cannot be read, which the check will say
            left, top, right, bottom = x, y, x + w, y + h
        if right - left < 1 or bottom - top < 1:
            self.dropped += 1
            return
        self.clipped += (x + w) - right > 1 or (y + h) - bottom > 1 or left - x > 1 or top - y > 1
        annotations.append(
            dict(
                id=len(annotations) + 1,
                image_id=image['id'],
                category_id=category,
                bbox=[round(value, 2) for value in (left, top, right - left, bottom - top)],
                area=round(_area(thing), 2) or 1.0,
                iscrowd=int(thing.ignored),
                segmentation=thing.outline or [],
            )
        )


def _splits_of(files: Files, paths: Iterable[Path], prefer: str = '') -> dict[Path, str]:
    """Return the split of each image: as its folder names it, or else as lists do."""
    paths = list(paths)
    splits = {path: files.split(path) for path in paths}
    if set(splits.values()) == {''}:
        splits = listed_splits(files, paths, prefer) or splits
    return splits


def sniff(file: Path, size: int = 2**16) -> bytes:
    """Return the beginning of a file."""
    with file.open('rb') as stream:
        return stream.read(size)


# ---- COCO


def is_coco(file: Path) -> bool:
    """Return whether a JSON file may be a COCO file with objects."""
    content = file.read_bytes()
    return all(f'"{key}"'.encode() in content for key in ('images', 'annotations', 'categories'))


def read_coco(files: Files, found: Sequence[Path]) -> Boxes:
    """Read COCO files, as COCO itself, CVAT, Roboflow and Label Studio write them.

    Raises:
        UsageError: If a file cannot be read, or two are for the same split.
    """
    notes = []
    by_split: dict[str, list[Path]] = defaultdict(list)
    for file in found:
        by_split[split_of(file.relative_to(files.root).with_suffix(''))].append(file)
    parts = []
    for split, paths in by_split.items():
        if len(paths) > 1:
            paths = [path for path in paths if path.name.startswith('instances')] or paths
        if len(paths) > 1:
            raise UsageError(
                f'several COCO files for {"the " + split if split else "no named"} split: '
                f'{shorten(map(files.relative, paths), 3)}. Give a folder with one of them, or name them after their '
                'splits (train, val, test).'
            )
        parts.append(_coco_part(files, split, paths[0], notes))
    if len(parts) > 1 and '' in by_split:
        notes.append(f'{files.relative(by_split[""][0])} names no split and was left out')
        parts = [part for part in parts if part.split]
    return Boxes('COCO', parts, notes)


def _coco_part(files: Files, split: str, file: Path, notes: list[str]) -> Part:
    try:
        text = file.read_text(encoding='utf-8-sig')
        content = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f'{file} cannot be read as JSON: {error}') from error
    lists = [content.get(key) if isinstance(content, dict) else None for key in ('images', 'annotations', 'categories')]
    if not all(isinstance(entries, list) and all(isinstance(e, dict) for e in entries) for entries in lists):
        raise UsageError(f'{file} has no lists of images, annotations and categories as a COCO file has.')
    content = dict(zip(('images', 'annotations', 'categories'), lists))
    native = file.read_bytes()[:1] != b'\xef'
    images = content['images']
    prefixes: Counter[str] = Counter()
    located = [files.named(str(image.get('file_name', '')), file, split) for image in images]
    for image, path in zip(images, located):
        if path and path.as_posix().endswith('/' + str(image['file_name'])):
            prefixes[path.as_posix()[: -len(image['file_name']) - 1]] += 1
    prefix = prefixes.most_common(1)[0][0] if prefixes else ''
    if len(prefixes) == 1 and prefixes[prefix] == sum(path is not None for path in located):
        prefix = Path(prefix).relative_to(files.root).as_posix()
    else:  # names that no single folder explains
        native, prefix = False, ''
        for number, path in enumerate(located):
            if path:
                images[number] = dict(images[number], file_name=files.relative(path))
    if missing := sum(path is None for path in located):
        notes.append(f'{missing} of {len(images)} images of {files.relative(file)} are not in the folder')
    for number, entry in enumerate(content['annotations']):
        if 'bbox' in entry and not {'iscrowd', 'area', 'segmentation'} <= entry.keys():
            native, box = False, entry['bbox']
            whole = isinstance(box, list) and len(box) == 4 and all(map(is_coordinate, box))
            content['annotations'][number] = dict(
                dict(iscrowd=0, area=box[2] * box[3] if whole else 0, segmentation=[]), **entry
            )
    return Part(split, content, '' if prefix == '.' else prefix, file if native else None)


# ---- Pascal VOC


def is_voc(file: Path) -> bool:
    """Return whether an XML file may hold the objects of an image in VOC's form."""
    return re.search(rb'<annotation[\s>]', sniff(file, 4096)) is not None


def read_voc(files: Files, found: Sequence[Path], unlabeled: str) -> Boxes:
    """Read the XML files of Pascal VOC, as labelImg, CVAT and Roboflow write them.

    Raises:
        UsageError: If a file cannot be read.
    """
    collector = _Collector('Pascal VOC', files)
    raw, missing = {}, []
    for file in found:
        try:
            root = ElementTree.parse(file).getroot()
        except (OSError, ValueError, LookupError, ElementTree.ParseError, RecursionError) as error:
            raise UsageError(f'{file} cannot be read as XML: {error}') from error
        named = files.named(root.findtext('filename') or '', file)  # a copied file may name another image
        path = named if named and named.stem == file.stem else files.of_label(file) or named
        if path is None:
            missing.append(file)
            continue
        raw[path] = [_voc_object(part, file) for part in root.findall('object')]
        size = [root.findtext(f'size/{side}') or '' for side in ('width', 'height')]
        if all(side.isdigit() and int(side) for side in size):
            collector.recorded[path] = int(size[0]), int(size[1])
    # VOC counts pixels from 1, and many programs that write its form from 0.
    first = 0 if any(min(box[:2]) < 1 for things in raw.values() for _, box, _ in things) else 1
    for path, things in raw.items():
        collector.found[path] = [
            Thing(name, (box[0] - first, box[1] - first, box[2] - box[0], box[3] - box[1]), None, ignored)
            for name, box, ignored in things
        ]
    if missing:
        collector.notes.append(f'{len(missing)} XML files have no image, such as {files.relative(missing[0])}')
    collector.add_unlabeled(unlabeled)
    return collector.boxes(_splits_of(files, collector.found, prefer='Main'))


def _voc_object(part: ElementTree.Element, file: Path) -> tuple[str, list[float], bool]:
    name = (part.findtext('name') or '').strip()
    try:
        box = [float(part.findtext(f'bndbox/{side}') or '') for side in ('xmin', 'ymin', 'xmax', 'ymax')]
    except ValueError:
        box = []
    if not name or len(box) < 4 or not all(map(is_coordinate, box)):
        raise UsageError(f'{file}: an object needs a name, and a bndbox with xmin, ymin, xmax and ymax as numbers.')
    return name, box, (part.findtext('difficult') or '0').strip() == '1'


# ---- YOLO

_ROW = re.compile(rb'^\s*\d+(\s+-?[\d.]+(e-?\d+)?){4,}\s*$', re.IGNORECASE)


def is_yolo(file: Path) -> bool:
    """Return whether a text file has rows of a class number and at least four other numbers."""
    lines = sniff(file, 4096).splitlines()
    return bool(lines) and _ROW.match(lines[0]) is not None


def read_yolo(files: Files, found: Sequence[Path], unlabeled: str, classes: Sequence[str]) -> Boxes:
    """Read YOLO's text files with boxes or outlines, as ultralytics, Darknet, CVAT and Roboflow write them.

    Raises:
        UsageError: If a row cannot be read, or there are no names for the classes.
    """
    settings, settings_file = _yolo_settings(files)
    names = dict(enumerate(classes)) or _yolo_names(files, settings, settings_file)
    collector = _Collector('YOLO', files)
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
    return Thing(name, _box_of([polygon]), [polygon])


def _yolo_splits(files: Files, paths: list[Path], settings: dict, file: Path) -> dict[Path, str]:
    """Return the split of each image, by its folder, the entries of the YAML file, or lists of names."""
    splits = _splits_of(files, paths)
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


# ---- LabelMe


def is_labelme(file: Path) -> bool:
    """Return whether a JSON file may be one of LabelMe."""
    content = file.read_bytes()
    return b'"shapes"' in content and b'"imagePath"' in content


def read_labelme(files: Files, found: Sequence[Path], unlabeled: str) -> Boxes:
    """Read the JSON files of LabelMe, which names one image in each.

    Raises:
        UsageError: If a file cannot be read.
    """
    collector = _Collector('LabelMe', files)
    missing, skipped = [], Counter()
    for file in found:
        try:
            content = json.loads(file.read_text(encoding='utf-8-sig'))
            things, others = _labelme_things(content['shapes'])
        except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise UsageError(f'{file} cannot be read as a file of LabelMe: {type(error).__name__}: {error}') from error
        path = files.named(str(content.get('imagePath') or ''), file) or files.of_label(file)
        if path is None:
            missing.append(file)
            continue
        skipped.update(others)
        collector.found[path] = things
    if missing:
        collector.notes.append(f'{len(missing)} LabelMe files have no image, such as {files.relative(missing[0])}')
    if skipped:
        collector.notes.append(
            'shapes without an area were left out: ' + ', '.join(f'{count} {kind}' for kind, count in skipped.items())
        )
    collector.add_unlabeled(unlabeled)
    return collector.boxes(_splits_of(files, collector.found))


def _labelme_things(shapes: list[dict]) -> tuple[list[Thing], list[str]]:
    """Return the objects of some shapes. Shapes of one label and group are parts of one object."""
    groups: dict[Any, list[tuple[list[float], bool]]] = defaultdict(list)
    others = []
    for number, shape in enumerate(shapes):
        kind = shape.get('shape_type') or 'polygon'
        polygon = _labelme_polygon(kind, shape)
        if not polygon:
            others.append(kind)
            continue
        group = shape.get('group_id')
        key = (str(shape['label']), number if group is None else f'group {group}')
        groups[key] += [(part, kind == 'rectangle') for part in polygon]
    things = []
    for (name, _), parts in groups.items():
        polygons = [polygon for polygon, _ in parts]
        only_boxes = all(boxed for _, boxed in parts)
        things.append(Thing(name, _box_of(polygons), None if only_boxes else polygons))
    return things, others


def _labelme_polygon(kind: str, shape: dict) -> list[list[float]]:
    points = np.asarray(shape['points'], float).reshape(-1, 2)
    if kind == 'polygon' and len(points) >= 3:
        return [points.round(2).ravel().tolist()]
    if kind == 'rectangle' and len(points) >= 2:
        (left, top), (right, bottom) = points.min(0), points.max(0)
        return [_rectangle(left, top, right - left, bottom - top)]
    if kind == 'circle' and len(points) == 2:
        turns = np.linspace(0, 2 * np.pi, 32, endpoint=False)
        radius = np.hypot(*(points[1] - points[0]))
        return [(points[0] + radius * np.stack([np.cos(turns), np.sin(turns)], 1)).round(2).ravel().tolist()]
    if kind == 'mask' and shape.get('mask'):
        with open_image(io.BytesIO(base64.b64decode(shape['mask']))) as image:
            mask = np.asarray(image.convert('L')) > 0
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        return [(line.reshape(-1, 2) + points[0]).ravel().tolist() for line in outlines if len(line) >= 3]
    return []


# ---- CSV

_COLUMNS = dict(
    file=('filename', 'file', 'image', 'imageid', 'img', 'path', 'imagepath', 'imagename', 'imgpath'),
    name=('class', 'label', 'category', 'name', 'classname', 'labelname', 'classid'),
    left=('xmin', 'x1', 'left'),
    top=('ymin', 'y1', 'top'),
    right=('xmax', 'x2', 'right'),
    bottom=('ymax', 'y2', 'bottom'),
    split=('split', 'set', 'subset'),
)


def _columns(header: Sequence[str]) -> dict[str, int]:
    plain = [re.sub(r'[^a-z0-9]', '', str(name).lower()) for name in header]
    return {key: plain.index(name) for key, names in _COLUMNS.items() for name in reversed(names) if name in plain}


def _csv_rows(file: Path) -> tuple[dict[str, int], list[list[str]]]:
    """Return the columns of a CSV file of boxes and its rows, or nothing if it is no such file."""
    try:
        with file.open(encoding='utf-8-sig', newline='') as stream:
            sample = stream.read(4096)
            stream.seek(0)
            delimiter = max(',;\t', key=sample.count)
            rows = [row for row in csv.reader(stream, delimiter=delimiter) if any(row)]
    except (OSError, ValueError, csv.Error):
        return {}, []
    columns = _columns(rows[0]) if rows else {}
    if {'file', 'left', 'top', 'right', 'bottom'} <= columns.keys():
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
        UsageError: If a row has coordinates that are no numbers.
    """
    collector = _Collector('CSV', files)
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
            corners = [cells.get(side, '') for side in ('left', 'top', 'right', 'bottom')]
            if not any(corners):
                continue
            if not all(map(_is_number, corners)):
                raise UsageError(f'{file}, row {number}: expected four numbers, got {corners}.')
            left, top, right, bottom = map(float, corners)
            things.append(Thing(cells.get('name') or 'object', (left, top, right - left, bottom - top)))
    if missing:
        collector.notes.append(f'{len(missing)} images of the CSV are not in the folder, such as {next(iter(missing))}')
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
        splits = _splits_of(files, collector.found)
    return collector.boxes(splits)
