"""Loss curves of a config in several precisions and forms, from the same weights over the same batches."""

import copy
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor

from mmcasvit.utils.timing import DTYPES

from .training import run_steps, training_runner

VARIANTS = ('fp32', 'bf16', 'fp16', 'channels_last', 'compile')


@OPTIM_WRAPPERS.register_module()
class CPUAutocastOptimWrapper(OptimWrapper):
    """Optimizer wrapper that runs backbone and neck under autocast on a CPU.

    It stands in for mmengine's ``AmpOptimWrapper``, which needs a GPU. The heads stay in fp32, because mmcv's operators
    for the CPU support only fp32.

    Args:
        dtype: ``'float16'``, with scaled gradients, or ``'bfloat16'``.
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


def variant_of(cfg: Config, variant: str, seed: int) -> Config:
    """Return a copy of a training config in one of :data:`VARIANTS`, with a seed and without worker processes."""
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


def record_curves(
    cfgs: Mapping[str, Config], variants: Sequence[str], steps: int, seed: int, tell: Callable[[str], None]
) -> dict[str, dict[str, list[float]]]:
    """Train every config in every variant for a number of steps.

    Returns:
        The loss of every step of each config and variant.

    Raises:
        UsageError: If the training of a config has fewer steps.
    """
    curves = {name: {} for name in cfgs}
    for name, cfg in cfgs.items():
        for variant in variants:
            tell(f'{name}: {variant}')
            with training_runner(variant_of(cfg, variant, seed)) as runner:
                curves[name][variant] = run_steps(runner, steps, lambda outputs: float(outputs['loss']))
    return curves


def loss_rows(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, object]]:
    """Return one row per step of each config and variant."""
    return [
        {'recipe': name, 'variant': variant, 'step': number, 'loss': loss}
        for name, variants in curves.items()
        for variant, losses in variants.items()
        for number, loss in enumerate(losses, 1)
    ]


def loss_table(curves: dict[str, list[float]], windows: int = 5) -> list[dict[str, object]]:
    """Return one row per curve: its mean losses over equal parts of the training, and its distance from the first.

    Args:
        curves: Losses of every step of each variant. The first variant is the reference.
        windows: Number of parts, if there are as many steps.
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
