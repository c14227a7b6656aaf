"""Hooks that run inside any tool that builds mmengine's runner."""
from collections.abc import Sequence

import torch
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from .conversion import adapted
from .registry import HOOKS
from .weights import WeightsError, find_weights, mismatches, unwrap, whole_state_dict


@HOOKS.register_module()
class CheckWeightsHook(Hook):
    """Compares a checkpoint with the model before mmengine loads it, and refuses what would be lost in silence.

    When testing or resuming every tensor of the model must be in the file. When training starts from
    ``load_from`` the backbone must fit; heads of another shape (another number of classes) are reported and
    start from scratch.

    Weights under ``model`` or ``model_ema``, where the authors' code keeps them, are found as well. Any program that
    loads weights has the checks of :mod:`mmcasvit.loading`; this hook knows beside them what the weights are for.
    """

    priority = 'VERY_HIGH'  # EMAHook and others look for state_dict, which the authors' files lack

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Raises :class:`mmcasvit.WeightsError` where model and file do not fit."""
        if runner._resume and 'message_hub' not in checkpoint:
            raise WeightsError('the checkpoint holds weights and no state of a training run that could be resumed. '
                               'Start a new run from it: load_from=FILE.')
        expected = whole_state_dict(runner.model)
        container, weights = find_weights(checkpoint)
        weights = adapted(weights, expected)
        if container != 'state_dict' or weights.keys() != checkpoint['state_dict'].keys():
            for key in weights if not container else ():
                checkpoint.pop(key, None)
            checkpoint['state_dict'] = weights
        fine_tuning = isinstance(runner._train_loop, BaseLoop) and not runner._resume
        mismatches(expected, weights).refuse(only_under='backbone.' if fine_tuning else '')


def _contiguous_inputs(module: nn.Module, inputs: tuple) -> tuple:
    return tuple(x.contiguous() if isinstance(x, Tensor) else x for x in inputs)


def to_channels_last(model: nn.Module) -> None:
    """Brings the weights of a model into channels_last format and has mmcv's operators get contiguous maps."""
    model.to(memory_format=torch.channels_last)
    for module in model.modules():
        source = type(module).__module__
        if source.startswith(('mmcv.ops', 'mmcv.cnn.bricks.conv_ws')):  # the latter views its weights as a matrix
            module.to(memory_format=torch.contiguous_format)
        if source.startswith('mmcv.ops'):
            module.register_forward_pre_hook(_contiguous_inputs)


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Keeps the model's convolutions, and so the maps between them, in PyTorch's channels_last memory format.

    The numbers stay the same up to rounding; on many processors the step gets faster. mmcv's own operators, such as
    RoIAlign, read such a map in the wrong order without a word (open-mmlab/mmcv#2203), so they are given contiguous
    ones.
    """

    def __init__(self):
        self._converted = None

    # Not before_run: weights are initialized after it, and random ones would be another draw in another format.
    def before_train(self, runner: Runner) -> None:
        if self._converted is not runner.model:
            to_channels_last(runner.model)
            self._converted = runner.model

    before_val = before_test = before_train


@HOOKS.register_module()
class CompileHook(Hook):
    """Compiles backbone and neck for training and testing with ``torch.compile``.

    mmengine's own switch, ``compile=True``, compiles the whole training step. In detectors, whose heads hold much that
    cannot be traced, that ends in a hundred small pieces and minutes of waiting for each. The parts compiled here hold
    nearly all of the arithmetic, and the names in checkpoints stay.

    Args:
        parts: attributes of the model.
        **options: of ``torch.compile``, such as ``dynamic`` or ``mode``.
    """

    def __init__(self, parts: Sequence[str] = ('backbone', 'neck'), **options):
        self.parts, self.options = tuple(parts), options

    def before_run(self, runner: Runner) -> None:
        """Raises AttributeError where the model lacks all of the parts."""
        model = unwrap(runner.model)
        parts = [getattr(model, name) for name in self.parts if getattr(model, name, None) is not None]
        if not parts:
            raise AttributeError(f'CompileHook: {type(model).__name__} has none of the parts {", ".join(self.parts)}')
        for part in parts:
            part.compile(**self.options)
