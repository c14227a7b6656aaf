"""The files of a data folder: images by name, the image of a label file, and the split that a path names."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import ExifTags

from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.images import DATA_FORMATS, IMAGE_SUFFIXES, open_image

_IMAGES = (*IMAGE_SUFFIXES, '.gif', '.ppm', '.pgm', '.jp2')
_LABELS = ('.json', '.xml', '.txt', '.csv', '.yaml', '.yml', '.names', '.labels')
_SPLITS = dict(
    train=('train', 'training', 'trn'),
    val=('val', 'valid', 'validation', 'dev', 'eval'),
    test=('test', 'testing', 'tst'),
)
SPLITS = tuple(_SPLITS)


def split_of(path: str | Path) -> str:
    """Return the split that the last part of a relative path names, such as ``'val'`` of ``valid/labels``, or ``''``.

    The name of an image says nothing about its split, so leave it out.
    """
    for part in reversed(Path(path).parts):
        words = re.split(r'[^a-z]+', part.lower())
        # Cityscapes and CamVid have folders such as trainannot.
        words += [word.removesuffix(end) for word in words for end in ('annot', 'set', 'images', 'masks', 'labels')]
        for split, names in _SPLITS.items():
            if any(word in names for word in words):
                return split
    return ''


@dataclass
class Files:
    """Files of a data folder, without hidden ones.

    Attributes:
        root: The folder, as an absolute path.
        images: Paths of the images, in order.
        labels: Paths of text files that may hold labels, by suffix.
    """

    root: Path
    images: list[Path] = field(default_factory=list)
    labels: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self):
        self._by_name, self._by_stem = defaultdict(list), defaultdict(list)

    def add(self, path: Path) -> None:
        suffix = path.suffix.lower()
        if suffix in _IMAGES:
            self.images.append(path)
            self._by_name[path.name].append(path)
            self._by_stem[path.stem].append(path)
        elif suffix in _LABELS:
            self.labels[suffix].append(path)

    def relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def split(self, path: Path) -> str:
        """Return the split that the folder of a file names."""
        return split_of(path.parent.relative_to(self.root))

    def named(self, name: str, label: Path, split: str | None = None) -> Path | None:
        """Return the image that a label file calls ``name``, which may have folders that do not exist."""
        parts = [part for part in re.split(r'[/\\]+', name) if part not in ('', '.', '..')]
        if not parts:
            return None
        found = self._by_name.get(parts[-1], [])
        # The more of the folders agree, the better.
        for count in range(len(parts), 0, -1):
            if fitting := [path for path in found if list(path.parts[-count:]) == parts[-count:]]:
                return self.nearest(fitting, label, split)
        return None

    def of_label(self, label: Path, split: str | None = None) -> Path | None:
        """Return the image with the stem of a label file."""
        found = self._by_stem.get(label.stem)
        return self.nearest(found, label, split) if found else None

    def nearest(self, found: list[Path], label: Path, split: str | None = None) -> Path:
        """Return the image whose folders have most in common with those of a label file.

        Raises:
            UsageError: If several images fit equally well.
        """
        if len(found) == 1:
            return found[0]
        split = self.split(label) if split is None else split
        near = label.parent.relative_to(self.root).parts

        def likeness(path: Path) -> tuple:
            folders = path.parent.relative_to(self.root).parts
            return (path.parent == label.parent, self.split(path) == split, len(set(folders) & set(near)))

        best = max(map(likeness, found))
        fitting = [path for path in found if likeness(path) == best]
        if len(fitting) > 1:
            raise UsageError(
                f'{label} fits {self.relative(fitting[0])} and {self.relative(fitting[1])}. Keep one of the images, or '
                'give the folder of one data set.'
            )
        return fitting[0]


def list_files(root: Path, leave_out: Path) -> Files:
    """List the files of a folder and its subfolders.

    Args:
        root: The folder.
        leave_out: Folder whose files are not wanted, such as that of the results.

    Raises:
        UsageError: If there is no folder, or no image in it.
    """
    if not root.is_dir():
        raise UsageError(f'folder of data not found: {root.absolute()}')
    files = Files(Path(os.path.abspath(root)))
    unwanted = os.path.abspath(leave_out)
    seen = {os.path.realpath(files.root)}
    for folder, folders, names in os.walk(files.root, followlinks=True):
        kept = []
        for name in sorted(folders):
            path, real = os.path.join(folder, name), os.path.realpath(os.path.join(folder, name))
            # A link may lead back to a folder that holds it.
            if not name.startswith(('.', '__MACOSX')) and path != unwanted and real not in seen:
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        for name in sorted(names):
            if not name.startswith('.') and os.path.isfile(os.path.join(folder, name)):
                files.add(Path(folder, name))
    if not files.images:
        raise UsageError(f'no image in {files.root}, looked for {", ".join(_IMAGES)}')
    return files


def image_size(path: Path) -> tuple[int, int] | None:
    """Return ``(width, height)`` of an image in pixels as OpenCV reads it, or None if it cannot be read."""
    try:
        with open_image(path, DATA_FORMATS) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return (height, width) if turned else (width, height)
    except Exception:  # decoders raise nearly anything; the check of the data says what
        return None


def image_sizes(paths: Iterable[Path]) -> list[tuple[int, int] | None]:
    """Return the size of each image."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(image_size, paths))


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty, without the spaces around them.

    Raises:
        UsageError: If it is not UTF-8 text.
    """
    try:
        return [text for line in path.read_text(encoding='utf-8-sig').splitlines() if (text := line.strip())]
    except UnicodeDecodeError as error:
        raise UsageError(f'{path} is not UTF-8 text: {error}') from error


def listed_splits(files: Files, labeled: Iterable[Path], prefer: str = '') -> dict[Path, str]:
    """Return the splits of labeled images that lists such as ``ImageSets/Main/train.txt`` name.

    Where only other splits have a list, the images in none are for training.

    Args:
        files: Files of the folder.
        labeled: Images with labels.
        prefer: Name of the folder to take where several have lists of the same split.
    """
    by_name = {}
    for path in labeled:
        for name in (path.stem, path.name):
            by_name.setdefault(name, path)
    found: dict[str, list[tuple[bool, int, dict[Path, str]]]] = defaultdict(list)
    for file in files.labels['.txt']:
        split = split_of(file.stem) if len(re.split(r'[^a-z]+', file.stem.lower())) == 1 else ''
        if not split and file.stem.lower() == 'trainval':
            split = 'trainval'
        if not split:
            continue
        named = {}
        for line in read_lines(file):
            # A line is a name, a path, or a name with columns after it.
            for name in (line, line.split()[0]):
                if known := by_name.get(re.split(r'[/\\]', name)[-1]):
                    named[known] = split
                    break
        if named:
            found[split].append((file.parent.name == prefer, len(named), named))
    best = {split: max(lists, key=lambda entry: entry[:2])[2] for split, lists in found.items()}
    if 'trainval' in best:
        if 'train' not in best:
            best['train'] = dict.fromkeys(best['trainval'], 'train')
        del best['trainval']
    listed = {path: '' for paths in best.values() for path in paths}
    if best and 'train' not in best:
        best['train'] = {path: 'train' for path in by_name.values() if path not in listed}
    if listed.keys() == (best.get('train') or listed).keys():  # a single list chooses images but splits nothing
        return listed
    return {path: split for split in reversed(SPLITS) for path, split in best.get(split, {}).items()}
