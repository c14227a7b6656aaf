"""Limits of the server, and the middleware that enforces them while an upload is being received."""

import asyncio
from dataclasses import dataclass

from PIL import Image

from mmcasvit.utils.errors import UsageError

# Room for the boundaries and headers of a multipart form around the file.
FORM_BYTES = 2**14


@dataclass(frozen=True)
class Limits:
    """Limits of a server and options of its batching.

    Attributes:
        max_batch: Maximum number of images per batch.
        max_delay_ms: Time the first image of a batch waits for others, in milliseconds.
        max_waiting: Maximum number of open requests. Further ones are refused.
        max_bytes: Maximum size of an uploaded file.
        max_pixels: Maximum number of pixels of an image, according to its header.
        timeout: Time limit in seconds for an upload, and again for the answer.
    """

    max_batch: int = 8
    max_delay_ms: float = 5
    max_waiting: int = 64
    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000
    timeout: float = 30

    def __post_init__(self):
        if min(self.max_batch, self.max_waiting, self.max_bytes, self.max_pixels) < 1:
            raise UsageError('the maximum batch, queue, file size and number of pixels must be at least 1.')
        if self.max_delay_ms < 0 or self.timeout <= 0:
            raise UsageError('the delay must be at least 0 and the timeout above 0.')
        if self.max_pixels > Image.MAX_IMAGE_PIXELS:
            raise UsageError(
                f'max_pixels must be at most {Image.MAX_IMAGE_PIXELS}, got {self.max_pixels}: Pillow treats larger '
                'images as an attack.'
            )

    @property
    def too_many_bytes(self) -> str:
        """Message for a file that is too large."""
        return f'the file is larger than {self.max_bytes} bytes, the limit of this server: scale the image down.'


class BoundedBody:
    """ASGI middleware that ends an upload that is too large or too slow, while it is being received.

    Args:
        app: ASGI application.
        limits: Limits of the server.
    """

    def __init__(self, app, limits: Limits):
        self.app, self.limits = app, limits

    async def __call__(self, scope, receive, send) -> None:
        if scope['type'] != 'http':
            return await self.app(scope, receive, send)
        from fastapi import HTTPException  # the only exception that FastAPI passes on while it reads a form

        announced = int(dict(scope['headers']).get(b'content-length', 0))
        received, more = 0, True
        clock = asyncio.get_running_loop().time
        deadline, limit = clock() + self.limits.timeout, self.limits.max_bytes + FORM_BYTES

        async def receive_some():
            nonlocal received, more
            if not more:
                return await receive()
            if announced > limit:
                raise HTTPException(413, self.limits.too_many_bytes)
            try:
                message = await asyncio.wait_for(receive(), deadline - clock())
            except asyncio.TimeoutError as error:
                raise HTTPException(408, f'the upload took longer than {self.limits.timeout:g} s.') from error
            received += len(message.get('body', b''))
            more = message.get('more_body', False)
            if received > limit:
                raise HTTPException(413, self.limits.too_many_bytes)
            return message

        return await self.app(scope, receive_some, send)
