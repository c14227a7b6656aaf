"""Hooks, one file for each task. A hook that needs a wing stands there, in its ``hook.py``."""

import importlib
import pkgutil

# mmengine imports this package when a config names a hook of mmcasvit; every hook in it is registered then.
for module in pkgutil.iter_modules(__path__, f'{__name__}.'):
    importlib.import_module(module.name)
