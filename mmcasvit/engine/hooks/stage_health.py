"""The hook that watches whether the stages of a backbone stay alive."""

import functools
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmcasvit.models.casvit import CASViT
from mmcasvit.models.wrappers import unwrap
from mmcasvit.registry import HOOKS

PREFIX = 'stages/'  # of the names of the scalars
# Variance below which a norm no longer restores a channel: PyTorch's eps.
EPS = 1e-5
REMEDY = (
    'Start again with a lower learning rate, without weight decay of the norms '
    '(optim_wrapper.paramwise_cfg.norm_decay_mult=0), or with a longer warm-up.'
)


def _variance(x: Tensor) -> Tensor:
    """Return the variance of each channel of a map ``(N, C, H, W)`` as ``(C,)``, in float32."""
    return x.detach().float().var((0, 2, 3), correction=0)


@HOOKS.register_module()
class StageHealthHook(Hook):
    """Hook that records whether the stages of a backbone stay alive in training, and warns once of each that does not.

    A stage dies when its maps shrink, and the running variances of its norms with them. An input that does not shrink,
    such as a rare image, is then multiplied by up to ``1 / sqrt(eps)`` in each norm, and activations explode. The same
    happens when maps outgrow the running variances.

    In one of ``interval`` iterations, the hook writes for each stage to the visualizer, and so to ``scalars.json`` and
    TensorBoard:

    - ``stages/spread_N``: the standard deviation of a channel, the median over the channels.
    - ``stages/dead_channels_N``: the share of channels whose variance is below 1e-5.
    - ``stages/variance_ratio_N``: the variance of the batch divided by the running variance, the median over the
      channels, in the norm where it is highest. Norms with frozen statistics do not count.

    The maps of a CAS-ViT are taken before its output norms, which would hide that they shrink. Of other backbones, each
    output is a stage. A norm belongs to the stage whose map has the size of its input.

    Training stays the same to the last bit: nothing is computed twice or drawn at random, and outside of the measured
    iterations no module has a hook. A model without a backbone, with a compiled one, or with one that does not return
    maps ``(N, C, H, W)`` is left alone, and the log says so. With several processes, the first one measures its part of
    the batch.

    Args:
        interval: Number of iterations between two measurements.
        dead: Share of dead channels, in a map or in the running variances of a norm, at which a stage counts as dying.
        ratio: ``variance_ratio`` at which a stage counts as having outgrown its norms.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, interval: int = 100, dead: float = 0.5, ratio: float = 10.0):
        if interval < 1:
            raise ValueError(f'interval must be at least 1, got {interval}')
        if not 0 < dead <= 1:
            raise ValueError(f'dead must be more than 0 and at most 1, got {dead}')
        if ratio <= 1:
            raise ValueError(f'ratio must be more than 1, got {ratio}')
        self.interval, self.dead, self.ratio = interval, dead, ratio
        self._backbone: nn.Module | None = None
        self._warned: set[int] = set()
        self._handles: list = []
        # What the hooks of modules found in the current iteration: by stage, and by norm.
        self._maps: dict[int, tuple[torch.Size, Tensor]] = {}
        self._norms: dict[nn.Module, tuple[torch.Size, Tensor, Tensor]] = {}

    def before_train(self, runner: Runner) -> None:
        """Find the backbone, and say so if there is none that can be watched."""
        model = unwrap(runner.model)
        self._backbone = getattr(model, 'backbone', None)
        if not isinstance(self._backbone, nn.Module):
            self._leave(runner, f'{type(model).__name__} has no backbone')
        elif runner.cfg.get('compile') or self._backbone._compiled_call_impl is not None:
            self._leave(runner, 'the backbone is compiled, and would be compiled again for each measurement')

    def _leave(self, runner: Runner, reason: str) -> None:
        self._backbone = None
        runner.logger.info(f'StageHealthHook: the stages are not watched, since {reason}')

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | tuple | list | None = None) -> None:
        """Begin to measure if it is time."""
        if self._backbone is None or not self.every_n_train_iters(runner, self.interval) or not is_main_process():
            return
        self._maps, self._norms = {}, {}
        backbone = self._backbone
        for stage, module in enumerate(backbone.network[::2] if isinstance(backbone, CASViT) else [backbone]):
            self._handles.append(module.register_forward_hook(functools.partial(self._see, stage)))
        for norm in backbone.modules():
            if isinstance(norm, _BatchNorm) and norm.training and norm.running_var is not None:
                self._handles.append(norm.register_forward_pre_hook(self._see_norm))

    def _see(self, first: int, module: nn.Module, inputs: tuple, output: Any) -> None:
        for stage, x in enumerate(output if isinstance(output, (list, tuple)) else [output], first):
            if isinstance(x, Tensor) and x.ndim == 4:
                self._maps.setdefault(stage, (x.shape[2:], _variance(x)))

    def _see_norm(self, norm: nn.Module, inputs: tuple) -> None:
        # Before the norm has recorded this batch. A recomputed forward pass would come later.
        if norm not in self._norms and inputs[0].ndim == 4:
            running, eps = norm.running_var, norm.eps
            ratio = ((_variance(inputs[0]) + eps) / (running + eps)).median()
            self._norms[norm] = inputs[0].shape[2:], ratio, (running < eps).float().mean()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | tuple | list | None = None, outputs: dict | None = None
    ) -> None:
        """Record what was measured in this iteration, and warn of stages that die."""
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if not self._maps:
            self._leave(runner, f'{type(self._backbone).__name__} does not return maps (N, C, H, W)')
            return
        scalars = {}
        for stage, (size, variance) in self._maps.items():
            found = [(ratio, flat) for place, ratio, flat in self._norms.values() if place == size]
            dead = float((variance < EPS).float().mean())
            scalars |= {
                f'{PREFIX}spread_{stage + 1}': float(variance.sqrt().median()),
                f'{PREFIX}dead_channels_{stage + 1}': dead,
            }
            ratio = flat = 0.0
            if found:
                ratio, flat = (float(torch.stack(parts).max()) for parts in zip(*found))
                scalars[f'{PREFIX}variance_ratio_{stage + 1}'] = ratio
            self._judge(stage, max(dead, flat), ratio, runner)
        runner.visualizer.add_scalars(scalars, step=runner.iter + 1)

    def _judge(self, stage: int, dead: float, ratio: float, runner: Runner) -> None:
        if stage in self._warned or (dead < self.dead and ratio < self.ratio):
            return
        self._warned.add(stage)
        if dead >= self.dead:
            finding = (
                f'is dying: {100 * dead:.0f} % of its channels hardly vary, so its norms multiply what is rare by up '
                f'to {EPS**-0.5:.0f} each'
            )
        else:
            finding = (
                f'outgrows the statistics of its norms: the variance of a batch is {ratio:.0f} times the running one'
            )
        runner.logger.warning(f'iteration {runner.iter + 1}: stage {stage + 1} of the backbone {finding}. {REMEDY}')
