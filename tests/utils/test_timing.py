import time

import pytest
import torch

from mmcasvit.utils.timing import Limit, fit_exponent, interleave, matmul_limit, multiplies_fast, ratio, spread


def test_spreads_and_ratios():
    assert spread([3.0]) == spread([3.0, 3.0, 3.0])
    found = spread([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)
    # One round at half the speed for both: round by round the ratio is 2 throughout.
    assert ratio([2.0, 4.0, 8.0], [1.0, 2.0, 4.0]) == spread([2.0])


@pytest.mark.parametrize('exponent', [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_found(exponent):
    x = [256.0**2, 512.0**2, 1536.0**2]
    assert fit_exponent(x, [7 * value**exponent for value in x]) == pytest.approx(exponent)


def test_an_exponent_needs_two_sizes():
    with pytest.raises(ValueError, match='two different'):
        fit_exponent([64.0, 64.0], [1.0, 2.0])


def test_runs_take_turns_in_alternating_order():
    order = []
    runs = {name: lambda name=name: order.append(name) or len(order) for name in 'abc'}
    assert interleave(runs, 2) == dict(a=[1, 6], b=[2, 5], c=[3, 4])
    assert ''.join(order) == 'abccba'


@pytest.mark.parametrize('seconds, fast', [(0.0, True), (0.02, False)])
def test_products_may_be_slower_than_in_fp32(seconds, fast, monkeypatch):
    pauses = dict(fp32=0.01, int8=seconds)
    monkeypatch.setattr(
        'mmcasvit.utils.timing.matmul_limit', lambda device, name: Limit(lambda: time.sleep(pauses[name]), 1.0)
    )
    multiplies_fast.cache_clear()
    assert multiplies_fast('cpu', 'fp32')
    assert multiplies_fast('cpu', 'int8') == fast
    multiplies_fast.cache_clear()


def test_the_limit_of_int8_multiplies_int8_into_int32():
    limit = matmul_limit('cpu', 'int8')
    assert (limit.run().dtype, limit.amount) == (torch.int32, 1024.0**3)
