"""The hook that evaluates the deploy form."""

import copy

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from mmcasvit.models.deploy import deploy
from mmcasvit.registry import HOOKS


class OtherFormHook(Hook):
    """Hook that tests another form of the model, and puts the model back afterwards."""

    priority = 'LOWEST'

    def before_test_epoch(self, runner: Runner) -> None:
        self.original = runner.model
        runner.model, form = self.form_of(runner.model)
        print_log(f'testing {form}', logger='current')

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        runner.model = self.original

    def form_of(self, model: nn.Module) -> tuple[nn.Module, str]:
        """Return the form to test, and what the log calls it."""
        raise NotImplementedError


@HOOKS.register_module()
class DeployHook(OtherFormHook):
    """Hook that tests with the deploy form of the model.

    The deploy form is made when testing begins, from the weights under test: those of a checkpoint, or their moving
    average if another hook puts it in place.
    """

    def form_of(self, model: nn.Module) -> tuple[nn.Module, str]:
        return self._deployed(model), 'with the deploy form of the model'

    def _deployed(self, model: nn.Module) -> nn.Module:
        if not (is_model_wrapper(model) or isinstance(model, BaseTTAModel)):
            return deploy(model)
        wrapper = copy.copy(model)
        wrapper._modules = {**model._modules, 'module': self._deployed(model.module)}
        return wrapper
