"""Post-training quantisation of OpenVINO's files to int8 by NNCF."""
import importlib.util
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from ..tooling import UsageError
from .formats import export
from .signature import KEY, Signature


def check_quantiser() -> None:
    """Looks for NNCF.

    Raises:
        UsageError: it is not installed.
    """
    if importlib.util.find_spec('nncf') is None:
        raise UsageError('int8 needs nncf: pip install "mmcasvit[quantization]"')


def quantise(source: Path, path: str | Path, images: Sequence[Tensor]) -> None:
    """Writes the int8 form of an OpenVINO file that computes in float32.

    Args:
        source: the ``.xml`` file.
        path: that to be written.
        images: from which the ranges of activations are taken, each as the graph takes it.

    Raises:
        UsageError: NNCF is missing.
    """
    check_quantiser()
    import nncf
    import openvino
    logging.getLogger('nncf').setLevel(logging.ERROR)
    network = openvino.Core().read_model(source)
    signature = Signature.from_json(str(network.get_rt_info([KEY]).value), source)
    # Mixed: of GELU's and the gates' products, which are no symmetric numbers, half of the range would be lost.
    quantised = nncf.quantize(network, nncf.Dataset([image.numpy() for image in images]),
                              preset=nncf.QuantizationPreset.MIXED, subset_size=len(images))
    quantised.set_rt_info(replace(signature, precision='int8').to_json(), [KEY])
    openvino.save_model(quantised, path, compress_to_fp16=False)


def export_quantised(model: nn.Module, signature: Signature, path: str | Path, images: Sequence[Tensor],
                     fold: bool = True) -> None:
    """Writes a model into OpenVINO's files, with weights and activations of its layers in int8.

    NNCF leaves the decoding of boxes and the non-maximum suppression of a detector in float32 by itself.

    Args:
        model: of mmdet or mmseg, or a bare backbone.
        signature: what to make of it, in the format ``'openvino'`` and the precision ``'int8'``.
        path: the ``.xml`` file.
        images: from which the ranges of activations are taken, each as the graph takes a batch of one.
        fold: export the deploy form.

    Raises:
        UsageError: NNCF is missing, or this model cannot be exported in this way.
    """
    check_quantiser()  # before the export, which takes its time
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder, 'full.xml')
        export(model, replace(signature, precision='fp32'), full, fold)
        quantise(full, path, images)
