"""Paths of the repository, its tools as modules, and small variants of its configs."""

import functools
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Real photographs that a developer may have next to the project. Tests that need them are skipped without them.
REAL_DATA = ROOT.parent / 'shared' / 'data'
# Shrinks the backbone of another config so that a test can train it.
TINY = """
_base_ = {base!r}
model = dict(
    backbone=dict(arch=dict(_delete_=True, depths=(1, 1, 1, 1), channels={channels})),
    neck=dict(in_channels={read}))
"""


def write_tiny_config(path, base, channels=(8, 12, 16, 24), stages=4):
    """Write a variant of a config with a tiny backbone, whose last stages the neck reads, and return its path."""
    path.write_text(TINY.format(base=str(base), channels=list(channels), read=list(channels[-stages:])))
    return path


@functools.cache  # a script cannot register its classes twice
def load_tool(name, folder='tools'):
    """Return a script of ``tools/`` as a module, since running it in this process saves seconds of imports."""
    spec = importlib.util.spec_from_file_location(f'{name}_tool', ROOT / folder / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT / folder))  # as for a script that Python runs
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / folder))
    return module
