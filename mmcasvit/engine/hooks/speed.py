"""Hooks that make training and testing faster."""

import ctypes
import platform
from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor
from torch.utils._pytree import tree_map_only

from mmcasvit.models.memory_format import align_state, to_channels_last
from mmcasvit.models.shortcuts import take_shortcuts
from mmcasvit.models.wrappers import unwrap
from mmcasvit.registry import HOOKS

# Parameters of glibc's mallopt, from its malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Hook that keeps the convolutions of a model, and the feature maps between them, in the channels_last format.

    The results stay the same up to rounding, and on many processors a step gets faster. mmcv's own operators, such as
    RoIAlign, silently read such a map in the wrong order (open-mmlab/mmcv#2203), so they get contiguous ones.
    """

    def __init__(self):
        self._converted = None

    # Not in before_run: random weights are drawn after it, and in another format they would be others.
    def before_train(self, runner: Runner) -> None:
        if self._converted is not runner.model:
            to_channels_last(runner.model)
            self._converted = runner.model
            # A resumed optimizer brings the format in which its state was saved.
            wrapper = getattr(runner, 'optim_wrapper', None)
            for part in wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]:
                if isinstance(part, OptimWrapper):
                    align_state(part.optimizer)

    before_val = before_test = before_train

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save the state of the optimizer in the usual format, so that a run without this hook can resume from it."""
        if 'optimizer' in checkpoint:
            checkpoint['optimizer'] = tree_map_only(Tensor, Tensor.contiguous, checkpoint['optimizer'])


@HOOKS.register_module()
class CompileHook(Hook):
    """Hook that compiles backbone and neck for training and testing with ``torch.compile``.

    mmengine's own switch, ``compile=True``, compiles the whole training step. The heads of detectors cannot be traced
    as a whole, so that this ends in about a hundred small graphs and minutes of compilation. The parts compiled here
    do nearly all of the arithmetic, and the names in checkpoints stay the same.

    Args:
        parts: Attributes of the model.
        **options: Arguments of ``torch.compile``, such as ``dynamic`` or ``mode``.
    """

    def __init__(self, parts: Sequence[str] = ('backbone', 'neck'), **options):
        self.parts, self.options = tuple(parts), options

    def before_run(self, runner: Runner) -> None:
        """Raise AttributeError if the model has none of the parts."""
        model = unwrap(runner.model)
        parts = [getattr(model, name) for name in self.parts if getattr(model, name, None) is not None]
        if not parts:
            raise AttributeError(f'CompileHook: {type(model).__name__} has none of the parts {", ".join(self.parts)}')
        for part in parts:
            part.compile(**self.options)


@HOOKS.register_module()
class ShortcutsHook(Hook):
    """Hook that replaces layers of a detector or segmentor by ones that compute the same with less arithmetic.

    See :func:`mmcasvit.models.shortcuts.take_shortcuts`. The results stay the same up to rounding, and the names in
    checkpoints stay the same.
    """

    def before_run(self, runner: Runner) -> None:
        take_shortcuts(unwrap(runner.model))


def keep_freed_memory() -> None:
    """Make the C library keep freed memory for this process, instead of returning it to the system.

    A pass through a model frees most of its maps, and the next one needs as many. By default, glibc gets the large ones
    from the system each time, which fills every page with zeros when it is first touched. With other C libraries,
    nothing changes.
    """
    if platform.libc_ver()[0] == 'glibc':
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)  # no block of its own for a large tensor
        libc.mallopt(_M_TRIM_THRESHOLD, -1)  # and the end of the heap is never returned


@HOOKS.register_module()
class KeepMemoryHook(Hook):
    """Hook that keeps freed memory in the process, see :func:`keep_freed_memory`."""

    def before_run(self, runner: Runner) -> None:
        keep_freed_memory()
