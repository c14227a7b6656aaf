"""JSON files of LabelMe."""

import base64
import io
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmcasvit.start.files import Files
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.images import open_image

from .labels import Boxes, Collector, Thing, box_of, rectangle, splits_of


def is_labelme(file: Path) -> bool:
    """Return whether a JSON file may be one of LabelMe."""
    content = file.read_bytes()
    return b'"shapes"' in content and b'"imagePath"' in content


def read_labelme(files: Files, found: Sequence[Path], unlabeled: str) -> Boxes:
    """Read the JSON files of LabelMe, which names one image in each.

    Raises:
        UsageError: If a file cannot be read.
    """
    collector = Collector('LabelMe', files)
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
        collector.notes.append(f'LabelMe files without an image: {len(missing)}, such as {files.relative(missing[0])}')
    if skipped:
        collector.notes.append(
            'shapes without an area were left out: ' + ', '.join(f'{count} {kind}' for kind, count in skipped.items())
        )
    collector.add_unlabeled(unlabeled)
    return collector.boxes(splits_of(files, collector.found))


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
        things.append(Thing(name, box_of(polygons), None if only_boxes else polygons))
    return things, others


def _labelme_polygon(kind: str, shape: dict) -> list[list[float]]:
    points = np.asarray(shape['points'], float).reshape(-1, 2)
    if kind == 'polygon' and len(points) >= 3:
        return [points.round(2).ravel().tolist()]
    if kind == 'rectangle' and len(points) >= 2:
        (left, top), (right, bottom) = points.min(0), points.max(0)
        return [rectangle(left, top, right - left, bottom - top)]
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
