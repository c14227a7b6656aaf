"""Messages of the OpenMMLab packages that say nothing about a run, and that the tools do not show."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.logging import print_log

_TEXTS = (
    'Could not import OneDL',
    'faster_coco_eval is not installed',
    'Failed to load image Python extension',
    'Failed to search registry with scope',
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    # mmseg says these of its own defaults.
    'Default ``avg_non_ignore`` is False',
    '`reduce_zero_label` will be deprecated',
    'The prefix is not set in metric class',
    # PyTorch's, of anchors of mmdet.
    'torch.meshgrid: in an upcoming release',
    # mmengine's, of every file that an inferencer reads.
    'Loads checkpoint by safe_file backend',
    # mmengine's, of an inferencer, whose drawings are not written by its backends.
    'please provide the `save_dir` argument',
    # mmengine's, of a predicted box that it cuts at the border of the image.
    'is out of bounds, the drawn',
    # OpenMMLab's own mmengine reloads that package each time it asks what is installed.
    'pkg_resources is deprecated as an API',
    # OpenMMLab's own mmseg builds its losses by this function.
    '``build_loss`` would be deprecated',
)


def is_harmless(message: object) -> bool:
    """Return whether a message is known to say nothing about a run."""
    return any(text in str(message) for text in _TEXTS)


@contextmanager
def harmless_hidden() -> Iterator[None]:
    """Hide these messages, also from packages that print them when they are imported."""

    def print_others(msg, *args, **kwargs) -> None:
        if not is_harmless(msg):
            print_log(msg, *args, **kwargs)

    names = ('mmengine.logging', 'mmengine.runner.checkpoint')  # the second has its own reference
    modules = [sys.modules[name] for name in names if name in sys.modules]
    for module in modules:
        vars(module)['print_log'] = print_others
    try:
        with warnings.catch_warnings():
            for text in _TEXTS:
                warnings.filterwarnings('ignore', message=f'.*{text}')
            yield
    finally:
        for module in modules:
            vars(module)['print_log'] = print_log
