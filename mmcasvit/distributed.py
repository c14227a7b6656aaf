"""Training of several processes on CPUs, for which mmengine's launcher and PyTorch's SyncBatchNorm have no way."""
import torch
from mmengine.config import Config
from mmengine.dist import is_distributed
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


class CPUSyncBatchNorm(_BatchNorm):
    """The formula of PyTorch's ``SyncBatchNorm``, whose training form takes a GPU alone.

    Shape:
        Input and output: ``(N, C, ...)``.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f'expected at least 2 dimensions, got {x.dim()}')

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not is_distributed():
            return super().forward(x)
        dims, shape = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
        count = all_reduce(x.new_tensor(x.numel() / x.shape[1]))
        mean = all_reduce(x.sum(dims)) / count
        centred = x - mean.view(shape)
        variance = all_reduce(centred.square().sum(dims)) / count
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(variance * count / (count - 1), share)
        x = centred * (variance + self.eps).rsqrt().view(shape)
        return x * self.weight.view(shape) + self.bias.view(shape) if self.affine else x


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """mmengine's ``MMDistributedDataParallel`` of a model on a CPU, with every ``SyncBatchNorm`` one that runs there.

    Args:
        module: the model; its norms are changed in place and keep their weights.
        kwargs: of ``MMDistributedDataParallel``, whose ``device_ids`` are for GPUs.
    """

    def __init__(self, module: nn.Module, **kwargs) -> None:
        for part in module.modules():
            if isinstance(part, nn.SyncBatchNorm):  # mmengine has a class of its own below it
                part.__class__ = CPUSyncBatchNorm
        super().__init__(module, **{**kwargs, 'device_ids': None})


def use_cpus(cfg: Config) -> None:
    """Has a run that ``torchrun`` started train on CPUs, connected by gloo.

    mmengine's launcher selects a GPU before it connects the processes, so that they are connected here.
    """
    torch.distributed.init_process_group('gloo')
    if cfg.get('model_wrapper_cfg') is None:
        cfg.model_wrapper_cfg = dict(
            type='CPUDistributedDataParallel', broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False))
