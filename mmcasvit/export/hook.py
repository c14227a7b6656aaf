"""Hooks that evaluate a model as it will be run: exported, or in fp16."""

from mmengine.model import is_model_wrapper
from torch import nn

from mmcasvit.engine.hooks.deploy import OtherFormHook
from mmcasvit.models.deploy import deploy
from mmcasvit.registry import HOOKS
from mmcasvit.utils.errors import UsageError

from .evaluation import substitute
from .formats import load_exported
from .half import simulate_half


@HOOKS.register_module()
class ExportedHook(OtherFormHook):
    """Hook that evaluates an exported model with the metrics of the config.

    Args:
        file: File written by ``tools/export.py``.
    """

    def __init__(self, file: str):
        self.exported = load_exported(file)

    def form_of(self, model: nn.Module) -> tuple[nn.Module, str]:
        if is_model_wrapper(model):
            raise UsageError('--exported: an exported model is evaluated by one process, not by several.')
        return substitute(model, self.exported), f'{self.exported.path}: {self.exported.signature}'


@HOOKS.register_module()
class SimulatedHalfHook(OtherFormHook):
    """Hook that evaluates the deploy form of the model in simulated fp16, see :func:`.half.simulate_half`."""

    def form_of(self, model: nn.Module) -> tuple[nn.Module, str]:
        if is_model_wrapper(model):
            raise UsageError('--simulate-fp16: fp16 is simulated by one process, not by several.')
        return simulate_half(deploy(model)), 'with the deploy form of the model in simulated fp16'
