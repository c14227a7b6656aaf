"""XML files of Pascal VOC."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from mmcasvit.datasets.outlines import is_coordinate
from mmcasvit.start.files import Files
from mmcasvit.utils.errors import UsageError

from .labels import Boxes, Collector, Thing, sniff, splits_of


def is_voc(file: Path) -> bool:
    """Return whether an XML file may hold the objects of an image in VOC's form."""
    return re.search(rb'<annotation[\s>]', sniff(file, 4096)) is not None


def read_voc(files: Files, found: Sequence[Path], unlabeled: str) -> Boxes:
    """Read the XML files of Pascal VOC, as labelImg, CVAT and Roboflow write them.

    Raises:
        UsageError: If a file cannot be read.
    """
    collector = Collector('Pascal VOC', files)
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
        collector.notes.append(f'XML files without an image: {len(missing)}, such as {files.relative(missing[0])}')
    collector.add_unlabeled(unlabeled)
    return collector.boxes(splits_of(files, collector.found, prefer='Main'))


def _voc_object(part: ElementTree.Element, file: Path) -> tuple[str, list[float], bool]:
    name = (part.findtext('name') or '').strip()
    try:
        box = [float(part.findtext(f'bndbox/{side}') or '') for side in ('xmin', 'ymin', 'xmax', 'ymax')]
    except ValueError:
        box = []
    if not name or len(box) < 4 or not all(map(is_coordinate, box)):
        raise UsageError(f'{file}: an object needs a name, and a bndbox with xmin, ymin, xmax and ymax as numbers.')
    return name, box, (part.findtext('difficult') or '0').strip() == '1'
