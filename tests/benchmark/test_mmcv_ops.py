import sys

import pytest
import torch

from mmcasvit.benchmark import mmcv_ops
from mmcasvit.ops import extension
from mmcasvit.ops.install import COMPILED, operators_in_use
from mmcasvit.utils.errors import UsageError


def test_operators_are_replaced_inside_the_context_only():
    import mmcv.ops

    boxes, scores = torch.tensor([[0, 0, 9, 9], [0, 0, 9, 8.0]]), torch.tensor([0.5, 0.9])
    nms = sys.modules['mmcv.ops.nms']
    before, called = nms.ext_module, []

    class Operators:
        @staticmethod
        def nms(*args, **kwargs):
            called.append(kwargs)
            return extension.nms(*args, **kwargs)

    with mmcv_ops.using(Operators):
        assert mmcv.ops.nms(boxes, scores, 0.5)[1].tolist() == [1]
    assert called == [dict(iou_threshold=0.5, offset=0)]
    assert nms.ext_module is before


@pytest.mark.skipif(operators_in_use() == COMPILED, reason='mmcv has compiled operators')
def test_without_compiled_operators_there_is_nothing_to_compare_with():
    with pytest.raises(UsageError, match='make setup OPS=compiled'):
        mmcv_ops.mmcv_ops_text([], 1, 'cpu', 1)


@pytest.mark.skipif(operators_in_use() != COMPILED, reason='mmcv has no compiled operators')
def test_each_operator_gets_a_row(monkeypatch):
    from mmcv.ops import nms

    boxes, scores = torch.rand(30, 4).sort(1)[0], torch.rand(30)
    monkeypatch.setattr(mmcv_ops, 'cases', lambda device: {'nms of 30 boxes': lambda: nms(boxes, scores, 0.5)})
    text = mmcv_ops.mmcv_ops_text([], 2, 'cpu', 1)
    assert text.startswith('medians of 2 rounds in alternating order, 1 thread, on ')
    name, *numbers = text.splitlines()[-1].strip('| ').split(' | ')
    assert name == 'nms of 30 boxes'
    assert all(float(number.split()[0]) > 0 for number in numbers)
