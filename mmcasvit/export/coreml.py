"""What can be said of a Core ML package without a Mac: its operators, and which of them the Neural Engine refuses.

Apple publishes no list of what the Neural Engine runs. What is counted here is what others found out: "Which Core ML
layers are not supported by the ANE?" (github.com/hollance/neural-engine, docs/unsupported-layers.md) names recurrent
and custom layers, gathering, dilated convolutions, and layers for tensors of any rank; "Deploying Transformers on the
Apple Neural Engine" (machinelearning.apple.com, 2022) asks for tensors of rank 4 and for float16.
"""

from collections import Counter
from pathlib import Path

_REFUSED = ('gather', 'scatter', 'lstm', 'gru', 'rnn', 'custom', 'non_zero', 'non_maximum')


def _block(path: Path):
    import coremltools

    specification = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
    [function] = specification.mlProgram.functions.values()
    [block] = function.block_specializations.values()
    return block


def _operations(path: Path) -> list:
    return [operation for operation in _block(path).operations if operation.type != 'const']


def output_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each output of a package."""
    block = _block(path)
    types = {out.name: out.type.tensorType for operation in block.operations for out in operation.outputs}
    return {name: tuple(side.constant.size for side in types[name].dimensions) for name in block.outputs}


def operators_of(path: Path) -> Counter:
    """The operators of a package, without constants."""
    return Counter(operation.type for operation in _operations(path))


def outside_neural_engine(path: Path) -> Counter:
    """The operators that the Neural Engine is known not to take, by reason."""
    import coremltools

    float16 = coremltools.proto.MIL_pb2.DataType.FLOAT16
    found = Counter()
    for operation in _operations(path):
        types = [output.type.tensorType for output in operation.outputs]
        if any(word in operation.type for word in _REFUSED) or _is_dilated(operation):
            found[operation.type] += 1
        elif any(tensor.rank > 4 for tensor in types):
            found[f'{operation.type} of rank {max(tensor.rank for tensor in types)}'] += 1
        elif operation.type != 'cast' and any(tensor.dataType != float16 for tensor in types):
            found[f'{operation.type} not in float16'] += 1
    return found


def _is_dilated(operation) -> bool:
    if operation.type != 'conv':
        return False
    [argument] = operation.inputs['dilations'].arguments
    values = argument.value.immediateValue.tensor.ints.values
    return any(value > 1 for value in values)
