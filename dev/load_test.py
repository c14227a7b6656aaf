"""Send images to a running tools/serve.py and print its throughput, latency, errors and batch sizes."""

import argparse
import asyncio
import importlib.util
import itertools
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mmcasvit.cli import exits_cleanly
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.images import find_images
from mmcasvit.utils.tables import markdown


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('url', help='URL of the server, such as http://127.0.0.1:8000')
    parser.add_argument('images', type=Path, metavar='IMAGE_OR_FOLDER', help='images to send in turns')
    parser.add_argument(
        '--concurrency',
        type=int,
        nargs='+',
        default=[1, 4, 16],
        metavar='N',
        help='numbers of simultaneous clients to test (default: 1 4 16)',
    )
    parser.add_argument(
        '--requests', type=int, default=200, help='requests per number of clients (default: %(default)s)'
    )
    parser.add_argument(
        '--timeout', type=float, default=60, help='seconds to wait for an answer (default: %(default)s)'
    )
    return parser.parse_args()


@dataclass
class Load:
    """Results of the requests of one load test.

    Attributes:
        concurrency: Number of clients. Each sends its next request when the previous one is answered.
        seconds: Time from the first request to the last answer.
        latencies: Seconds until each answer with status 200.
        batches: Batch size of each of these answers, as reported by the server.
        errors: Number of other outcomes, by status or by name of the exception.
    """

    concurrency: int
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    errors: Counter = field(default_factory=Counter)

    def row(self) -> dict[str, object]:
        """Return a row for a table."""
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


def check_client() -> None:
    """Check that the HTTP client is installed.

    Raises:
        UsageError: If it is not.
    """
    if importlib.util.find_spec('httpx') is None:
        raise UsageError('the load test needs httpx: pip install "mmcasvit[serve]"')


async def send_load(client, images: Sequence[tuple[str, bytes]], concurrency: int, requests: int) -> Load:
    """Send requests from several clients at once.

    Args:
        client: ``httpx.AsyncClient`` with the URL of the server.
        images: Names and contents of files, sent in turns.
        concurrency: Number of clients.
        requests: Number of requests of all clients together.
    """
    load, turns = Load(concurrency), itertools.islice(itertools.cycle(images), requests)

    async def one_client(mine: Iterable[tuple[str, bytes]]) -> None:
        for image in mine:
            begin = time.perf_counter()
            try:
                response = await client.post('/predict', files=dict(image=image))
            except Exception as error:  # httpx raises many types
                load.errors[type(error).__name__] += 1
                continue
            if response.status_code == 200:
                load.latencies.append(time.perf_counter() - begin)
                load.batches.append(int(response.headers['X-Batch-Size']))
            else:
                load.errors[response.status_code] += 1

    begin = time.perf_counter()
    await asyncio.gather(*(one_client(turns) for _ in range(concurrency)))  # all clients share one iterator
    load.seconds = time.perf_counter() - begin
    return load


async def measure_server(
    url: str, images: Sequence[tuple[str, bytes]], concurrencies: Sequence[int], requests: int, timeout: float
) -> list[Load]:
    """Test a server with each number of clients, after a few requests of warm-up.

    Raises:
        UsageError: If there is no such server, or it does not accept the first image.
    """
    check_client()
    import httpx

    limits = httpx.Limits(max_connections=None)
    try:
        client = httpx.AsyncClient(base_url=url, timeout=timeout, limits=limits)
    except httpx.InvalidURL as error:
        raise UsageError(f'{url!r} is not a URL: {error}. Give one such as http://127.0.0.1:8000.') from error
    async with client:
        try:
            first = await client.post('/predict', files=dict(image=images[0]))
        except httpx.HTTPError as error:
            raise UsageError(f'no answer from {url}: {error}. Start tools/serve.py, or give its URL.') from error
        if first.status_code != 200 or 'X-Batch-Size' not in first.headers:
            raise UsageError(
                f'{url} is not a tools/serve.py or does not accept {images[0][0]}: it answered with '
                f'{first.status_code}: {first.text[:500]}'
            )
        loads = []
        for concurrency in concurrencies:
            await send_load(client, images, concurrency, 2 * concurrency)
            loads.append(await send_load(client, images, concurrency, requests))
        return loads


@exits_cleanly
def main():
    args = parse_args()
    if min(*args.concurrency, args.requests) < 1 or args.timeout <= 0:
        raise UsageError('--concurrency and --requests must be at least 1, --timeout above 0.')
    images = [(Path(path).name, Path(path).read_bytes()) for path in find_images(args.images)[: args.requests]]
    loads = asyncio.run(measure_server(args.url, images, args.concurrency, args.requests, args.timeout))
    rows = [load.row() for load in loads]
    print(markdown(rows, columns=max(rows, key=len)))


if __name__ == '__main__':
    main()
