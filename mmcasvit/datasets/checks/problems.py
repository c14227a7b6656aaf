"""What can be wrong with data, and what is known of a data set while it is checked."""

from dataclasses import asdict, dataclass, field

from mmengine.config import ConfigDict

from mmcasvit.datasets.config import folder_of

# What can be wrong, in the order of the report.
KINDS = dict(
    bad_file='annotation files that are not what the data set reads',
    no_instances='data sets without an image or an instance',
    class_missing='classes of the config that the annotation file lacks',
    class_order='annotation files whose categories stand in another order than the classes of the config',
    duplicate_image_id='images with the id of another one',
    duplicate_file='images listed more than once',
    duplicate_annotation_id='annotations with the id of another one',
    malformed='entries that lack a field or have one of another type',
    path_outside="files outside of the data set's folders",
    missing_image='images that are not there',
    unreadable_image='images that cannot be read to their end',
    wrong_size='images of another size than recorded',
    no_such_image='annotations of an image that is not listed',
    unknown_category='annotations of a category that is not listed',
    empty_box='boxes without an area of at least one pixel',
    box_outside='boxes that leave their image',
    broken_polygon='outlines that enclose nothing or have corners that are no numbers',
    broken_rle='run-length codes that do not fit their image',
    no_outline='annotations without an outline, where the config asks for masks',
    missing_mask='masks that are not there',
    unreadable_mask='masks that cannot be read to their end',
    mask_size='masks of another size than their image',
    mask_format='masks that are no single channel of integers',
    mask_labels='masks with labels out of range',
    mask_without_image='masks that belong to no image',
    overlap='images that the training split shares with another one',
)


@dataclass
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: of :data:`KINDS`.
        where: the file, and the id of the annotation if there is one.
        detail: what was found, and what was expected.
        image: the file to draw, if there is one.
        box: ``(x, y, w, h)`` in pixels, to draw on it.
        mask: the index mask, to draw on it.
        image_index, annotation_index: positions in the lists of the annotation file, for :func:`cleaned_coco`.
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
    """An image of a data set, with its mask if it has one, and the ``(width, height)`` that is recorded for it."""

    image: str
    mask: str = ''
    size: tuple[int, int] | None = None
    index: int | None = None


@dataclass
class DataSet:
    """One data set of a config, as the checks see it.

    Attributes:
        name: what ``--cfg-options`` calls it.
        reads: how its annotations are read: ``'coco'``, ``'masks'`` or ``'images'`` (of another kind: only its images
            are checked).
        classes: the names of the classes, in the order of the labels.
        samples: every image.
        content: the annotation file of a COCO data set.
        problems: what was found while the lists were read, and is found by the checks later.
    """

    name: str
    config: ConfigDict
    reads: str
    classes: tuple[str, ...]
    folders: list[str]
    annotation_file: str = ''
    samples: list[Sample] = field(default_factory=list)
    content: dict = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def needs_masks(self) -> bool:
        return "'with_mask': True" in repr(self.config.get('pipeline'))  # wherever it is nested

    @property
    def source(self) -> str:
        """The annotation file, or the folder of the images."""
        return self.annotation_file or folder_of(self.config, 'img_path')

    def add(self, kind: str, where: str, detail: str, **rest) -> None:
        self.problems.append(Problem(kind, where, detail, **rest))


def as_json(splits: dict[str, list[DataSet]]) -> dict:
    """Everything that was found, for programs."""
    return {
        data.name: dict(
            split=split,
            images=len(data.samples),
            checked=data.reads,
            problems=[asdict(problem) for problem in data.problems],
        )
        for split, group in splits.items()
        for data in group
    }
