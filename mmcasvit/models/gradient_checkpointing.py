"""Gradient checkpointing that records the statistics of norms only once."""

from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextmanager
def _running_stats_kept(norms: Sequence[_BatchNorm]):
    """Make norms use batch statistics without recording them, because the forward pass has recorded them already."""
    kept = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


def checkpointed(function: Callable[[Tensor], Tensor], x: Tensor, owners: Sequence[nn.Module]) -> Tensor:
    """Compute ``function(x)``, and let the backward pass recompute what it needs instead of keeping it in memory.

    PyTorch stops recomputing at the last tensor that is needed, so a convolution at the end of the function is not
    computed again.

    Args:
        function: The computation.
        x: Its input, which is kept in memory.
        owners: The modules that contain the norms of the function.
    """
    norms = [
        m
        for owner in owners
        for m in owner.modules()
        if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
    ]
    if not norms or is_compiling():  # a compiled graph records statistics only in its forward half
        return checkpoint(function, x, use_reentrant=False)
    return checkpoint(function, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _running_stats_kept(norms)))
