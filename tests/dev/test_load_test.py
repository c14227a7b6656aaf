"""The load test counts answers, batches and errors."""

import asyncio
import importlib.util

import pytest
from helpers.repository import load_tool
from helpers.serving import image_files, serving_app, tiny_predictor

from mmcasvit.utils.errors import UsageError

tool = load_tool('load_test', 'dev')


def test_the_load_test_counts_answers_batches_and_errors(tmp_path):
    segmentor = tiny_predictor('semantic_fpn', tmp_path / 'model.pt')

    async def run():
        async with serving_app(segmentor, max_batch=4, max_delay_ms=50) as client:
            good = await tool.send_load(
                client, [('a.png', file) for file in image_files(2)], concurrency=4, requests=10
            )
            bad = await tool.send_load(
                client, [('a.png', image_files(1)[0]), ('b.png', b'text')], concurrency=1, requests=4
            )
            return good, bad, await tool.send_load(client, [('b.png', b'text')], concurrency=1, requests=3)

    good, bad, worse = asyncio.run(run())
    row = good.row()
    assert (row['clients'], row['answers'], row['errors']) == (4, 10, 0)
    assert 1 < row['batch, mean'] <= row['batch, largest'] <= 4
    assert 0 < row['p50, ms'] <= row['p95, ms'] <= row['p99, ms'] <= good.seconds * 1000
    assert row['answers a second'] == pytest.approx(10 / good.seconds)
    assert (bad.row()['answers'], bad.row()['errors']) == (2, '2 x 415')
    assert worse.row() == dict(clients=1, answers=0, errors='3 x 415')
    with pytest.raises(UsageError, match='no answer from http://127'):
        asyncio.run(tool.measure_server('http://127.0.0.1:9', [('a.png', b'')], [1], 1, timeout=5))
    with pytest.raises(UsageError, match='is not a URL'):
        asyncio.run(tool.measure_server('http://[::1', [('a.png', b'')], [1], 1, timeout=5))


def test_a_missing_client_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UsageError, match=r'httpx: pip install "mmcasvit\[serve\]"'):
        tool.check_client()
