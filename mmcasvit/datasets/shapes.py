"""Synthetic scenes of textured shapes with exact labels, in the layouts of COCO, ADE20K, VOC, and ImageNet.

With them every recipe can train and be evaluated on a machine that has none of these datasets.
"""

import json
import os
import shutil
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import shapely
from pycocotools import mask as coco_mask
from rich.progress import Progress

THINGS = ('disc', 'square', 'triangle', 'star', 'cross', 'ring')
STUFF = ('sky', 'ground')
# Index masks count these from 1; 0 is unlabeled, as in ADE20K.
SEMANTIC_CLASSES = STUFF + THINGS
# BGR. The lighter of the two colors of an object's texture is near this one.
COLORS = dict(
    disc=(60, 20, 220),
    square=(200, 110, 20),
    triangle=(40, 190, 235),
    star=(160, 40, 150),
    cross=(70, 170, 50),
    ring=(200, 200, 60),
)
CROP_SIDE = 64  # pixels; side of the images with one object each, for classification
SPLITS = dict(train=('train2017', 'training'), val=('val2017', 'validation'))
# An object of which less is visible stays in the image without a label.
MIN_VISIBLE_PIXELS, MIN_VISIBLE_SHARE = 25, 0.2


@dataclass
class Instance:
    """Visible part of one object. ``mask`` is a boolean ``(H, W)`` array without the occluded pixels."""

    category: str
    mask: np.ndarray
    iscrowd: bool = False


@dataclass
class Scene:
    """Image ``(H, W, 3)`` in uint8 BGR with its instances and its index mask ``(H, W)`` in uint8."""

    image: np.ndarray
    instances: list[Instance]
    semantic: np.ndarray


def _outline(category: str, size: float, angle: float) -> list[np.ndarray]:
    """Return closed outlines around the origin for the even-odd rule. ``size`` is the diameter in pixels."""
    radius = size / 2

    def regular(corners: int, radii: tuple[float, ...], turn: float = 0.0) -> np.ndarray:
        turns = angle + turn + 2 * np.pi * np.arange(corners) / corners
        reach = radius * np.resize(radii, corners)
        return np.stack([reach * np.cos(turns), reach * np.sin(turns)], axis=1)

    if category == 'disc':
        return [regular(40, (1.0,))]
    if category == 'ring':
        return [regular(40, (1.0,)), regular(40, (0.55,))]
    if category == 'square':
        return [regular(4, (1.0,))]
    if category == 'triangle':
        return [regular(3, (1.0,))]
    if category == 'star':
        return [regular(10, (1.0, 0.45))]
    arm = 0.33
    x = [1, arm, arm, -arm, -arm, -1, -1, -arm, -arm, arm, arm, 1]
    y = [arm, arm, 1, 1, arm, arm, -arm, -arm, -1, -1, -arm, -arm]
    cos, sin = np.cos(angle), np.sin(angle)
    return [np.stack([x, y], axis=1) * radius @ np.array([[cos, sin], [-sin, cos]])]


def _raster(
    category: str, size: float, angle: float, center: tuple[float, float], shape: tuple[int, int]
) -> np.ndarray:
    canvas = np.zeros(shape, np.uint8)
    points = [np.round((line + np.array(center)) * 16).astype(np.int32) for line in _outline(category, size, angle)]
    cv2.fillPoly(canvas, points, 1, shift=4)
    return canvas.astype(bool)


def _texture(rng: np.random.Generator, kind: str, shape: tuple[int, int]) -> np.ndarray:
    """Draw the pattern of a class in two random colors, ``(H, W, 3)`` in float32."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    period = rng.uniform(5, 12)
    phase = rng.uniform(0, period, 2)
    u, v = (x + phase[0]) / period, (y + phase[1]) / period
    patterns = dict(
        disc=lambda: (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.1,
        square=lambda: (np.floor(u) + np.floor(v)) % 2 > 0,
        triangle=lambda: v % 1 < 0.5,
        star=lambda: rng.random(shape) < 0.5,
        cross=lambda: (u + v) % 1 < 0.5,
        ring=lambda: u % 1 < 0.5,
        sky=lambda: cv2.GaussianBlur(rng.random(shape).astype(np.float32), (0, 0), 6) > 0.5,
        ground=lambda: cv2.GaussianBlur(rng.random(shape).astype(np.float32), (0, 0), 1.5) > 0.5,
    )
    first, second = rng.uniform(30, 225, 3), rng.uniform(30, 225, 3)
    if kind in STUFF:  # low contrast and nearly gray, so that most objects stand out
        first = rng.uniform(50, 200) + rng.uniform(-30, 30, 3)
        second = first + rng.uniform(-25, 25, 3)
    else:
        first = np.array(COLORS[kind]) + rng.uniform(-30, 30, 3)
        second = first * rng.uniform(0.3, 0.7)
    return np.where(patterns[kind]()[..., None], first, second).astype(np.float32)


def draw_scene(rng: np.random.Generator, height: int = 128, width: int = 192) -> Scene:
    """Draw a scene of sky above ground with up to eight objects, which may hide one another.

    One scene in ten has no objects. Some have a swarm of tiny discs, labeled as a crowd in the sense of COCO.

    Args:
        rng: Source of all randomness.
        height, width: Size of the scene in pixels.
    """
    shape = (height, width)
    horizon = height * rng.uniform(0.25, 0.75) + width * rng.uniform(-0.2, 0.2) * np.linspace(-0.5, 0.5, width)
    is_ground = np.arange(height)[:, None] > horizon
    image = np.where(is_ground[..., None], _texture(rng, 'ground', shape), _texture(rng, 'sky', shape))
    semantic = np.where(is_ground, 1 + STUFF.index('ground'), 1 + STUFF.index('sky')).astype(np.uint8)

    painted = []  # (category, whole mask, iscrowd), back to front
    if rng.random() >= 0.1:
        if rng.random() < 0.06:
            painted.append(('disc', _swarm(rng, shape), True))
        for _ in range(rng.integers(1, 9)):
            category = THINGS[rng.integers(len(THINGS))]
            size = np.exp(rng.uniform(np.log(0.12), np.log(0.75))) * height
            center = (rng.uniform(0, width), rng.uniform(0, height))
            mask = _raster(category, size, rng.uniform(0, 2 * np.pi), center, shape)
            if mask.any():
                painted.append((category, mask, False))
    owner = np.full(shape, -1)
    for number, (category, mask, _) in enumerate(painted):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        image[box][mask[box]] = _texture(rng, category, mask[box].shape)[mask[box]]
        owner[mask] = number
    instances = []
    for number, (category, whole, iscrowd) in enumerate(painted):
        visible = owner == number
        if visible.sum() < max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_SHARE * whole.sum()):
            semantic[visible] = 0
            continue
        semantic[visible] = 1 + SEMANTIC_CLASSES.index(category)
        instances.append(Instance(category, visible, iscrowd))
    image = image * rng.uniform(0.7, 1.1) + rng.normal(0, 4, image.shape)
    return Scene(image.clip(0, 255).astype(np.uint8), instances, semantic)


def _swarm(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    swarm = np.zeros(shape, bool)
    middle = rng.uniform(0.2, 0.8, 2) * shape[::-1]
    for center in rng.normal(middle, 0.08 * shape[0], (20, 2)):
        swarm |= _raster('disc', 0.04 * shape[0], 0.0, tuple(center), shape)
    return swarm


def draw_object(rng: np.random.Generator, category: str, side: int = CROP_SIDE) -> np.ndarray:
    """Draw one object of a class on a plain background, ``(side, side, 3)`` in uint8 BGR."""
    shape = (side, side)
    image = _texture(rng, STUFF[rng.integers(len(STUFF))], shape)
    center = tuple(rng.uniform(0.35, 0.65, 2) * side)
    mask = _raster(category, rng.uniform(0.4, 0.9) * side, rng.uniform(0, 2 * np.pi), center, shape)
    image[mask] = _texture(rng, category, shape)[mask]
    image = image * rng.uniform(0.7, 1.1) + rng.normal(0, 4, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """Outline a boolean ``(H, W)`` mask along its pixel edges, as COCO polygons ``[x, y, x, y, ...]``.

    COCO polygons cannot have holes, so a region with a hole is cut in two through the hole. When pycocotools rasterizes
    the polygons, their union is exactly the mask.
    """
    padded = np.pad(mask.astype(np.int8), ((0, 0), (1, 1)))
    steps = np.diff(padded, axis=1)
    rows, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    region = shapely.union_all(shapely.box(starts, rows, ends, rows + 1))
    return [
        [float(value) for point in shapely.get_coordinates(part.exterior)[:-1] for value in point]
        for part in _without_holes(region)
    ]


def _without_holes(region) -> Iterator[shapely.Polygon]:
    for part in shapely.get_parts(shapely.simplify(region, 0)):
        if not isinstance(part, shapely.Polygon) or part.is_empty:
            continue
        if not part.interiors:
            yield part
            continue
        left, bottom, right, top = part.bounds
        hole = part.interiors[0].bounds
        cut = np.floor((hole[0] + hole[2]) / 2)
        yield from _without_holes(part.intersection(shapely.box(left, bottom, cut, top)))
        yield from _without_holes(part.intersection(shapely.box(cut, bottom, right, top)))


def _annotation(instance: Instance) -> dict:
    rows, columns = np.nonzero(instance.mask)
    x, y = int(columns.min()), int(rows.min())
    segmentation: dict | list[list[float]]
    if instance.iscrowd:  # COCO encodes crowds by run lengths
        encoded = coco_mask.encode(np.asfortranarray(instance.mask.astype(np.uint8)))
        segmentation = dict(size=encoded['size'], counts=encoded['counts'].decode())
    else:
        segmentation = mask_to_polygons(instance.mask)
    return dict(
        category_id=1 + THINGS.index(instance.category),
        segmentation=segmentation,
        bbox=[x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y],
        area=int(instance.mask.sum()),
        iscrowd=int(instance.iscrowd),
    )


def _voc_xml(name: str, scene: Scene) -> ET.ElementTree:
    """Return the boxes of a scene as a VOC annotation, which counts pixels from 1 and includes the last one."""
    height, width = scene.semantic.shape
    root = ET.Element('annotation')
    ET.SubElement(root, 'filename').text = name
    size = ET.SubElement(root, 'size')
    for tag, value in dict(width=width, height=height, depth=3).items():
        ET.SubElement(size, tag).text = str(value)
    for instance in scene.instances:
        rows, columns = np.nonzero(instance.mask)
        part = ET.SubElement(root, 'object')
        ET.SubElement(part, 'name').text = instance.category
        ET.SubElement(part, 'difficult').text = str(int(instance.iscrowd))  # metrics ignore both
        box = ET.SubElement(part, 'bndbox')
        for tag, value in dict(xmin=columns.min(), ymin=rows.min(), xmax=columns.max(), ymax=rows.max()).items():
            ET.SubElement(box, tag).text = str(value + 1)
    return ET.ElementTree(root)


def write_dataset(root: Path, train: int, val: int, seed: int, height: int = 128, width: int = 192) -> dict:
    """Write scenes to ``root/coco``, ``root/ade``, and ``root/voc``, and single objects to ``root/imagenet``.

    Scene ``i`` of a split depends only on the seed, the split, and ``i``. ``root`` appears once it is complete. Each
    split has as many images of single objects as scenes, rounded up to the same number for every class.

    Args:
        root: Folder to make. It must not exist.
        train, val: Numbers of scenes.
        seed: Integer of at least 0.
        height, width: Size of the scenes in pixels.

    Returns:
        The arguments and the number of instances of each split.

    Raises:
        FileExistsError: If ``root`` exists.
    """
    root = Path(root)
    if root.exists():
        raise FileExistsError(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=root.parent, prefix=f'.{root.name}-'))
    try:
        summary = dict(train=train, val=val, seed=seed, height=height, width=width)
        with Progress() as progress:
            task = progress.add_task('drawing scenes', total=train + val)
            for number, (split, count) in enumerate(dict(train=train, val=val).items()):
                _write_objects(unfinished / 'imagenet' / split, count, [seed, len(SPLITS) + number])
                summary[f'{split}_instances'] = _write_split(
                    unfinished, split, count, summary, lambda: progress.advance(task)
                )
        (unfinished / 'dataset.json').write_text(json.dumps(summary, indent=1) + '\n')
        unfinished.chmod(0o755)
        os.rename(unfinished, root)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return summary


def _write_objects(folder: Path, count: int, seed: list[int]) -> None:
    for number, category in enumerate(THINGS):
        (folder / category).mkdir(parents=True)
        for i in range(-(-count // len(THINGS))):
            image = draw_object(np.random.default_rng([*seed, number, i]), category)
            cv2.imwrite(str(folder / category / f'{category}_{i + 1:06d}.jpg'), image, [cv2.IMWRITE_JPEG_QUALITY, 95])


def _write_split(root: Path, split: str, count: int, summary: dict, advance: Callable[[], None]) -> int:
    coco_split, ade_split = SPLITS[split]
    coco_images, annotations = root / 'coco' / coco_split, root / 'coco' / 'annotations'
    ade_images, ade_masks = root / 'ade' / 'images' / ade_split, root / 'ade' / 'annotations' / ade_split
    voc_images, voc_labels, voc_lists = root / 'voc/JPEGImages', root / 'voc/Annotations', root / 'voc/ImageSets/Main'
    for folder in (coco_images, annotations, ade_images, ade_masks, voc_images, voc_labels, voc_lists):
        folder.mkdir(parents=True, exist_ok=True)
    images, labels, voc_names = [], [], []
    for i in range(count):
        rng = np.random.default_rng([summary['seed'], list(SPLITS).index(split), i])
        scene = draw_scene(rng, summary['height'], summary['width'])
        name = f'{i + 1:012d}'
        cv2.imwrite(str(coco_images / f'{name}.jpg'), scene.image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        shutil.copyfile(coco_images / f'{name}.jpg', ade_images / f'{name}.jpg')
        cv2.imwrite(str(ade_masks / f'{name}.png'), scene.semantic)
        voc_names.append(f'{split}_{name}')  # both splits share a folder
        shutil.copyfile(coco_images / f'{name}.jpg', voc_images / f'{voc_names[-1]}.jpg')
        _voc_xml(f'{voc_names[-1]}.jpg', scene).write(voc_labels / f'{voc_names[-1]}.xml')
        images.append(dict(id=i + 1, file_name=f'{name}.jpg', height=summary['height'], width=summary['width']))
        labels += [
            dict(id=len(labels) + k + 1, image_id=i + 1, **_annotation(instance))
            for k, instance in enumerate(scene.instances)
        ]
        advance()
    (voc_lists / f'{split}.txt').write_text('\n'.join(voc_names) + '\n')
    categories = [dict(id=k + 1, name=name, supercategory='shape') for k, name in enumerate(THINGS)]
    (annotations / f'instances_{coco_split}.json').write_text(
        json.dumps(
            dict(
                info=dict(description='mmcasvit shapes'),
                licenses=[],
                images=images,
                annotations=labels,
                categories=categories,
            )
        )
    )
    return len(labels)
