"""Helpers shared by the formats: silencing of exporters, file sizes, and the ``torch.export`` program of a graph."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.text import first_line

from ..signature import Signature

_NOISY = ('torch.onnx', 'onnxscript', 'onnx_ir', 'coremltools', 'torch.export', 'torch.fx')


@contextmanager
def quiet() -> Iterator[None]:
    """Export without gradients and without warnings, such as those about a missing torchvision or deprecations."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


class SplitAddcmul(TorchFunctionMode):
    """Context in which ``addcmul`` is computed by two operators, for converters that do not support it.

    It is the only operator of the deploy form that coremltools does not support. pnnx leaves its factor of 1, which is
    an argument with a default, as a ``pnnx.Expression`` that ncnn has no layer for.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.addcmul and not kwargs:
            total, first, second = args
            return total + first * second
        return func(*args, **(kwargs or {}))


def size_of(path: Path) -> int:
    """Return the size in bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob('*') if file.is_file()]
    return sum(file.stat().st_size for file in files)


def to_program(graph: nn.Module, example: Tensor, signature: Signature) -> torch.export.ExportedProgram:
    """Trace a graph with ``torch.export``.

    Raises:
        UsageError: If the model does not support the dynamic batch or size of the signature.
    """
    free, height = torch.export.Dim.DYNAMIC, 2 if signature.pixels is None else 1
    shape = {}
    if signature.dynamic_batch:
        shape[0] = free
    if signature.free_size:
        shape |= {height: free, height + 1: free}
    try:
        return torch.export.export(graph, (example,), dynamic_shapes=(shape,) if shape else None, strict=False)
    except UsageError:
        raise
    except Exception as error:
        if not shape:
            raise
        raise UsageError(f'this model cannot be exported with a dynamic batch or size: {first_line(error)}') from error
