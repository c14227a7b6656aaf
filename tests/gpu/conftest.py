"""The device of the tests that are for a GPU."""

import os

import pytest
import torch


@pytest.fixture(scope='session')
def device():
    """Return ``'cuda'``, or ``'cpu'`` in a dry run of tools/gpu_check.py; skip the test if there is no GPU."""
    name = os.environ.get('GPU_CHECK_DEVICE', 'cuda')
    if name == 'cuda' and not torch.cuda.is_available():
        pytest.skip('no GPU is visible to PyTorch')
    return name


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch):
    """Compute fp32 convolutions in fp32: by default, PyTorch lets a GPU round their inputs to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
