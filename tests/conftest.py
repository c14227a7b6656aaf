import functools
import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.logging import MMLogger

ROOT = Path(__file__).resolve().parent.parent
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
def load_tool(name):
    """A script of ``tools/`` as a module: to run it in this process spares the seconds that the imports take."""
    spec = importlib.util.spec_from_file_location(f'{name}_tool', ROOT / f'tools/{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='session')
def run_tool():
    """Runs a script of tools/, or of an absolute path, in another folder and returns the finished process."""
    def run(tool, *args, cwd, expect=0):
        command = [sys.executable, ROOT / 'tools' / tool, *args]
        environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
        done = subprocess.run([str(part) for part in command], cwd=cwd, text=True, env=environment, capture_output=True)
        assert done.returncode == expect, f'{done.stdout[-4000:]}\n{done.stderr[-4000:]}'
        return done
    return run


@pytest.fixture(scope='session')
def shapes(tmp_path_factory):
    """A small made-up data set."""
    from mmcasvit.shapes import write_dataset
    root = tmp_path_factory.mktemp('data') / 'shapes'
    write_dataset(root, train=8, val=4, seed=1, height=64, width=96)
    return root


@pytest.fixture(autouse=True)
def _quiet_logger():
    """mmengine keeps loggers of every runner open; a test must not write into another's folder."""
    yield
    for logger in list(MMLogger._instance_dict.values()):
        for handler in list(logger.handlers):
            if isinstance(handler, logging.FileHandler):
                logger.removeHandler(handler)
                handler.close()
