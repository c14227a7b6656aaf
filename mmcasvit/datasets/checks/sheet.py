"""A sheet of examples of what was found."""

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from .problems import KINDS, DataSet, Problem


def draw_sheet(splits: dict[str, list[DataSet]], per_kind: int = 4, columns: int = 4) -> Image.Image | None:
    """Examples of each kind in a grid, with their boxes, or ``None`` if nothing is wrong."""
    cells = []
    for kind in KINDS:
        problems = [
            problem
            for group in splits.values()
            for data in group
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
    """One example above its caption. The image shrinks until a box that leaves it can be seen as well."""
    cell = Image.new('RGB', (size[0] + 8, size[1] + 56), 'white')
    pen = ImageDraw.Draw(cell)
    try:
        with Image.open(problem.image) as file:
            full = file.size
            file.draft('RGB', size)  # decodes a JPEG at a fraction of its size
            photo = ImageOps.exif_transpose(file.convert('RGB'))
        full = full if (full[0] > full[1]) == (photo.size[0] > photo.size[1]) else full[::-1]
    except Exception:
        photo, full = Image.new('RGB', (300, 200), (210, 210, 210)), (300, 200)
        ImageDraw.Draw(photo).text((105, 94), 'no picture', fill=(90, 90, 90))
    x, y, w, h = problem.box or (0, 0, 0, 0)
    left, top = min(0, x), min(0, y)
    right, bottom = max(full[0], x + w), max(full[1], y + h)
    # a box far away must not shrink the image to a dot
    left, top = max(left, -full[0]), max(top, -full[1])
    right, bottom = min(right, 2 * full[0]), min(bottom, 2 * full[1])
    scale = min(size[0] / (right - left), size[1] / (bottom - top))
    shown = photo.resize((max(1, round(full[0] * scale)), max(1, round(full[1] * scale))))
    corner = round(4 - left * scale), round(4 - top * scale)
    if problem.mask:
        shown = _with_labels(shown, problem.mask)
    pen.rectangle((4, 4, 3 + size[0], 3 + size[1]), fill=(235, 235, 235))
    cell.paste(shown, corner)
    if problem.box:
        edges = (corner[0] + x * scale, corner[1] + y * scale, corner[0] + (x + w) * scale, corner[1] + (y + h) * scale)
        edges = [min(max(value, 4), 3 + bound) for value, bound in zip(edges, size * 2)]
        pen.rectangle(
            (min(edges[::2]), min(edges[1::2]), max(edges[::2]), max(edges[1::2])), outline=(230, 0, 0), width=2
        )
    pen.rectangle((0, size[1] + 6, *cell.size), fill='white')
    lines = (problem.kind.replace('_', ' '), problem.where[-48:], problem.detail[:48])
    for number, line in enumerate(lines):
        pen.text(
            (4, size[1] + 8 + 15 * number),
            line.encode('ascii', 'replace').decode(),
            fill=(180, 0, 0) if number == 0 else (0, 0, 0),
        )
    return cell


def _with_labels(photo: Image.Image, mask: str) -> Image.Image:
    """Half photograph, half labels in colours that differ from their neighbours'."""
    try:
        with Image.open(mask) as file:
            labels = np.asarray(file.resize(photo.size, Image.Resampling.NEAREST)).astype(int)
    except Exception:
        return photo
    if labels.ndim != 2:
        return photo
    colours = np.stack([labels * 67 % 256, labels * 131 % 256, labels * 197 % 256], axis=-1).astype(np.uint8)
    return Image.blend(photo, Image.fromarray(colours), 0.5)
