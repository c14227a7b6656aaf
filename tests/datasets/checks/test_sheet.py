"""The drawn examples show the box, the mask and the image to scale, each kind of problem a few times."""

import numpy as np
import pytest
from mmengine.config import ConfigDict
from PIL import Image

from mmcasvit.datasets.checks.problems import CheckedDataset, Problem
from mmcasvit.datasets.checks.sheet import _draw, draw_sheet

CELL = (308, 256)  # an image of 300 x 200 with a margin, and three lines of text
RED, GRAY = (230, 0, 0), (235, 235, 235)


@pytest.fixture
def image(tmp_path):
    Image.new('RGB', (600, 400), (0, 0, 255)).save(tmp_path / 'x.png')
    return str(tmp_path / 'x.png')


def box_of(cell):
    """Return the bounds of what is red in a drawing."""
    rows, columns = np.nonzero((np.asarray(cell) == RED).all(-1))
    return columns.min(), rows.min(), columns.max(), rows.max()


def color(cell, x, y):
    return tuple(np.asarray(cell)[y, x].tolist())


def test_a_box_is_drawn_to_scale(image):
    cell = _draw(Problem('empty_box', 'x', 'y', image, box=(100, 60, 200, 120)))
    assert cell.size == CELL
    assert box_of(cell) == (54, 34, 154, 94)  # half the size, from (4, 4) on
    assert color(cell, 100, 60) == color(cell, 4, 4) == color(cell, 303, 203) == (0, 0, 255)
    assert color(cell, 3, 3) == color(cell, 304, 204) == (255, 255, 255)


@pytest.mark.parametrize(
    'box, scale, corner, bounds',
    [
        ((-300, 0, 600, 400), 1 / 3, (104, 4), (4, 4, 204, 137)),
        ((0, -400, 600, 400), 1 / 4, (4, 104), (4, 4, 154, 104)),
        ((300, 200, 600, 200), 1 / 3, (4, 4), (104, 71, 303, 137)),
        ((0, 200, 600, 600), 1 / 4, (4, 4), (4, 54, 154, 203)),
        ((1e6, 1e6, 5, 5), 1 / 4, (4, 4), (303, 203, 303, 203)),  # the image is still seen
        ((-1e6, -1e6, 5, 5), 1 / 4, (154, 104), (4, 4, 4, 4)),
    ],
)
def test_the_image_is_shrunk_until_a_box_beyond_it_is_seen(image, box, scale, corner, bounds):
    cell = _draw(Problem('box_outside', 'x', 'y', image, box=box))
    assert np.abs(np.subtract(box_of(cell), bounds)).max() <= 2
    rows, columns = np.nonzero((np.asarray(cell) == (0, 0, 255)).all(-1))
    shown = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    wanted = *corner, corner[0] + 600 * scale, corner[1] + 400 * scale
    assert np.abs(np.subtract(shown, wanted)).max() <= 3
    assert (np.asarray(cell) == GRAY).all(-1).any()


def test_a_turned_image_is_drawn_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (600, 400), (0, 0, 255)).save(tmp_path / 'x.png', exif=exif)
    cell = _draw(Problem('empty_box', 'x', 'y', str(tmp_path / 'x.png'), box=(0, 0, 400, 600)))
    assert box_of(cell) == (4, 4, 137, 203)


def test_labels_are_blended_each_in_another_color(image, tmp_path):
    labels = np.repeat(np.arange(4, dtype=np.uint8)[:, None], 6, 1)
    Image.fromarray(labels).save(tmp_path / 'mask.png')
    cell = _draw(Problem('mask_labels', 'x', 'y', image, mask=str(tmp_path / 'mask.png')))
    rows = [color(cell, 100, 29 + 50 * label) for label in range(4)]
    assert rows == [(label * 67 // 2, label * 131 % 256 // 2, (label * 197 % 256 + 255) // 2) for label in range(4)]
    for spoiled in ('not a mask', None):
        if spoiled:
            (tmp_path / 'mask.png').write_text(spoiled)
        else:
            Image.new('RGB', (6, 4)).save(tmp_path / 'mask.png')
        cell = _draw(Problem('mask_labels', 'x', 'y', image, mask=str(tmp_path / 'mask.png')))
        assert color(cell, 100, 100) == (0, 0, 255)


def test_a_missing_image_is_a_gray_field_of_its_own_size():
    cell = _draw(Problem('missing_image', 'x', 'y', 'gone.jpg', box=(0, 0, 300, 200)))
    assert box_of(cell) == (4, 4, 303, 203)
    assert color(cell, 20, 20) == (210, 210, 210)
    assert (np.asarray(cell)[90:110, 100:160] == (90, 90, 90)).all(-1).any()


def test_the_caption_is_below_the_image_and_ascii(image):
    cell = np.asarray(_draw(Problem('empty_box', 'where', 'detail', image))).astype(int)
    text = (cell[206:] < 200).any(-1)
    assert text.any(1).nonzero()[0].min() < 15
    assert text[30:48].any()
    assert (cell[208:220, :, 0] - cell[208:220, :, 1] > 100).any(), 'the kind is red'
    assert np.ptp(cell[225:], axis=-1).max() == 0, 'and the rest black'
    _draw(Problem('empty_box', 'café', 'été', image))


def dataset(*problems):
    return CheckedDataset('train', 'x', ConfigDict(), 'coco', (), [], problems=list(problems))


def test_the_sheet_has_a_few_examples_of_each_kind_in_a_grid(image, tmp_path):
    def some(kind, number, **options):
        return [Problem(kind, 'x', 'y', **options)] * number

    first = dataset(*some('empty_box', 3, image=image), *some('bad_file', 9))
    second = dataset(*some('empty_box', 3, image=image), *some('mask_size', 1, mask='x.png'))
    assert draw_sheet([dataset(*some('bad_file', 2))]) is None
    sheet = draw_sheet([first, second])
    assert sheet.size == (4 * CELL[0], 2 * CELL[1])
    places = [(x * CELL[0], y * CELL[1]) for y in range(2) for x in range(4)]
    shown = [color(sheet, x + 100, y + 50) for x, y in places]
    assert shown == [(0, 0, 255)] * 4 + [(210, 210, 210)] + [(255, 255, 255)] * 3
    assert draw_sheet([first, second], per_kind=1).size == (2 * CELL[0], CELL[1])
    assert draw_sheet([first, second], per_kind=6, columns=2).size == (2 * CELL[0], 4 * CELL[1])
