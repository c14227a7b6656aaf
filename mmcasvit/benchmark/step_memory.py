"""Memory and time that a training step of a config needs, measured with small batches before a run."""

import copy
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DATASETS
from torch.profiler import ProfilerActivity, profile

from mmcasvit.apis.model import get_model
from mmcasvit.datasets.sources import read_data_as_data
from mmcasvit.models.memory_format import to_channels_last
from mmcasvit.plugin.random_data import random_batch
from mmcasvit.plugin.trial import simulated_run
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.tables import count_of

from .counts import nbytes

_TRIED = 8  # images of the data, of which the largest are used


@dataclass(frozen=True)
class StepMemory:
    """Peak memory of a training step as a function of the batch.

    Attributes:
        fixed: Bytes that do not depend on the batch: weights, gradients and the state of the optimizer.
        per_image: Bytes for each image: mostly what the forward pass saves for the backward pass.
        size: Height and width of the largest image.
        batches: Numbers of images of the two steps that were measured.
        device: Where they ran.
    """

    fixed: int
    per_image: int
    size: tuple[int, int]
    batches: tuple[int, int]
    device: str

    def at(self, batch_size: int) -> int:
        """Return the bytes of a step with a number of images."""
        return self.fixed + batch_size * self.per_image


class TrainingStep:
    """Training step of a config with a few images, to be measured before a run.

    A step is that of a run: preprocessing, forward and backward pass, and the optimizer of the config. The device is
    the GPU if there is one. Without one, a config for mixed precision is measured in fp32.

    Args:
        cfg: A config of mmdet or mmseg. Its weights are neither read nor needed.
        size: Height and width of random images. By default, images come from the training data of the config, through
            its pipeline.

    Raises:
        UsageError: If no training image can be read.
    """

    def __init__(self, cfg: Config, size: tuple[int, int] | None = None):
        cfg = copy.deepcopy(cfg)
        self.device = 'cuda' if torch.cuda.is_available() else 'cpu'
        if size is not None and cfg.default_scope == 'mmseg':
            (cfg.model.get('data_preprocessor') or {}).update(size=size)
        self.model = revert_sync_batchnorm(get_model(cfg)).to(self.device).train()
        if any(hook['type'] == 'mmcasvit.ChannelsLastHook' for hook in cfg.get('custom_hooks') or ()):
            to_channels_last(self.model)
        if self.device == 'cpu':
            cfg.optim_wrapper.type = 'OptimWrapper'
            for name in ('dtype', 'loss_scale'):
                cfg.optim_wrapper.pop(name, None)
        self.optimizer = build_optim_wrapper(self.model, cfg.optim_wrapper)
        self.samples = _real_samples(cfg) if size is None else _random_samples(cfg, size)

    def memory(self) -> StepMemory:
        """Measure the memory of steps with one and two images, which other batches follow linearly.

        What counts is what PyTorch allocates for tensors, at the peak, with the largest of the images. Scratch space of
        libraries, such as cuDNN's or oneDNN's, and the processes that load images come on top.
        """
        with simulated_run():
            try:
                return _measure(self.model, self.optimizer, self.samples, (1, 2), self.device)
            except ValueError as error:
                if 'Expected more than 1 value per channel' not in str(error):
                    raise
                return _measure(self.model, self.optimizer, self.samples, (2, 3), self.device)  # after global pooling

    def seconds_per_image(self, images: int, limit: float) -> float:
        """Return the seconds for each image of the quickest step, since other programs may slow some of them.

        Args:
            images: Number of images of a step.
            limit: Seconds after which no further step is taken. Two are taken in any case, since the first one
                prepares, and six at most.

        Raises:
            UsageError: If the loss of the first step is NaN or infinite.
        """
        samples = [self.samples[number % len(self.samples)] for number in range(images)]
        times: list[float] = []
        with simulated_run():
            while len(times) < 2 or (len(times) < 6 and sum(times) < limit):
                batch = copy.deepcopy(pseudo_collate(samples))
                start = time.perf_counter()
                loss = float(self.model.train_step(batch, self.optimizer)['loss'])  # which waits for a GPU
                times.append(time.perf_counter() - start)
                if len(times) == 1 and not math.isfinite(loss):
                    raise UsageError(
                        f'the loss of the first step is {loss}. Look at the labels: tools/check_dataset.py.'
                    )
        return min(times) / images


def _real_samples(cfg: Config) -> list[dict]:
    read_data_as_data()
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    rng = torch.Generator().manual_seed(0)
    order = torch.randperm(len(dataset), generator=rng)[:_TRIED].tolist()
    samples = [sample for index in order if (sample := dataset[index]) is not None]
    if not samples:
        raise UsageError('no training image could be read. tools/check_dataset.py says what is wrong with the data.')
    return samples


def _random_samples(cfg: Config, size: tuple[int, int]) -> list[dict]:
    batch = random_batch(cfg, math.ceil(math.sqrt(size[0] * size[1])), images=1)
    return [{key: values[0] for key, values in batch.items()}]


def _measure(
    model: BaseModel, optimizer: OptimWrapper, samples: Sequence[dict], batches: tuple[int, int], device: str
) -> StepMemory:
    samples = sorted(samples, key=lambda sample: -sample['inputs'].numel())
    few, more = (
        _peak(model, optimizer, pseudo_collate([samples[i % len(samples)] for i in range(batch)]), device)
        for batch in batches
    )
    # Objects differ from image to image, so the second may need more than the first and all that is fixed.
    per_image = min(max(0, more - few), more // batches[1])
    return StepMemory(
        max(0, few - batches[0] * per_image), per_image, tuple(samples[0]['inputs'].shape[-2:]), batches, device
    )


def _peak(model: BaseModel, optimizer: OptimWrapper, batch: dict, device: str) -> int:
    """Return the bytes at the peak of a step, after one that creates the state of the optimizer."""
    if device == 'cuda' or not optimizer.optimizer.state:
        model.train_step(copy.deepcopy(batch), optimizer)
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        model.train_step(copy.deepcopy(batch), optimizer)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    with _native_messages_hidden(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model.train_step(batch, optimizer)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == '[memory]']
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    state = [list(state.values()) for state in optimizer.optimizer.state.values()]
    return nbytes([list(model.parameters()), list(model.buffers()), state]) + peak


@contextmanager
def _native_messages_hidden() -> Iterator[None]:
    """Hide what PyTorch's profiler writes to stderr from C++, where no filter of Python sees it."""
    kept = os.dup(2)
    try:
        with open(os.devnull, 'w') as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def memory_rows(memory: StepMemory, batches: Sequence[int]) -> list[dict[str, float]]:
    """Return a table of the memory of batches."""
    return [{'images a step': batch, 'memory, GiB': memory.at(batch) / 2**30} for batch in batches]


def memory_in_words(memory: StepMemory) -> str:
    """Describe what was measured."""
    height, width = memory.size
    return (
        f'{memory.fixed / 2**20:.0f} MiB and {memory.per_image / 2**20:.0f} MiB for each image of {height}x{width}, '
        f'from steps with {memory.batches[0]} and {count_of(memory.batches[1], "image")} on {memory.device}'
    )
