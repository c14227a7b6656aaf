"""The hook that checks a checkpoint before mmengine loads it."""

import reprlib

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from mmcasvit.models.load_checks import watch
from mmcasvit.models.wrappers import unwrap, whole_state_dict
from mmcasvit.registry import HOOKS
from mmcasvit.utils.errors import WeightsError
from mmcasvit.weights.checkpoint import forget_config
from mmcasvit.weights.match import fit

# Settings that tell optimizers apart, whatever other settings the versions of PyTorch know.
_OF_ONE_OPTIMIZER = {'betas', 'momentum', 'nesterov', 'rho', 'alpha', 'lambd', 'etas', 'lr_decay'}


def _check_progress(checkpoint: dict) -> None:
    """Check the counters of a checkpoint; mmengine would count on from anything."""
    meta = checkpoint.get('meta')
    for name in ('epoch', 'iter'):
        count = meta.get(name) if isinstance(meta, dict) else None
        if type(count) is not int or count < 0:
            raise WeightsError(
                f'the checkpoint cannot be resumed: its meta.{name} must be an integer of at least 0, got '
                f'{reprlib.repr(count)}. Start a new run from it: load_from=FILE.'
            )


def _check_optimizer(runner: Runner, checkpoint: dict) -> None:
    """Check that the state in a checkpoint is of the optimizer of the run; PyTorch would fail in the first step."""
    optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
    state = checkpoint.get('optimizer')
    if optimizer is None or state is None:
        return
    groups = state.get('param_groups') if isinstance(state, dict) else None
    if not isinstance(groups, list) or not groups or not all(isinstance(group, dict) for group in groups):
        raise WeightsError(
            'the checkpoint cannot be resumed: it holds no state of an optimizer. Start a new run from it: '
            'load_from=FILE.'
        )
    wanted, found = _OF_ONE_OPTIMIZER & optimizer.defaults.keys(), _OF_ONE_OPTIMIZER & groups[0].keys()
    if wanted != found:
        raise WeightsError(
            f'the checkpoint was trained with another optimizer: {type(optimizer).__name__} has '
            f'{", ".join(sorted(wanted))}, and the checkpoint {", ".join(sorted(found)) or "none of these"}. Give the '
            'config that it was trained with, or start a new run from it: load_from=FILE.'
        )


@HOOKS.register_module()
class CheckWeightsHook(Hook):
    """Check of a checkpoint against the model, before mmengine loads it and drops what does not fit.

    For testing and for resuming, every tensor of the model must be in the file. For training from ``load_from``, the
    backbone must fit; heads of another shape (another number of classes) are reported and start from scratch.

    Weights under ``model`` or ``model_ema``, where the authors' code keeps them, are found as well. The checks of
    :mod:`mmcasvit.models.load_checks` run in every program; this hook also knows what the weights are for.
    """

    priority = 'VERY_HIGH'  # EMAHook and others look for state_dict, which the authors' files lack

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Raise :class:`mmcasvit.WeightsError` if model and file do not fit."""
        if runner._resume and 'message_hub' not in checkpoint:
            raise WeightsError(
                'the checkpoint holds weights, but no state of a training run that could be resumed. '
                'Start a new run from it: load_from=FILE.'
            )
        forget_config(checkpoint)
        if runner._resume:
            _check_progress(checkpoint)
            _check_optimizer(runner, checkpoint)
        watch(unwrap(runner.model))
        found = fit(checkpoint, whole_state_dict(runner.model))
        if found.container != 'state_dict' or found.weights.keys() != checkpoint['state_dict'].keys():
            for key in found.weights if not found.container else ():
                checkpoint.pop(key, None)
            checkpoint['state_dict'] = found.weights
        fine_tuning = isinstance(runner._train_loop, BaseLoop) and not runner._resume
        found.refuse(only_under='backbone.' if fine_tuning else '')
