"""Index masks: which images of a folder are masks, of which image, and what their values mean."""

import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.images import DATA_FORMATS, open_image
from mmcasvit.utils.text import shorten

from .files import Files, listed_splits, read_lines

IGNORED = 255
# A mask has no more values, or colors, than this.
_MOST_VALUES = 256
# A color 0xRRGGBB with three equal channels is a multiple of this.
_GRAY = 0x010101
# Pillow's modes of masks whose classes are colors.
_COLOR_MODES = ('RGB', 'RGBA', 'CMYK', 'YCbCr', 'LA', 'PA')
_MASK_WORDS = re.compile(
    r'(mask|label|annot|seg|truth|(^|[^a-z])gt|target|trimap|index)[a-z]*|(^|[\W_])(l|y)($|[\W_])', re.IGNORECASE
)
_AS_IN_ADE20K = '0 means not labeled, as in ADE20K, whose folders these are (--zero class if it is a class)'
# Names of classes that mean that a pixel is not labeled.
_UNLABELED = ('void', 'unlabeled', 'unlabelled', 'ignore', 'ignored', 'dontcare')


@dataclass
class Masks:
    """Images with index masks.

    Attributes:
        pairs: Image, its mask, and its split, which is ``''`` if the folder names none.
        values: Values of the masks, or colors as ``0xRRGGBB`` if they are in color.
        colored: Whether the masks are in color.
        notes: Remarks for the user.
    """

    pairs: list[tuple[Path, Path, str]]
    values: Counter = field(default_factory=Counter)
    colored: bool = False
    notes: list[str] = field(default_factory=list)


def read_mask(path: Path) -> np.ndarray:
    """Return a mask as a uint16 or int32 array ``(H, W)`` of its values, or of ``0xRRGGBB`` if it is in color."""
    with open_image(path, DATA_FORMATS) as image:
        if _is_lossy(path):
            return np.where(np.asarray(image.convert('L')) > 127, 255, 0)
        if image.mode in _COLOR_MODES:
            colors = np.asarray(image.convert('RGB')).astype(np.int32)
            return colors[..., 0] << 16 | colors[..., 1] << 8 | colors[..., 2]
        return np.asarray(image).astype(np.int32)


def _is_lossy(path: Path) -> bool:
    return path.suffix.lower() in ('.jpg', '.jpeg', '.webp', '.jp2')


def _is_colored(path: Path) -> bool:
    if _is_lossy(path):
        return False
    with open_image(path, DATA_FORMATS) as image:
        return image.mode in _COLOR_MODES


def _looks_like_mask(path: Path) -> bool:
    """Return whether an image has few values and is in a format that keeps them."""
    try:
        if _is_lossy(path):  # only black and white survive
            with open_image(path, DATA_FORMATS) as image:
                gray = np.asarray(image.convert('L'))
            return bool(((gray < 32) | (gray > 223)).mean() > 0.97 and np.ptp(gray) > 128)
        with open_image(path, DATA_FORMATS) as image:
            if max(image.size) > 1024:
                image = image.resize((max(1, image.width // 4), max(1, image.height // 4)), 0)
            return image.getcolors(_MOST_VALUES // 2) is not None
    except Exception:  # decoders raise nearly anything
        return False


def find_masks(files: Files) -> Masks | None:
    """Return the masks of a folder, each with its image, or None if there are none.

    Masks are told from images by what is in them, with the words of their paths as a help, whatever their names are.
    Of JPEGs, only those in black and white count: compression changes other labels.

    Raises:
        UsageError: If an image has several masks.
    """
    groups = defaultdict(list)
    for path in files.images:
        ending = re.search(r'[_\-. ]([A-Za-z]+)$', path.stem)
        kind = ending.group(1).lower() if ending and _MASK_WORDS.search(ending.group(0)) else ''
        groups[path.parent, path.suffix.lower(), kind].append(path)
    candidates, others = [], []
    for (folder, _, kind), paths in groups.items():
        where = f'{folder.relative_to(files.root).as_posix()}_{kind}'
        sample = paths[:: max(1, len(paths) // 3)][:3]
        masks = sum(map(_looks_like_mask, sample)) * 2 > len(sample)
        (candidates if masks else others).append((bool(_MASK_WORDS.search(where)), paths))
    if not others and any(named for named, _ in candidates):  # images with few colors
        others = [entry for entry in candidates if not entry[0]]
    if any(named for named, _ in candidates):
        candidates = [entry for entry in candidates if entry[0]]
    if not candidates:
        return None
    images = [path for _, paths in others for path in paths]
    return _pair(files, images, [path for _, paths in candidates for path in paths])


def _pair(files: Files, images: Sequence[Path], masks: Sequence[Path]) -> Masks | None:
    """Pair masks with images of the same name, to which masks may add something, such as ``_mask``."""
    by_stem = defaultdict(list)
    for path in images:
        by_stem[re.sub(r'_leftImg8bit$', '', path.stem)].append(path)
        if path.suffix.lower() in ('.jpg', '.jpeg', '.png'):
            by_stem[path.name].append(path)  # a mask may keep the suffix: x.jpg.png
    parts = {mask: _known_part(mask.stem, by_stem) for mask in masks}
    extras = Counter(mask.stem.replace(part, '*', 1) for mask, part in parts.items() if part)
    if not extras:
        return None
    usual = max(extras, key=lambda extra: (extras[extra], -_strangeness(extra)))
    pairs, lacking = [], []
    for mask, part in parts.items():
        if part and mask.stem.replace(part, '*', 1) == usual:
            strange = {path: _strangeness(files.relative(path)) for path in by_stem[part]}
            image = files.nearest([path for path in strange if strange[path] == min(strange.values())], mask)
            pairs.append((image, mask, files.split(mask) or files.split(image)))
        else:
            lacking.append(mask)
    notes = []
    # Cityscapes has color images and instances beside the labels.
    lacking = [mask for mask in lacking if not parts[mask]]
    if len(pairs) < max(1, len(lacking)):
        return None
    if lacking:
        notes.append(f'masks without an image: {len(lacking)}, such as {files.relative(lacking[0])}')
    pairs = _choose_masks(files, pairs)
    used = {image for image, _, _ in pairs}
    if unlabeled := [path for path in images if path not in used]:
        notes.append(f'images without a mask, left out: {len(unlabeled)}, such as {files.relative(unlabeled[0])}')
    if all(not split for _, _, split in pairs):
        listed = listed_splits(files, used, prefer='Segmentation')
        if listed:
            pairs = [(image, mask, listed[image]) for image, mask, _ in pairs if image in listed]
    return Masks(sorted(pairs), notes=notes)


def _strangeness(path: str) -> int:
    """Return how unlikely the name of a file or folder is for masks of classes."""
    return len(re.findall(r'object|instance|color|panoptic|depth|edge|bound|visuali|overlay', path, re.IGNORECASE))


def _choose_masks(files: Files, pairs: list[tuple[Path, Path, str]]) -> list[tuple[Path, Path, str]]:
    """Choose one mask for each image: VOC has SegmentationClass and SegmentationObject."""
    by_image: dict[Path, list[tuple[Path, Path, str]]] = defaultdict(list)
    for pair in pairs:
        by_image[pair[0]].append(pair)
    chosen = []
    for image, found in by_image.items():
        found.sort(key=lambda pair: _strangeness(files.relative(pair[1])))
        if len(found) > 1 and len({_strangeness(files.relative(pair[1])) for pair in found[:2]}) == 1:
            raise UsageError(
                f'{files.relative(image)} has the masks {files.relative(found[0][1])} and '
                f'{files.relative(found[1][1])}. Keep one of them in the folder.'
            )
        chosen.append(found[0])
    return chosen


def _known_part(stem: str, known: dict) -> str:
    """Return the longest beginning or ending of a stem that is known."""
    for size in range(len(stem), 0, -1):
        for part in (stem[:size], stem[-size:]):
            if part in known:
                return part
    return ''


def count_values(masks: Masks) -> None:
    """Count the values of all masks, in pixels.

    Raises:
        UsageError: If a mask cannot be read, or has more colors than a mask has.
    """

    def values_of(path: Path) -> tuple[np.ndarray, np.ndarray] | str:
        try:
            return np.unique(read_mask(path), return_counts=True)
        except Exception as error:  # decoders raise nearly anything
            return f'{type(error).__name__}: {error}'

    paths = [mask for _, mask, _ in masks.pairs]
    masks.colored = _is_colored(paths[0])
    with ThreadPoolExecutor() as pool:
        for path, found in zip(paths, pool.map(values_of, paths)):
            if isinstance(found, str):
                masks.notes.append(f'{path} cannot be read: {found}')
                continue
            if len(found[0]) > _MOST_VALUES:
                raise UsageError(f'{path} has {len(found[0])} values. A mask has one value for each class.')
            masks.values.update(dict(zip(map(int, found[0]), map(int, found[1]))))


@dataclass
class Meaning:
    """Meaning of the values of masks.

    Attributes:
        classes: Names of the classes.
        labels: Label of each value: the number of a class, or :data:`IGNORED`.
        reduce_zero: Whether mmseg can read the masks with ``reduce_zero_label``.
        colors: Color of each class, if known.
        note: What was decided about 0, in words.
    """

    classes: list[str]
    labels: dict[int, int]
    reduce_zero: bool = False
    colors: list[tuple[int, int, int]] | None = None
    note: str = ''

    @property
    def native(self) -> bool:
        """Whether mmseg can read the values as they are."""
        shift = int(self.reduce_zero)
        return all(
            label == (IGNORED if value in (IGNORED, *([0] * shift)) else value - shift)
            for value, label in self.labels.items()
        )


def _text_table(file: Path) -> list[list[str]]:
    with file.open(encoding='utf-8-sig', newline='') as stream:
        return [[cell.strip() for cell in row] for row in csv.reader(stream) if any(row)]


def _find_names(files: Files) -> tuple[dict[int, str], Path | None]:
    """Return the names of values or colors that a file of the folder gives, and the file.

    Known are Roboflow's ``_classes.csv``, CVAT's ``labelmap.txt``, CamVid's ``class_dict.csv`` and
    ``label_colors.txt``, JSON files with a list or a table of names, and lists of names.
    """
    for file in files.labels['.csv']:
        try:
            rows = _text_table(file)
        except (OSError, ValueError, csv.Error):
            continue
        if rows and len(rows[0]) == 2 and 'value' in rows[0][0].lower():
            return {int(row[0]): row[1] for row in rows[1:] if len(row) == 2 and row[0].isdigit()}, file
        if rows and [cell.lower() for cell in rows[0][1:4]] == ['r', 'g', 'b']:
            return {_color(row[1:4]): row[0] for row in rows[1:] if len(row) >= 4}, file
    for file in files.labels['.txt']:
        if re.fullmatch(r'label_?(map|colors)|_?classes|class(_?names)?|codes|labels|names', file.stem.lower()):
            lines = [line for line in read_lines(file) if not line.startswith('#')]
            colored = [re.fullmatch(r'(.*?)[:\s]\s*(\d+)[,\s]+(\d+)[,\s]+(\d+)(:.*)?', line) for line in lines]
            if lines and all(colored):
                return {_color(found.group(2, 3, 4)): found.group(1).strip() for found in colored if found}, file
            colored = [re.fullmatch(r'(\d+)[,\s]+(\d+)[,\s]+(\d+)[,:\s]+(\D.*)', line) for line in lines]
            if lines and all(colored):
                return {_color(found.group(1, 2, 3)): found.group(4) for found in colored if found}, file
            numbered = [re.fullmatch(r'(\d+)[\s:,]+(.+)', line) for line in lines]
            if lines and all(numbered):
                return {int(found.group(1)): found.group(2) for found in numbered if found}, file
            return {}, file
    return {}, None


def _color(cells: Sequence[str]) -> int:
    red, green, blue = map(int, cells)
    return red << 16 | green << 8 | blue


def _list_of_names(files: Files, table: Path | None) -> list[str] | dict[int, str]:
    for file in files.labels['.json']:
        if re.search(r'class|label|name', file.stem, re.IGNORECASE):
            try:
                content = json.loads(file.read_text(encoding='utf-8-sig'))
            except (OSError, ValueError, RecursionError):
                continue
            if isinstance(content, dict) and isinstance(content.get('classes'), list):
                content = content['classes']
            if isinstance(content, list) and all(isinstance(name, str) for name in content):
                return content
            if isinstance(content, dict):
                if all(str(key).isdigit() and isinstance(name, str) for key, name in content.items()):
                    return {int(key): name for key, name in content.items()}
                if all(isinstance(number, int) for number in content.values()):
                    return {number: str(name) for name, number in content.items()}
    if table and table.suffix.lower() == '.txt':
        # LabelMe's list begins with what its program leaves out.
        return [line for line in read_lines(table) if not line.startswith('#') and line != '__ignore__']
    return []


def explain(files: Files, masks: Masks, classes: Sequence[str], zero: str) -> Meaning:
    """Decide what the values of masks mean.

    Args:
        files: Files of the folder, one of which may name the classes.
        masks: Masks with their values.
        classes: Names of the classes that the user gave, if any.
        zero: What 0 means: ``'class'``, ``'background'``, ``'ignore'``, or ``''`` if the user did not say.

    Raises:
        UsageError: If it is unclear what 0 means, or if there are too few names.
    """
    known, file = _find_names(files)
    if masks.colored:
        gray = {color & 255: count for color, count in masks.values.items() if color == (color & 255) * _GRAY}
        if len(gray) < len(masks.values) or max(known, default=0) > IGNORED:
            return _explain_colors(masks, known, file, classes, zero)
        meaning = explain(files, Masks(masks.pairs, Counter(gray)), classes, zero)  # three channels of the same values
        meaning.labels = {value * _GRAY: label for value, label in meaning.labels.items()}
        return meaning
    values = sorted(masks.values)
    if max(known, default=0) > IGNORED:  # a table of colors, of gray ones or in the order of the values
        gray_table = all(color % _GRAY == 0 for color in known)
        known = {color & 255: name for color, name in known.items()} if gray_table else dict(enumerate(known.values()))
    names: list[str] | dict[int, str] = list(classes) or known or _list_of_names(files, file)
    if values in ([0, IGNORED], [IGNORED]):
        return _explain_black_and_white(names, classes, zero)
    if not isinstance(names, dict) and _are_levels(values):
        return _explain_levels(values, names, zero)
    used = [value for value in values if value != IGNORED or value in names]
    if isinstance(names, dict):
        return _explain_named(files, masks, used, names, zero)
    return _explain_listed(files, masks, used, names, zero)


def _explain_black_and_white(names: list[str] | dict[int, str], classes: Sequence[str], zero: str) -> Meaning:
    if isinstance(names, dict):
        names = [names[value] for value in (0, IGNORED) if value in names]
    if len(names) > 2 and not classes:  # of other labels
        names = []
    pair = names if len(names) == 2 else ['background', *(names or ['foreground'])]
    if zero == 'ignore' or len(pair) != 2:
        raise UsageError('masks with only 0 and 255 have two classes: --classes BACKGROUND FOREGROUND.')
    return Meaning(pair, {0: 0, IGNORED: 1}, note='the masks are black and white: 255 is the foreground')


def _are_levels(values: list[int]) -> bool:
    """Return whether values are shades that one can see, such as 0, 128, and 255, rather than numbers of classes."""
    return len(values) > 1 and min(high - low for low, high in pairwise(values)) >= 32


def _explain_levels(values: list[int], names: list[str], zero: str) -> Meaning:
    kept = values[1:] if zero == 'ignore' and values[0] == 0 else values
    if names and len(names) != len(kept):
        raise UsageError(
            f'the masks have {len(kept)} gray levels ({", ".join(map(str, kept))}), but there are {len(names)} names. '
            'Give one for each: --classes NAME ...'
        )
    named = dict(zip(kept, names or [f'class_{value}' for value in kept]))
    if zero == 'background' and not names and 0 in named:
        named[0] = 'background'
    labels = {value: kept.index(value) if value in kept else IGNORED for value in values}
    return Meaning(list(named.values()), labels, note='gray levels of the masks are the classes')


def _explain_named(files: Files, masks: Masks, used: list[int], names: dict[int, str], zero: str) -> Meaning:
    """Explain values that are named one by one."""
    if unknown := [value for value in used if value not in names and value != 0]:
        raise UsageError(f'the masks have the values {shorten(map(str, unknown))}, which have no names.')
    names, note = dict(names), ''
    if 0 in used and 0 not in names:
        if not zero and _is_ade20k(files, masks):
            zero, note = 'ignore', _AS_IN_ADE20K
        if not zero:
            raise UsageError(
                '0 is in the masks, and its name is not known. Say what it is: --zero background (a class of its own), '
                'or --zero ignore (not labeled).'
            )
        if zero != 'ignore':
            names[0] = 'background'
    ignored = {value for value, name in names.items() if name.lower() in _UNLABELED}
    if zero == 'ignore':
        ignored.add(0)
    kept = [value for value in sorted(names) if value not in ignored]
    labels = {value: IGNORED if value in ignored else kept.index(value) for value in used}
    reduce_zero = ignored == {0} and kept == list(range(1, len(kept) + 1))
    if named := [names[value] for value in sorted(ignored) if value in names]:
        note = f'{shorten(named)} counts as not labeled'
    return Meaning([names[value] for value in kept], {IGNORED: IGNORED, **labels}, reduce_zero, note=note)


def _explain_listed(files: Files, masks: Masks, used: list[int], names: list[str], zero: str) -> Meaning:
    """Explain values whose names come in order, or that have none."""
    top, note = max(used, default=0), ''
    if not names:
        if 0 not in used:
            zero = zero or 'ignore'
            note = '0 is in no mask'
        elif not zero:
            zero, note = _likely_zero(files, masks)
        first = int(zero == 'ignore')
        # A value without a name and a pixel is not a class.
        named = {value: f'class_{value}' for value in used if value >= first}
        if zero == 'background':
            named[0] = 'background'
        kept = sorted(named)
        labels = {value: kept.index(value) if value in named else IGNORED for value in used}
        reduce_zero = first == 1 and kept == list(range(1, top + 1))
        return Meaning([named[value] for value in kept], {**labels, IGNORED: IGNORED}, reduce_zero, note=note)
    if not zero:
        if 0 not in used and top == len(names):
            zero, note = 'ignore', '0 is in no mask: the names count from 1'
        elif top < len(names):
            zero, note = 'class', f'0 is {names[0]!r}, the first of {len(names)} names'
        elif top == len(names) and _is_ade20k(files, masks):
            zero, note = 'ignore', _AS_IN_ADE20K
        elif top == len(names):
            raise UsageError(
                f'the masks have values from 0 to {top}, and there are {len(names)} names. Say what 0 is: --zero '
                'background (a class of its own), or --zero ignore (not labeled).'
            )
    if zero == 'background' and top == len(names):
        names = ['background', *names]
    first = int(zero == 'ignore')
    if top - first >= len(names):
        raise UsageError(
            f'the masks have values up to {top}, but there are {len(names)} names. Give all of them: --classes NAME ...'
        )
    unlabeled = [first + place for place, name in enumerate(names) if name.lower() in _UNLABELED]
    kept = [first + place for place in range(len(names)) if first + place not in unlabeled]
    if unlabeled:
        note = f'{shorten(names[value - first] for value in unlabeled)} counts as not labeled'
    labels = {value: kept.index(value) if value in kept else IGNORED for value in used}
    reduce_zero = first == 1 and not unlabeled
    return Meaning([names[value - first] for value in kept], {**labels, IGNORED: IGNORED}, reduce_zero, note=note)


def _is_ade20k(files: Files, masks: Masks) -> bool:
    folders = {files.relative(mask.parent) for _, mask, _ in masks.pairs}
    return folders <= {'annotations/training', 'annotations/validation'}


def _likely_zero(files: Files, masks: Masks) -> tuple[str, str]:
    """Return what 0 means in masks whose values have no names, and why.

    Raises:
        UsageError: If it is unclear.
    """
    if _is_ade20k(files, masks):
        return 'ignore', _AS_IN_ADE20K
    share = masks.values[0] / sum(masks.values.values())
    if share < 0.02:
        raise UsageError(
            f'{100 * share:.1f}% of the pixels of the masks are 0, and the values have no names. Say what 0 is: --zero '
            'class, --zero background, or --zero ignore (not labeled).'
        )
    return 'class', (
        f'0, {100 * share:.0f}% of the pixels, counts as a class. --zero background calls it that, --zero ignore '
        'leaves it out, and --classes names all of them'
    )


def _explain_colors(
    masks: Masks, known: dict[int, str], file: Path | None, classes: Sequence[str], zero: str
) -> Meaning:
    """Explain masks whose classes have colors."""
    colors = [color for color in known if max(known) > IGNORED] or sorted(masks.values)
    names = {color: known.get(color, '') for color in colors}
    if unknown := [color for color in masks.values if color not in names]:
        raise UsageError(f'the masks have the color #{unknown[0]:06x}, which {file} does not name.')
    if len(colors) > 150:
        raise UsageError(f'the masks have {len(colors)} colors. A mask has one color for each class.')
    if zero == 'ignore':
        names[0] = 'void'
    used = [color for color in colors if names[color].lower() not in _UNLABELED]
    if classes and len(classes) != len(used):
        given = ', '.join(f'#{color:06x}' for color in used)
        raise UsageError(f'--classes: the masks have {len(used)} colors ({given}), got {len(classes)} names.')
    for number, color in enumerate(used):
        default = 'background' if color == 0 else f'color_{color:06x}'
        names[color] = classes[number] if classes else names[color] or default
    labels = {color: used.index(color) if color in used else IGNORED for color in colors}
    palette = [(color >> 16, color >> 8 & 255, color & 255) for color in used]
    return Meaning([names[color] for color in used], labels, colors=palette, note='colors of the masks are the classes')
