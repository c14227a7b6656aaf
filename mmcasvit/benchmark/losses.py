"""Loss curves of one recipe in several precisions and forms, from the same weights over the same batches."""

import copy
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import Tensor

from mmcasvit.utils.errors import Enough, TrainingTooShort
from mmcasvit.utils.timing import DTYPES

VARIANTS = ('fp32', 'bf16', 'fp16', 'channels_last', 'compile')


@OPTIM_WRAPPERS.register_module()
class CPUAutocastOptimWrapper(OptimWrapper):
    """Runs backbone and neck under autocast on a CPU, where mmengine's AmpOptimWrapper refuses to be built.

    The heads stay in fp32, since mmcv's operators for the CPU know no other precision.

    Args:
        dtype: 'float16', with scaled gradients, or 'bfloat16', without.
    """

    def __init__(self, dtype: str, **kwargs):
        super().__init__(**kwargs)
        self.dtype = getattr(torch, dtype)
        self.scaler = torch.amp.GradScaler('cpu', enabled=self.dtype == torch.float16)

    @contextmanager
    def optim_context(self, model: BaseModel) -> Iterator[None]:
        extract_feat = model.extract_feat

        def extract_feat_in_half(*args, **kwargs):
            with torch.autocast('cpu', self.dtype):
                maps = extract_feat(*args, **kwargs)
            return tuple(x.float() for x in maps)

        model.extract_feat = extract_feat_in_half
        try:
            with super().optim_context(model):
                yield
        finally:
            del model.extract_feat

    def backward(self, loss: Tensor, **kwargs) -> None:
        self.scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs) -> None:
        if self.clip_grad_kwargs:
            self.scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.scaler.step(self.optimizer, **kwargs)
        self.scaler.update()


class _RecordHook(Hook):
    """Keeps the loss of every step and ends the run after some."""

    priority = 'LOWEST'

    def __init__(self, steps: int):
        self.steps, self.losses = steps, []

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self.losses.append(float(outputs['loss']))
        if len(self.losses) == self.steps:
            raise Enough


def variant_of(cfg: Config, variant: str, seed: int) -> Config:
    """A copy of a training config in one of :data:`VARIANTS`, seeded, its data loaded in the process itself."""
    cfg = copy.deepcopy(cfg)
    cfg.randomness = dict(seed=seed)
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.custom_hooks = [
        hook
        for hook in cfg.get('custom_hooks', [])
        if hook['type'] not in ('mmcasvit.ChannelsLastHook', 'mmcasvit.CompileHook')
    ]
    cfg.compile = False
    optim_wrapper = cfg.optim_wrapper
    optim_wrapper.type = 'OptimWrapper'
    for key in ('dtype', 'loss_scale'):
        optim_wrapper.pop(key, None)
    if variant == 'channels_last':
        cfg.custom_hooks.append(dict(type='mmcasvit.ChannelsLastHook'))
    elif variant == 'compile':
        cfg.custom_hooks.append(dict(type='mmcasvit.CompileHook'))
    elif variant in ('bf16', 'fp16'):
        optim_wrapper.dtype = str(DTYPES[variant]).removeprefix('torch.')
        optim_wrapper.type = 'AmpOptimWrapper' if torch.cuda.is_available() else 'CPUAutocastOptimWrapper'
    return cfg


def record_losses(runner: Runner, steps: int) -> list[float]:
    """Trains for some steps.

    Args:
        runner: built, not yet trained.
        steps: how many.

    Returns:
        The loss of each.

    Raises:
        TrainingTooShort: as it says.
    """
    hook = _RecordHook(steps)
    runner.register_hook(hook)
    try:
        runner.train()
    except Enough:
        return hook.losses
    raise TrainingTooShort(len(hook.losses), steps)


def loss_table(curves: dict[str, list[float]], windows: int = 5) -> list[dict[str, object]]:
    """Mean losses over equal parts of the training, a row for each curve, and how far each is from the first curve.

    Args:
        curves: of each variant the loss of every step; the first is what the others are held against.
        windows: the number of parts, fewer where there are fewer steps.
    """
    steps = len(next(iter(curves.values())))
    windows = min(windows, steps)
    edges = [round(steps * part / windows) for part in range(windows + 1)]
    means = {
        variant: [statistics.mean(losses[start:stop]) for start, stop in pairwise(edges)]
        for variant, losses in curves.items()
    }
    reference = next(iter(means.values()))
    return [
        {
            'variant': variant,
            **{f'steps {start + 1} to {stop}': f'{mean:.3f}' for start, stop, mean in zip(edges, edges[1:], row)},
            'largest difference': f'{100 * max(abs(a - b) / abs(b) for a, b in zip(row, reference)):.1f}%',
        }
        for variant, row in means.items()
    ]
