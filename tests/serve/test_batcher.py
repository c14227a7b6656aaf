"""Batches of images, without a model."""

import asyncio

import pytest

from mmcasvit.serve.batcher import Batcher
from mmcasvit.serve.limits import Limits


def test_groups_run_apart_and_in_order():
    """Images are numbers here, and their group is their sign."""
    batches = []

    async def run():
        batcher = Batcher(
            lambda batch: (batches.append(batch), [10 * one for one in batch])[1],
            lambda one: one > 0,
            Limits(max_batch=5, max_delay_ms=1000),
        )
        async with batcher:
            return await asyncio.gather(*map(batcher, [1, -2, 3, -4, 5, 6]))

    assert asyncio.run(run()) == [(10, 3), (-20, 2), (30, 3), (-40, 2), (50, 3), (60, 1)]
    assert batches == [[1, 3, 5], [-2, -4], [6]]


@pytest.mark.parametrize('delay', [0, 20])
def test_a_batch_is_not_kept_waiting_for_longer_than_its_delay(delay):
    async def run():
        async with Batcher(lambda batch: batch, lambda one: 0, Limits(max_delay_ms=delay)) as batcher:
            clock = asyncio.get_running_loop().time
            begin = clock()
            found = await asyncio.gather(batcher('a'), batcher('b'))
            return found, clock() - begin

    found, seconds = asyncio.run(run())
    assert found == [('a', 2), ('b', 2)]
    assert delay / 1000 <= seconds < delay / 1000 + 2
