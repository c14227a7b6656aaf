"""Post-training quantization to int8, calibrated on images."""

import importlib.util
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from mmcasvit.utils.errors import UsageError

from .formats import FORMATS, check_target, export, written_whole
from .signature import Signature


def check_quantizer(name: str) -> None:
    """Check that the quantizer of a format is installed.

    Raises:
        UsageError: If it is not.
    """
    known = FORMATS[name]
    if known.quantizer is not None and importlib.util.find_spec(known.quantizer) is None:
        raise UsageError(f'int8 needs {known.quantizer}: pip install "mmcasvit[{known.quantizer_extra}]"')


def export_quantized(
    model: nn.Module, signature: Signature, path: str | Path, images: Sequence[Tensor], fold: bool | None = None
) -> None:
    """Export a model with the weights and activations of its layers in int8.

    Args:
        model: Model of mmdet or mmseg, or a bare backbone.
        signature: What to export, with the precision ``'int8'`` and a format that has a quantizer.
        path: File to write.
        images: Inputs of the graph, as batches of one, to calibrate the ranges of activations on.
        fold: As in :func:`mmcasvit.export.formats.export`.

    Raises:
        UsageError: If the quantizer is missing, or the model cannot be exported in this way.
    """
    check_quantizer(signature.format)  # before the export, which takes a while
    check_target(signature.format, Path(path))
    known = FORMATS[signature.format]
    assert known.quantize is not None, f'{signature.format} has no quantizer'
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder, f'full{known.suffix}')
        export(model, replace(signature, precision='fp32'), full, fold)
        with written_whole(Path(path)) as unfinished:
            known.quantize(full, unfinished, images)
