from types import SimpleNamespace

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch.testing import assert_close

from mmcasvit.utils.plain import plain


def test_plain_data_is_read_without_executing_a_pickle(tmp_path):
    found = BaseDataElement(
        labels=torch.tensor([1, 2]),
        boxes=SimpleNamespace(tensor=torch.ones(2, 4)),
        masks=SimpleNamespace(to_ndarray=lambda: np.ones((2, 3, 3), np.uint8)),
    )
    value = dict(found=found, shape=(3, np.int64(4)), names=np.array(['a']), none=None)
    torch.save(plain(value), tmp_path / 'plain.pth')
    read = torch.load(tmp_path / 'plain.pth', weights_only=True)
    assert_close(read['found']['labels'], torch.tensor([1, 2]))
    assert_close(read['found']['boxes'], torch.ones(2, 4))
    assert_close(read['found']['masks'], torch.ones(2, 3, 3, dtype=torch.uint8))
    assert (read['shape'], read['names'], read['none']) == ([3, 4], repr(value['names']), None)


def test_plain_copies_arrays():
    array = np.zeros(2)
    copied = plain([array])[0]
    array += 1
    assert_close(copied, torch.zeros(2, dtype=torch.float64))
