"""PyTorch's own formats, which run in Python: TorchScript (``.pt``) and ``torch.export`` programs (``.pt2``)."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from mmcasvit.utils.timing import use_threads

from ..signature import KEY, Run, Signature
from .program import quiet, to_program


def _run_with(module: nn.Module, threads: int) -> Run:
    def run(x):
        with use_threads(threads), torch.no_grad():
            return module(x)

    return run


def _write(path: Path, save: Callable[[io.BytesIO], None]) -> None:
    """Write a file by way of memory: PyTorch's own writer ends the process with SIGABRT if the disk is full."""
    content = io.BytesIO()
    save(content)
    path.write_bytes(content.getbuffer())


def write_torchscript(graph: nn.Module, example: Tensor, signature: Signature, path: Path) -> None:
    with quiet():
        traced = torch.jit.trace(graph, example, check_trace=False)
        _write(path, lambda file: torch.jit.save(torch.jit.freeze(traced), file, {KEY: signature.to_json()}))


def load_torchscript(path: Path, threads: int) -> tuple[Signature, Run]:
    extra = {KEY: ''}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        module = torch.jit.load(path, _extra_files=extra)
    text = extra[KEY]
    return Signature.from_json(text.decode() if isinstance(text, bytes) else text, path), _run_with(module, threads)


def write_pt2(graph: nn.Module, example: Tensor, signature: Signature, path: Path) -> None:
    with quiet():
        program = to_program(graph, example, signature)
        _write(path, lambda file: torch.export.save(program, file, extra_files={KEY: signature.to_json()}))


def load_pt2(path: Path, threads: int) -> tuple[Signature, Run]:
    extra = {KEY: ''}
    module = torch.export.load(path, extra_files=extra).module()
    return Signature.from_json(extra[KEY], path), _run_with(module, threads)
