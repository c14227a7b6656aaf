"""What a training step needs on this machine: measured on a few of the images themselves."""

import contextlib
import copy
import io
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, init_default_scope

from mmcasvit.apis.model import get_model
from mmcasvit.apis.options import has_accelerator
from mmcasvit.benchmark.step_memory import measure_step
from mmcasvit.datasets.config import leaf_datasets
from mmcasvit.models.memory_format import to_channels_last
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.timing import cores

# Room for scratch space of libraries and for images that are larger than those of the measurement.
_SLACK = 1.2
# Images and most seconds of the steps that are timed. Two steps are made in any case, since the first one prepares.
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
            f'{batch} images a step need about {needed / 2**30:.1f} GiB (measured: {self.per_image / 2**20:.0f} MiB an '
            f'image and {self.fixed / 2**20:.0f} MiB besides){available}.'
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


def measure(cfg: Config, machine: Machine) -> None:
    """Take training steps with a few images of the data, and note their time and memory.

    Args:
        cfg: Complete config.
        machine: Where the result is noted.

    Raises:
        UsageError: If no image can be read, or the loss is NaN or infinite.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # of pycocotools and mmseg
        warnings.simplefilter('ignore')
        memory = measure_step(cfg)
        machine.fixed, machine.per_image = memory.fixed, memory.per_image
        machine.seconds_per_image = _time_step(cfg)


def _time_step(cfg: Config) -> float:
    """Return the seconds that a training step takes for each image."""
    init_default_scope(cfg.default_scope)
    leaf = next(leaf_datasets(cfg.train_dataloader.dataset)).copy()
    leaf['indices'] = 4 * _IMAGES
    dataset = DATASETS.build(leaf)
    samples = [sample for number in range(min(len(dataset), _IMAGES)) if (sample := dataset[number])]
    samples = (samples * _IMAGES)[:_IMAGES]
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model = revert_sync_batchnorm(get_model(cfg)).to(device).train()
    if any(hook['type'] == 'mmcasvit.ChannelsLastHook' for hook in cfg.custom_hooks):
        to_channels_last(model)
    times: list[float] = []
    while len(times) < 2 or (len(times) < 6 and sum(times) < _SECONDS):
        start = time.perf_counter()
        data = model.data_preprocessor(pseudo_collate(copy.deepcopy(samples)), True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        loss.backward()
        if not math.isfinite(loss.item()):
            raise UsageError(
                f'the loss of the first step is {loss.item()}. Look at the labels: tools/check_dataset.py.'
            )
        times.append(time.perf_counter() - start)
    return min(times) / _IMAGES  # another program may have slowed the others
