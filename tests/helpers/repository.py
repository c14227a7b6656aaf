"""The repository: its folders, its tools as modules, small variants of its configs."""

import functools
import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Real photographs that a developer may have beside the project; tests that use them skip without.
REAL_DATA = ROOT.parent / 'shared' / 'data'
# What a config takes from another one to have a backbone small enough for a test to train.
TINY = """
_base_ = {base!r}
model = dict(
    backbone=dict(arch=dict(_delete_=True, depths=(1, 1, 1, 1), channels={channels})),
    neck=dict(in_channels={channels}))
"""


def write_tiny_config(path, base, channels=(8, 12, 16, 24)):
    path.write_text(TINY.format(base=str(base), channels=list(channels)))
    return path


@functools.cache  # what a script registers can be registered once
def load_tool(name, folder='tools'):
    """A script of ``tools/`` as a module: to run it in this process spares the seconds that the imports take."""
    spec = importlib.util.spec_from_file_location(f'{name}_tool', ROOT / folder / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
