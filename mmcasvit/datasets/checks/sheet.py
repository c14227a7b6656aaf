"""Drawing of examples of the problems found."""

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from mmcasvit.utils.images import DATA_FORMATS, open_image

from .problems import KINDS, CheckedDataset, Problem


def draw_sheet(datasets: list[CheckedDataset], per_kind: int = 4, columns: int = 4) -> Image.Image | None:
    """Draw examples of each kind of problem in a grid, with their boxes. Return ``None`` if there are none."""
    cells = []
    for kind in KINDS:
        problems = [
            problem
            for data in datasets
            for problem in data.problems
            if problem.kind == kind and (problem.image or problem.mask)
        ]
        cells += [_draw(problem) for problem in problems[:per_kind]]
    if not cells:
        return None
    columns = min(columns, len(cells))
    width, height = cells[0].size
    sheet = Image.new('RGB', (columns * width, -(-len(cells) // columns) * height), 'white')
    for number, cell in enumerate(cells):
        sheet.paste(cell, (number % columns * width, number // columns * height))
    return sheet


def _draw(problem: Problem, size: tuple[int, int] = (300, 200)) -> Image.Image:
    """Draw one example with its caption. The image is shrunk until a box that extends beyond it is visible."""
    cell = Image.new('RGB', (size[0] + 8, size[1] + 56), 'white')
    pen = ImageDraw.Draw(cell)
    try:
        with open_image(problem.image, DATA_FORMATS) as file:
            full = file.size
            file.draft('RGB', size)  # decodes a JPEG at a fraction of its size
            image = ImageOps.exif_transpose(file.convert('RGB'))
        full = full if (full[0] > full[1]) == (image.size[0] > image.size[1]) else full[::-1]
    except Exception:
        image, full = Image.new('RGB', (300, 200), (210, 210, 210)), (300, 200)
        ImageDraw.Draw(image).text((105, 94), 'no image', fill=(90, 90, 90))
    x, y, w, h = problem.box or (0, 0, 0, 0)
    left, top = min(0, x), min(0, y)
    right, bottom = max(full[0], x + w), max(full[1], y + h)
    # A box far away must not shrink the image to a dot.
    left, top = max(left, -full[0]), max(top, -full[1])
    right, bottom = min(right, 2 * full[0]), min(bottom, 2 * full[1])
    scale = min(size[0] / (right - left), size[1] / (bottom - top))
    shown = image.resize((max(1, round(full[0] * scale)), max(1, round(full[1] * scale))))
    corner = round(4 - left * scale), round(4 - top * scale)
    if problem.mask:
        shown = _with_labels(shown, problem.mask)
    pen.rectangle((4, 4, 3 + size[0], 3 + size[1]), fill=(235, 235, 235))
    cell.paste(shown, corner)
    if problem.box:
        edges = (corner[0] + x * scale, corner[1] + y * scale, corner[0] + (x + w) * scale, corner[1] + (y + h) * scale)
        shown_edges = [min(max(value, 4), 3 + bound) for value, bound in zip(edges, size * 2)]
        xs, ys = shown_edges[::2], shown_edges[1::2]
        pen.rectangle((min(xs), min(ys), max(xs), max(ys)), outline=(230, 0, 0), width=2)
    pen.rectangle((0, size[1] + 6, *cell.size), fill='white')
    lines = (problem.kind.replace('_', ' '), problem.where[-48:], problem.detail[:48])
    for number, line in enumerate(lines):
        color = (180, 0, 0) if number == 0 else (0, 0, 0)
        pen.text((4, size[1] + 8 + 15 * number), line.encode('ascii', 'replace').decode(), fill=color)
    return cell


def _with_labels(image: Image.Image, mask: str) -> Image.Image:
    """Blend an image with the labels of its mask, each in another color."""
    try:
        with open_image(mask, DATA_FORMATS) as file:
            labels = np.asarray(file.resize(image.size, Image.Resampling.NEAREST)).astype(int)
    except Exception:
        return image
    if labels.ndim != 2:
        return image
    colors = np.stack([labels * 67 % 256, labels * 131 % 256, labels * 197 % 256], axis=-1).astype(np.uint8)
    return Image.blend(image, Image.fromarray(colors), 0.5)
