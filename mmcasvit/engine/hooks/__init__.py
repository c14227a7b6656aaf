"""Hooks, one file for each task. A hook that needs a wing of the package is in that wing's ``hook.py``."""

import importlib
import pkgutil

# mmengine imports this package when a config names a hook of mmcasvit, which registers every hook in it.
for module in pkgutil.iter_modules(__path__, f'{__name__}.'):
    importlib.import_module(module.name)
