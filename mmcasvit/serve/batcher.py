"""Batching of requests: images that arrive at about the same time run together."""

import asyncio
import logging
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mmcasvit.utils.errors import Refused

from .limits import Limits

logger = logging.getLogger(__name__)


@dataclass
class _Request:
    image: dict
    group: Hashable
    answer: asyncio.Future


class Batcher:
    """Asynchronous context manager that collects images and runs them in one thread, group by group.

    Args:
        run: Function that computes a list of images and returns as many results, in the same order.
        group: Function that returns the group of an image. Only images of the same group run together.
        limits: Limits of the server.
    """

    def __init__(self, run: Callable[[list], Sequence], group: Callable[[dict], Hashable], limits: Limits):
        self.run, self.group, self.limits = run, group, limits

    async def __aenter__(self) -> 'Batcher':
        self.queue: asyncio.Queue[_Request] = asyncio.Queue()  # bounded by OpenRequests
        self.thread = ThreadPoolExecutor(1, 'model')
        self.worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_) -> None:
        self.worker.cancel()
        await asyncio.gather(self.worker, return_exceptions=True)
        self.thread.shutdown(wait=False, cancel_futures=True)  # a batch in the model cannot be interrupted

    @property
    def alive(self) -> bool:
        return not self.worker.done()

    async def __call__(self, image: dict) -> tuple[object, int]:
        """Return the result for an image, and the size of its batch.

        Raises:
            Refused: If the model failed.
        """
        request = _Request(image, self.group(image), asyncio.get_running_loop().create_future())
        self.queue.put_nowait(request)
        return await request.answer

    async def _collect(self) -> list[_Request]:
        clock = asyncio.get_running_loop().time
        collected = [await self.queue.get()]
        deadline = clock() + self.limits.max_delay_ms / 1000
        while len(collected) < self.limits.max_batch:
            if not self.queue.empty():
                collected.append(self.queue.get_nowait())
                continue
            try:
                collected.append(await asyncio.wait_for(self.queue.get(), deadline - clock()))
            except asyncio.TimeoutError:
                break
        return collected

    async def _work(self) -> None:
        while True:
            groups: dict[Hashable, list[_Request]] = {}
            for request in await self._collect():
                if not request.answer.done():  # it is done if the client has timed out
                    groups.setdefault(request.group, []).append(request)
            for group in groups.values():
                await self._compute(group)

    async def _compute(self, group: list[_Request]) -> None:
        images = [request.image for request in group]
        try:
            results = await asyncio.get_running_loop().run_in_executor(self.thread, self.run, images)
        except Exception:
            logger.exception('a batch of %d failed', len(group))
            failure = Refused(500, 'the model failed on this image or on another one of its batch; see the server log.')
            for request in group:
                if not request.answer.done():
                    request.answer.set_exception(failure)
            return
        for request, result in zip(group, results):
            if not request.answer.done():
                request.answer.set_result((result, len(group)))
