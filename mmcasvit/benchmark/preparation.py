"""Variants made ready to run, and the count of what they cost."""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from mmcasvit.utils.timing import DTYPES, use_threads

from .counts import Cost, count, nbytes, on_meta
from .forms import Setting, parse_form
from .models import Backbone, WholeModel, build_subject
from .variants import Variant, check

# Number of images whose outputs are compared with those of the eager model, which computes them on the CPU.
_COMPARED = 2


@dataclass(frozen=True)
class Prepared:
    """Variant that is ready to run.

    Attributes:
        run: Function that runs one pass. In inference it returns the outputs.
        weights: Bytes of parameters and buffers, or 0 for exported forms, which keep their own copies.
        library, outputs, published: Descriptions of the model, see :class:`.models.Backbone`.
        deviation: Relative difference from the outputs of the eager model in fp32, see :func:`deviation`. None for
            training, for whole models that were not exported, and for forms without outputs.
    """

    run: Callable[[], object]
    weights: int
    library: str
    outputs: str
    published: str | None
    deviation: float | None


def deviation(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return the largest norm of a difference between two maps, relative to the norm of the wanted map."""
    return max(float((a.float() - b).norm() / b.norm()) for a, b in zip(found, wanted))


def prepare(
    variant: Variant, before_runtime: Callable[[], None] = lambda: None, folder: Path | None = None
) -> Prepared:
    """Build a variant, bring it into its form, and compare its outputs with those of the eager model.

    In inference, the weights and maps of a backbone have the wanted type. Training runs under autocast, as in mmengine,
    and so do whole models, whose box operators need fp32.

    Args:
        variant: Variant to build.
        before_runtime: See :class:`.forms.Setting`.
        folder: Folder that keeps exported files, so that variants which differ only in threads share them. By default,
            nothing is kept.

    Raises:
        UsageError, NotApplicable: See :func:`.variants.check`.
    """
    check(variant)
    subject = build_subject(variant.model, variant.size)
    train, whole, device = variant.mode == 'train', isinstance(subject, WholeModel), variant.device
    steps = parse_form(variant.form)
    exported = any(step.exported for step in steps)
    with use_threads(variant.threads), tempfile.TemporaryDirectory() as own:
        data: Any = subject.example(variant.batch, variant.size)
        wanted, module = None, subject.module
        if whole:
            module.to(device)
            data = module.data_preprocessor(data, training=train)
        if not train and (exported or not whole) and all(step.has_outputs for step in steps):
            with torch.no_grad():
                wanted = tree_leaves(subject.infer(data if whole else data[:_COMPARED]))
        if not whole:
            module, data = module.to(device), data.to(device)
        module.train(train)
        dtype = DTYPES[variant.precision]
        autocast = nullcontext()
        if dtype != torch.float32 and not exported:
            if train or whole:
                autocast = torch.autocast(device, dtype)
            else:
                subject.module, data = module.to(dtype), data.to(dtype)
        name = hashlib.sha256(str(replace(variant, threads=1)).encode()).hexdigest()
        file = Path(folder or own, name)
        setting = Setting(data, variant.precision, device, variant.threads, train, file, before_runtime)
        for step in steps:
            step.apply(subject, setting)
        if 'channels_last' in variant.form.split('+'):
            data = tree_map_only(
                Tensor, lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x, data
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
        difference = None
        if wanted is not None:
            difference = deviation([out[: len(wanted[0])].cpu() for out in run()], wanted)
    weights = 0 if exported else nbytes([*subject.module.parameters(), *subject.module.buffers()])
    return Prepared(run, weights, subject.library, subject.outputs, subject.published, difference)


def count_variant(variant: Variant) -> Cost:
    """Count what the eager form of a variant costs, to which all of its forms are compared.

    In training, the count covers the forward and the backward pass. The traffic is that of the variant's precision.
    """
    subject = build_subject(variant.model, variant.size)
    train = variant.mode == 'train'
    subject.module.train(train)
    data = subject.example(variant.batch, variant.size)

    def run(data):
        if train:
            subject.loss(data).backward()
        else:
            with torch.no_grad():
                subject.infer(data)

    if isinstance(subject, Backbone):
        cost = on_meta(subject.module, data, lambda module, x: run(x))
    else:
        subject.module.to(variant.device)  # the operators of a detector cannot be counted without computing them
        data = subject.module.data_preprocessor(data, training=train)
        cost = count(subject.module, lambda: run(data))
    return replace(cost, traffic=cost.traffic * DTYPES[variant.precision].itemsize // torch.float32.itemsize)
