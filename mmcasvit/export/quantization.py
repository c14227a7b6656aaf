"""Post-training quantization of OpenVINO files to int8 by NNCF."""

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

from .formats import check_target, export, written_whole
from .runtimes.openvino import read_signature, save
from .signature import KEY, Signature

# Products of queries, keys and values grow with the third power of activations that leave the range of the norms.
LARGEST_ACTIVATION = 1e6


def check_quantizer() -> None:
    """Check that NNCF is installed.

    Raises:
        UsageError: If it is not.
    """
    if importlib.util.find_spec('nncf') is None:
        raise UsageError('int8 needs nncf: pip install "mmcasvit[quantization]"')


def _after_selection(network) -> list[str]:
    """Return the names of the nodes after a detector's box selection, except the layers of a second stage.

    They must not be rounded to the ranges seen in calibration: box areas, which choose a level of the pyramid, and
    features of a level that no box of a calibration image used.
    """
    layers, after, names = ('Convolution', 'ConvolutionBackpropData', 'MatMul', 'Relu'), set(), []
    for node in network.get_ordered_ops():
        sources = {node.input_value(i).get_node().get_friendly_name() for i in range(node.get_input_size())}
        if node.get_type_name() in ('NonMaxSuppression', 'TopK') or after & sources:
            after.add(node.get_friendly_name())
            if node.get_type_name() not in layers:
                names.append(node.get_friendly_name())
    return names


def _largest_activation(quantized) -> float:
    """Return the end of the widest range of an activation, or infinity if one is not finite."""
    constants = [
        node.input_value(i).get_node()
        for node in quantized.get_ordered_ops()
        if node.get_type_name() == 'FakeQuantize'
        for i in range(1, 5)
    ]
    ends = [float(np.abs(node.data).max()) for node in constants if node.get_type_name() == 'Constant']
    return max((end if math.isfinite(end) else math.inf for end in ends), default=0.0)


def quantize(source: Path, path: str | Path, images: Sequence[Tensor]) -> None:
    """Quantize an OpenVINO file in float32 to int8.

    Args:
        source: The ``.xml`` file to read.
        path: The ``.xml`` file to write.
        images: Inputs of the graph to calibrate the ranges of activations on.

    Raises:
        UsageError: If NNCF is missing, or activations explode on some of the images.
    """
    check_quantizer()
    os.environ.setdefault('NNCF_CI', '1')  # disables NNCF's telemetry, which is on by default
    import nncf
    import openvino

    logging.getLogger('nncf').setLevel(logging.ERROR)
    network = openvino.Core().read_model(source)
    signature = read_signature(network, source)
    quantized = nncf.quantize(
        network,
        nncf.Dataset([image.numpy() for image in images]),
        subset_size=len(images),
        # MIXED quantizes activations asymmetrically. The outputs of GELU and of the gates' products are not symmetric
        # and would lose half of a symmetric range.
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(names=_after_selection(network), validate=False),
    )
    largest = _largest_activation(quantized)
    if largest > LARGEST_ACTIVATION:
        raise UsageError(
            f'on some of the calibration images activations reach {largest:.1g}: the model itself is unstable there, '
            'in any precision, and int8 cannot represent this range. Train it longer or at a lower learning rate, or '
            'calibrate on other images.'
        )
    quantized.set_rt_info(replace(signature, precision='int8').to_json(), [KEY])
    with written_whole(Path(path)) as unfinished:
        save(quantized, unfinished)


def export_quantized(
    model: nn.Module, signature: Signature, path: str | Path, images: Sequence[Tensor], fold: bool | None = None
) -> None:
    """Export a model to OpenVINO with the weights and activations of its layers in int8.

    What a detector computes after its box selection stays in float32, except the layers of a second stage.

    Args:
        model: Model of mmdet or mmseg, or a bare backbone.
        signature: What to export, with the format ``'openvino'`` and the precision ``'int8'``.
        path: The ``.xml`` file to write.
        images: Inputs of the graph, as batches of one, to calibrate the ranges of activations on.
        fold: As in :func:`mmcasvit.export.formats.export`.

    Raises:
        UsageError: If NNCF is missing, or the model cannot be exported in this way.
    """
    check_quantizer()  # before the export, which takes a while
    check_target('openvino', Path(path))
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder, 'full.xml')
        export(model, replace(signature, precision='fp32'), full, fold)
        quantize(full, path, images)
