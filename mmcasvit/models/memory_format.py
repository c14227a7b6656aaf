"""PyTorch's channels_last memory format for whole models."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def _contiguous_inputs(module: nn.Module, inputs: tuple) -> tuple:
    return tuple(x.contiguous() if isinstance(x, Tensor) else x for x in inputs)


def _contiguous_output(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    exporting = torch.compiler.is_exporting() or torch.jit.is_tracing()
    return output if exporting else output.contiguous()


def to_channels_last(model: nn.Module) -> None:
    """Convert the weights of a model to channels_last format, and pass contiguous maps to the operators of mmcv.

    The logits of mmseg's heads are made contiguous, because scaling them to the image takes several times as long in
    channels_last format, where there are many classes.
    """
    model.to(memory_format=torch.channels_last)
    for module in model.modules():
        source = type(module).__module__
        if source.startswith(('mmcv.ops', 'mmcv.cnn.bricks.conv_ws')):  # the latter views its weights as a matrix
            module.to(memory_format=torch.contiguous_format)
        if source.startswith('mmcv.ops'):
            module.register_forward_pre_hook(_contiguous_inputs)
        if isinstance(getattr(module, 'conv_seg', None), nn.Conv2d):
            module.conv_seg.register_forward_hook(_contiguous_output)


def align_state(optimizer: Optimizer) -> None:
    """Give the state of an optimizer the memory format of its parameters.

    Fused optimizers go through the memory of both side by side, and would combine values of different weights.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
