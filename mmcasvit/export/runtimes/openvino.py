"""OpenVINO files, an ``.xml`` with the graph and a ``.bin`` with the weights, run on the CPU."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from ..signature import KEY, Run, Signature
from . import onnx
from .program import first_line


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
