"""COCO files, as COCO itself, CVAT, Roboflow and Label Studio write them."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from mmcasvit.datasets.outlines import is_coordinate, is_side
from mmcasvit.start.files import Files, image_size, split_of
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.text import shorten

from .labels import Boxes, Part


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
    for number, (image, path) in enumerate(zip(images, located)):
        if path and not (is_side(image.get('width')) and is_side(image.get('height'))) and (size := image_size(path)):
            native, images[number] = False, dict(image, width=size[0], height=size[1])
    if missing := sum(path is None for path in located):
        notes.append(f'images of {files.relative(file)} that are not in the folder: {missing} of {len(images)}')
    for number, entry in enumerate(content['annotations']):
        if 'bbox' in entry and not {'iscrowd', 'area', 'segmentation'} <= entry.keys():
            native, box = False, entry['bbox']
            whole = isinstance(box, list) and len(box) == 4 and all(map(is_coordinate, box))
            content['annotations'][number] = dict(
                dict(iscrowd=0, area=box[2] * box[3] if whole else 0, segmentation=[]), **entry
            )
    return Part(split, content, '' if prefix == '.' else prefix, file if native else None)
