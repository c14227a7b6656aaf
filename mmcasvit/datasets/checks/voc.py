"""Checks of the XML files of VOC-style datasets."""

import xml.etree.ElementTree as ElementTree

from mmcasvit.datasets.outlines import LARGEST
from mmcasvit.datasets.sources import ListedImage
from mmcasvit.utils.images import check_regular

from .problems import CheckedDataset

# Pixels that a box may extend beyond its image, since some tools count from 0 and others from 1.
_TOLERANCE = 1


def read_xml(data: CheckedDataset, entry: ListedImage, index: int) -> tuple[tuple[int, int] | None, list[str]]:
    """Check the XML file of an image.

    Args:
        data: Dataset that the problems are added to.
        entry: Image in the list.
        index: Its position there.

    Returns:
        The recorded ``(width, height)`` in pixels, if any, and the class names of the objects.
    """
    about: dict = dict(image_index=index)
    if not data.is_outside(entry.image):  # files outside the folders are not even opened to draw an example
        about['image'] = entry.image
    try:
        check_regular(entry.xml)
        root = ElementTree.parse(entry.xml).getroot()
    except (OSError, ValueError, LookupError, ElementTree.ParseError, RecursionError) as error:
        reason = 'missing' if isinstance(error, FileNotFoundError) else f'{type(error).__name__}: {error}'
        data.add('broken_xml', entry.xml, reason, **about)
        return None, []
    size = None
    if root.find('size') is not None:
        width, height = (_number(root, f'size/{side}', int) for side in ('width', 'height'))
        if width is not None and height is not None and min(width, height) > 0:
            size = int(width), int(height)
        else:
            data.add('malformed', entry.xml, 'width and height in size must be positive integers', **about)
    names = []
    for number, part in enumerate(root.findall('object')):
        where, name = f'{entry.xml}, object {number}', part.findtext('name')
        if not name:
            data.add('malformed', where, 'it has no name', **about)
            continue
        names.append(name)
        if name in data.classes:
            _check_object(data, part, where, size, about)
    return size, names


def _number(part: ElementTree.Element, path: str, kind: type[int] | type[float] = float) -> float | None:
    """Return a number of an XML element as mmdet reads it, or ``None`` if it is not one of a size that pixels have."""
    try:
        value = kind(part.findtext(path) or '')
    except ValueError:
        return None
    return value if abs(value) <= LARGEST else None


def _check_object(data: CheckedDataset, part: ElementTree.Element, where: str, size, about: dict) -> None:
    if part.find('difficult') is not None and _number(part, 'difficult', int) not in (0, 1):
        data.add('malformed', where, f'difficult is {part.findtext("difficult")!r}, expected 0 or 1', **about)
    found = [_number(part, f'bndbox/{name}') for name in ('xmin', 'ymin', 'xmax', 'ymax')]
    corners = [int(corner) for corner in found if corner is not None]
    if len(corners) < 4:
        data.add('malformed', where, 'bndbox needs xmin, ymin, xmax, and ymax as numbers', **about)
        return
    left, top, right, bottom = corners
    about = dict(about, box=(left - 1, top - 1, right - left, bottom - top))
    if right - left < 1 or bottom - top < 1:
        data.add('empty_box', where, f'from ({left}, {top}) to ({right}, {bottom})', **about)
    elif size and (min(left, top) < 1 - _TOLERANCE or right > size[0] + _TOLERANCE or bottom > size[1] + _TOLERANCE):
        detail = f'from ({left}, {top}) to ({right}, {bottom}) in an image of {size[0]} x {size[1]}'
        data.add('box_outside', where, detail, **about)
