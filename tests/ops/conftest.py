"""The compiled operators of mmcv that those of mmcasvit are compared with."""

import pytest

from mmcasvit.ops.install import COMPILED, operators_in_use


@pytest.fixture(scope='session')
def compiled():
    if operators_in_use() != COMPILED:
        pytest.skip('mmcv has no compiled operators here to compare with; compile them: make setup OPS=compiled')
    from mmcv import _ext

    return _ext
