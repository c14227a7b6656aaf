"""The kinds of problems that the checks find, and the datasets that they find them in."""

from dataclasses import dataclass, field

from mmengine.config import ConfigDict

from mmcasvit.datasets.config import folder_of
from mmcasvit.datasets.folders import is_outside
from mmcasvit.utils.text import printable

# What the report calls each kind of problem, in the order of the report.
KINDS = dict(
    bad_file='unreadable or invalid annotation files',
    no_instances='datasets without images or instances',
    class_missing='classes of the config that are missing from the annotation file',
    class_order='annotation files whose categories are not in the order of the classes of the config',
    duplicate_category='annotation files with a category name or id that is used twice',
    zero_label='datasets whose pipeline has another reduce_zero_label',
    unknown_class='names of objects that are not classes of the config, which are left out without a word',
    duplicate_image_id='images that share an id',
    duplicate_file='images listed more than once',
    duplicate_annotation_id='annotations with the id of an earlier one',
    malformed='entries with missing or invalid fields',
    path_outside='files outside the folders of the dataset',
    missing_image='missing images',
    unreadable_image='unreadable or truncated images',
    wrong_size='images whose size differs from the recorded size',
    orientation='images that their EXIF entry rotates, unlike their mask or for some readers only',
    broken_xml='missing or unreadable XML files of images',
    no_such_image='annotations of images that are not listed',
    unknown_category='annotations of categories that are not listed',
    iscrowd='annotations whose iscrowd is neither 0 nor 1, or is missing where they are evaluated',
    empty_box='boxes smaller than one pixel',
    box_outside='boxes that extend beyond their image',
    broken_polygon='invalid polygons',
    broken_rle='run-length encodings that do not fit their image',
    no_outline='annotations without a segmentation, which the config needs',
    missing_mask='missing masks',
    unreadable_mask='unreadable or truncated masks',
    mask_size='masks whose size differs from that of their image, or with a side of one pixel',
    mask_format='masks that are not a single channel of integers',
    mask_labels='masks with labels out of range',
    mask_without_image='masks without an image',
    overlap='training images that are also in another split',
)


@dataclass
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: Key of :data:`KINDS`.
        where: File, and the id of the annotation if there is one.
        detail: What was found, and what was expected.
        image: Image to draw as an example, or ``''``.
        box: Box ``(x, y, w, h)`` in pixels to draw on it.
        mask: Index mask to draw on it, or ``''``.
        image_index, annotation_index: Positions in the lists of the annotation file.
    """

    kind: str
    where: str
    detail: str
    image: str = ''
    box: tuple[float, ...] = ()
    mask: str = ''
    image_index: int | None = None
    annotation_index: int | None = None


@dataclass
class Sample:
    """Image of a dataset.

    Attributes:
        image: Path of the image.
        mask: Path of its index mask, or ``''``.
        size: Recorded ``(width, height)`` in pixels, if any.
        index: Position in the list of images.
    """

    image: str
    mask: str = ''
    size: tuple[int, int] | None = None
    index: int | None = None


@dataclass
class CheckedDataset:
    """Dataset of a config with the problems found in it.

    Attributes:
        split: ``'train'``, ``'val'``, or ``'test'``.
        name: Name by which ``--cfg-options`` reaches the dataset.
        reads: Kind of its annotations: ``'coco'``, ``'voc'``, ``'masks'``, or ``'images'`` for any other, of which only
            the images are checked.
        classes: Names of the classes in the order of the labels.
        folders: Folders that its files must be in, or an empty list if they may be anywhere.
        content: Content of the annotation file of a COCO dataset.
        labeled: Names of the classes that its labels have.
    """

    split: str
    name: str
    config: ConfigDict
    reads: str
    classes: tuple[str, ...]
    folders: list[str]
    annotation_file: str = ''
    samples: list[Sample] = field(default_factory=list)
    content: dict = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    labeled: set[str] = field(default_factory=set)

    @property
    def absent(self) -> list[str]:
        """The classes that none of its labels have. They are not faults, but a metric leaves them out."""
        return [name for name in self.classes if name not in self.labeled] if self.labeled else []

    @property
    def needs_masks(self) -> bool:
        return "'with_mask': True" in repr(self.config.get('pipeline'))  # however deeply it is nested

    @property
    def source(self) -> str:
        """The annotation file, or the folder of the images."""
        return self.annotation_file or folder_of(self.config, 'img_path')

    def is_outside(self, path: str) -> bool:
        return bool(self.folders) and is_outside(self.folders, path)

    @property
    def not_checked(self) -> str:
        """What the checks leave out, or ``''``."""
        return f'boxes, masks and labels of {self.config.get("type")}' if self.reads == 'images' else ''

    def add(self, kind: str, where: str, detail: str, **rest) -> None:
        self.problems.append(Problem(kind, printable(where), printable(detail), **rest))
