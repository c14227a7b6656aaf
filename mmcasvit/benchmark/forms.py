"""Forms in which a model can run: one or more steps joined by ``+``, applied from left to right."""

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmcasvit.export.blocks import separate_blocks
from mmcasvit.export.formats import FORMATS as FILES
from mmcasvit.export.formats import written_whole
from mmcasvit.export.graphs import RawGraph, replace_adaptive_pooling
from mmcasvit.export.quantization import check_quantizer
from mmcasvit.export.signature import Signature
from mmcasvit.models.deploy import deploy
from mmcasvit.models.memory_format import to_channels_last
from mmcasvit.utils.errors import NotApplicable, UsageError

from .models import Backbone, WholeModel


@dataclass(frozen=True)
class Setting:
    """Circumstances in which a form will run.

    Attributes:
        example: Input of the model.
        precision: Key of :data:`mmcasvit.utils.timing.DTYPES`.
        device: ``'cpu'`` or ``'cuda'``.
        threads: Number of threads.
        train: Whether the model is trained.
        file: Where an exported form writes its file, without the suffix, unless that file is there already.
        before_runtime: Function called after a model was exported, before its runtime loads the file.
    """

    example: Any
    precision: str
    device: str
    threads: int
    train: bool
    file: Path
    before_runtime: Callable[[], None] = lambda: None


Subject = Backbone | WholeModel


def _deploy(subject: Subject, setting: Setting) -> None:
    if not subject.deployable:
        raise NotApplicable('only a CAS-ViT has a deploy form')
    if setting.train:
        raise NotApplicable('the deploy form cannot be trained')
    subject.module = deploy(subject.module)


def _fused(subject: Subject, setting: Setting) -> None:
    """Bring a model into the form that its library makes for inference, if it has one."""
    if setting.train:
        raise NotApplicable('the fused form cannot be trained')
    if subject.deployable:
        _deploy(subject, setting)
    elif subject.library == 'timm':
        from timm.models import reparameterize_model

        subject.module = reparameterize_model(subject.module, inplace=True)


def _channels_last(subject: Subject, setting: Setting) -> None:
    to_channels_last(subject.module)


def _compiled(subject: Subject, setting: Setting) -> None:
    # All variants of a class share one compiled function, whose default limit is a handful of recompilations.
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 512)
    torch._dynamo.config.accumulated_recompile_limit = max(torch._dynamo.config.accumulated_recompile_limit, 2048)
    if isinstance(subject, Backbone):
        subject.module = torch.compile(subject.module, dynamic=False)
    else:
        for part in ('backbone', 'neck'):
            if getattr(subject.module, part, None) is not None:
                setattr(subject.module, part, torch.compile(getattr(subject.module, part), dynamic=False))


class _Products(nn.Module):
    """Matrix products of the same size as the dense convolutions of a model, one after the other.

    All read from one place and write to another, so that the caches serve them as well as those of a model at least.
    """

    def __init__(self, module: nn.Module, example: Tensor):
        super().__init__()
        sizes: list[tuple[int, int, int]] = []

        def note(conv: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
            if conv.groups == 1:
                inner = conv.weight[0].numel()
                sizes.append((output.numel() // output.shape[1], inner, len(conv.weight)))

        hooks = [part.register_forward_hook(note) for part in module.modules() if isinstance(part, nn.Conv2d)]
        with torch.no_grad():
            module(example)
        for hook in hooks:
            hook.remove()
        left = example.new_ones(max(rows * inner for rows, inner, _ in sizes))
        result = example.new_empty(max(rows * outputs for rows, _, outputs in sizes))
        self.products = [
            (left[: m * k].view(m, k), example.new_ones(k, n), result[: m * n].view(m, n)) for m, k, n in sizes
        ]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        for left, right, result in self.products:
            torch.mm(left, right, out=result)
        return ()


def _products(subject: Subject, setting: Setting) -> None:
    if setting.train or isinstance(subject, WholeModel):
        raise NotApplicable('products are measured only for the inference of backbones')
    subject.module = _Products(subject.module, setting.example)


class _Runtime(nn.Module):
    """Module that runs an exported graph."""

    def __init__(self, run: Callable):
        super().__init__()
        self.run = run

    def forward(self, inputs: Tensor, **about_whole_models) -> tuple[Tensor, ...]:
        return tuple(self.run(inputs))


def _exported(name: str, format_name: str, precisions: tuple[str, ...]) -> Callable[[Subject, Setting], None]:
    """Return a step that exports a backbone, or a whole model without post-processing, and runs it from the file.

    Args:
        name: Name of the runtime.
        format_name: Key of :data:`mmcasvit.export.formats.FORMATS`.
        precisions: Precisions in which the runtime has convolutions.
    """

    def apply(subject: Subject, setting: Setting) -> None:
        if setting.train or setting.device != 'cpu':
            raise NotApplicable(f'{name} is measured only for inference on the CPU')
        if setting.precision not in precisions:
            raise NotApplicable(f'{name} has no {setting.precision} convolutions here')
        known, example, int8 = FILES[format_name], setting.example, setting.precision == 'int8'
        separate_blocks(subject.module)
        graph = subject.module
        if isinstance(subject, WholeModel):
            if hasattr(subject.module, 'roi_head'):
                raise NotApplicable(f'{name} runs no two-stage detectors here: their boxes are chosen in between')
            replace_adaptive_pooling(subject.module)
            graph, example = RawGraph(subject.module), example['inputs']
        if int8:
            check_quantizer(format_name)
        precision = 'fp32' if int8 else setting.precision
        signature = Signature(format_name, 'backbone', tuple(example.shape[2:]), precision=precision)
        path = setting.file.with_name(setting.file.name + known.suffix)
        if not path.exists():
            with written_whole(path) as unfinished, tempfile.TemporaryDirectory() as folder:
                full = Path(folder, unfinished.name) if int8 else unfinished
                known.write(graph, example, signature, full)
                if int8:
                    assert known.quantize is not None, f'{format_name} has no quantizer'
                    # The calibration data does not change the speed, so noise will do.
                    known.quantize(full, unfinished, [example])
        setting.before_runtime()
        subject.module = _Runtime(known.load(path, setting.threads)[1])

    return apply


@dataclass(frozen=True)
class Form:
    """One step of a form.

    Attributes:
        apply: Function that changes the module of a subject.
        packages: Names of the packages it needs.
        extra: Extra of this package that installs them.
        exported: Whether it runs outside of PyTorch. Then no step can follow it, and the runtime sets the precision.
        has_outputs: Whether it returns the outputs of the model.
    """

    apply: Callable[[Subject, Setting], None]
    packages: tuple[str, ...] = ()
    extra: str = 'benchmark'
    exported: bool = False
    has_outputs: bool = True


FORMS: dict[str, Form] = dict(
    eager=Form(lambda subject, setting: None),
    deploy=Form(_deploy),
    fused=Form(_fused),
    channels_last=Form(_channels_last),
    compiled=Form(_compiled),
    products=Form(_products, has_outputs=False),
    onnxruntime=Form(_exported('onnxruntime', 'onnx', ('fp32',)), FILES['onnx'].packages, exported=True),
    openvino=Form(
        _exported('openvino', 'openvino', ('fp32', 'bf16', 'int8')), FILES['openvino'].packages, exported=True
    ),
    litert=Form(
        _exported('litert', 'litert', ('fp32', 'int8')), FILES['litert'].packages, FILES['litert'].extra, exported=True
    ),
    ncnn=Form(_exported('ncnn', 'ncnn', ('fp32',)), FILES['ncnn'].packages, FILES['ncnn'].extra, exported=True),
)


def parse_form(form: str) -> list[Form]:
    """Return the steps of a form.

    Raises:
        UsageError: If a step is unknown, cannot stand where it does, or needs packages that are not installed.
    """
    names = form.split('+')
    for place, name in enumerate(names):
        if name not in FORMS:
            raise UsageError(f'unknown form {name!r}. Valid: {", ".join(FORMS)}, or several joined by +.')
        if (FORMS[name].exported or not FORMS[name].has_outputs) and place < len(names) - 1:
            raise UsageError(f'form {form}: nothing can follow {name}.')
        if FORMS[name].exported and 'compiled' in names:
            raise UsageError(f'form {form}: {name} compiles by itself, and cannot run what PyTorch has compiled.')
        missing = [package for package in FORMS[name].packages if importlib.util.find_spec(package) is None]
        if missing:
            raise UsageError(f'form {name} needs {", ".join(missing)}: pip install "mmcasvit[{FORMS[name].extra}]"')
    return [FORMS[name] for name in names]
