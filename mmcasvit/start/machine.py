"""What a training step needs on this machine: measured on a few of the images themselves."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config

from mmcasvit.apis.options import has_accelerator
from mmcasvit.benchmark.step_memory import TrainingStep
from mmcasvit.utils.timing import cores

# Room for scratch space of libraries and for images that are larger than those of the measurement.
_SLACK = 1.2
# Images of a step that is timed, and most seconds of such steps.
_IMAGES, _SECONDS = 4, 2


@dataclass
class Machine:
    """This machine, and what a training step takes there.

    Attributes:
        accelerated: Whether it has a GPU or another accelerator.
        workers: Processes that load images.
        free: Free memory in bytes, of the accelerator if there is one, or None if it is unknown.
        fixed: Bytes of a step that do not depend on the batch, such as weights.
        per_image: Bytes of a step for each image.
        seconds_per_image: Seconds of a step for each image.
    """

    accelerated: bool
    workers: int
    free: int | None
    fixed: int = 0
    per_image: int = 0
    seconds_per_image: float = 0

    def largest_batch(self, wanted: int) -> int:
        """Return the largest batch that fits, up to the one that is wanted."""
        if self.free is None or not self.per_image:
            return wanted
        return max(1, min(wanted, int((0.8 * self.free - self.fixed) / (_SLACK * self.per_image))))

    def describe(self, batch: int) -> str:
        """Return how much memory a batch needs, in words."""
        if not self.per_image:
            return f'{batch} images a step.'
        needed = self.fixed + _SLACK * self.per_image * batch
        available = '' if self.free is None else f', of {self.free / 2**30:.1f} GiB that are free'
        return (
            f'{batch} images a step need about {needed / 2**30:.1f} GiB (measured: {self.per_image / 2**20:.0f} MiB '
            f'for each image, and {self.fixed / 2**20:.0f} MiB for the rest){available}.'
        )


def _free_memory() -> int | None:
    """Return how many bytes this process may still take, or None if this system does not say."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    if not Path('/proc/meminfo').is_file():
        return None
    fields = dict(line.split(':', 1) for line in Path('/proc/meminfo').read_text().splitlines())
    free = int(fields['MemAvailable'].split()[0]) * 1024
    limit, used = (Path('/sys/fs/cgroup', name) for name in ('memory.max', 'memory.current'))
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        free = min(free, int(text) - int(used.read_text()))
    return free


def this_machine() -> Machine:
    """Return what is known about this machine without a measurement."""
    accelerated = has_accelerator()
    workers = min(8, cores()) if accelerated else max(1, min(2, cores() // 2))
    return Machine(accelerated, workers, _free_memory())


def measure_time(cfg: Config, machine: Machine) -> TrainingStep:
    """Take training steps with a few images of the data, note their time, and return the step, for its memory.

    Args:
        cfg: Complete config.
        machine: Where the result is noted.

    Raises:
        UsageError: If no image can be read, or the loss is NaN or infinite.
    """
    with _quiet():
        step = TrainingStep(cfg)
        machine.seconds_per_image = step.seconds_per_image(_IMAGES, _SECONDS)
    return step


def measure_memory(step: TrainingStep, machine: Machine) -> None:
    """Note the memory of a training step."""
    with _quiet():
        memory = step.memory()
    machine.fixed, machine.per_image = memory.fixed, memory.per_image


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what pycocotools and mmseg print."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield
