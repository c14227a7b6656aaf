import sys

import pytest

from mmcasvit import CASViT
from mmcasvit.benchmark.memory import peak_memory
from mmcasvit.benchmark.variants import Variant


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='read from the kernel of Linux')
def test_memory_of_a_pass():
    size = (128, 128)
    infer, train, recomputed = (
        peak_memory(Variant(name, mode=mode, size=size))
        for name, mode in [('xs', 'infer'), ('xs', 'train'), ('xs:with_cp=True', 'train')]
    )
    weights = sum(t.numel() * t.element_size() for t in CASViT('xs').state_dict().values())
    assert infer.weights == train.weights == weights
    assert infer.above >= 32 * 32 * 192 * 4, 'the MLP of the first stage alone holds this'
    assert train.above > 2 * infer.above
    assert recomputed.above < 0.8 * train.above
    assert train.total == train.above + weights
