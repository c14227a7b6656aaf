"""The choices of a recipe for a dataset and a machine, each with its reason."""

import math
from dataclasses import dataclass, field

import numpy as np

from mmcasvit.utils.tables import count_of, three_digits

from .machine import Machine
from .prepare import Data

MODELS = dict(detect=('retinanet', 'rtmdet'), instances=('mask-rcnn', 'rtmdet'), semantic=('semantic-fpn', 'upernet'))
# Images of a step for which BatchNorm's statistics are good enough to train from random weights.
_ENOUGH_FOR_BATCHNORM = 4
# Times that training sees an image, from random and from ImageNet weights, and the least number of samples.
# Beyond the most epochs, a model learns the images by heart.
_EPOCHS, _SAMPLES, _MOST_EPOCHS = {False: 24, True: 12}, {False: 16000, True: 8000}, 100
# Where time is short, images shrink until training sees this many of them, but not below this longer side, and not so
# far that a quarter of the objects is narrower than this. All but the first are in pixels.
_LEAST_SAMPLES, _LEAST_SIZE, _LEAST_OBJECT = {False: 4000, True: 2000}, 256, 16
_MINUTES_WITHOUT_GPU = 10.0


@dataclass
class Choices:
    """Choices of the user, or None where the recipe is to choose.

    Attributes:
        model: A model of :data:`MODELS`.
        arch: Arch of the backbone.
        size: Longer side of an image in the model, in pixels.
        batch: Images of a training step.
        epochs: Times that training sees each image.
        minutes: Time for training on this machine.
        pretrained: Weights of the backbone, by file or name.
    """

    model: str
    arch: str = 'xs'
    size: int | None = None
    batch: int | None = None
    epochs: float | None = None
    minutes: float | None = None
    pretrained: str | None = None


@dataclass
class Recipe:
    """Choices of a recipe.

    Attributes:
        size: Longer side of an image in the model, in pixels.
        crop: ``(height, width)`` of a training image of a segmentor.
        width: Channels of neck and heads, or None for those of the published recipe.
        scale: Side of the smallest anchor over its stride.
        levels: Number of levels of RetinaNet.
        batch, workers: Images of a step, and processes that load them.
        samples: Images that training sees in all.
        evaluations: Number of evaluations in training.
        seconds: Estimated seconds of training on this machine, or None if nothing was measured.
        on_cpu: Whether the machine has no accelerator.
        why: Reason for each choice, by name.
    """

    size: int
    crop: tuple[int, int]
    width: int | None = None
    scale: float = 4
    levels: int = 5
    batch: int = 8
    workers: int = 2
    samples: int = 0
    evaluations: int = 10
    seconds: float | None = None
    learning_rate: float = 1e-3
    on_cpu: bool = False
    why: dict[str, str] = field(default_factory=dict)

    def iterations(self) -> int:
        return math.ceil(self.samples / self.batch)


def _whole(number: float, step: int = 32) -> int:
    return max(step, round(number / step) * step)


def choose_shape(data: Data, choices: Choices, machine: Machine, limit: int | None = None) -> Recipe:
    """Choose what depends on the images and objects only: sizes, widths, and anchors.

    Args:
        data: The data.
        choices: Choices of the user.
        machine: The machine.
        limit: Largest longer side of an image in the model, as :func:`affordable_size` returns it.
    """
    sizes = np.array(data.sizes or [(640, 480)], float)
    longer = float(np.median(sizes.max(1)))
    most = 1024 if machine.accelerated else 640
    usual = min(most, math.ceil(longer / 32) * 32)
    size = choices.size or min(limit or most, usual)
    shown = sizes * (size / sizes.max(1, keepdims=True))
    alike = np.ptp(shown[:, 0]) + np.ptp(shown[:, 1]) < 64
    width, height = np.median(shown, axis=0) if alike else (size, size)
    recipe = Recipe(size, (_whole(height), _whole(width)), on_cpu=not machine.accelerated)
    why = recipe.why
    if choices.size:
        why['size'] = f'--size {size}; the longer side of the images is {longer:.0f} pixels (median).'
    elif size >= longer:
        why['size'] = f'the size of the images, whose longer side is {longer:.0f} pixels (median).'
    elif limit:
        why['size'] = (
            f'less than the images have (longer side {longer:.0f} pixels, median), so that training sees enough of '
            f'them in its time. --size {usual} with more --minutes shows small objects better.'
        )
    else:
        device = 'a GPU' if machine.accelerated else 'a machine without a GPU'
        why['size'] = (
            f'less than the images have (longer side {longer:.0f} pixels, median), since {size} is the most that '
            f'{device} trains in good time. --size changes it.'
        )
    if size <= 320 or not machine.accelerated:
        recipe.width = 64 if size <= 320 else 128
        why['width'] = (
            f'{recipe.width} channels instead of 256: '
            + ('small images need no more' if size <= 320 else 'most of the time without a GPU would go into the heads')
            + '.'
        )
    if len(data.objects):
        _choose_anchors(data, recipe)
    return recipe


def _minutes(choices: Choices, machine: Machine) -> float | None:
    """Return the time for training, or None if it does not matter."""
    if choices.minutes or choices.epochs or machine.accelerated:
        return choices.minutes
    return _MINUTES_WITHOUT_GPU


def _affordable_samples(minutes: float, machine: Machine) -> int:
    return int(minutes * 60 * 0.8 / machine.seconds_per_image)  # the rest is evaluation


def affordable_size(data: Data, choices: Choices, machine: Machine, recipe: Recipe) -> int | None:
    """Return the longer side at which training sees enough images in its time, or None if the chosen one will do.

    A model that starts from random weights learns more from many small images than from a few large ones.

    Args:
        data: The data.
        choices: Choices of the user.
        machine: The machine, with the time that an image of the recipe's size takes.
        recipe: The recipe so far.
    """
    minutes = _minutes(choices, machine)
    if choices.size or not minutes or not machine.seconds_per_image:
        return None
    share = _affordable_samples(minutes, machine) / _LEAST_SAMPLES[choices.pretrained is not None]
    least: float = _LEAST_SIZE
    if len(data.objects):
        least = max(least, recipe.size * _LEAST_OBJECT / max(1, np.quantile(_sides(data, recipe), 0.25)))
    size = math.ceil(max(least, recipe.size * math.sqrt(min(share, 1))) / 32) * 32  # time goes by pixels
    return size if size < recipe.size else None


def _sides(data: Data, recipe: Recipe) -> np.ndarray:
    """Return the side of a square with the area of each object, in pixels of the model."""
    return np.sqrt(np.prod(data.objects[:, :2], 1).clip(1)) * recipe.size / data.objects[:, 2:].max(1)


def _choose_anchors(data: Data, recipe: Recipe) -> None:
    sides = _sides(data, recipe)
    small, middle, large = np.quantile(sides, [0.05, 0.5, 0.95])
    measured = f'Objects are {small:.0f} to {large:.0f} pixels wide in the model (5% to 95%, median {middle:.0f})'
    recipe.scale = float(np.clip(round(small / 4 * 2) / 2, 2, 8))
    recipe.levels = int(np.clip(math.ceil(math.log2(max(large, 1) / 28)) + 1, 3, 5))
    recipe.why['objects'] = f'{measured}.'
    if small < 8:
        recipe.why['small'] = (
            f'5% of the objects are smaller than 8 pixels at this size. --size {_whole(recipe.size * 12 / small)} '
            'would enlarge them to 12.'
        )


def choose_schedule(data: Data, choices: Choices, machine: Machine, recipe: Recipe) -> None:
    """Choose what depends on the machine and the number of images: batch, schedule, and learning rate."""
    images, why = data.counts['train'], recipe.why
    # Without a GPU, time goes by images, and smaller batches are more steps in the same time.
    usual = 16 if machine.accelerated else 4 if choices.model in ('retinanet', 'mask-rcnn') else 8
    wanted = choices.batch or min(usual, max(2, images // 4))
    fits = machine.largest_batch(wanted)
    recipe.batch, recipe.workers = (wanted if choices.batch else min(wanted, fits)), machine.workers
    why['batch'] = machine.describe(recipe.batch)
    if recipe.batch < _ENOUGH_FOR_BATCHNORM and not choices.pretrained:
        why['norm'] = f'{recipe.batch} images a step would spoil BatchNorm, so neck and heads use GroupNorm.'

    pretrained = choices.pretrained is not None
    full = max(min(_SAMPLES[pretrained], _MOST_EPOCHS * images), _EPOCHS[pretrained] * images)
    recipe.samples, reason = full, f'{count_of(round(full / images), "epoch")}: enough for {images} images'
    if choices.epochs:
        recipe.samples, reason = math.ceil(choices.epochs * images), f'--epochs {choices.epochs:g}'
    minutes = _minutes(choices, machine)
    if minutes and machine.seconds_per_image:
        affordable = _affordable_samples(minutes, machine)
        if affordable < recipe.samples or choices.minutes:
            recipe.samples = max(affordable, 20 * recipe.batch)
            reason = (
                f'{recipe.samples / images:.1f} epochs, in about {minutes:g} minute{"" if minutes == 1 else "s"} on '
                f'this machine ({three_digits(1 / machine.seconds_per_image)} images/s). --minutes or --epochs '
                f'{full / images:.0f}, which suits {images} images, trains longer'
            )
    recipe.samples = max(recipe.samples, recipe.batch)
    why['schedule'] = f'{reason}.'
    if machine.seconds_per_image:
        recipe.seconds = recipe.samples * machine.seconds_per_image
        evaluation = 0.5 * machine.seconds_per_image * data.counts['val']
        recipe.evaluations = int(np.clip(0.2 * recipe.seconds / max(evaluation, 1e-9), 2, 10))
    recipe.evaluations = min(recipe.evaluations, recipe.iterations())
    # Adam's steps grow with the square root of the batch.
    base = 4e-4 if pretrained else 2e-3 if data.task == 'semantic' else 1.4e-3
    recipe.learning_rate = float(f'{base * math.sqrt(recipe.batch / 8):.1g}')
