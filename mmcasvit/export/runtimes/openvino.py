"""OpenVINO files, an ``.xml`` with the graph and a ``.bin`` with the weights, run on the CPU."""

import logging
import math
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.text import first_line

from ..signature import KEY, Run, Signature
from . import onnx
from .operators import count_operators

# Products of queries, keys and values grow with the third power of activations that leave the range of the norms.
LARGEST_ACTIVATION = 1e6
# Operators between layers that stay in float32. In int8 they double the error of a backbone, and are not faster.
BETWEEN = ['Add', 'Gelu', 'Multiply', 'ReduceMean', 'Sigmoid']


def read_signature(network, path: Path) -> Signature:
    return Signature.from_json(str(network.get_rt_info([KEY]).value) if network.has_rt_info([KEY]) else None, path)


def write(graph: nn.Module, example: Tensor, signature: Signature, path: Path) -> None:
    """Write both files, by way of ONNX."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        onnx.write(graph, example, signature, Path(folder, 'model.onnx'))
        network = openvino.Core().read_model(Path(folder, 'model.onnx'))
        network.set_rt_info(signature.to_json(), [KEY])
        save(network, path, compress_to_fp16=signature.precision == 'fp16')


def save(network, path: Path, compress_to_fp16: bool = False) -> None:
    """Save both files, and check that they are whole: OpenVINO may not notice that the disk is full.

    Raises:
        OSError: If they cannot be written.
    """
    import openvino

    try:
        openvino.save_model(network, path, compress_to_fp16=compress_to_fp16)
        openvino.Core().read_model(path)
    except RuntimeError as error:
        raise OSError(f'OpenVINO could not write the file. Is the disk full? ({first_line(error)})') from error


def load(path: Path, threads: int) -> tuple[Signature, Run]:
    import openvino

    core = openvino.Core()
    network = core.read_model(path)
    signature = read_signature(network, path)
    # Without a hint OpenVINO computes in bf16 where the processor supports it. It also falls back to bf16 if the hint
    # asks for f16 and the processor does not support that.
    hint = dict(fp32='f32', bf16='bf16', fp16='f16', int8='f32')[signature.precision]
    if hint == 'f16' and 'FP16' not in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        hint = 'f32'
    options = dict(
        INFERENCE_NUM_THREADS=threads, PERFORMANCE_HINT='LATENCY', NUM_STREAMS=1, INFERENCE_PRECISION_HINT=hint
    )
    compiled = core.compile_model(network, 'CPU', options)
    request = compiled.create_infer_request()

    def run(x):
        found = request.infer([x.numpy()], share_inputs=True)
        return [torch.from_numpy(found[output]) for output in compiled.outputs]

    return signature, run


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


def quantize(source: Path, path: Path, images: Sequence[Tensor]) -> None:
    """Quantize a file in float32 to int8 by NNCF.

    The layers are quantized, and what lies between them where NNCF chooses so, except for :data:`BETWEEN`. What a
    detector computes after its box selection stays in float32, except the layers of a second stage.

    Args:
        source: The ``.xml`` file to read.
        path: The ``.xml`` file to write.
        images: Inputs of the graph to calibrate the ranges of activations on.

    Raises:
        UsageError: If activations explode on some of the images.
    """
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
        ignored_scope=nncf.IgnoredScope(names=_after_selection(network), types=BETWEEN, validate=False),
    )
    largest = _largest_activation(quantized)
    if largest > LARGEST_ACTIVATION:
        raise UsageError(
            f'on some of the calibration images activations reach {largest:.1g}: the model itself is unstable there, '
            'in any precision, and int8 cannot represent this range. Train it longer or at a lower learning rate, or '
            'calibrate on other images.'
        )
    quantized.set_rt_info(replace(signature, precision='int8').to_json(), [KEY])
    save(quantized, path)


def count(path: Path) -> tuple[Counter, Counter]:
    """Count the operators of a file by type, and those that accelerators are known not to take by reason."""
    import openvino

    return count_operators(
        (
            node.get_type_name(),
            max(len(output.get_partial_shape()) for output in node.outputs()),
            any(output.get_element_type() == openvino.Type.i64 for output in node.outputs()),
        )
        for node in openvino.Core().read_model(path).get_ordered_ops()
        if node.get_type_name() not in ('Parameter', 'Constant', 'Result')
    )
