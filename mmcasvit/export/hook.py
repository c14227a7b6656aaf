"""Hooks that evaluate a model as it will be run: exported, or in fp16."""

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmcasvit.models.deploy import deploy
from mmcasvit.registry import HOOKS
from mmcasvit.utils.errors import UsageError

from .evaluation import substitute
from .formats import load_exported
from .half import simulate_half


@HOOKS.register_module()
class ExportedHook(Hook):
    """Hook that evaluates an exported model with the metrics of the config.

    Args:
        file: File written by ``tools/export.py``.
    """

    priority = 'LOWEST'

    def __init__(self, file: str):
        self.exported = load_exported(file)

    def before_test_epoch(self, runner: Runner) -> None:
        self.original = runner.model
        if is_model_wrapper(runner.model):
            raise UsageError('--exported: an exported model is evaluated by one process, not by several.')
        runner.model = substitute(runner.model, self.exported)
        print_log(f'testing {self.exported.path}: {self.exported.signature}', logger='current')

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        runner.model = self.original


@HOOKS.register_module()
class SimulatedHalfHook(Hook):
    """Hook that evaluates the deploy form of the model in simulated fp16, see :func:`.half.simulate_half`."""

    priority = 'LOWEST'

    def before_test_epoch(self, runner: Runner) -> None:
        self.original = runner.model
        if is_model_wrapper(runner.model):
            raise UsageError('--simulate-fp16: fp16 is simulated by one process, not by several.')
        runner.model = simulate_half(deploy(runner.model))
        print_log('testing with the deploy form of the model in simulated fp16', logger='current')

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        runner.model = self.original
