"""Metrics of resamples against those of pycocotools and mmseg, and intervals against a truth that is known."""

import contextlib
import io

import numpy as np
import pytest

from mmcasvit.report.bootstrap import AveragePrecision, IntersectionOverUnion, bootstrap, difference, resample
from mmcasvit.report.images import coco_matches

CLASSES = 3


def made_up(rng, images=12, copies=None):
    """Return a COCO dataset with random boxes, some of them crowds, and detections near them and elsewhere.

    Args:
        rng: Source of what is random.
        images: Number of images.
        copies: How often each image is in the dataset, or None for once.
    """
    annotations, found, entries = [], [], []
    for image in range(images):
        truth = [
            (int(rng.integers(CLASSES)), rng.uniform(0, 60, 2), rng.uniform(15, 40, 2), rng.random() < 0.1)
            for _ in range(rng.integers(0, 5))
        ]
        guesses = [
            (
                kind if rng.random() < 0.8 else 0,
                corner + rng.normal(0, 3, 2),
                size * rng.uniform(0.8, 1.2, 2),
                rng.random(),
            )
            for kind, corner, size, _ in truth + truth[:2]
        ]
        guesses += [
            (int(rng.integers(CLASSES)), rng.uniform(0, 60, 2), rng.uniform(10, 40, 2), rng.random() / 2)
            for _ in range(3)
        ]
        for _ in range(1 if copies is None else copies[image]):
            entries.append(dict(id=len(entries) + 1))
            for kind, corner, size, crowd in truth:
                box = [*map(float, corner), *map(float, size)]
                part = dict(
                    id=len(annotations) + 1, image_id=entries[-1]['id'], category_id=kind + 1, iscrowd=int(crowd)
                )
                annotations.append(dict(part, bbox=box, area=box[2] * box[3]))
            found += [
                dict(image_id=entries[-1]['id'], category_id=kind + 1, bbox=[*corner, *size], score=score)
                for kind, corner, size, score in guesses
            ]
    categories = [dict(id=number + 1, name=str(number)) for number in range(CLASSES)]
    return dict(images=entries, annotations=annotations, categories=categories), found


def evaluated(dataset, found):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), 'bbox')
        evaluation.params.maxDets = [100, 300, 1000]  # those of mmdet
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval['precision'][:, :, :, 0, 0]  # thresholds, recalls, classes
    precision = np.where(precision < 0, np.nan, precision)
    return evaluation, precision.mean((0, 1)), precision[0].mean(0)


def average_precision(evaluation):
    found = coco_matches(evaluation)
    bits = np.arange(len(found['thresholds']))[:, None]
    right, ignored = ((found[name][None] >> bits & 1).astype(bool) for name in ('right', 'ignored'))
    return AveragePrecision(
        found['image'], found['label'], found['score'], right, ignored, found['objects'], found['thresholds']
    )


@pytest.mark.parametrize('seed', range(4))
def test_ap_of_a_resample_is_that_of_pycocotools_on_a_dataset_with_copies(seed):
    evaluation, whole, half = evaluated(*made_up(np.random.default_rng(seed)))
    measured = average_precision(evaluation)
    found = measured.measure(np.ones(12, int))
    np.testing.assert_allclose(found['AP'], whole, atol=1e-12)
    np.testing.assert_allclose(found['AP50'], half, atol=1e-12)
    copies = resample(12, 1, seed)[0]
    _, expected, half = evaluated(*made_up(np.random.default_rng(seed), copies=copies))
    found = measured.measure(copies)
    np.testing.assert_allclose(found['AP'], expected, atol=1e-12)
    np.testing.assert_allclose(found['AP50'], half, atol=1e-12)


def test_classes_without_objects_or_detections():
    measured = AveragePrecision(
        np.array([0]), np.array([1]), np.array([0.5]), np.zeros((1, 1), bool), np.zeros((1, 1), bool),
        np.array([[2, 0]]), [0.75],
    )  # fmt: skip
    (values,) = measured.measure(np.ones(1, int)).values()
    np.testing.assert_array_equal(values, [0, np.nan])


def test_iou_of_a_resample_is_that_of_mmseg_on_copies():
    evaluation = pytest.importorskip('mmseg.evaluation')
    import torch

    rng = np.random.default_rng(0)
    maps = rng.integers(0, 4, (6, 2, 8, 8))
    areas = np.array(
        [[[np.sum((t == c) & (f == c)), np.sum(f == c), np.sum(t == c)] for c in range(4)] for t, f in maps]
    )
    copies = resample(6, 1, 3)[0]
    metric = evaluation.IoUMetric()
    metric.dataset_meta = dict(classes=tuple('abcd'))
    for (truth, found), count in zip(torch.from_numpy(maps), copies):
        for _ in range(count):
            metric.process({}, [dict(gt_sem_seg=dict(data=truth[None]), pred_sem_seg=dict(data=found[None]))])
    expected = metric.evaluate(int(copies.sum()))['mIoU']
    assert 100 * IntersectionOverUnion(areas).measure(copies)['IoU'].mean() == pytest.approx(expected, abs=0.01)


def detectors(rng, images, skills):
    """Return made-up matches of detectors of other skill on the same images, which are more or less difficult."""
    ease = rng.normal(0, 1, images)
    objects = rng.poisson(2, images)
    image = np.repeat(np.arange(images), objects)
    noise = rng.normal(0, 1, len(image))  # of the object, the same for all detectors
    for skill in skills:
        quality = skill + ease[image] + noise + rng.normal(0, 0.7, len(image))
        wrong = np.repeat(np.arange(images), rng.poisson(1.5, images))
        score = np.concatenate([quality + rng.normal(0, 1, len(image)), rng.normal(-1, 1, len(wrong))])
        right = np.concatenate([quality > 0, np.zeros(len(wrong), bool)])
        everything = np.concatenate([image, wrong])
        nothing = np.zeros((1, len(everything)), bool)
        yield AveragePrecision(everything, 0 * everything, score, right[None], nothing, objects[:, None], [0.5])


def compared(runs, number, seed):
    first, second = (found['AP'] for found in bootstrap(list(runs), number, seed))
    return difference([first], [second]).mean


@pytest.mark.slow
def test_an_interval_covers_the_true_difference_as_often_as_it_says():
    skills = (0.0, 0.25)
    population = [
        run.measure(np.ones(run.images, int))['AP50'][0] for run in detectors(np.random.default_rng(1), 200_000, skills)
    ]
    truth = population[1] - population[0]
    assert truth > 0.02
    intervals = [
        compared(detectors(np.random.default_rng([2, trial]), 120, skills), 150, trial) for trial in range(150)
    ]
    covered = np.mean([found.low <= truth <= found.high for found in intervals])
    assert 0.90 <= covered <= 0.99, covered
    # It also tells something: most of these samples show which one is better.
    assert np.mean([found.low > 0 for found in intervals]) > 0.5


@pytest.mark.slow
def test_equal_runs_are_told_apart_as_rarely_as_it_says():
    intervals = [compared(detectors(np.random.default_rng([3, i]), 120, (0.2, 0.2)), 100, i) for i in range(100)]
    assert np.mean([found.low > 0 or found.high < 0 for found in intervals]) < 0.1


def test_runs_of_a_recipe_widen_the_interval_by_as_much_as_they_differ():
    rng = np.random.default_rng(5)
    covered, narrow = [], []
    for _ in range(300):  # the truth is a difference of 1; runs have a deviation of 0.3, images of 0.1
        images = rng.normal(0, 0.1, (401, 1))
        images[0] = rng.normal(0, 0.1)
        sides = [[mean + rng.normal(0, 0.3) + images for _ in range(4)] for mean in (0, 1)]
        found = difference(*sides).mean
        covered.append(found.low <= 1 <= found.high)
        found = difference(sides[0][:1], sides[1][:1]).mean
        narrow.append(found.low <= 1 <= found.high)
    assert 0.85 <= np.mean(covered) <= 0.99
    assert np.mean(narrow) < 0.3


def test_the_same_seed_gives_the_same_resamples_in_any_blocks():
    assert resample(7, 3, 1).sum(1).tolist() == [7, 7, 7]
    runs = list(detectors(np.random.default_rng(1), 30, (0, 1)))
    first, again = (bootstrap(runs, 70, 4)[1]['AP'] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(first)) > 60
