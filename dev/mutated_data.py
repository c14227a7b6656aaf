"""Mutations of small datasets: strategies that draw them, and the class that applies them to the files."""

import io
import json
import os
import re
import struct
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image

# Of the scenes before their mutation, and the number of training images.
WIDTH, HEIGHT, TRAIN = 96, 64, 4

one_of = st.sampled_from
numbers = st.integers(-20, 200) | one_of(
    [
        0,
        -1,
        0.5,
        1e-9,
        -0.0,
        3e7,
        1e9,
        1e10,
        1e39,
        1e308,
        float('nan'),
        float('inf'),
        True,
        2**31,
        2**63,
        2**64,
        10**400,
    ]
)
texts = st.text(max_size=4) | one_of(
    ['', ' ', 'disc', 'cube', 'dïsc', '../x', '/etc/hostname', 'a\0b', 'a://b', '5', 'nan', '\ud800', 'x' * 300, '\n']
)
values = st.recursive(
    numbers | texts | st.none(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=6,
)
inside = st.integers(0, 60).map(float) | st.floats(-2, 100)
boxes = st.lists(inside | numbers, min_size=4, max_size=4) | st.lists(inside, min_size=4, max_size=4) | values
polygons = st.lists(
    st.lists(inside, min_size=5, max_size=9) | st.lists(inside | numbers, max_size=9) | values, max_size=3
)
runs = st.lists(one_of([0, 1, HEIGHT * WIDTH, -1, 2**32]) | numbers, max_size=4)
codes = st.fixed_dictionaries(
    dict(size=st.just([HEIGHT, WIDTH]) | values, counts=runs | one_of(['PP6', 'P`6', 'o' * 50, '~', '0' * 9]) | values)
)
# The fields of each list in a COCO file, and what they may become besides any value.
FIELDS = dict(
    images=dict(id=numbers, file_name=texts, width=numbers, height=numbers),
    annotations=dict(bbox=boxes, segmentation=polygons | codes)
    | dict.fromkeys(['id', 'image_id', 'category_id', 'area', 'iscrowd', 'ignore'], numbers),
    categories=dict(id=numbers, name=texts, supercategory=texts),
)
fields = one_of([(section, field) for section, part in FIELDS.items() for field in part])
names = one_of(
    ['a b', 'é', '猫🐈', 'caf\udce9', 'a#b', '100%', 'q\'uo"te', 'a\nb', '-rf', 'sub/x', './x', 'sub/../x', 'x' * 150]
    + ['a\\b', 'a://b', ' x', 'x ', '.x', '*', 'a\tb', '${HOME}', '{}', '%s', 'NUL', 'x.jpg', 'a\u2028b', '\ufeffx']
)
formats = one_of(['JPEG', 'PNG', 'BMP', 'TIFF', 'WEBP', 'GIF', 'PPM', 'JPEG2000', 'ICO', 'TGA', 'EPS', 'PDF'])
modes = one_of(['RGB', 'L', 'LA', 'P', 'PA', '1', 'RGBA', 'CMYK', 'YCbCr', 'I', 'I;16', 'F'])
sizes = one_of([None, (1, 1), (1, 64), (96, 1), (2, 3), (64, 96), (97, 64), (15, 15), (700, 20), (3, 900)])
replacements = [('\n', '\r\n', -1), ('1', '9' * 5000, 1), ('1', 'NaN', 1), (',', ',,', 1), ('"', "'", -1)]
replacements += [('1', '\udce9', 1), ('<object>', '<!--', 1), ('disc', 'é', -1)]
tags = one_of(
    ['size', 'size/width', 'size/height', 'object', 'object/name', 'object/difficult', 'object/bndbox']
    + [f'object/bndbox/{corner}' for corner in ('xmin', 'ymin', 'xmax', 'ymax')]
)
xml_texts = st.integers(-3, 120).map(str) | one_of(
    ['', ' 5 ', '5.5', '1e3', 'nan', 'inf', '0', '1_0', '٣', '&e;', '0x10', '1e999', 'disc', '1e9', '9' * 400]
)
BILLION = ''.join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
DOCTYPES = [
    '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]>',
    '<!DOCTYPE a [<!ENTITY a "di"><!ENTITY e "&a;sc">]>',
    f'<!DOCTYPE a [<!ENTITY a0 "xxxxxxxxxx">{BILLION}<!ENTITY e "&a9;">]>',
    '<?xml version="1.0" encoding="latin-1"?>',
    '<?xml version="1.0" encoding="klingon"?>',
]


def mutation(name: str, *arguments) -> st.SearchStrategy:
    """Return a strategy of tuples: the name of a method of :class:`Dataset`, a split, and further arguments."""
    return st.tuples(st.just(name), one_of(['train', 'train', 'train', 'val']), *arguments)


numbered = st.integers(0, TRAIN - 1)
changed_bytes = st.one_of(
    st.tuples(one_of(['truncate', 'flip']), st.floats(0, 1)),
    st.tuples(st.just('encode'), one_of(['utf-16', 'utf-8-sig', 'latin-1', 'utf-32', 'cp037'])),
    st.tuples(st.just('append'), one_of(['\0', '\n', ' ', '{}', '<x/>', 'é', '\x1a', 'x' * 100_000])),
    st.tuples(st.just('prepend'), one_of(['\ufeff', '\n', '[' * 100_000, '<a>' * 20_000, '//x\n', ' ', '\0'])),
    st.tuples(st.just('replace'), one_of(replacements)),
    st.tuples(
        st.just('odd'), one_of(['missing', 'empty', 'text', 'folder', 'pipe', 'loop', 'dangling', 'null', 'bomb'])
    ),
)
on_images = [
    mutation('image', numbered, formats, modes, sizes, st.booleans()),
    mutation('image', numbered, formats, modes, st.none(), st.booleans()),
    mutation('exif', numbered, one_of(['JPEG', 'PNG', 'WEBP', 'TIFF']), one_of([0, 1, 2, 3, 6, 8, 9, 65535])),
    mutation('image_bytes', numbered, changed_bytes),
    mutation('name', numbered, names),
]
entries = fields.flatmap(
    lambda f: mutation('entry', st.just(f[0]), numbered, st.just(f[1]), st.one_of(FIELDS[f[0]][f[1]], values))
)
coco = [
    entries,
    entries,
    entries,
    mutation('renumber', one_of(['images', 'categories']), numbered, numbers | texts),
    fields.flatmap(lambda f: mutation('drop', st.just(f[0]), numbered, st.just(f[1]))),
    mutation('listing', one_of(list(FIELDS)), numbered, one_of(['remove', 'repeat', 'clear', 'reverse']) | values),
    mutation('top', one_of([*FIELDS, 'info', 'licenses', 'x']), values),
    mutation('text', changed_bytes),
]
voc = [
    mutation('tag', numbered, tags, one_of(['remove', 'repeat', 'empty']) | st.tuples(st.just('text'), xml_texts)),
    mutation('tag', numbered, tags, st.tuples(st.just('text'), xml_texts)),
    mutation('doctype', numbered, one_of(DOCTYPES)),
    mutation('other_bytes', numbered, changed_bytes),
    mutation('text', changed_bytes),
    mutation('line', texts | names),
]
masks = [
    mutation('mask', numbered, formats, modes, sizes),
    mutation('mask', numbered, formats, modes, st.none()),
    mutation('label', numbered, st.integers(0, 255) | one_of([256, 40000])),
    mutation('other_bytes', numbered, changed_bytes),
]
LAYOUTS = {'coco boxes': coco, 'coco masks': coco, 'voc': voc, 'index masks': masks}
cases = one_of(list(LAYOUTS)).flatmap(
    lambda layout: st.tuples(st.just(layout), st.lists(st.one_of(*LAYOUTS[layout], *on_images), min_size=1, max_size=2))
)


class Dataset:
    """A dataset in a folder, with one method for each mutation. A mutation that does not apply raises an exception.

    Args:
        root: Folder that :func:`mmcasvit.datasets.shapes.write_dataset` wrote.
        layout: Key of ``LAYOUTS``.
    """

    def __init__(self, root: Path, layout: str):
        self.layout = layout
        self.root = root / {'voc': 'voc', 'index masks': 'ade'}.get(layout, 'coco')
        self.renamed: dict[Path, Path] = {}

    def _list(self, split: str) -> Path:
        if self.layout == 'voc':
            return self.root / f'ImageSets/Main/{split}.txt'
        return self.root / f'annotations/instances_{split}2017.json'

    def _path(self, kind: str, split: str, number: int) -> Path:
        """Return the path of an ``'image'``, or of the ``'other'`` file that belongs to it: a mask or an XML file."""
        name = f'{number % (TRAIN if split == "train" else 1) + 1:012d}'
        if self.layout == 'voc':
            path = dict(image=f'JPEGImages/{split}_{name}.jpg', other=f'Annotations/{split}_{name}.xml')[kind]
        elif self.layout == 'index masks':
            folder = dict(train='training', val='validation')[split]
            path = dict(image=f'images/{folder}/{name}.jpg', other=f'annotations/{folder}/{name}.png')[kind]
        else:
            path = dict(image=f'{split}2017/{name}.jpg')[kind]
        return self.renamed.get(self.root / path, self.root / path)

    def _json(self, split: str, change: Callable) -> None:
        content = json.loads(self._list(split).read_text())
        change(content)
        self._list(split).write_text(json.dumps(content))

    def _xml(self, split: str, number: int, change: Callable) -> None:
        path = self._path('other', split, number)
        root = ElementTree.fromstring(path.read_bytes())
        change(root)
        path.write_bytes(ElementTree.tostring(root, encoding='utf-8').replace(b'&amp;e;', b'&e;'))

    def _record(self, split: str, number: int, image: Path, **values) -> None:
        """Change what a COCO file says about an image."""

        def change(content):
            next(entry for entry in content['images'] if entry['file_name'] == image.name).update(values)

        self._json(split, change)

    def entry(self, split, section, number, key, value):
        self._json(split, lambda c: c[section][number % len(c[section])].update({key: value}))

    def renumber(self, split, section, number, value):
        """Change the id of an image or a category, also where annotations refer to it."""

        def change(content):
            entry = content[section][number % len(content[section])]
            key = dict(images='image_id', categories='category_id')[section]
            for annotation in content['annotations']:
                if annotation[key] == entry['id']:
                    annotation[key] = value
            entry['id'] = value

        self._json(split, change)

    def drop(self, split, section, number, key):
        self._json(split, lambda c: c[section][number % len(c[section])].pop(key))

    def top(self, split, key, value):
        self._json(split, lambda c: c.update({key: value}))

    def listing(self, split, section, number, how):
        def change(content):
            part = content[section]
            if how in ('clear', 'reverse'):
                getattr(part, how)()
            elif how == 'remove':
                del part[number % len(part)]
            else:
                part.append(part[number % len(part)] if how == 'repeat' else how)

        self._json(split, change)

    def name(self, split, number, new):
        """Rename an image and what belongs to it, wherever it is named."""
        for kind in ('image',) if self.layout.startswith('coco') else ('image', 'other'):
            old = self._path(kind, split, number)
            path = old.parent / f'{new}{old.suffix}'
            path.parent.mkdir(parents=True, exist_ok=True)
            old.rename(path)
            self.renamed[old] = path
            if kind == 'image' and self.layout == 'voc':
                listed = self._list(split)
                listed.write_bytes(listed.read_bytes().replace(old.stem.encode(), os.fsencode(new)))
            elif kind == 'image' and self.layout != 'index masks':
                self._record(split, number, old, file_name=f'{new}{old.suffix}')

    def image(self, split, number, form, mode, size, consistent):
        """Write an image in another form. If consistent, what is recorded about its size follows."""
        path = self._path('image', split, number)
        width, height = _convert(path, form, mode, size)
        if consistent and self.layout == 'voc':
            for side, value in dict(width=width, height=height).items():
                self.tag(split, number, f'size/{side}', ('text', str(value)))
        elif consistent and self.layout == 'index masks':
            _convert(self._path('other', split, number), 'PNG', 'L', (width, height))
        elif consistent:
            self._record(split, number, path, width=width, height=height)

    def exif(self, split, number, form, orientation):
        path = self._path('image', split, number)
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.open(path).save(path, form, exif=exif)

    def mask(self, split, number, form, mode, size):
        _convert(self._path('other', split, number), form, mode, size)

    def label(self, split, number, value):
        path = self._path('other', split, number)
        labels = np.asarray(Image.open(path)).astype(np.uint8 if value < 256 else np.uint16)
        labels[:9, :9] = value
        Image.fromarray(labels).save(path)

    def tag(self, split, number, tag, how):
        def change(root):
            parent = root.find(tag.rpartition('/')[0] or '.')
            element = parent.find(tag.rpartition('/')[2])
            if how == 'remove':
                parent.remove(element)
            elif how == 'repeat':
                parent.append(element)
            elif how == 'empty':
                element.clear()
            else:
                element.text = how[1]

        self._xml(split, number, change)

    def doctype(self, split, number, text):
        path = self._path('other', split, number)
        path.write_bytes(
            text.encode() + re.sub(rb'<name>[^<]*', b'<name>&e;', path.read_bytes(), count='ENTITY' in text)
        )

    def line(self, split, text):
        with self._list(split).open('ab') as stream:
            stream.write(text.encode('utf-8', 'surrogateescape') + b'\n')

    def text(self, split, change):
        _change_bytes(self._list(split), *change)

    def image_bytes(self, split, number, change):
        _change_bytes(self._path('image', split, number), *change)

    def other_bytes(self, split, number, change):
        _change_bytes(self._path('other', split, number), *change)


def _convert(path: Path, form: str, mode: str, size: tuple[int, int] | None) -> tuple[int, int]:
    """Write an image in another format, mode and size under its old name, and return its size."""
    image = Image.open(path)
    image = image.resize(size, Image.Resampling.NEAREST) if size else image
    stream = io.BytesIO()
    image.convert('P' if mode == 'PA' else image.mode).convert(mode).save(stream, form)
    path.write_bytes(stream.getvalue())
    return image.size


def _change_bytes(path: Path, how: str, what) -> None:
    """Change a file, whatever is in it."""
    content = path.read_bytes()
    place = int(what * (len(content) - 1)) if isinstance(what, float) else 0
    if how == 'truncate':
        content = content[:place]
    elif how == 'flip':
        content = content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :]
    elif how == 'encode':
        content = content.decode('utf-8', 'surrogateescape').encode(what, 'ignore')
    elif how == 'append':
        content = content + what.encode()
    elif how == 'prepend':
        content = what.encode() + content
    elif how == 'replace':
        old, new, count = what
        content = content.replace(old.encode(), new.encode('utf-8', 'surrogateescape'), count)
    path.unlink()
    if how == 'odd':
        make = dict(
            missing=lambda: None,
            empty=path.touch,
            text=lambda: path.write_text('text'),
            folder=path.mkdir,
            pipe=lambda: os.mkfifo(path),
            loop=lambda: path.symlink_to(path),
            dangling=lambda: path.symlink_to('nothing'),
            null=lambda: path.symlink_to('/dev/null'),
            bomb=lambda: path.write_bytes(_png_of_size(60_000, 60_000)),
        )
        make[what]()
    else:
        path.write_bytes(content)


def _png_of_size(width: int, height: int) -> bytes:
    """Return a PNG file that claims a size and has hardly any data."""

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(bytes(9999))) + chunk(b'IEND', b'')
    )
