from concurrent.futures import ThreadPoolExecutor

import pytest

from mmcasvit.utils.ahead import map_ahead


def test_results_are_in_order_and_few_items_are_taken_ahead():
    taken = []

    def items():
        for number in range(20):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(3) as pool:
        results = map_ahead(pool, lambda number: number**2, items(), 4)
        assert next(results) == 0
        assert len(taken) == 5
        assert list(results) == [number**2 for number in range(1, 20)]


def test_an_error_arrives_with_its_item():
    def invert(number):
        return 1 / number

    with ThreadPoolExecutor(2) as pool:
        results = map_ahead(pool, invert, [2, 0, 1], 1)
        assert next(results) == 0.5
        with pytest.raises(ZeroDivisionError):
            next(results)
