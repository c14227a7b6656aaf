"""Sends pictures to a server from several clients at once, and measures how long the answers take."""

import asyncio
import importlib.util
import itertools
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mmcasvit.utils.errors import UsageError


def check_client() -> None:
    """Looks for the HTTP client.

    Raises:
        UsageError: it is not installed.
    """
    if importlib.util.find_spec('httpx') is None:
        raise UsageError('the load test needs httpx: pip install "mmcasvit[serve]"')


@dataclass
class Load:
    """What came of the requests of one load test.

    Attributes:
        concurrency: clients at once; each sends its next request when the last one is answered.
        seconds: from the first request to the last answer.
        latencies: of each answer with status 200, in seconds.
        batches: with how many pictures each of these was computed, as the server says.
        errors: how many requests ended otherwise, by status or by name of the exception.
    """

    concurrency: int
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    errors: Counter = field(default_factory=Counter)

    def row(self) -> dict[str, object]:
        """For a table."""
        row = dict(
            clients=self.concurrency,
            answers=len(self.latencies),
            errors=', '.join(f'{count} x {name}' for name, count in self.errors.items()) or 0,
        )
        if not self.latencies:
            return row
        row['answers a second'] = len(self.latencies) / self.seconds
        for rank in (50, 95, 99):
            row[f'p{rank}, ms'] = 1000 * float(np.percentile(self.latencies, rank))
        return row | {'batch, mean': float(np.mean(self.batches)), 'batch, largest': max(self.batches)}


async def send_load(client, images: Sequence[tuple[str, bytes]], concurrency: int, requests: int) -> Load:
    """Sends requests, each client one after the other.

    Args:
        client: an ``httpx.AsyncClient`` that knows the address of the server.
        images: name and content of files, sent in turns.
        concurrency: how many clients there are.
        requests: how many are sent by all of them together.
    """
    load, turns = Load(concurrency), itertools.islice(itertools.cycle(images), requests)

    async def one_client(mine: Iterable[tuple[str, bytes]]) -> None:
        for image in mine:
            begin = time.perf_counter()
            try:
                response = await client.post('/predict', files=dict(image=image))
            except Exception as error:  # httpx has many
                load.errors[type(error).__name__] += 1
                continue
            if response.status_code == 200:
                load.latencies.append(time.perf_counter() - begin)
                load.batches.append(int(response.headers['X-Batch-Size']))
            else:
                load.errors[response.status_code] += 1

    begin = time.perf_counter()
    await asyncio.gather(*(one_client(turns) for _ in range(concurrency)))  # all take from the same turns
    load.seconds = time.perf_counter() - begin
    return load


async def measure_server(
    url: str, images: Sequence[tuple[str, bytes]], concurrencies: Sequence[int], requests: int, timeout: float
) -> list[Load]:
    """Tests a server with one number of clients after the other, each after a few requests that do not count.

    Raises:
        UsageError: there is no such server, or it does not answer the first picture.
    """
    check_client()
    import httpx

    limits = httpx.Limits(max_connections=None)
    try:
        client = httpx.AsyncClient(base_url=url, timeout=timeout, limits=limits)
    except httpx.InvalidURL as error:
        raise UsageError(f'{url!r} is no address: {error}. Give one such as http://127.0.0.1:8000.') from error
    async with client:
        try:
            first = await client.post('/predict', files=dict(image=images[0]))
        except httpx.HTTPError as error:
            raise UsageError(f'no answer from {url}: {error}. Start tools/serve.py, or give its address.') from error
        if first.status_code != 200 or 'X-Batch-Size' not in first.headers:
            raise UsageError(
                f'{url} is no tools/serve.py or does not take {images[0][0]}: it answered with '
                f'{first.status_code}: {first.text[:500]}'
            )
        loads = []
        for concurrency in concurrencies:
            await send_load(client, images, concurrency, 2 * concurrency)
            loads.append(await send_load(client, images, concurrency, requests))
        return loads
