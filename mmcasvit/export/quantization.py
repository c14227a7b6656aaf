"""Post-training quantisation of OpenVINO's files to int8 by NNCF."""

import importlib.util
import logging
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from mmcasvit.utils.errors import UsageError

from .formats import export
from .signature import KEY, Signature

# Products of queries, keys and values grow with the third power of a map that leaves the range of its norms.
LARGEST_ACTIVATION = 1e6


def check_quantiser() -> None:
    """Looks for NNCF.

    Raises:
        UsageError: it is not installed.
    """
    if importlib.util.find_spec('nncf') is None:
        raise UsageError('int8 needs nncf: pip install "mmcasvit[quantization]"')


def _behind_selection(network) -> list[str]:
    """Names of what a detector computes of the boxes it has selected, but for the layers of a second stage.

    Areas that choose a level of the pyramid, and features of a level on which no box of a calibration picture fell,
    must not be rounded to the range that they had then.
    """
    layers, behind, names = ('Convolution', 'ConvolutionBackpropData', 'MatMul', 'Relu'), set(), []
    for node in network.get_ordered_ops():
        sources = {node.input_value(i).get_node().get_friendly_name() for i in range(node.get_input_size())}
        if node.get_type_name() in ('NonMaxSuppression', 'TopK') or behind & sources:
            behind.add(node.get_friendly_name())
            if node.get_type_name() not in layers:
                names.append(node.get_friendly_name())
    return names


def _largest_activation(quantised) -> float:
    """The end of the widest range that an activation was given; infinite if one is no number."""
    constants = [
        node.input_value(i).get_node()
        for node in quantised.get_ordered_ops()
        if node.get_type_name() == 'FakeQuantize'
        for i in range(1, 5)
    ]
    ends = [float(np.abs(node.data).max()) for node in constants if node.get_type_name() == 'Constant']
    return max((end if math.isfinite(end) else math.inf for end in ends), default=0.0)


def quantise(source: Path, path: str | Path, images: Sequence[Tensor]) -> None:
    """Writes the int8 form of an OpenVINO file that computes in float32.

    Args:
        source: the ``.xml`` file.
        path: that to be written.
        images: from which the ranges of activations are taken, each as the graph takes it.

    Raises:
        UsageError: NNCF is missing, or activations explode on some of the images.
    """
    check_quantiser()
    os.environ.setdefault('NNCF_CI', '1')  # or importing it tells its makers, without asking anybody
    import nncf
    import openvino

    logging.getLogger('nncf').setLevel(logging.ERROR)
    network = openvino.Core().read_model(source)
    signature = Signature.from_json(str(network.get_rt_info([KEY]).value), source)
    quantised = nncf.quantize(
        network,
        nncf.Dataset([image.numpy() for image in images]),
        subset_size=len(images),
        # Mixed: of GELU's and the gates' products, which are no symmetric numbers, half of the range would be lost.
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(names=_behind_selection(network), validate=False),
    )
    largest = _largest_activation(quantised)
    if largest > LARGEST_ACTIVATION:
        raise UsageError(
            f'on some of the pictures for calibration activations reach {largest:.1g}: the model itself '
            'is unstable there, in any precision, and int8 has no range for it. Train it longer or at a '
            'lower rate, or calibrate on other pictures.'
        )
    quantised.set_rt_info(replace(signature, precision='int8').to_json(), [KEY])
    openvino.save_model(quantised, path, compress_to_fp16=False)


def export_quantised(
    model: nn.Module, signature: Signature, path: str | Path, images: Sequence[Tensor], fold: bool | None = None
) -> None:
    """Writes a model into OpenVINO's files, with weights and activations of its layers in int8.

    What a detector computes of the boxes it has selected stays in float32, but for the layers of a second stage.

    Args:
        model: of mmdet or mmseg, or a bare backbone.
        signature: what to make of it, in the format ``'openvino'`` and the precision ``'int8'``.
        path: the ``.xml`` file.
        images: from which the ranges of activations are taken, each as the graph takes a batch of one.
        fold: as of :func:`mmcasvit.exporting.export`.

    Raises:
        UsageError: NNCF is missing, or this model cannot be exported in this way.
    """
    check_quantiser()  # before the export, which takes its time
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder, 'full.xml')
        export(model, replace(signature, precision='fp32'), full, fold)
        quantise(full, path, images)
