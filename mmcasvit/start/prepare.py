"""From a folder to datasets that mmdet and mmseg read: what is there, what is converted, and how it is split."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from mmcasvit.datasets.outlines import outline_fault
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.text import shorten
from mmcasvit.weights import integrity

from .files import SPLITS, Files, image_sizes, list_files
from .masks import IGNORED, Meaning, count_values, explain, find_masks, read_mask
from .readers import coco, labelme, table, voc, yolo
from .readers.labels import Boxes, Part, rectangle
from .split import choose_validation, family

TASKS = ('detect', 'instances', 'semantic')
LAYOUTS = ('coco', 'voc', 'yolo', 'labelme', 'csv', 'masks')
# How many images and objects the choices of a recipe look at.
_SAMPLE = 1000


@dataclass
class Options:
    """What the user said about the data.

    Attributes:
        task: One of :data:`TASKS`, or ``''`` to choose by the labels.
        layout: One of :data:`LAYOUTS`, or ``''`` to take the only one that is found.
        classes: Names of the classes in order.
        zero: Meaning of 0 in masks: ``'background'``, ``'class'``, ``'ignore'``, or ``''``.
        unlabeled: ``'background'``, ``'skip'``, or ``''``.
        val_share: Share of the images for validation where the folder has none.
        seed: Seed of the split.
    """

    task: str = ''
    layout: str = ''
    classes: Sequence[str] = ()
    zero: str = ''
    unlabeled: str = ''
    val_share: float = 0.2
    seed: int = 0


@dataclass
class Data:
    """Datasets of a folder.

    Attributes:
        root: Folder of the data.
        task: One of :data:`TASKS`.
        layout: What was found, in words.
        classes: Names of the classes in the order of the labels.
        splits: Settings of the dataset of each split, as a config names them.
        counts: Number of images of each split.
        notes: What was decided and what was left out.
        sizes: ``(width, height)`` of training images in pixels.
        objects: Width and height of objects, each with the size of its image, ``(w, h, W, H)``.
        palette: Color of each class, if the data have colors.
        reduce_zero: Whether 0 means unlabeled and the first class is 1.
        written: Folder of converted files, or None if everything is read as it is.
    """

    root: Path
    task: str
    layout: str
    classes: list[str]
    splits: dict[str, dict] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    objects: np.ndarray = field(default_factory=lambda: np.empty((0, 4)))
    palette: list[tuple[int, int, int]] | None = None
    reduce_zero: bool = False
    written: Path | None = None


def find_layouts(files: Files, task: str) -> dict[str, list[Path]]:
    """Return the files of each layout that a folder holds. Masks are only looked for if the task allows for them."""
    kinds: dict[str, tuple[str, Callable[[Path], bool]]] = dict(
        coco=('.json', coco.is_coco),
        labelme=('.json', labelme.is_labelme),
        voc=('.xml', voc.is_voc),
        csv=('.csv', table.is_csv),
    )
    found = {name: [file for file in files.labels[suffix] if fits(file)] for name, (suffix, fits) in kinds.items()}
    rows = [file for file in files.labels['.txt'] if yolo.is_yolo(file)]
    found['yolo'] = [file for file in rows if files.of_label(file)] if rows else []
    if task in ('', 'semantic') and (masks := find_masks(files)):
        found['masks'] = [mask for _, mask, _ in masks.pairs]
    return {name: paths for name, paths in found.items() if paths}


def _choose_layout(files: Files, options: Options) -> tuple[str, list[Path]]:
    found = find_layouts(files, 'semantic' if options.layout == 'masks' else options.task)
    if options.task == 'semantic' and 'masks' in found and not options.layout:
        found = dict(masks=found['masks'])
    if not options.layout and {'coco', 'voc', 'yolo', 'labelme'} & found.keys():
        found.pop('csv', None)  # a table made from the other labels, or of other things
    if options.layout:
        if options.layout not in found:
            raise UsageError(
                f'--layout {options.layout}: {files.root} has no such labels; found: {", ".join(found) or "none"}.'
            )
        found = {options.layout: found[options.layout]}
    if not found:
        raise UsageError(
            f'{len(files.images)} images in {files.root}, but no labels that can be read: COCO json, Pascal VOC xml, '
            'YOLO txt, LabelMe json, a CSV of boxes (filename, xmin, ymin, xmax, ymax, class), or index masks.'
        )
    if len(found) > 1:
        where = '; '.join(
            f'{name} in {os.path.commonpath([path.parent.relative_to(files.root) for path in paths]) or "."}'
            for name, paths in found.items()
        )
        decides = '--task semantic or --task detect' if len(found) == 2 and 'masks' in found else '--layout'
        raise UsageError(
            f'{files.root} has labels of several kinds: {where}. Give the folder of one of them, or say which with '
            f'{decides}{" " + "|".join(found) if decides == "--layout" else ""}.'
        )
    return next(iter(found.items()))


def prepare(root: Path, out: Path, options: Options) -> Data:
    """Find out what a folder holds, and write what mmdet and mmseg cannot read as it is.

    Nothing in the folder of the data is changed.

    Args:
        root: Folder of the data.
        out: Folder for converted files, which is left out of the search.
        options: What the user said about the data.

    Raises:
        UsageError: If there are no labels, some cannot be read, or it is unclear what they mean.
    """
    files = list_files(root, out)
    layout, found = _choose_layout(files, options)
    if layout == 'masks':
        return _prepare_masks(files, out, options)
    readers: dict[str, Callable[[], Boxes]] = dict(
        coco=lambda: coco.read_coco(files, found),
        voc=lambda: voc.read_voc(files, found, options.unlabeled),
        yolo=lambda: yolo.read_yolo(files, found, options.unlabeled, options.classes),
        labelme=lambda: labelme.read_labelme(files, found, options.unlabeled),
        csv=lambda: table.read_csv(files, found, options.unlabeled),
    )
    labels = readers[layout]()
    outlined, objects = labels.outlined
    if not objects:
        raise UsageError(f'the {labels.layout} labels of {files.root} hold no objects.')
    task = options.task or ('instances' if outlined == objects else 'detect' if not outlined else '')
    if not task:
        raise UsageError(
            f'{outlined} of {objects} objects have an outline. Say what to learn: --task detect (the boxes of all), or '
            '--task instances (where a box has no outline, it is taken as one).'
        )
    if task != 'detect' and not outlined:
        raise UsageError(f'--task {task}: the {labels.layout} labels of {files.root} have boxes, but no outlines.')
    classes = _choose_classes(labels, options)
    _split_boxes(files, labels, options)
    if task == 'semantic':
        return _rasterize(files, labels, classes, out)
    if task == 'instances':
        for part in labels.parts:
            _complete_outlines(part)
        if not options.task:
            labels.notes.append('the objects have outlines, so masks are learned (--task detect for boxes only)')
    return _write_boxes(files, labels, classes, out, task)


# ---- Boxes and outlines


def _choose_classes(labels: Boxes, options: Options) -> list[str]:
    """Return the classes that have objects, unlike the first one of Roboflow, and that the user wants."""
    used: Counter[str] = Counter()
    orders = []
    for part in labels.parts:
        names = {category.get('id'): category.get('name') for category in part.content['categories']}
        orders.append([str(name) for name in names.values()])
        used.update(str(names.get(a.get('category_id'), '')) for a in part.content['annotations'])
    used.pop('', None)
    known = list(dict.fromkeys(name for order in orders for name in order))
    if options.classes and (unknown := set(options.classes) - set(known)):
        raise UsageError(f'--classes: no object is named {sorted(unknown)[0]!r}. Names: {shorten(known, 12)}.')
    wanted = [name for name in known if used[name] and (not options.classes or name in options.classes)]
    if unused := [name for name in known if not used[name]]:
        labels.notes.append(f'classes without objects, left out: {shorten(unused)}')
    for part, order in zip(labels.parts, orders):
        if [name for name in order if name in wanted] != wanted:  # mmdet numbers classes in the order of each file
            part.file = None
            by_name = {str(category['name']): category for category in part.content['categories']}
            if any(name not in by_name for name in wanted) or len(by_name) != len(order):
                _renumber(part, wanted)
            else:
                part.content['categories'] = [by_name[name] for name in wanted]
    if not wanted:
        raise UsageError('no object has a class that is to be learned.')
    return wanted


def _renumber(part: Part, wanted: list[str]) -> None:
    names = {category['id']: str(category['name']) for category in part.content['categories']}
    numbers = {name: number for number, name in enumerate(wanted, 1)}
    part.content['categories'] = [dict(id=number, name=name) for name, number in numbers.items()]
    part.content['annotations'] = [
        dict(entry, category_id=numbers[names[entry['category_id']]])
        for entry in part.content['annotations']
        if names.get(entry.get('category_id')) in numbers
    ]


def _folder(files: Files, part: Part) -> Path:
    return files.root / part.prefix


def _split_boxes(files: Files, labels: Boxes, options: Options) -> None:
    """Split the training images if the folder has no validation."""
    by_split = {part.split: part for part in labels.parts}
    if '' in by_split and len(by_split) == 1:
        by_split['train'] = by_split.pop('')
        by_split['train'].split = 'train'
    if '' in by_split:
        labels.notes.append(f'images in no split, left out: {len(by_split.pop("").content["images"])}')
    if 'train' not in by_split:
        raise UsageError(f'no training images: found only {", ".join(by_split)}. Name a folder or file train.')
    if 'test' in by_split and not by_split['test'].content['annotations']:
        labels.notes.append('the test split has no labels, left out')
        del by_split['test']
    train = by_split['train']
    if 'val' not in by_split:
        images = train.content['images']
        classes: dict = defaultdict(set)
        for entry in train.content['annotations']:
            classes[entry.get('image_id')].add(entry.get('category_id'))
        folder = _folder(files, train)
        chosen = choose_validation(
            [classes[image.get('id')] for image in images],
            [family(folder / str(image.get('file_name'))) for image in images],
            options.val_share,
            options.seed,
        )
        kept = {True: [], False: []}
        for image, validation in zip(images, chosen):
            kept[validation].append(image)
        for split, entries in (('val', kept[True]), ('train', kept[False])):
            ids = {image.get('id') for image in entries}
            annotations = [entry for entry in train.content['annotations'] if entry.get('image_id') in ids]
            content = dict(images=entries, annotations=annotations, categories=train.content['categories'])
            by_split[split] = Part(split, content, train.prefix)
        labels.notes.append(
            f'no validation split: {len(kept[True])} of {len(images)} images were chosen for it '
            f'(--val-share {options.val_share:g} --seed {options.seed}), with the classes in the same shares'
        )
    labels.parts = [by_split[split] for split in SPLITS if split in by_split]


def _complete_outlines(part: Part) -> None:
    """Take the box of an object as its outline where it has none."""
    for number, entry in enumerate(part.content['annotations']):
        if not entry.get('segmentation') and isinstance(entry.get('bbox'), list) and len(entry['bbox']) == 4:
            part.file = None
            part.content['annotations'][number] = dict(entry, segmentation=[rectangle(*entry['bbox'])])


def _write_boxes(files: Files, labels: Boxes, classes: list[str], out: Path, task: str) -> Data:
    data = Data(files.root, task, labels.layout, classes, notes=labels.notes)
    for part in labels.parts:
        if part.file:
            file = files.relative(part.file)
        else:
            target = out / 'data' / f'{task}_{part.split}.json'
            write_json(target, part.content)
            data.written, file = target.parent, str(target.absolute())
        data.splits[part.split] = dict(ann_file=file, data_prefix=dict(img=part.prefix))
        data.counts[part.split] = len(part.content['images'])
    content = labels.parts[0].content
    sizes = {
        image.get('id'): (image.get('width'), image.get('height'))
        for image in content['images'][:_SAMPLE]
        if all(isinstance(image.get(side), int) and image[side] > 1 for side in ('width', 'height'))
    }
    data.sizes = list(sizes.values())
    data.objects = np.array(
        [
            (*entry['bbox'][2:], *sizes[entry['image_id']])
            for entry in content['annotations'][: 10 * _SAMPLE]
            if entry.get('image_id') in sizes and not entry.get('iscrowd') and len(entry.get('bbox') or ()) == 4
        ],
        float,
    ).reshape(-1, 4)
    return data


def write_json(target: Path, content: dict) -> None:
    """Write a JSON file in one step, so that it is never there in part."""
    write_text(target, json.dumps(content))


def write_text(target: Path, text: str) -> None:
    """Write a text file in one step, so that it is never there in part."""
    target.parent.mkdir(parents=True, exist_ok=True)
    integrity.write_text(target, text)


# ---- Masks


def _prepare_masks(files: Files, out: Path, options: Options) -> Data:
    masks = find_masks(files)
    if masks is None:
        raise UsageError(f'no masks were found in {files.root}.')
    count_values(masks)
    meaning = explain(files, masks, options.classes, options.zero)
    if len(meaning.classes) > IGNORED:
        raise UsageError(f'the masks have {len(meaning.classes)} classes, but a mask has room for {IGNORED}.')
    data = Data(files.root, 'semantic', 'index masks', meaning.classes, notes=masks.notes, palette=meaning.colors)
    if meaning.note:
        data.notes.append(meaning.note)
    by_split: dict[str, list[tuple[Path, Path]]] = defaultdict(list)
    for image, mask, split in masks.pairs:
        by_split[split].append((image, mask))
    split_here = _split_pairs(by_split, meaning, data.notes, options)
    native = meaning.native and not masks.colored
    shapes = {split: _native_masks(files, pairs) for split, pairs in by_split.items()} if native else {}
    if native and all(shapes.values()):
        data.reduce_zero = meaning.reduce_zero
        for split, pairs in by_split.items():
            data.splits[split] = _native_settings(files, out, split, pairs, split_here and split != 'test', shapes)
    else:
        data.written = out / 'data'
        for split, pairs in by_split.items():
            data.splits[split] = _convert_masks(files, data.written, split, pairs, meaning, masks.colored)
    data.counts = {split: len(by_split[split]) for split in SPLITS if split in by_split}
    data.sizes = [size for size in image_sizes([image for image, _ in by_split['train'][:_SAMPLE]]) if size]
    return data


def _split_pairs(by_split: dict, meaning: Meaning, notes: list[str], options: Options) -> bool:
    """Split the training images if the folder has no validation, and return whether that was done."""
    if set(by_split) == {''}:
        by_split['train'] = by_split.pop('')
    if '' in by_split:
        notes.append(f'images in no split, left out: {len(by_split.pop(""))}')
    if 'train' not in by_split:
        raise UsageError(f'no training images: found only {", ".join(by_split)}. Name a folder train.')
    if 'val' in by_split:
        return False
    pairs = by_split['train']
    common = len(meaning.classes)

    def classes_of(mask: Path) -> list[int]:
        try:
            values = np.unique(read_mask(mask)[::4, ::4])
        except Exception:  # the check of the data says what
            return []
        return [label for value in values if (label := meaning.labels.get(int(value), IGNORED)) < common]

    with ThreadPoolExecutor() as pool:
        classes = list(pool.map(classes_of, [mask for _, mask in pairs]))
        families = list(pool.map(family, [image for image, _ in pairs]))
    chosen = choose_validation(classes, families, options.val_share, options.seed)
    by_split['train'] = [pair for pair, validation in zip(pairs, chosen) if not validation]
    by_split['val'] = [pair for pair, validation in zip(pairs, chosen) if validation]
    notes.append(
        f'no validation split: {len(by_split["val"])} of {len(pairs)} images were chosen for it '
        f'(--val-share {options.val_share:g} --seed {options.seed}), with the classes in the same shares'
    )
    return True


def _native_masks(files: Files, pairs: list[tuple[Path, Path]]) -> tuple[str, str, str, str] | None:
    """Return folder and suffix of images and masks as mmseg names them, or None if it cannot read these files."""
    image, mask = pairs[0]
    folders = (
        Path(os.path.commonpath([i.parent for i, _ in pairs])),
        Path(os.path.commonpath([m.parent for _, m in pairs])),
    )
    common = os.path.commonprefix([image.stem, mask.stem])  # noqa: RUF071
    suffixes = image.name[len(common) :], mask.name[len(common) :]
    for i, m in pairs:
        name = i.relative_to(folders[0]).as_posix()
        if not name.endswith(suffixes[0]) or name.rstrip() != name:
            return None
        if m != folders[1] / (name[: -len(suffixes[0])] + suffixes[1]):
            return None
    return files.relative(folders[0]), suffixes[0], files.relative(folders[1]), suffixes[1]


def _native_settings(files: Files, out: Path, split: str, pairs: list, listed: bool, shapes: dict) -> dict:
    images, image_suffix, masks, mask_suffix = shapes[split]
    settings: dict = dict(data_prefix=dict(img_path=images, seg_map_path=masks))
    if (image_suffix, mask_suffix) != ('.jpg', '.png'):
        settings |= dict(img_suffix=image_suffix, seg_map_suffix=mask_suffix)
    folder = files.root / images
    names = [image.relative_to(folder).as_posix()[: -len(image_suffix)] for image, _ in pairs]
    # Without a list, mmseg reads every image of the folder and its subfolders with the suffix.
    there = sum(folder in path.parents and path.name.endswith(image_suffix) for path in files.images)
    if listed or there != len(names):
        target = out / 'data' / f'{split}.txt'
        write_text(target, ''.join(f'{name}\n' for name in names))
        settings['ann_file'] = str(target.absolute())
    return settings


def _convert_masks(
    files: Files, target: Path, split: str, pairs: list[tuple[Path, Path]], meaning: Meaning, colored: bool
) -> dict:
    """Write masks whose values are the labels, named after their images."""
    top = max(meaning.labels)
    values = np.array(sorted(meaning.labels))
    labels = np.array([meaning.labels[value] for value in sorted(meaning.labels)], np.uint8)

    def write(pair: tuple[Path, Path]) -> None:
        image, mask = pair
        file = target / 'masks' / f'{files.relative(image)}.png'
        try:
            content = read_mask(mask)
        except Exception:  # it has been named, and the check of the data says that the new mask is missing
            return
        _save_mask(file, labels[np.searchsorted(values, np.minimum(content, top))])

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, pairs))
    return list_pairs(files, target, split, [image for image, _ in pairs])


def list_pairs(files: Files, target: Path, split: str, images: list[Path]) -> dict:
    """Write the list of the images of a split whose masks were converted, and return the settings of the dataset."""
    write_text(target / f'{split}.txt', ''.join(f'{files.relative(image)}\n' for image in images))
    return dict(
        ann_file=str((target / f'{split}.txt').absolute()),
        data_prefix=dict(img_path='', seg_map_path=str((target / 'masks').absolute())),
        img_suffix='',  # the list has the whole names of the images
        seg_map_suffix='.png',
    )


def _save_mask(file: Path, labels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f'.{file.name}.part')
    Image.fromarray(labels).save(unfinished, 'PNG')
    os.replace(unfinished, file)


def _rasterize(files: Files, labels: Boxes, names: list[str], out: Path) -> Data:
    """Draw outlines into index masks, the largest objects first. What is in none is the first class, background."""
    data = Data(files.root, 'semantic', labels.layout, ['background', *names], notes=labels.notes, written=out / 'data')
    data.notes.append('outlines are drawn into masks; what is in none is the class background')
    for part in labels.parts:
        numbers = {c['id']: names.index(str(c['name'])) + 1 for c in part.content['categories'] if c['name'] in names}
        objects = defaultdict(list)
        for entry in part.content['annotations']:
            objects[entry.get('image_id')].append(entry)
        images = []
        for image in part.content['images']:
            path = _folder(files, part) / str(image.get('file_name'))
            images.append(path)
            size = int(image['height']), int(image['width'])
            canvas = np.zeros(size, np.uint8)
            for entry in sorted(objects[image['id']], key=lambda entry: -float(entry.get('area') or 0)):
                _draw(canvas, entry, numbers.get(entry.get('category_id'), 0))
            _save_mask(out / 'data' / 'masks' / f'{files.relative(path)}.png', canvas)
        data.splits[part.split] = list_pairs(files, out / 'data', part.split, images)
        data.counts[part.split] = len(images)
    train = labels.parts[0].content['images'][:_SAMPLE]
    data.sizes = [(image['width'], image['height']) for image in train]
    return data


def _draw(canvas: np.ndarray, entry: dict, label: int) -> None:
    outline = entry.get('segmentation')
    if not outline or outline_fault(outline, canvas.shape):
        return
    if entry.get('iscrowd'):
        label = IGNORED
    if isinstance(outline, list):
        cv2.fillPoly(canvas, [np.round(np.asarray(part).reshape(-1, 2)).astype(np.int32) for part in outline], label)
        return
    if isinstance(outline['counts'], list):
        outline = coco_mask.frPyObjects(outline, *outline['size'])
    canvas[coco_mask.decode(outline).astype(bool)] = label
