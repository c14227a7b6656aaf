"""The forms a model can be run in. A form is one or more of these joined by ``+``, applied from left to right."""

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from mmcasvit.export.formats import FORMATS as FILES
from mmcasvit.export.quantization import check_quantiser, quantise
from mmcasvit.export.signature import Signature
from mmcasvit.models.memory_format import to_channels_last
from mmcasvit.utils.errors import NotApplicable, UsageError

from .models import Backbone, WholeModel


@dataclass(frozen=True)
class Setting:
    """What a form has to know of how it will be run."""

    example: Tensor | dict
    precision: str
    device: str
    threads: int
    train: bool
    before_runtime: Callable[[], None] = lambda: None  # called when a file is written and about to be loaded


Subject = Backbone | WholeModel


def _eager(subject: Subject, setting: Setting) -> None:
    """The model as it is built."""


def _deploy(subject: Subject, setting: Setting) -> None:
    from mmcasvit.models.deploy import deploy

    if not subject.is_casvit:
        raise NotApplicable('only a CAS-ViT has a deploy form')
    if setting.train:
        raise NotApplicable('the deploy form cannot be trained')
    subject.module = deploy(subject.module)


def _channels_last(subject: Subject, setting: Setting) -> None:
    # The hook knows which operators must not see such maps; it asks nothing of its runner but the model.
    to_channels_last(subject.module)


def _compiled(subject: Subject, setting: Setting) -> None:
    # Variants of one class share the code that is compiled, and the default limit is a handful of them.
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 512)
    torch._dynamo.config.accumulated_recompile_limit = max(torch._dynamo.config.accumulated_recompile_limit, 2048)
    if isinstance(subject, Backbone):
        subject.module = torch.compile(subject.module, dynamic=False)
    else:
        for part in ('backbone', 'neck'):
            if getattr(subject.module, part, None) is not None:
                setattr(subject.module, part, torch.compile(getattr(subject.module, part), dynamic=False))


class _Runtime(nn.Module):
    """An exported graph behind the call of a module."""

    def __init__(self, run: Callable):
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.run(x))


def _exported(name: str, format_name: str, precisions: tuple[str, ...]) -> Callable[[Subject, Setting], None]:
    """The form of a subject that was written in a format of :mod:`mmcasvit.exporting` and is run from the file."""

    def apply(subject: Subject, setting: Setting) -> None:
        if isinstance(subject, WholeModel):
            raise NotApplicable(f'{name} runs backbones alone here')
        if setting.train or setting.device != 'cpu':
            raise NotApplicable(f'{name} is measured for inference on the CPU')
        if setting.precision not in precisions:
            raise NotApplicable(f'{name} has no {setting.precision} convolutions here')
        if setting.precision == 'int8':
            check_quantiser()
        known, example = FILES[format_name], setting.example
        int8 = setting.precision == 'int8'
        signature = Signature(
            format_name, 'backbone', tuple(example.shape[2:]), precision='fp32' if int8 else setting.precision
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, 'model').with_suffix(known.suffix)
            known.write(subject.module, example, signature, path)
            if int8:
                full, path = path, path.with_stem('quantised')
                quantise(full, path, [example])  # noise does: what it is calibrated on does not change its speed
            setting.before_runtime()
            subject.module = _Runtime(known.run(path, setting.threads)[1])

    return apply


@dataclass(frozen=True)
class Form:
    """One step of a form.

    Attributes:
        apply: changes the module of a subject.
        packages: what must be installed for it.
        exported: nothing can follow it, and the weights are in the precision that the runtime was told.
    """

    apply: Callable[[Subject, Setting], None]
    packages: tuple[str, ...] = ()
    exported: bool = False


FORMS: dict[str, Form] = dict(
    eager=Form(_eager),
    deploy=Form(_deploy),
    channels_last=Form(_channels_last),
    compiled=Form(_compiled),
    onnxruntime=Form(_exported('onnxruntime', 'onnx', ('fp32',)), FILES['onnx'].packages, exported=True),
    openvino=Form(
        _exported('openvino', 'openvino', ('fp32', 'bf16', 'int8')), FILES['openvino'].packages, exported=True
    ),
)


def parse_form(form: str) -> list[Form]:
    """The steps of a form.

    Raises:
        UsageError: an unknown step, one at a place where it cannot stand, or one whose packages are not installed.
    """
    names = form.split('+')
    for place, name in enumerate(names):
        if name not in FORMS:
            raise UsageError(f'unknown form {name!r}. Valid: {", ".join(FORMS)}, or several joined by +.')
        if FORMS[name].exported and place < len(names) - 1:
            raise UsageError(f'form {form}: nothing can follow {name}.')
        if FORMS[name].exported and 'compiled' in names:
            raise UsageError(f'form {form}: {name} compiles by itself, and cannot take what PyTorch has compiled.')
        missing = [package for package in FORMS[name].packages if importlib.util.find_spec(package) is None]
        if missing:
            raise UsageError(f'form {name} needs {", ".join(missing)}: pip install "mmcasvit[benchmark]"')
    return [FORMS[name] for name in names]
