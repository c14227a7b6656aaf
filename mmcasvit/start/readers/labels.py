"""Labels with boxes or outlines, as objects of images and as the COCO files that they become."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmcasvit.start.files import Files, image_sizes, listed_splits
from mmcasvit.utils.errors import UsageError


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


def box_of(polygons: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    x = [value for polygon in polygons for value in polygon[::2]]
    y = [value for polygon in polygons for value in polygon[1::2]]
    return min(x), min(y), max(x) - min(x), max(y) - min(y)


def rectangle(x: float, y: float, w: float, h: float) -> list[float]:
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def _area(thing: Thing) -> float:
    if isinstance(thing.outline, list):
        corners = [np.asarray(polygon, float).reshape(-1, 2) for polygon in thing.outline]
        return float(sum(cv2.contourArea(points.astype(np.float32)) for points in corners))
    return thing.box[2] * thing.box[3]


class Collector:
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
            f'images without labels, {"taken as background" if kept else "left out"}: {len(lacking)}'
            + ' (--unlabeled skip leaves them out)' * kept
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
            self.notes.append(f'boxes beyond the edge of their image, clipped: {self.clipped}')
        if self.dropped:
            self.notes.append(f'objects smaller than a pixel, left out: {self.dropped}')
        if unlisted := len(self.found) - len(paths):
            self.notes.append(f'labeled images in no list of a split, left out: {unlisted}')
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


def splits_of(files: Files, paths: Iterable[Path], prefer: str = '') -> dict[Path, str]:
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
