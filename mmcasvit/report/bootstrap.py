"""Metrics of resampled validation sets, and intervals of their differences."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

# Recalls at which COCO reads the precision.
_RECALLS = np.linspace(0, 1, 101)
_BLOCK = 50  # resamples that are held in memory at a time


class Measured(Protocol):
    """Evaluation whose metrics can be computed with another number of copies of each image."""

    images: int

    def measure(self, copies: np.ndarray) -> dict[str, np.ndarray]:
        """Return the metrics of each class, ``(C,)``, with NaN for classes without an object.

        Args:
            copies: Number of copies of each image, ``(N,)``.
        """


class AveragePrecision:
    """COCO's AP, computed from the matches of single images.

    A resample only changes how often an image counts. So detections are sorted once, and a cumulative sum of weights
    takes the place of sorting each resample. The result is that of pycocotools on a dataset with copies of its images.

    Args:
        image: Index of the image of each detection, ``(D,)``.
        label: Class of each detection, ``(D,)``.
        score: Score of each detection, ``(D,)``.
        right: Whether each detection is a true positive, for each IoU threshold, ``(T, D)``.
        ignored: Whether it is not counted, ``(T, D)``.
        objects: Number of objects of each image and class, ``(N, C)``.
        thresholds: IoU thresholds, ``(T,)``.
        prefix: Prefix of the names of the metrics.
    """

    def __init__(
        self,
        image: np.ndarray,
        label: np.ndarray,
        score: np.ndarray,
        right: np.ndarray,
        ignored: np.ndarray,
        objects: np.ndarray,
        thresholds: Sequence[float],
        prefix: str = '',
    ):
        self.images, self.objects, self.prefix = len(objects), objects, prefix
        self._half = next((i for i, value in enumerate(thresholds) if abs(value - 0.5) < 1e-6), None)
        self._classes = []
        for number in range(objects.shape[1]):
            mine = np.flatnonzero(label == number)
            mine = mine[np.argsort(-score[mine], kind='stable')]
            counted = ~ignored[:, mine]
            places = [np.flatnonzero(hits & valid) for hits, valid in zip(right[:, mine], counted)]
            # Crowds are rare: mostly every detection counts at every threshold.
            self._classes.append((image[mine], None if counted.all() else counted, places))

    def measure(self, copies: np.ndarray) -> dict[str, np.ndarray]:
        """Return ``AP`` and ``AP50`` of each class, see :class:`Measured`."""
        totals = copies @ self.objects
        mean, half = np.full(len(totals), np.nan), np.full(len(totals), np.nan)
        for number, (image, counted, places) in enumerate(self._classes):
            if not totals[number]:
                continue
            weights = copies[image]
            seen = np.cumsum(weights)
            values = [
                _precision(
                    np.cumsum(weights[place]),
                    (seen if counted is None else np.cumsum(weights * counted[i]))[place],
                    totals[number],
                )
                for i, place in enumerate(places)
            ]
            mean[number] = np.mean(values)
            if self._half is not None:
                half[number] = values[self._half]
        found = {f'{self.prefix}AP': mean}
        return found if self._half is None else found | {f'{self.prefix}AP50': half}


def _precision(right: np.ndarray, seen: np.ndarray, objects: int) -> float:
    """Return the mean precision over recalls, from what was right and seen up to each true positive."""
    if not len(right):
        return 0.0
    envelope = np.maximum.accumulate((right / np.maximum(seen, 1))[::-1])[::-1]
    place = np.searchsorted(right / objects, _RECALLS)
    return float(envelope[place[place < len(envelope)]].sum() / len(_RECALLS))


class IntersectionOverUnion:
    """IoU of each class, computed from the areas of single images.

    Args:
        areas: Intersection, prediction and label of each image and class in pixels, ``(N, C, 3)``.
    """

    def __init__(self, areas: np.ndarray):
        self.images = len(areas)
        self._areas = areas.astype(np.float64).reshape(len(areas), -1)

    def measure(self, copies: np.ndarray) -> dict[str, np.ndarray]:
        """Return ``IoU`` of each class, see :class:`Measured`."""
        both, found, truth = (copies @ self._areas).reshape(-1, 3).T
        union = found + truth - both
        return dict(IoU=np.divide(both, union, out=np.full(len(union), np.nan), where=union > 0))


class Interval(NamedTuple):
    """Difference of a metric, its confidence interval, and the share of resamples in which it is positive."""

    value: float
    low: float
    high: float
    positive: float


@dataclass
class Difference:
    """Difference between two sides, the second minus the first.

    Attributes:
        sides: Value of each side.
        mean: Interval of the mean over classes.
        classes: Interval of each class, or None for classes without objects.
    """

    sides: tuple[float, float]
    mean: Interval
    classes: list[Interval | None]


def resample(images: int, number: int, seed: int | Sequence[int]) -> np.ndarray:
    """Return the copies of each image in validation sets drawn with replacement, ``(number, images)``."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(images, np.full(images, 1 / images), size=number)


def bootstrap(runs: Sequence[Measured], number: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Return the metrics of each class in resamples of the images, the same for all runs.

    Returns:
        For each run and metric, ``(1 + number, C)``. The first row has every image once.
    """
    images = runs[0].images
    rows: list[dict[str, list]] = [{} for _ in runs]
    starts = range(0, number, _BLOCK)
    drawn = (resample(images, min(_BLOCK, number - start), (seed, start)) for start in starts)
    for copies in itertools.chain([np.ones(images, np.int64)], itertools.chain.from_iterable(drawn)):
        for run, found in zip(runs, rows):
            for name, values in run.measure(copies).items():
                found.setdefault(name, []).append(values)
    return [{name: np.array(values) for name, values in found.items()} for found in rows]


def _side(runs: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Return the mean over runs; where there are several, each resample of the images also resamples the runs.

    Resampled means of few runs vary too little, by a factor of (R - 1) / R of their variance, so they are spread.
    """
    values = np.stack(runs)
    mean = values.mean(0)
    if len(runs) == 1:
        return mean
    drawn = rng.integers(0, len(runs), (values.shape[1] - 1, len(runs)))
    spread = values[drawn, np.arange(1, values.shape[1])[:, None]].mean(1) - mean[1:]
    mean[1:] += spread * np.sqrt(len(runs) / (len(runs) - 1))
    return mean


def difference(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], level: float = 0.95, seed: int = 0
) -> Difference:
    """Compare two sides, each of one run or of several that differ by their seed.

    Args:
        first: For each run of the first side, what :func:`bootstrap` returns for a metric.
        second: The same for the second side.
        level: Confidence level of the intervals, which are percentiles.
        seed: Seed of the draws of runs.
    """
    rng = np.random.default_rng(seed)
    sides = [_side(runs, rng) for runs in (first, second)]
    means = [np.nanmean(side, axis=1) for side in sides]
    change = sides[1] - sides[0]
    classes = [None if np.isnan(values[0]) else _interval(values, level) for values in change.T]
    return Difference((float(means[0][0]), float(means[1][0])), _interval(means[1] - means[0], level), classes)


def _interval(values: np.ndarray, level: float) -> Interval:
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    positive = np.mean(drawn > 0) + np.mean(drawn == 0) / 2
    return Interval(float(values[0]), float(low), float(high), float(positive))
