"""Outlines of objects in COCO annotations: polygons and run-length encodings that pycocotools can read safely."""

import functools
import importlib.util

import numpy as np

from mmcasvit.utils.errors import DataError

# The largest coordinate in pixels.
LARGEST = 1e9
# How far a corner may be from the origin: times the longer side of the image, or in pixels if that is unknown.
FAR = 10
FAR_WITHOUT_SIZE = 100_000


def is_coordinate(value) -> bool:
    """Return whether a value is a finite number of a size that coordinates can have."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def is_side(value) -> bool:
    """Return whether a value is a width or height of an image in pixels."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 0 < value <= LARGEST


def outline_fault(outline, size: tuple[int, int]) -> str:
    """Describe what mmdet or pycocotools cannot read in the ``segmentation`` of an annotation, or return ``''``.

    Polygons with too few corners are no fault here: mmdet ignores them.

    Args:
        outline: List of polygons, or a run-length encoding.
        size: Height and width of the image in pixels.
    """
    if isinstance(outline, dict):
        return rle_fault(outline, size) if isinstance(outline.get('counts'), (list, str)) else ''
    if not isinstance(outline, list) or not all(isinstance(part, list) for part in outline):
        return 'the segmentation is neither a list of polygons nor a run-length encoding'
    usable = [part for part in outline if len(part) % 2 == 0 and len(part) >= 6]
    return next((fault for part in usable if (fault := _corner_fault(part, size))), '')


def _corner_fault(points, size: tuple[int, int] | None) -> str:
    corners = _as_numbers(points)
    if corners is None or not (np.abs(corners) <= LARGEST).all():  # not, since NaN compares as False
        return f'some coordinates are not numbers of at most {LARGEST:.0e}'
    reach = FAR * max(*size, 100) if size else FAR_WITHOUT_SIZE
    if len(corners) and np.abs(corners).max() > reach:
        return f'a corner is at {max(points, key=abs):g}, farther than {reach} pixels'
    return ''


def _as_numbers(points) -> np.ndarray | None:
    """Return a list of numbers as an array, or None if it is anything else. COCO has some 40 million of them."""
    if not isinstance(points, list):
        return None
    try:
        array = np.array(points)
    except ValueError:  # lists of different lengths
        return None
    return array if array.ndim == 1 and array.dtype.kind in 'if' else None


def polygon_fault(points, size: tuple[int, int] | None = None) -> str:
    """Describe what is wrong with a polygon ``[x, y, x, y, ...]``, or return ``''``.

    Corners far away are refused because pycocotools writes down every pixel of an outline: it takes gigabytes for
    them, or crashes.

    Args:
        points: Coordinates in pixels.
        size: Height and width of the image in pixels, if they are known.
    """
    if fault := _corner_fault(points, size):
        return fault
    if len(points) % 2 or len(points) < 6:
        return f'{len(points)} numbers; a polygon needs an even number of at least 6'
    if len(set(points[0::2])) == len(set(points[1::2])) == 1:
        return 'all corners are the same point'
    return ''


def rle_fault(code: dict, size: tuple[int, int]) -> str:
    """Describe what is wrong with a run-length encoding, or return ``''``.

    The runs are added up here because pycocotools does not check them: it would write beyond the end of the mask.

    Args:
        code: Encoding ``dict(size=(H, W), counts=...)``, compressed or not.
        size: Height and width of the image in pixels.
    """
    if not isinstance(code.get('size'), (list, tuple)) or list(code['size']) != list(size):
        return f'its size is {code.get("size")}, but the image has {list(size)} (height, width)'
    try:
        counts = code['counts']
        runs = counts if isinstance(counts, list) else decode_runs(counts)
    except (KeyError, TypeError, ValueError, AttributeError):
        return 'its counts cannot be decoded'
    if not all(isinstance(run, int) and not isinstance(run, bool) and run >= 0 for run in runs):
        return 'some of its runs are not integers of at least 0'
    if sum(runs) != size[0] * size[1]:
        return f'its runs add up to {sum(runs)} pixels, but the image has {size[0] * size[1]}'
    return ''


def decode_runs(text: str) -> list[int]:
    """Decode the compressed counts of a COCO run-length encoding.

    Each character holds five bits, low ones first. From the fourth run on, the value is the difference from the run
    two before.

    Raises:
        ValueError: If a character is invalid or the last run is incomplete.
    """
    runs, value, shift = [], 0, 0
    for character in text.encode('ascii'):
        bits = character - 48
        if not 0 <= bits < 64:
            raise ValueError(f'{chr(character)!r} is not a character of a run-length encoding')
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            if shift > 60:
                raise ValueError('a run is too long')
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError('the last run is incomplete')
    return runs


def guard_pycocotools() -> None:
    """Make pycocotools refuse outlines that it cannot read safely from now on, in this process.

    Evaluation hands it the annotations as they are. It hangs for an image without a width, and crashes or takes
    gigabytes for corners far away and for runs that do not add up.
    """
    if importlib.util.find_spec('pycocotools') is None:
        return
    from pycocotools import mask
    from pycocotools.cocoeval import COCOeval

    if hasattr(mask.decode, '__wrapped__'):
        return
    encode, decode, prepare = mask.frPyObjects, mask.decode, COCOeval._prepare

    @functools.wraps(encode)
    def checked_encode(outline, height, width):
        _refuse(_size_fault(height, width))
        given = outline
        if isinstance(outline, list):
            given = [part.tolist() if isinstance(part, np.ndarray) else part for part in outline]
        if isinstance(given, dict) or (isinstance(given, list) and all(isinstance(part, list) for part in given)):
            _refuse(outline_fault(given, (height, width)))
        return encode(outline, height, width)

    @functools.wraps(decode)
    def checked_decode(code):
        if isinstance(code, dict) and isinstance(code.get('counts'), str):  # bytes are its own
            _refuse(_size_fault(*code['size']) or rle_fault(code, code['size']))
        return decode(code)

    @functools.wraps(prepare)
    def checked_prepare(evaluation):
        truth = evaluation.cocoGt
        for entry in truth.loadAnns(truth.getAnnIds(imgIds=evaluation.params.imgIds)):
            if evaluation.params.iouType == 'segm':
                image = truth.imgs[entry['image_id']]
                size = image.get('height'), image.get('width')
                fault = _size_fault(*size) or outline_fault(entry.get('segmentation'), size)
                _refuse(fault, f'annotation {entry["id"]} of the evaluation')
        prepare(evaluation)

    mask.frPyObjects, mask.decode, COCOeval._prepare = checked_encode, checked_decode, checked_prepare


def _size_fault(height, width) -> str:
    if is_side(height) and is_side(width):
        return ''
    return f'its image has the height and width {height!r}, {width!r}'


def _refuse(fault: str, what: str = 'a segmentation') -> None:
    if fault:
        raise DataError(f'{what} cannot be used: {fault}. tools/check_dataset.py lists all such annotations.')
