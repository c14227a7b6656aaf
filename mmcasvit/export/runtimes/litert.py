"""LiteRT (TFLite) files, run by LiteRT's interpreter on the CPU, whose layers XNNPACK computes."""

import copy
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..signature import KEY, Run, Signature
from .operators import count_operators
from .program import quiet

_MEMBER = f'{KEY}.json'
# What int8 computes. In it the products of the gates and the steps of a GroupNorm would lose too much.
_LAYERS = ('CONV_2D', 'DEPTHWISE_CONV_2D', 'CONV_2D_TRANSPOSE', 'FULLY_CONNECTED')


def write(graph: nn.Module, example: Tensor, signature: Signature, path: Path) -> None:
    import litert_torch

    # litert-torch 0.10 tells constants apart by address. It makes contiguous copies of weights in another order, which
    # the deploy form has, and then uses their memory again, so that layers of the same shape would get the weights of
    # the first of them. `to(memory_format=...)` would leave 1x1 convolutions as they are.
    graph = copy.deepcopy(graph)
    for weight in graph.parameters():
        weight.data = weight.data.contiguous()
    litert_torch.config.show_progress = False
    with quiet():
        litert_torch.convert(graph, (example,)).export(str(path))
    _correct_nearest(path)
    if signature.precision == 'fp16':
        _cast_weights(path)
    _sign(path, signature)


def _correct_nearest(path: Path) -> None:
    """Make nearest-neighbor upsampling round positions down, as PyTorch does.

    litert-torch 0.10 writes the variant with half-pixel centers, which PyTorch calls ``nearest-exact``. Both agree for
    whole factors, but not, for instance, where an FPN enlarges a map of 3 rows to 5.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    for operator in (operator for graph in model.subgraphs for operator in graph.operators):
        if type(operator.builtinOptions).__name__ == 'ResizeNearestNeighborOptionsT':
            operator.builtinOptions.halfPixelCenters = False
    flatbuffer_utils.write_model(model, str(path))


def _sign(path: Path, signature: Signature) -> None:
    """Append the signature as a zip archive, which is how TFLite files carry other files, such as names of classes."""
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr(_MEMBER, signature.to_json())


def _read_signature(path: Path) -> Signature:
    text = None
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if _MEMBER in archive.namelist():
                text = archive.read(_MEMBER).decode()
    return Signature.from_json(text, path)


def _cast_weights(path: Path) -> None:
    """Store the weights of a file in fp16, in which GPU delegates compute. The CPU converts them back."""
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.quantizer import Quantizer

    quantizer = Quantizer(path.read_bytes())
    quantizer.update_quantization_recipe(
        regex='.*',
        operation_name='*',
        op_config=qtyping.OpQuantizationConfig(
            weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
            compute_precision=qtyping.ComputePrecision.FLOAT,
        ),
        algorithm_key='float_casting',
    )
    path.write_bytes(quantizer.quantize(enable_progress_report=False).quantized_model)


def quantize(source: Path, path: Path, images: Sequence[Tensor]) -> None:
    """Quantize a file in float32 to int8 by ai-edge-quantizer. What is between the layers stays in float32.

    Args:
        source: The file to read.
        path: The file to write.
        images: Inputs of the graph to calibrate the ranges of activations on.
    """
    from ai_edge_quantizer.quantizer import Quantizer

    signature = _read_signature(source)
    quantizer = Quantizer(source.read_bytes())
    for layer in _LAYERS:
        quantizer.add_static_config('.*', layer, activation_num_bits=8, weight_num_bits=8)
    name, [given] = _names(source)
    ranges = quantizer.calibrate({name: [{given: image.numpy()} for image in images]})
    path.write_bytes(quantizer.quantize(ranges, enable_progress_report=False).quantized_model)
    _sign(path, replace(signature, precision='int8'))


def _names(path: Path) -> tuple[str, list[str]]:
    """Return the name that a file gives to its graph, and the names of its inputs."""
    from ai_edge_litert.interpreter import Interpreter

    [(name, parts)] = Interpreter(str(path)).get_signature_list().items()
    return name, parts['inputs']


def load(path: Path, threads: int) -> tuple[Signature, Run]:
    from ai_edge_litert.interpreter import Interpreter

    signature = _read_signature(path)
    interpreter = Interpreter(str(path), num_threads=threads)
    runner = interpreter.get_signature_runner()
    [given] = runner.get_input_details()

    def run(x):
        found = runner(**{given: x.numpy()})
        return [torch.from_numpy(found[f'output_{i}']) for i in range(len(found))]

    return signature, run


def count(path: Path) -> tuple[Counter, Counter]:
    """Count the operators of a file by type, and those that accelerators are known not to take by reason."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    # XNNPACK would take the place of the operators it computes.
    interpreter = Interpreter(str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    tensors = {tensor['index']: tensor for tensor in interpreter.get_tensor_details()}
    return count_operators(
        (
            operator['op_name'],
            max((len(tensors[i]['shape']) for i in operator['outputs']), default=0),
            any(tensors[i]['dtype'] == np.int64 for i in operator['outputs']),
        )
        for operator in interpreter._get_ops_details()
    )
