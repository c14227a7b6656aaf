"""The soak test notices leaks. The soak test itself takes an hour: docs/reference/robustness-tests.md."""

import mmap
import os

import numpy as np
import pytest
import torch
from helpers.repository import load_tool
from PIL import Image

pytestmark = pytest.mark.skipif(not os.path.exists('/proc/self/smaps_rollup'), reason='needs /proc of Linux')


@pytest.fixture(scope='module')
def soak():
    return load_tool('soak', 'dev')


def test_handles_memory_and_shared_memory_are_measured(soak, tmp_path):
    before = soak.measure(os.getpid())
    files = [open(tmp_path / str(i), 'w') for i in range(5)]
    # Not an array, because malloc may reuse memory that the process already holds.
    memory = mmap.mmap(-1, 2**26, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for _ in range(64):
        memory.write(bytes(2**20))
    tensor = torch.ones(2**20).share_memory_()
    after = soak.measure(os.getpid())
    assert tensor.is_shared()
    for file in files:
        file.close()
    assert after['handles'] - before['handles'] >= 5
    assert after['memory'] - before['memory'] == pytest.approx(64 + 4, abs=8)
    assert after['shm_files'] - before['shm_files'] == 1
    assert after['shm'] - before['shm'] == pytest.approx(4, abs=0.1)


def test_growth_is_told_from_warm_up(soak, tmp_path):
    warming = np.array([1.0, 5, 9, 10] + [10.0] * 12)
    assert soak.growth(warming) == (10, 10)
    before, after = soak.growth(np.arange(16.0))
    assert after > before * (1 + max(soak.TOLERANCE.values()))
    curves = dict.fromkeys(soak.COLUMNS, warming) | dict(minutes=np.arange(16.0))
    soak.draw(curves, tmp_path / 'soak.png', 'title')
    assert np.asarray(Image.open(tmp_path / 'soak.png').convert('L')).std() > 5
