"""The hook that checks a checkpoint before mmengine loads it."""

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from mmcasvit.models.load_checks import watch
from mmcasvit.models.wrappers import unwrap, whole_state_dict
from mmcasvit.registry import HOOKS
from mmcasvit.utils.errors import WeightsError
from mmcasvit.weights.match import fit


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
        watch(unwrap(runner.model))
        found = fit(checkpoint, whole_state_dict(runner.model))
        if found.container != 'state_dict' or found.weights.keys() != checkpoint['state_dict'].keys():
            for key in found.weights if not found.container else ():
                checkpoint.pop(key, None)
            checkpoint['state_dict'] = found.weights
        fine_tuning = isinstance(runner._train_loop, BaseLoop) and not runner._resume
        found.refuse(only_under='backbone.' if fine_tuning else '')
