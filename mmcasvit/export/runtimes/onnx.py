"""ONNX files, run by ONNX Runtime on the CPU."""

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

from ..operators import onnx_translations
from ..signature import KEY, Run, Signature
from .operators import count_operators
from .program import quiet, to_program


def write(graph: nn.Module, example: Tensor, signature: Signature, path: Path) -> None:
    """Write a file of standard operators, weights included."""
    import onnx

    with quiet():
        program = torch.onnx.export(
            to_program(graph, example, signature),
            dynamo=True,
            verbose=False,
            input_names=['image'],
            output_names=list(signature.outputs) or None,
            custom_translation_table=onnx_translations(),
        )
    model, parts = program.model_proto, program.model_proto.graph
    # The metadata holds stack traces with local paths.
    for part in (*parts.node, *parts.input, *parts.output, *parts.value_info, *parts.initializer):
        del part.metadata_props[:]
    onnx.helper.set_model_props(model, {KEY: signature.to_json()})
    onnx.save(model, path)


def load(path: Path, threads: int) -> tuple[Signature, Run]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    signature = Signature.from_json(session.get_modelmeta().custom_metadata_map.get(KEY), path)
    return signature, lambda x: list(map(torch.from_numpy, session.run(None, dict(image=x.numpy()))))


def count(path: Path) -> tuple[Counter, Counter]:
    """Count the operators of a file by type, and those that accelerators are known not to take by reason."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    types = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.output)}

    def described():
        for node in graph.node:
            outputs = [types[name] for name in node.output if name in types]
            ranks = [len(value.shape.dim) for value in outputs]
            yield node.op_type, max(ranks, default=0), any(v.elem_type == onnx.TensorProto.INT64 for v in outputs)

    return count_operators(described())
