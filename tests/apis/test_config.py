"""Loading configs: clear errors for a framework that is missing or broken."""

import importlib
import sys
from types import SimpleNamespace

import pytest
from helpers.configs import needs_mmpretrain
from helpers.repository import ROOT

from mmcasvit.apis.config import load_config
from mmcasvit.utils.errors import UsageError

SHAPES = ROOT / 'configs/classification/casvit-xs_8e_shapes.py'


def test_a_missing_mmpretrain_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmpretrain', None)
    with pytest.raises(UsageError, match=r'needs mmpretrain, which is not .*pip install "mmcasvit\[classification\]"'):
        load_config(SHAPES)
    monkeypatch.setitem(sys.modules, 'mmpretrain.datasets.transforms', None)
    monkeypatch.delitem(sys.modules, 'mmcasvit.datasets.multi_scale', raising=False)
    with pytest.raises(ImportError, match=r'pip install "mmcasvit\[classification\]"'):
        importlib.import_module('mmcasvit.datasets.multi_scale')


@needs_mmpretrain
def test_the_error_names_a_torchvision_of_another_pytorch(monkeypatch):
    def fail(name):
        raise RuntimeError('operator torchvision::nms does not exist')

    monkeypatch.setattr('mmcasvit.apis.config.importlib', SimpleNamespace(util=importlib.util, import_module=fail))
    with pytest.raises(UsageError, match=r'nms does not exist\. Install the torchvision that was built for'):
        load_config(SHAPES)


def test_a_base_of_a_framework_is_found_without_its_metafiles(monkeypatch):
    monkeypatch.setattr('mmengine.config.utils.load', lambda path: pytest.fail(f'{path} was read'))
    cfg = load_config(ROOT / 'configs/detection/retinanet_casvit-xs_fpn_1x_coco.py')
    assert cfg.model.type == 'RetinaNet'
