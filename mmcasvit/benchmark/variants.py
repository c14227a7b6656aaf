"""One thing to measure, a model in a form with its settings: how it is built, counted and weighed."""

import ctypes
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, dataclass, replace

import torch
from torch.utils._pytree import tree_map_only

from mmcasvit.utils.errors import NotApplicable
from mmcasvit.utils.timing import DTYPES, synchronize, use_threads

from .counts import Cost, count, on_meta, tensors_of
from .forms import Setting, parse_form
from .models import PEERS, Backbone, WholeModel, build_subject, check_library, parse_name


@dataclass(frozen=True)
class Variant:
    """A row of the table to be. Sizes are ``(height, width)`` in pixels."""

    model: str
    mode: str = 'infer'
    form: str = 'eager'
    precision: str = 'fp32'
    device: str = 'cpu'
    threads: int = 1
    batch: int = 1
    size: tuple[int, int] = (512, 512)

    def __str__(self) -> str:
        height, width = self.size
        return (
            f'{self.model} {self.mode} {self.form} {self.precision} {self.device} threads={self.threads} '
            f'batch={self.batch} {height}x{width}'
        )


@dataclass(frozen=True)
class Prepared:
    """A variant ready to run.

    Attributes:
        run: one pass; returns its outputs (inference) or nothing (training).
        weights: bytes of parameters and buffers; 0 for exported forms, which keep their own copies.
        library, outputs: of the model, in words.
        deviation: how far the outputs are from those of the eager model in fp32, relative, by the norm of the
            difference; None for training and whole models.
    """

    run: Callable[[], object]
    weights: int
    library: str
    outputs: str
    deviation: float | None


def _deviation(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    return max(float((a.float() - b).norm() / b.norm()) for a, b in zip(found, wanted))


def check(variant: Variant) -> None:
    """Looks for what keeps a variant from being measured, without building it.

    Raises:
        UsageError: a wrong name, or a form whose packages are missing.
        NotApplicable: the combination makes no sense, or the library of the model is missing.
    """
    base, _ = parse_name(variant.model)
    steps = parse_form(variant.form)
    if base in PEERS:
        check_library(base)
    if variant.precision == 'fp16' and variant.device == 'cpu':
        raise NotApplicable('fp16 is for GPUs: no processor of today computes convolutions in it')
    if variant.precision == 'int8' and not any(step.exported for step in steps):
        raise NotApplicable('int8 is for exported forms')


def prepare(variant: Variant, before_runtime: Callable[[], None] = lambda: None) -> Prepared:
    """Builds a variant, brings it into its form, and compares its outputs with those of the eager model.

    A backbone predicts with weights and maps in the wanted type; training, and whole models whose box operators
    need fp32, run under PyTorch's autocast, as mmengine does it.

    Args:
        variant: what to build.
        before_runtime: called when an exported form is written and its runtime is about to load it.

    Raises:
        UsageError, NotApplicable: as :func:`check`.
    """
    check(variant)
    subject = build_subject(variant.model, variant.size)
    train, whole, device = variant.mode == 'train', isinstance(subject, WholeModel), variant.device
    steps = parse_form(variant.form)
    exported = any(step.exported for step in steps)
    with use_threads(variant.threads):
        data = subject.example(variant.batch, variant.size)
        wanted = None if train or whole else _no_grad(subject.infer, data)
        module = subject.module.to(device)
        if whole:
            data = module.data_preprocessor(data, training=train)
        else:
            data = data.to(device)
        module.train(train)
        dtype = DTYPES[variant.precision]
        autocast = nullcontext()
        if dtype != torch.float32 and not exported:
            if train or whole:
                autocast = torch.autocast(device, dtype)
            else:
                subject.module, data = module.to(dtype), data.to(dtype)
        setting = Setting(data, variant.precision, device, variant.threads, train, before_runtime)
        for step in steps:
            step.apply(subject, setting)
        if 'channels_last' in variant.form.split('+'):
            data = tree_map_only(
                torch.Tensor, lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x, data
            )

        def infer():
            with torch.inference_mode(), autocast:
                return subject.infer(data)

        def train_step():
            with autocast:
                loss = subject.loss(data)
            loss.backward()
            for parameter in subject.module.parameters():
                parameter.grad = None

        run = train_step if train else infer
        deviation = None if wanted is None else _deviation([out.cpu() for out in run()], wanted)
    weights = 0 if exported else sum(t.numel() * t.element_size() for t in tensors_of(subject.module))
    return Prepared(run, weights, subject.library, subject.outputs, deviation)


def _no_grad(run: Callable, data):
    with torch.no_grad():
        return run(data)


def count_variant(variant: Variant) -> Cost:
    """What the model in its plain form costs: every form of it is held against the same count.

    A training pass is counted forward and backward. The traffic is that of the variant's type.
    """
    subject = build_subject(variant.model, variant.size)
    train = variant.mode == 'train'
    subject.module.train(train)
    data = subject.example(variant.batch, variant.size)
    element = torch.empty((), dtype=DTYPES[variant.precision]).element_size()

    def run(data):
        if train:
            subject.loss(data).backward()
        else:
            with torch.no_grad():
                subject.infer(data)

    if isinstance(subject, Backbone):
        cost = on_meta(subject.module, data, lambda module, x: run(x))
    else:
        data = subject.module.data_preprocessor(data, training=train)
        cost = count(subject.module, lambda: run(data))
    return replace(cost, traffic=cost.traffic * element // 4)


@dataclass(frozen=True)
class Memory:
    """Bytes of one pass at its highest point.

    Attributes:
        weights: parameters and buffers; None for exported forms, where it cannot be told apart.
        above: what the pass holds beside them: maps, what is kept for the backward pass, gradients, scratch space.
    """

    weights: int | None
    above: int

    @property
    def total(self) -> int:
        return (self.weights or 0) + self.above


def peak_memory(variant: Variant, prepared: Prepared | None = None) -> Memory | None:
    """Measures the memory of one pass, after passes that warm up.

    On a GPU: the highest sum of PyTorch's allocations during the pass less those before it. On a CPU: a fresh process
    builds the variant, and the highest resident set during the pass less that before it is read from the kernel;
    for exported forms less that before the runtime loaded the graph, since it keeps its memory between passes.

    Args:
        variant: what to measure.
        prepared: the variant as built in this process, used on a GPU.

    Returns:
        None where it cannot be measured: not on Linux, or the process was killed.
    """
    if variant.device == 'cuda':
        prepared = prepared or prepare(variant)
        prepared.run()
        synchronize('cuda')
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        prepared.run()
        synchronize('cuda')
        return Memory(prepared.weights, torch.cuda.max_memory_allocated() - before)
    if not os.access('/proc/self/clear_refs', os.W_OK):
        return None
    # Blocks of this size or more go back to the system as soon as they are freed, so that the resident set follows
    # what is in use. By default glibc raises the threshold as it goes, and keeps what it got.
    environment = dict(MALLOC_MMAP_THRESHOLD_='65536', MALLOC_TRIM_THRESHOLD_='65536')
    before = {key: os.environ.get(key) for key in environment}
    os.environ.update(environment)
    try:
        context = multiprocessing.get_context('forkserver')
        context.set_forkserver_preload([__name__])
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(_quiet_resident_peak, asdict(variant)).result()
    except BrokenProcessPool:
        return None
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})


def _resident(field: str) -> int:
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f'{field}:'))


def _settle() -> int:
    ctypes.CDLL(None).malloc_trim(0)
    return _resident('VmRSS')


def _quiet_resident_peak(fields: dict) -> Memory:
    with redirect_stdout(sys.stderr):
        return _resident_peak(fields)


def _resident_peak(fields: dict) -> Memory:
    variant = Variant(**fields)
    exported = any(step.exported for step in parse_form(variant.form))
    before_runtime = []
    prepared = prepare(variant, lambda: before_runtime.append(_settle()))
    with use_threads(variant.threads):
        for _ in range(2):
            prepared.run()
        before = before_runtime[0] if exported else _settle()
        with open('/proc/self/clear_refs', 'w') as file:
            file.write('5')  # resets the peak of the resident set, see proc(5)
        prepared.run()
    return Memory(None if exported else prepared.weights, max(0, _resident('VmHWM') - before))
