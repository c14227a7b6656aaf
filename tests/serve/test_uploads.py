"""Open requests are counted from their headers on, and a slow upload makes room for others."""

import asyncio
import json

import pytest

from mmcasvit.serve import uploads
from mmcasvit.serve.limits import Limits
from mmcasvit.serve.uploads import BoundedBody, OpenRequests
from mmcasvit.utils.errors import UsageError

fastapi = pytest.importorskip('fastapi')
pytest.importorskip('python_multipart')


def counting_app(**limits):
    """Return an application that answers with the size of the upload, and the count of its requests."""
    app, requests = fastapi.FastAPI(), OpenRequests(Limits(**limits))
    app.add_middleware(BoundedBody, requests=requests)

    @app.post('/predict')
    async def predict(image: fastapi.UploadFile) -> int:
        return image.size

    return app, requests


BEGIN = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
END = b'\r\n--x--\r\n'


async def post(app, body):
    """Post a body piece by piece over ASGI, and return status and answer."""
    answer = {}

    async def receive():
        try:
            return dict(type='http.request', body=await anext(body), more_body=True)
        except StopAsyncIteration:
            return dict(type='http.request', body=b'', more_body=False)

    async def send(message):
        answer['status'] = answer.get('status') or message.get('status')
        answer['body'] = answer.get('body', b'') + message.get('body', b'')

    headers = [(b'content-type', b'multipart/form-data; boundary=x')]
    scope = dict(type='http', method='POST', path='/predict', query_string=b'', http_version='1.1', headers=headers)
    await app(scope, receive, send)
    return answer['status'], json.loads(answer['body'])


async def whole():
    yield BEGIN + b'123' + END


async def until(event, size=0):
    """Upload some bytes, and the rest when the event is set."""
    yield BEGIN + bytes(size)
    await event.wait()
    yield END


def test_an_upload_in_progress_counts():
    async def run():
        app, requests = counting_app(max_waiting=2)
        event = asyncio.Event()
        open_ones = [asyncio.create_task(post(app, until(event, 5))) for _ in range(2)]
        await asyncio.sleep(0.05)
        counted, refused = len(requests), await post(app, whole())
        event.set()
        answers = await asyncio.gather(*open_ones)
        return counted, refused, answers, await post(app, whole()), len(requests)

    counted, refused, answers, later, left = asyncio.run(run())
    assert counted == 2
    assert refused == (503, dict(detail='2 requests are waiting already: try again later.'))
    assert answers == [(200, 5)] * 2
    assert later == (200, 3)
    assert left == 0


def test_the_slowest_upload_makes_room_when_all_places_are_taken(monkeypatch):
    monkeypatch.setattr(uploads, 'PATIENCE', 0.1)

    async def run():
        app, requests = counting_app(max_waiting=3)
        event = asyncio.Event()
        begun = []
        for size in (2**18, 10, 2000):  # 2**18 bytes are ahead of the slowest rate for 16 s
            begun.append(asyncio.create_task(post(app, until(event, size))))
        await asyncio.sleep(0.4)
        answers = [await post(app, whole()), await post(app, whole())]
        done = [task.done() for task in begun]
        event.set()
        return answers, done, await asyncio.gather(*begun), len(requests)

    answers, done, begun, left = asyncio.run(run())
    assert answers == [(200, 3)] * 2
    assert done == [False, True, False]  # one place was enough for both, one after the other
    assert begun[1] == (408, dict(detail='the upload was too slow while others were waiting: try again later.'))
    assert [begun[0], begun[2]] == [(200, 2**18), (200, 2000)]
    assert left == 0


def test_a_client_that_disconnects_or_fails_gives_its_place_back():
    async def run():
        app, requests = counting_app(max_waiting=1)
        task = asyncio.create_task(post(app, until(asyncio.Event())))
        await asyncio.sleep(0.05)
        counted = len(requests)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return counted, len(requests)

    assert asyncio.run(run()) == (1, 0)


@pytest.mark.parametrize(
    'wrong',
    [
        dict(timeout=float('nan')),
        dict(timeout=float('inf')),
        dict(timeout=-1),
        dict(timeout=1e300),
        dict(max_delay_ms=float('nan')),
        dict(max_delay_ms=float('inf')),
        dict(max_delay_ms=-0.1),
        dict(max_waiting=0),
        dict(max_bytes=-1),
    ],
    ids=str,
)
def test_numbers_that_are_no_limits_are_refused(wrong):
    with pytest.raises(UsageError, match=r'must be at least (1|0 and at most 60000 ms, .* above 0 and at most 86400)'):
        Limits(**wrong)
