"""Make ``import mmcv._ext`` find the stand-in where mmcv was installed without its compiled operators."""

import importlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from .libraries import torchvision_version

_NAME = 'mmcv._ext'
_STAND_IN = Path(__file__).with_name('extension.py')
COMPILED = 'compiled mmcv'


class _StandInFinder(MetaPathFinder):
    """Finder of the stand-in. As the last one of Python, it is asked only if no compiled module was found."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(fullname, _STAND_IN) if fullname == _NAME else None


def _placeholders() -> list[tuple[ModuleType, str, object]]:
    """Return the functions and classes of mmdet that only raise, with the operators that belong in their place.

    onedl-mmdetection defines them if ``mmcv.ops`` cannot be imported, so if it was imported before this package.
    """
    found = []
    for module in [module for name, module in sys.modules.items() if name.startswith('mmdet.')]:
        for name, value in vars(module).items():
            if getattr(value, '__module__', None) == module.__name__:
                function = vars(value).get('__init__') if isinstance(value, type) else value
                constants = getattr(getattr(function, '__code__', None), 'co_consts', ())
                message = ' '.join(part for part in constants if isinstance(part, str))
                match = re.match(r'(\w+) requires mmcv to be compiled', message)
                if match and hasattr(operators := importlib.import_module('mmcv.ops'), match[1]):
                    found.append((module, name, getattr(operators, match[1])))
    return found


def install_operators() -> None:
    """Let ``mmcv.ops`` import the stand-in if mmcv has no compiled operators. Those it has stay in use."""
    if not any(isinstance(finder, _StandInFinder) for finder in sys.meta_path):
        sys.meta_path.append(_StandInFinder())
    if operators_in_use() == COMPILED:
        return
    for module, name, operator in _placeholders():
        setattr(module, name, operator)


def operators_in_use() -> str:
    """Return which implementation of the operators ``mmcv.ops`` uses, in words for a log."""
    spec = importlib.util.find_spec(_NAME)
    if spec is None or spec.origin != str(_STAND_IN):
        return COMPILED
    version = torchvision_version()
    return f'torchvision {version} and PyTorch (mmcv is not compiled)' if version else 'PyTorch (mmcv is not compiled)'
