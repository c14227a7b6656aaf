"""Middleware that counts the open requests, and ends uploads that are too large or too slow as they are received."""

import asyncio
import time
from dataclasses import dataclass, field

from mmcasvit.utils.errors import Refused

from .limits import Limits

# Room for the boundaries and headers of a multipart form around the file.
FORM_BYTES = 2**14
# When all places are taken, a new request may replace an upload slower than this, in bytes per second, after some
# seconds to begin with.
SLOWEST_UPLOAD, PATIENCE = 2**14, 1.0


@dataclass(eq=False)
class Upload:
    """Body of a request that is being received.

    Attributes:
        begin: Time at which it began.
        received: Number of bytes so far.
        receiving: The next part, while it is awaited.
    """

    begin: float = field(default_factory=time.monotonic)
    received: int = 0
    receiving: asyncio.Future | None = None

    def lag(self) -> float:
        """Return how many seconds it is behind the slowest rate that is tolerated when all places are taken."""
        return time.monotonic() - self.begin - PATIENCE - self.received / SLOWEST_UPLOAD

    @property
    def stalled(self) -> bool:
        return self.receiving is not None and not self.receiving.done() and self.lag() > 0


class OpenRequests:
    """Predictions in progress, each from its headers to its answer, of which there are at most ``max_waiting``.

    Args:
        limits: Limits of the server.
    """

    def __init__(self, limits: Limits):
        self.limits, self.uploads = limits, set()

    def __len__(self) -> int:
        return len(self.uploads)

    def admit(self, upload: Upload) -> None:
        """Count a request. If there are too many, end the upload that lags behind most to make room.

        Raises:
            Refused: If there are too many, and none of them is a slow upload.
        """
        if len(self) >= self.limits.max_waiting:
            stalled = [one for one in self.uploads if one.stalled]
            if not stalled:
                raise Refused(503, f'{len(self)} requests are waiting already: try again later.')
            slowest = max(stalled, key=Upload.lag)
            slowest.receiving.cancel()
            self.leave(slowest)
        self.uploads.add(upload)

    def leave(self, upload: Upload) -> None:
        self.uploads.discard(upload)


class BoundedBody:
    """ASGI middleware that admits requests and bounds the size and the duration of their bodies.

    Args:
        app: ASGI application.
        requests: Count of the open requests.
    """

    def __init__(self, app, requests: OpenRequests):
        self.app, self.requests, self.limits = app, requests, requests.limits

    async def __call__(self, scope, receive, send) -> None:
        if scope['type'] != 'http':
            return await self.app(scope, receive, send)
        from fastapi.responses import JSONResponse

        upload = Upload()
        if (scope['method'], scope['path']) == ('POST', '/predict'):
            try:
                self.requests.admit(upload)
            except Refused as error:
                answer = JSONResponse(dict(detail=str(error)), error.status, {'Retry-After': '1'})
                return await answer(scope, receive, send)

        async def send_and_leave(message):
            if message['type'] == 'http.response.body' and not message.get('more_body'):
                self.requests.leave(upload)  # a client that reads its answer slowly takes nobody's place
            await send(message)

        try:
            await self.app(scope, self._bounded(scope, receive, upload), send_and_leave)
        finally:
            self.requests.leave(upload)

    def _bounded(self, scope, receive, upload: Upload):
        """Return a ``receive`` that enforces the limits on a body."""
        from fastapi import HTTPException  # the only exception that FastAPI passes on while it reads a form

        announced = int(dict(scope['headers']).get(b'content-length', 0))
        limit, more = self.limits.max_bytes + FORM_BYTES, True

        async def receive_some():
            nonlocal more
            if not more:
                return await receive()
            if announced > limit:
                raise HTTPException(413, self.limits.too_many_bytes)
            part = upload.receiving = asyncio.ensure_future(receive())
            try:
                await asyncio.wait({part}, timeout=upload.begin + self.limits.timeout - time.monotonic())
                if not part.done():
                    raise HTTPException(408, f'the upload took longer than {self.limits.timeout:g} s.')
            finally:
                part.cancel()  # without an effect on what has been received
            if part.cancelled():
                raise HTTPException(408, 'the upload was too slow while others were waiting: try again later.')
            message = part.result()
            upload.received += len(message.get('body', b''))
            more = message.get('more_body', False)
            if upload.received > limit:
                raise HTTPException(413, self.limits.too_many_bytes)
            return message

        return receive_some
