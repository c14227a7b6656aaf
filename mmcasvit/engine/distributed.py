"""Distributed training where mmengine falls short: several processes on CPUs, and resuming sharded runs."""

from pathlib import Path

import torch
from mmengine._strategy import FSDPStrategy as MMEngineFSDPStrategy
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.modules.batchnorm import _BatchNorm

from mmcasvit.registry import STRATEGIES
from mmcasvit.weights.integrity import damage, find_whole_checkpoint


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        torch.distributed.all_reduce(x)
        return x

    # Each process has its own loss, and all of these depend on the sum.
    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _SumOverProcesses.forward(ctx, gradient)


class CPUSyncBatchNorm(_BatchNorm):
    """PyTorch's ``SyncBatchNorm`` for CPUs; PyTorch's own trains only on GPUs.

    Shape:
        Input and output: ``(N, C, ...)``.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f'expected at least 2 dimensions, got {x.dim()}')

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not is_distributed():
            return super().forward(x)
        self._check_input_dim(x)
        dims, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
        count = _SumOverProcesses.apply(x.new_tensor(x.numel() / x.shape[1]))
        mean = _SumOverProcesses.apply(x.sum(dims)) / count
        centered = x - mean.view(shape)
        variance = _SumOverProcesses.apply(centered.square().sum(dims)) / count
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * count / (count - 1), share)
        x = centered * (variance + self.eps).rsqrt().view(shape)
        return x * self.weight.view(shape) + self.bias.view(shape) if self.affine else x


def _sync_on_cpus(model: nn.Module) -> None:
    for part in model.modules():
        if isinstance(part, nn.SyncBatchNorm):  # mmengine has a subclass
            part.__class__ = CPUSyncBatchNorm


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """mmengine's ``MMDistributedDataParallel`` for a model on a CPU, in which every ``SyncBatchNorm`` runs on the CPU.

    Args:
        module: The model. Its norms are changed in place and keep their weights.
        kwargs: Arguments of ``MMDistributedDataParallel``, except ``device_ids``, which are for GPUs.
    """

    def __init__(self, module: nn.Module, **kwargs) -> None:
        _sync_on_cpus(module)
        super().__init__(module, **{**kwargs, 'device_ids': None})


@STRATEGIES.register_module()
class FSDPStrategy(MMEngineFSDPStrategy):
    """mmengine's ``FSDPStrategy`` with runs that can be resumed, with PyTorch 2.1 and newer, on GPUs and CPUs.

    A checkpoint is one file with whole tensors, as a run of one process writes it, unless ``state_dict_cfg`` says
    otherwise. The shards of mmengine's ``'local'`` cannot be read without executing a pickle.

    Args:
        kwargs: Arguments of mmengine's ``FSDPStrategy``.
    """

    def __init__(self, **kwargs) -> None:
        # With use_orig_params the parameters keep their names, and the optimizer its groups.
        wrapper: dict = dict(type='MMFullyShardedDataParallel', use_orig_params=True)
        state: str | dict = 'full'
        if get_device() == 'cpu':
            wrapper['device_id'] = torch.device('cpu')
            # Offloading what is on a CPU copies nothing: PyTorch 2.13 then frees or overwrites what it returned.
            state = dict(
                state_dict_type='FULL_STATE_DICT',
                state_dict_config=dict(type='FullStateDictConfig', rank0_only=True, offload_to_cpu=False),
                optim_state_dict_config=dict(type='FullOptimStateDictConfig', rank0_only=True, offload_to_cpu=False),
            )
        kwargs['model_wrapper'] = {**wrapper, **(kwargs.get('model_wrapper') or {})}
        kwargs.setdefault('state_dict_cfg', state)
        super().__init__(**kwargs)

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        if get_device() == 'cpu':
            _sync_on_cpus(model)
        return super()._wrap_model(model)

    def resume(self, filename: str, **kwargs) -> dict:
        """Resume as mmengine does, but from the checkpoint before it if one is damaged.

        In other runs ``CheckpointHook`` does this; ``FlexibleRunner`` loads before it calls a hook.

        Raises:
            WeightsError: No checkpoint is whole.
        """
        if damage(filename):
            filename = find_whole_checkpoint(Path(filename).parent) or filename
        return super().resume(filename, **kwargs)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """Load what :meth:`optim_state_dict` returned; PyTorch 2.1 changed the order of the arguments."""
        self.optim_wrapper.load_state_dict(
            FullyShardedDataParallel.optim_state_dict_to_load(
                model=self.model, optim=self.optim_wrapper.optimizer, optim_state_dict=state_dict
            )
        )


def use_cpus(cfg: Config) -> None:
    """Prepare a run that ``torchrun`` started for CPUs, connected by gloo.

    The processes are connected here, because mmengine's launcher selects a GPU before it connects them.
    """
    torch.distributed.init_process_group('gloo')
    if cfg.get('model_wrapper_cfg') is None:
        cfg.model_wrapper_cfg = dict(
            type='CPUDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
