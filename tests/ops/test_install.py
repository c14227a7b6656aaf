"""When the stand-in is used, and what it says about operators that it lacks."""

import subprocess
import sys

import pytest

from mmcasvit.ops.install import COMPILED, operators_in_use

# Hides the operators of an mmcv that has them, in a Python of its own.
HIDE = """
import importlib.machinery, sys
class Hidden(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == 'mmcv._ext' else super().find_spec(name, path, target)
sys.meta_path[:] = [Hidden if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
"""


def run_python(code):
    """Return what a program prints in a Python where mmcv has no compiled operators."""
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', HIDE + code], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout


def test_without_compiled_operators_mmcv_uses_those_of_mmcasvit():
    printed = run_python("""
try:
    import mmcv.ops
except ModuleNotFoundError as error:
    print(error)
import mmcasvit
print('torchvision' in sys.modules, 'mmcv.ops' in sys.modules)
import mmcv.ops, torch
from mmcasvit.ops import operators_in_use
print('mmcv is not compiled' in operators_in_use())
boxes = torch.tensor([[0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 30, 30.0]])
print(mmcv.ops.nms(boxes, torch.tensor([0.5, 0.9, 0.7]), 0.5)[1].tolist())
from mmcv.utils.ext_loader import check_ops_exist
from mmengine.utils.dl_utils.misc import mmcv_full_available
print(check_ops_exist(), mmcv_full_available(), mmcv.ops.get_compiler_version())
""")
    assert printed.splitlines() == [
        "No module named 'mmcv._ext'",
        'False False',
        'True',
        '[1, 2]',
        'True True none: operators of mmcasvit',
    ]


def test_an_operator_that_is_missing_says_so_when_it_is_called():
    printed = run_python("""
import mmcasvit, torch
from mmcv.ops import carafe
try:
    carafe(torch.zeros(1, 4, 3, 3), torch.zeros(1, 9, 6, 6), 3, 1, 2)
except NotImplementedError as error:
    print(error)
""")
    assert printed.startswith('carafe_forward: ')
    assert 'make setup OPS=compiled' in printed
    assert 'MMCV_WITH_OPS=1 pip install --no-build-isolation' in printed


def test_an_mmdet_that_was_imported_before_gets_the_operators():
    """onedl-mmdetection puts functions that raise in the place of operators; other releases cannot be imported."""
    printed = run_python("""
try:
    import mmdet.structures.mask.structures as masks
except ModuleNotFoundError:
    print('mmcv.ops.roi_align')
else:
    before = masks.roi_align
    import mmcasvit
    from mmcv.ops import roi_align
    assert masks.roi_align is not before and masks.roi_align == roi_align
    print('mmcv.ops.roi_align')
""")
    assert printed.splitlines()[-1] == 'mmcv.ops.roi_align'


def test_compiled_operators_stay_in_use(compiled):
    import mmcv.ops  # noqa: F401

    assert operators_in_use() == COMPILED
    assert not compiled.__file__.endswith('.py')
    assert sys.modules['mmcv.ops.nms'].ext_module is sys.modules['mmcv.ops.roi_align'].ext_module is compiled


@pytest.mark.parametrize('name', ['nms', 'roi_align_forward', 'anything_else'])
def test_the_stand_in_has_every_name(name):
    from mmcasvit.ops import extension

    assert callable(getattr(extension, name))
    assert not hasattr(extension, '__wrapped__')
