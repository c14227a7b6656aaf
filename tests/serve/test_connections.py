"""Connections that do nothing are closed, and do not keep others out."""

import asyncio
import socket
import time
from contextlib import asynccontextmanager

import pytest

from mmcasvit.serve import connections
from mmcasvit.serve.limits import Limits

uvicorn = pytest.importorskip('uvicorn')
GET = b'GET / HTTP/1.1\r\nHost: x\r\n\r\n'


async def hello(scope, receive, send):
    """Answer with three bytes, or to /slow after 60 s, or to /large with more than the sockets' buffers hold."""
    if scope['path'] == '/slow':
        await asyncio.sleep(60)
    await send(dict(type='http.response.start', status=200, headers=[]))
    await send(dict(type='http.response.body', body=bytes(2**26) if scope['path'] == '/large' else b'abc'))


@asynccontextmanager
async def listening(**limits):
    """Yield a server in this process and a function that connects to it."""
    config = connections.configure(hello, Limits(**limits))
    config.lifespan, config.log_config = 'off', None
    server = uvicorn.Server(config)
    with socket.create_server(('127.0.0.1', 0)) as sock:
        running = asyncio.create_task(server._serve([sock]))
        address = sock.getsockname()
        while not server.started:
            await asyncio.sleep(0.01)

        async def connect(data=b''):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(data)
            await writer.drain()
            return reader, writer

        yield server, connect
        server.should_exit = True
        await running


async def ended(reader, seconds=5):
    """Return whether the server closes a connection within some seconds."""
    try:
        await asyncio.wait_for(reader.read(), seconds)
    except ConnectionResetError:
        return True
    except asyncio.TimeoutError:
        return False
    return True


@pytest.mark.parametrize(
    'data',
    [b'', b'GET / HT', GET + b'GET /', b'GET /slow HTTP/1.1\r\nHost: x\r\n\r\n'],
    ids=['silent', 'half', 'second', 'no answer'],
)
def test_a_connection_that_does_nothing_is_closed(data):
    async def run():
        async with listening(timeout=0.3) as (server, connect):
            reader, writer = await connect(data)
            closed = await ended(reader)
            writer.close()
            return closed, len(server.server_state.connections)

    assert asyncio.run(run()) == (True, 0)


def test_headers_that_trickle_in_are_cut_off():
    async def run():
        async with listening(timeout=0.5) as (_server, connect):
            _, writer = await connect(b'GET / HTTP/1.1\r\n')
            begin = time.monotonic()
            try:
                while time.monotonic() < begin + 10:
                    writer.write(b'X: y\r\n')
                    await writer.drain()
                    await asyncio.sleep(0.05)
            except ConnectionError:
                pass
            return time.monotonic() - begin

    assert 0.4 < asyncio.run(run()) < 5


def test_an_answer_that_nobody_reads_is_given_up():
    async def run():
        async with listening(timeout=0.3) as (server, connect):
            _, writer = await connect(b'GET /large HTTP/1.1\r\nHost: x\r\n\r\n')
            await asyncio.sleep(0.2)
            begun, begin = len(server.server_state.connections), time.monotonic()
            while server.server_state.connections and time.monotonic() < begin + 10:
                await asyncio.sleep(0.05)
            writer.transport.abort()
            return begun, len(server.server_state.connections)

    assert asyncio.run(run()) == (1, 0)


def test_half_open_connections_do_not_keep_others_out():
    """The oldest idle ones make room."""

    async def run():
        async with listening(max_waiting=1) as (server, connect):
            limit = Limits(max_waiting=1).max_connections
            half = [await connect(b'GET /' * (i % 2)) for i in range(2 * limit)]
            reader, writer = await connect(GET)
            answer = await asyncio.wait_for(reader.readuntil(b'abc'), 10)
            count = len(server.server_state.connections)
            oldest, newest = await ended(half[0][0]), await ended(half[-1][0], 0.1)
            for _, one in [*half, (reader, writer)]:
                one.transport.abort()
            return answer, count, limit, oldest, newest

    answer, count, limit, oldest, newest = asyncio.run(run())
    assert answer.startswith(b'HTTP/1.1 200')
    assert count == limit == 68
    assert (oldest, newest) == (True, False)


def test_busy_connections_are_kept_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(Limits, 'max_connections', 2)

    async def run():
        async with listening() as (server, connect):
            busy = [await connect(b'GET /slow HTTP/1.1\r\nHost: x\r\n\r\n') for _ in range(2)]
            while len(server.server_state.tasks) < 2:
                await asyncio.sleep(0.01)
            reader, _ = await connect(GET)
            refused, kept = await ended(reader), len(server.server_state.connections)
            for _, writer in busy:
                writer.transport.abort()
            for task in list(server.server_state.tasks):
                task.cancel()
            return refused, kept

    assert asyncio.run(run()) == (True, 2)


def test_a_request_that_does_not_end_holds_up_the_end_for_a_few_seconds_only(monkeypatch):
    monkeypatch.setattr(connections, 'SHUTDOWN_SECONDS', 1)

    async def run():
        async with listening(timeout=30) as (server, connect):
            await connect(b'GET /slow HTTP/1.1\r\nHost: x\r\n\r\n')
            await connect(b'GET /sl')
            while not server.server_state.tasks:
                await asyncio.sleep(0.01)
            begin = time.monotonic()
        return time.monotonic() - begin

    assert 0.9 < asyncio.run(run()) < 8


def test_an_ordinary_connection_is_kept_alive():
    async def run():
        async with listening(timeout=2) as (_, connect):
            reader, writer = await connect()
            answers = []
            for _ in range(3):
                writer.write(GET)
                answers.append(await asyncio.wait_for(reader.readuntil(b'abc'), 5))
                await asyncio.sleep(0.9)
            writer.close()
            return answers

    assert all(b'HTTP/1.1 200' in answer for answer in asyncio.run(run()))
