"""Core ML packages for iOS 16 and macOS 13 or later, and an analysis of their operators that needs no Mac.

Apple does not publish which operators the Neural Engine supports. The analysis relies on what others found out: "Which
Core ML layers are not supported by the ANE?" (github.com/hollance/neural-engine) lists recurrent and custom layers,
gathering, dilated convolutions, and layers for tensors of any rank. "Deploying Transformers on the Apple Neural Engine"
(machinelearning.apple.com, 2022) recommends float16 and tensors of rank 4.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..signature import KEY, Run, Signature
from .operators import AWKWARD
from .program import SplitAddcmul, quiet


def write(graph: nn.Module, example: Tensor, signature: Signature, path: Path) -> None:
    """Write an ML Program. Its input is an image if the signature says that it takes pixels."""
    import coremltools

    shape = (1, 3, *signature.size)
    if signature.pixels is None:
        image = coremltools.TensorType('image', shape=shape)
    else:
        layout = getattr(coremltools.colorlayout, signature.pixels.upper())
        image = coremltools.ImageType('image', shape=shape, color_layout=layout)
    half, full = coremltools.precision.FLOAT16, coremltools.precision.FLOAT32
    with quiet(), SplitAddcmul():
        model = coremltools.convert(
            torch.jit.trace(graph, example, check_trace=False),
            convert_to='mlprogram',
            minimum_deployment_target=coremltools.target.iOS16,
            inputs=[image],
            outputs=[coremltools.TensorType(name) for name in signature.outputs],
            compute_precision=half if signature.precision == 'fp16' else full,
        )
    model.user_defined_metadata[KEY] = signature.to_json()
    model.save(str(path))


def load(path: Path, threads: int) -> tuple[Signature, Run]:
    """Load a package. Core ML chooses the number of threads itself."""
    import coremltools

    model = coremltools.models.MLModel(str(path))
    signature = Signature.from_json(model.user_defined_metadata.get(KEY), path)

    def run(x):
        if signature.pixels is None:
            image = x.numpy()
        else:
            order = slice(None) if signature.pixels == 'rgb' else slice(None, None, -1)
            image = Image.fromarray(np.ascontiguousarray(x[0].numpy()[..., order]))
        found = model.predict(dict(image=image))
        return [torch.from_numpy(np.asarray(found[name])) for name in signature.outputs]

    return signature, run


def _block(path: Path):
    import coremltools

    specification = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
    [function] = specification.mlProgram.functions.values()
    [block] = function.block_specializations.values()
    return block


def _operations(path: Path) -> list:
    return [operation for operation in _block(path).operations if operation.type != 'const']


def output_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each output of a package."""
    block = _block(path)
    types = {out.name: out.type.tensorType for operation in block.operations for out in operation.outputs}
    return {name: tuple(side.constant.size for side in types[name].dimensions) for name in block.outputs}


def count(path: Path) -> tuple[Counter, Counter]:
    """Count the operators of a package by type, and those that the Neural Engine is known not to support by reason."""
    import coremltools

    float16 = coremltools.proto.MIL_pb2.DataType.FLOAT16
    outside = Counter()
    operations = _operations(path)
    for operation in operations:
        types = [output.type.tensorType for output in operation.outputs]
        if any(word in operation.type for word in AWKWARD) or _is_dilated(operation):
            outside[operation.type] += 1
        elif any(tensor.rank > 4 for tensor in types):
            outside[f'{operation.type} of rank {max(tensor.rank for tensor in types)}'] += 1
        elif operation.type != 'cast' and any(tensor.dataType != float16 for tensor in types):
            outside[f'{operation.type} not in float16'] += 1
    return Counter(operation.type for operation in operations), outside


def _is_dilated(operation) -> bool:
    if operation.type != 'conv':
        return False
    [argument] = operation.inputs['dilations'].arguments
    values = argument.value.immediateValue.tensor.ints.values
    return any(value > 1 for value in values)
