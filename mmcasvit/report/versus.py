"""Page that says whether one run is better than another on the images that both were evaluated on."""

import difflib
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np

from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.images import check_regular
from mmcasvit.utils.tables import count_of
from mmcasvit.version import __version__

from . import figures
from .bootstrap import Difference, Interval, bootstrap, difference
from .images import FILE, RecordedImages
from .page import ENVIRONMENT, embedded
from .record import FOLDER, draw

# How lines begin that differ between any two runs.
_OF_A_RUN = ('work_dir = ', 'resume = ', 'load_from = ', "dict(type='mmcasvit.ReportHook')", "dict(type='Tensorboard")
_FEW = 20  # images, with which an interval means little
_WIDTH = 640  # of each drawing on the page, in pixels


@dataclass
class Side:
    """One side of a comparison: a run, or several that differ by their seed.

    Attributes:
        name: Name on the page.
        runs: Their evaluations.
    """

    name: str
    runs: list[RecordedImages]


def read_side(folder: Path) -> Side:
    """Read the latest evaluation of a work directory, or those of all work directories in a folder.

    Raises:
        UsageError: There is none, or one cannot be read.
    """
    if not folder.is_dir():
        raise UsageError(f'there is no folder {folder}.')
    files = [file for file in [_latest(folder)] if file] or [
        file for path in sorted(folder.iterdir()) if path.is_dir() and (file := _latest(path))
    ]
    if not files:
        raise UsageError(
            f'{folder} has no evaluation with predictions. Make one: tools/test.py CONFIG CHECKPOINT --report '
            f'--work-dir {folder}'
        )
    return Side(folder.resolve().name, [RecordedImages(file) for file in files])


def _latest(work_dir: Path) -> Path | None:
    """Return the record of the latest evaluation of a work directory, whose runs are folders named by their start."""
    return max(work_dir.glob(f'*/{FOLDER}/{FILE}'), key=lambda file: file.parts[-3], default=None)


def image_names(paths: Sequence[str]) -> list[str]:
    """Return the names of images relative to their common folder, since the data of two runs may be in two places."""
    common = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ''
    return [os.path.relpath(path, common) if common else path for path in paths]


def check_comparable(sides: Sequence[Side]) -> None:
    """Check that all runs were evaluated on the same images, classes and annotations.

    Raises:
        UsageError: If they were not.
    """
    first = sides[0].runs[0]
    names = image_names(first.paths)
    for run in [run for side in sides for run in side.runs]:
        which = f'{first.file.parent} and {run.file.parent}'
        if run.classes != first.classes:
            raise UsageError(f'{which} have other classes.')
        if image_names(run.paths) != names:
            common = len(set(names) & set(image_names(run.paths)))
            raise UsageError(
                f'{which} are evaluations of other images: {count_of(len(names), "image")} and {len(run.paths)}, of '
                f'which {common} have the same name. Evaluate both on the same data.'
            )
        if run.measured.keys() != first.measured.keys() or not run.measured:
            raise UsageError(f"{which} cannot be compared: both need COCO's metric with the same parts, or label maps.")
        if any(not np.array_equal(mine, theirs) for mine, theirs in zip(run.truth(), first.truth())):
            raise UsageError(f'{which} were evaluated on other annotations of the same images.')


def compare(sides: Sequence[Side], resamples: int, seed: int, level: float) -> list[dict[str, Difference]]:
    """Compare the first side with each other one.

    Args:
        sides: Sides with the same images, see :func:`check_comparable`.
        resamples: Number of validation sets that are drawn from the images.
        seed: Seed of the draws.
        level: Confidence level of the intervals.

    Returns:
        For each side but the first, the difference of each metric.
    """
    values: list[list[dict[str, np.ndarray]]] = [[] for _ in sides]
    for kind in sides[0].runs[0].measured:
        runs = [run.measured[kind] for side in sides for run in side.runs]
        found = iter(bootstrap(runs, resamples, seed))
        for side, kept in zip(sides, values):
            kept.extend([] if kept else [{} for _ in side.runs])
            for run in kept:
                # As mmdet and mmseg print them: AP as a share, IoU in percent.
                run.update({name: part * (100 if name == 'IoU' else 1) for name, part in next(found).items()})
    return [
        {
            name: difference([run[name] for run in values[0]], [run[name] for run in other], level, seed)
            for name in values[0][0]
        }
        for other in values[1:]
    ]


def write_comparison(
    folders: Sequence[Path], out: Path, resamples: int = 1000, seed: int = 0, level: float = 0.95, examples: int = 6
) -> list[str]:
    """Write the page of a comparison, and return its verdicts, a line for each metric.

    Args:
        folders: Work directories, or folders of work directories that differ by their seed. The first is compared with
            each other one.
        out: File to write. An existing file is replaced.
        resamples: Number of validation sets that are drawn from the images.
        seed: Seed of the draws.
        level: Confidence level of the intervals.
        examples: Number of images to show in which a side is better.

    Raises:
        UsageError: A folder has no evaluation, or they are not comparable.
    """
    sides = [read_side(folder) for folder in folders]
    if len({side.name for side in sides}) < len(sides):
        for side, folder in zip(sides, folders):
            side.name = str(folder)
    check_comparable(sides)
    compared = compare(sides, resamples, seed, level)
    first, classes = sides[0], sides[0].runs[0].classes
    sections, verdicts = [], []
    for other, differences in zip(sides[1:], compared):
        means = {dict(IoU='mIoU').get(name, name): found for name, found in differences.items()}
        lines = [verdict(name, first.name, other.name, found, level) for name, found in means.items()]
        verdicts += lines
        sections.append(
            dict(
                names=(first.name, other.name),
                verdicts=lines,
                changes=config_changes(first.runs[0], other.runs[0]),
                rows=[_row(name, found.sides, found.mean) for name, found in means.items()],
                classes={name: _classes(classes, found) for name, found in differences.items()},
                images=_images(first, other, examples),
            )
        )
    count = len(first.runs[0].paths)
    few = [f'Only {count_of(count, "image")}: do not rely on these intervals.'] if count < _FEW else []
    text = ENVIRONMENT.get_template('versus.html.jinja').render(
        few=few,
        sections=sections,
        sides=[dict(name=side.name, files=[str(run.file.parent) for run in side.runs]) for side in sides],
        images=len(first.runs[0].paths),
        resamples=resamples,
        level=f'{100 * level:g} %',
        several=any(len(side.runs) > 1 for side in sides),
        version=__version__,
        written=datetime.now().strftime('%Y-%m-%d %H:%M'),
    )
    out.write_text(text, encoding='utf-8', errors='replace')
    return [*verdicts, *few]


def config_changes(first: RecordedImages, second: RecordedImages, limit: int = 40) -> list[str]:
    """Return the lines of the configs of two trainings that differ, marked by ``-`` and ``+``, without their folders.

    An evaluation of a checkpoint counts as the training whose config is next to the checkpoint.
    """
    texts = [_training_config(run.file.parents[1] / 'vis_data' / 'config.py') for run in (first, second)]
    if not all(texts):
        return []
    mine, theirs = (text.splitlines() for text in texts)
    lines = [
        line
        for line in list(difflib.unified_diff(mine, theirs, n=0, lineterm=''))[2:]
        if not line.startswith('@@') and not line[1:].lstrip().startswith(_OF_A_RUN)
    ]
    return lines[:limit] + ([f'and {len(lines) - limit} more lines'] if len(lines) > limit else [])


def _training_config(file: Path) -> str:
    """Return the text of the config of a run, or of the training whose checkpoint it evaluates, or ``''``."""
    if not file.is_file():
        return ''
    text = file.read_text(encoding='utf-8', errors='replace')
    found = re.search(r"^load_from = '(.+)'$", text, re.MULTILINE)
    configs = list(Path(found[1]).parent.glob('*.py')) if found else []  # next to the checkpoint
    return configs[0].read_text(encoding='utf-8', errors='replace') if len(configs) == 1 else text


def verdict(name: str, first: str, second: str, found: Difference, level: float) -> str:
    """Say in a sentence which side is better, if that can be told."""
    value, low, high, _ = found.mean
    values = f'{name} {found.sides[0]:.3f} and {found.sides[1]:.3f}'
    interval = f'{100 * level:g} % interval of the difference {low:+.3f} to {high:+.3f}'
    if low <= 0 <= high:
        return f'{values}: no difference between {first} and {second} can be told ({interval})'
    better, worse = (second, first) if value > 0 else (first, second)
    return f'{values}: {better} is better than {worse} ({interval})'


def _row(name: str, sides: tuple[float, float], interval: Interval) -> list[str]:
    value, low, high, positive = interval
    share = f'{100 * positive:.1f} %'
    return [name, *(f'{side:.3f}' for side in sides), f'{value:+.3f}', f'{low:+.3f} to {high:+.3f}', share]


def _classes(classes: Sequence[str], found: Difference) -> dict[str, Any]:
    known = [(name, part) for name, part in zip(classes, found.classes) if part is not None]
    known.sort(key=lambda pair: pair[1].value)
    if not known:
        return {}
    told = sum(part.low > 0 or part.high < 0 for _, part in known)
    return dict(
        figure=embedded(figures.plot_differences({name: part[:3] for name, part in known})),
        rows=[
            [name, f'{part.value:+.3f}', f'{part.low:+.3f} to {part.high:+.3f}', f'{100 * part.positive:.1f} %']
            for name, part in reversed(known)
        ],
        told=f'{told} of {count_of(len(known), "class").replace("classs", "classes")}',
    )


def _images(first: Side, second: Side, examples: int) -> dict[str, list[dict[str, str]]]:
    """Return the drawn images whose scores differ most, by the side that is better."""
    scores = [np.mean([run.scores for run in side.runs], axis=0) for side in (first, second)]
    change = scores[1] - scores[0]
    order = np.argsort(np.where(np.isnan(change), 0, change), kind='stable')
    chosen = {
        second.name: [place for place in order[::-1] if change[place] > 0][:examples],
        first.name: [place for place in order if change[place] < 0][:examples],
    }
    runs = [side.runs[0] for side in (first, second)]
    return {
        name: [
            dict(
                data=_draw(runs, place),
                caption=f'{Path(runs[0].paths[place]).name}: {scores[0][place]:.3f} and {scores[1][place]:.3f}',
            )
            for place in places
        ]
        for name, places in chosen.items()
    }


def _draw(runs: Sequence[RecordedImages], place: int) -> str:
    """Return the ground truth and the prediction of each run, side by side, or ``''`` if the image is not there."""
    path = next((path for run in runs if os.path.isfile(path := run.paths[place])), None)
    if path is None:
        return ''
    check_regular(path)
    photo = mmcv.imread(path)
    if photo is None:
        return ''
    size = photo.shape[:2]
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for run in runs:
            file = Path(folder, 'drawn.jpg')
            draw(dict(path=path, sample=run.drawable(place, size)), run.meta, file)
            pairs.append(mmcv.imread(file))
    half = pairs[0].shape[1] // 2
    panels = [pairs[0][:, :half], *(pair[:, half : 2 * half] for pair in pairs)]
    if half > _WIDTH:
        size = _WIDTH, max(1, round(size[0] * _WIDTH / half))
        panels = [mmcv.imresize(panel, size, interpolation='area') for panel in panels]
    gap = np.full((len(panels[0]), 6, 3), 255, np.uint8)
    row = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)
    return embedded(cv2.imencode('.jpg', row)[1].tobytes())
