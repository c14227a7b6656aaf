"""Hooks that make training and testing faster."""

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmcasvit.models.memory_format import to_channels_last
from mmcasvit.models.wrappers import unwrap
from mmcasvit.registry import HOOKS


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Keeps the model's convolutions, and so the maps between them, in PyTorch's channels_last memory format.

    The numbers stay the same up to rounding; on many processors the step gets faster. mmcv's own operators, such as
    RoIAlign, read such a map in the wrong order without a word (open-mmlab/mmcv#2203), so they are given contiguous
    ones.
    """

    def __init__(self):
        self._converted = None

    # Not before_run: weights are initialized after it, and random ones would be another draw in another format.
    def before_train(self, runner: Runner) -> None:
        if self._converted is not runner.model:
            to_channels_last(runner.model)
            self._converted = runner.model

    before_val = before_test = before_train


@HOOKS.register_module()
class CompileHook(Hook):
    """Compiles backbone and neck for training and testing with ``torch.compile``.

    mmengine's own switch, ``compile=True``, compiles the whole training step. In detectors, whose heads hold much that
    cannot be traced, that ends in a hundred small pieces and minutes of waiting for each. The parts compiled here hold
    nearly all of the arithmetic, and the names in checkpoints stay.

    Args:
        parts: attributes of the model.
        **options: of ``torch.compile``, such as ``dynamic`` or ``mode``.
    """

    def __init__(self, parts: Sequence[str] = ('backbone', 'neck'), **options):
        self.parts, self.options = tuple(parts), options

    def before_run(self, runner: Runner) -> None:
        """Raises AttributeError where the model lacks all of the parts."""
        model = unwrap(runner.model)
        parts = [getattr(model, name) for name in self.parts if getattr(model, name, None) is not None]
        if not parts:
            raise AttributeError(f'CompileHook: {type(model).__name__} has none of the parts {", ".join(self.parts)}')
        for part in parts:
            part.compile(**self.options)
