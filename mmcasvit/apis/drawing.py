"""Drawings of mmdet's and mmseg's visualizers by OpenCV and Pillow.

mmengine's visualizers draw on a figure of matplotlib, which is rendered anew for each image, for its masks, and to read
the result back. That takes longer than a light detector. Here only the canvas is replaced: what is drawn where, and in
which color, is up to the frameworks.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from mmengine.visualization.utils import color_str2rgb, tensor2ndarray
from PIL import Image, ImageDraw, ImageFont

# Their drawings consist of boxes, polygons, texts and masks. Subclasses may draw more.
_VISUALIZERS = ('DetLocalVisualizer', 'SegLocalVisualizer')
# matplotlib draws lines and polygons below texts, whatever was drawn first.
_LINES, _TEXTS = 1, 3
# Bits of a pixel's fraction in the coordinates of OpenCV.
_SHIFT = 4

Color = str | Sequence[int]


class _Canvas:
    """The canvas of a visualizer of mmengine, as a mixin that comes before its class."""

    width: int
    height: int
    dpi: float
    _default_font_size: float
    # (height, width) of an image of which only a part is drawn, whose lines are to be as wide as in the whole image.
    whole: tuple[int, int] | None = None

    def set_image(self, image: np.ndarray) -> None:
        self._image = image.astype(np.uint8)
        self.height, self.width = image.shape[:2]
        self._default_font_size = max(np.sqrt(np.prod(self.whole or image.shape[:2])) // 90, 10)
        self._drawn: list[tuple[int, Callable[[np.ndarray], None]]] = []

    def get_image(self) -> np.ndarray:
        image = self._image.copy()
        for _, draw in sorted(self._drawn, key=lambda entry: entry[0]):
            draw(image)
        return image

    def draw_polygons(
        self, polygons, edge_colors='g', line_styles='-', line_widths=2, face_colors='none', alpha=0.8
    ) -> '_Canvas':
        colors = _one_each(edge_colors, len(polygons))
        widths = _one_each(line_widths, len(polygons))
        for polygon, color, width in zip(polygons, colors, widths):
            points = min(max(width, 1), self._default_font_size / 4)
            self._drawn.append(
                (
                    _LINES,
                    functools.partial(
                        _outline,
                        points=tensor2ndarray(polygon),
                        color=_rgb(color),
                        thickness=max(1, round(points * self.dpi / 72) - 1),  # OpenCV adds half a pixel on each side
                        alpha=alpha,
                    ),
                )
            )
        return self

    def draw_texts(
        self, texts, positions, font_sizes, colors, horizontal_alignments='left', bboxes=(), **options: Any
    ) -> '_Canvas':
        texts = [texts] if isinstance(texts, str) else texts
        positions = np.reshape(tensor2ndarray(positions), (-1, 2)).tolist()
        sizes, colors = (_one_each(given, len(texts)) for given in (font_sizes, colors))
        for text, place, size, color in zip(texts, positions, sizes, colors):
            pixels = max(1, round(size * self.dpi / 72))
            centered = horizontal_alignments == 'center'
            shade = bboxes[0]['alpha'] if bboxes else 0.0
            write = functools.partial(
                _write, text=text, place=place, pixels=pixels, color=_rgb(color), centered=centered, shade=shade
            )
            self._drawn.append((_TEXTS, write))
        return self

    def draw_binary_masks(self, binary_masks, colors='g', alphas=0.8) -> '_Canvas':
        masks = tensor2ndarray(binary_masks)
        masks = masks[None] if masks.ndim == 2 else masks
        image = self.get_image()  # what is drawn so far shines through the masks, and is drawn over them again
        for mask, color, alpha in zip(masks, _one_each(colors, len(masks)), _one_each(alphas, len(masks))):
            rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
            if len(rows):
                place = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
                part = image[place]
                colored = np.where(mask[place][..., None], np.uint8(_rgb(color)), part)
                image[place] = cv2.addWeighted(part, 1 - alpha, colored, alpha, 0)
        self._image = image
        return self

    def _get_center_loc(self, mask: np.ndarray) -> np.ndarray:
        """Return where mmseg writes the name of a class: amid the pixels of the row with the most of them.

        mmseg finds it by sorting all pixels in Python.
        """
        chosen = mask == 1
        y = int(np.count_nonzero(chosen, axis=1).argmax())
        columns = np.flatnonzero(chosen[y])
        return np.array([columns[len(columns) // 2], y])


def quicken(visualizer: Any) -> Any:
    """Make a visualizer of mmdet or mmseg draw by OpenCV and Pillow, and return it. Others are left as they are."""
    kind = type(visualizer)
    if kind.__name__ in _VISUALIZERS and kind.__module__.startswith(('mmdet.', 'mmseg.')):
        visualizer.__class__ = type(kind.__name__, (_Canvas, kind), {})
    return visualizer


def _one_each(given: Any, count: int) -> list:
    return given if isinstance(given, list) else [given] * count


def _rgb(color: Color) -> tuple[int, ...]:
    return tuple(color_str2rgb(color)) if isinstance(color, str) else tuple(color)


def _blend(image: np.ndarray, cover: np.ndarray, color: Sequence[int], alpha: float) -> None:
    """Paint a color over the part of an image ``(h, w, 3)`` that is covered: ``cover`` is ``(h, w)``, 255 for all."""
    where = cover.nonzero()
    share = (cover[where] * (alpha / 255))[:, None]
    image[where] = (image[where] * (1 - share) + np.array(color) * share + 0.5).astype(np.uint8)


def _part(image: np.ndarray, low: Sequence[float], high: Sequence[float]) -> tuple[np.ndarray, int, int]:
    """Return the part of an image from one corner ``(x, y)`` to another, and the pixel at which it starts."""
    left, top = (max(0, int(np.floor(value))) for value in low)
    right, bottom = (max(0, int(np.ceil(value))) for value in high)
    return image[top:bottom, left:right], left, top


def _outline(image: np.ndarray, points: np.ndarray, color: Sequence[int], thickness: int, alpha: float) -> None:
    part, left, top = _part(image, points.min(0) - thickness - 1, points.max(0) + thickness + 1)
    if not part.size:
        return
    cover = np.zeros(part.shape[:2], np.uint8)
    # For OpenCV a whole number is the middle of a pixel, for mmdet its edge.
    moved = np.round((points - (left + 0.5, top + 0.5)) * 2**_SHIFT).astype(np.int32)
    cv2.polylines(cover, [moved], True, 255, thickness, cv2.LINE_AA, _SHIFT)
    _blend(part, cover, color, alpha)


@functools.lru_cache(maxsize=64)
def _font(pixels: int) -> ImageFont.FreeTypeFont:
    from matplotlib.font_manager import FontProperties, findfont

    return ImageFont.truetype(findfont(FontProperties(family=['sans-serif'])), pixels)


def _write(
    image: np.ndarray,
    text: str,
    place: Sequence[float],
    pixels: int,
    color: Sequence[int],
    centered: bool,
    shade: float,
) -> None:
    """Write a line of text below and to the right of a place ``(x, y)``, or centered below it, on a dark ground."""
    font = _font(pixels)
    _, above, _, below = font.getbbox('lp', anchor='ls')
    width = font.getlength(text)
    x, y = place[0] - width / 2 * centered, place[1]
    part, left, top = _part(image, (x - 1, y - 1), (x + width + 1, y + below - above + 1))
    if not part.size:
        return
    part[:] = (part * (1 - shade) + 0.5).astype(np.uint8)
    cover = Image.new('L', part.shape[1::-1])
    ImageDraw.Draw(cover).text((x - left, y - above - top), text, 255, font, 'ls')
    _blend(part, np.asarray(cover), color, 1.0)
