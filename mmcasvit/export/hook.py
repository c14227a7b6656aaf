"""Hooks that evaluate a model as it will be run: exported, or in fp16."""

import logging
from collections.abc import Sequence

from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from mmcasvit.engine.hooks.deploy import OtherFormHook
from mmcasvit.models.deploy import deploy
from mmcasvit.registry import HOOKS
from mmcasvit.utils.errors import UsageError

from .evaluation import rounded_up, size_in_tests, substitute
from .formats import load_exported
from .half import simulate_half


@HOOKS.register_module()
class ExportedHook(OtherFormHook):
    """Hook that evaluates an exported model with the metrics of the config.

    Args:
        file: File written by ``tools/export.py``.
        pipeline: Test pipeline of the config as it was before images were fitted to the file. If it would give the
            first image another size than the file asks for, a warning says so.
    """

    def __init__(self, file: str, pipeline: Sequence[dict] = ()):
        self.exported = load_exported(file)
        self.pipeline = pipeline

    def form_of(self, model: nn.Module) -> tuple[nn.Module, str]:
        if is_model_wrapper(model):
            raise UsageError('--exported: an exported model is evaluated by one process, not by several.')
        return substitute(model, self.exported), f'{self.exported.path}: {self.exported.signature}'

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: Sequence | None = None
    ) -> None:
        if batch_idx > 0 or not outputs or not self.pipeline or self.exported.signature.free_size:
            return
        path, found = outputs[0].get('img_path'), outputs[0].img_shape
        if path is None:  # not among the meta_keys of the pipeline
            return
        height, width = wanted = size_in_tests(self.pipeline, path)
        if rounded_up(found) != wanted:
            print_log(
                f'{path} was resized to {found[0]}x{found[1]} pixels to fit into the file, and the config tests it at '
                f'{height}x{width}, which may change the metrics: export with --size {height} {width}.',
                logger='current',
                level=logging.WARNING,
            )


@HOOKS.register_module()
class SimulatedHalfHook(OtherFormHook):
    """Hook that evaluates the deploy form of the model in simulated fp16, see :func:`.half.simulate_half`."""

    def form_of(self, model: nn.Module) -> tuple[nn.Module, str]:
        if is_model_wrapper(model):
            raise UsageError('--simulate-fp16: fp16 is simulated by one process, not by several.')
        return simulate_half(deploy(model)), 'with the deploy form of the model in simulated fp16'
