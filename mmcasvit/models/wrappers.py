"""Models inside wrappers for distribution and test-time augmentation."""

import torch
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers for distribution and test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def whole_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of the model inside wrappers.

    If FSDP shards the model, all processes must call this function. It then returns tensors of the full shapes on the
    meta device, without values.
    """
    if not isinstance(model, FullyShardedDataParallel):
        return unwrap(model).state_dict()
    with FullyShardedDataParallel.summon_full_params(model, writeback=False):
        return {key: torch.empty_like(value, device='meta') for key, value in unwrap(model).state_dict().items()}
