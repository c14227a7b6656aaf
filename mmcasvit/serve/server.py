"""A server that predicts on uploaded pictures with an exported model, those of one size in one batch."""

import asyncio
import importlib.util
import io
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, replace

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.structures import BaseDataElement
from PIL import Image

from mmcasvit.apis.model import get_model
from mmcasvit.export.evaluation import picture_pipeline, substitute
from mmcasvit.export.formats import Exported
from mmcasvit.utils.errors import Refused, UsageError

from .images import read_picture

logger = logging.getLogger(__name__)
# Before Python 3.11 this is not the TimeoutError that needs no name of a module.
_TIMEOUT = asyncio.TimeoutError
# Boundaries and headers of a multipart form around the file.
FORM_BYTES = 2**14


def check_server() -> None:
    """Looks for the packages of the server.

    Raises:
        UsageError: one is not installed.
    """
    needed = {'fastapi': 'fastapi', 'uvicorn': 'uvicorn', 'python_multipart': 'python-multipart'}
    if missing := [name for module, name in needed.items() if importlib.util.find_spec(module) is None]:
        raise UsageError(f'the server needs {", ".join(missing)}: pip install "mmcasvit[serve]"')


@dataclass(frozen=True)
class Limits:
    """What a server takes, and how it gathers it.

    Attributes:
        max_batch: pictures that run together at most.
        max_delay_ms: how long the first picture of a batch waits for others.
        max_waiting: requests that wait or are computed at most; more are turned away.
        max_bytes: of an uploaded file.
        max_pixels: of a picture, by its header.
        timeout: seconds for an upload, and again for the answer.
    """

    max_batch: int = 8
    max_delay_ms: float = 5
    max_waiting: int = 64
    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000
    timeout: float = 30

    def __post_init__(self):
        if min(self.max_batch, self.max_waiting, self.max_bytes, self.max_pixels) < 1:
            raise UsageError('the largest batch, queue, file and picture must be at least 1.')
        if self.max_delay_ms < 0 or self.timeout <= 0:
            raise UsageError('the delay must be at least 0 and the timeout above 0.')
        if self.max_pixels > Image.MAX_IMAGE_PIXELS:
            raise UsageError(
                f'Pillow takes pictures of more than {Image.MAX_IMAGE_PIXELS} pixels for an attack: '
                f'max_pixels must be at most that, got {self.max_pixels}.'
            )


class Predictor:
    """An exported model with what its config puts before and after it: the answers are those of ``tools/test.py
    --exported``, by the same code.

    Args:
        exported: a detector or segmentor.
        cfg: the config that it was exported with.
        max_pixels: of a picture.

    Attributes:
        classes: their names in the order of the labels.

    Raises:
        UsageError: file and config do not belong together, or the model is no whole one.
    """

    def __init__(self, exported: Exported, cfg: Config, max_pixels: int = Limits.max_pixels):
        if exported.signature.what == 'backbone':
            raise UsageError(
                f'{exported.path} holds a backbone, which predicts nothing: export the whole model, --what model.'
            )
        model = get_model(cfg)
        model.backbone = None  # computes nothing here
        self.exported, self.max_pixels = exported, max_pixels
        self.classes = list(model.dataset_meta.get('classes') or ())
        self.model = substitute(model, exported)
        load, *steps = picture_pipeline(cfg, exported.signature)
        if not load['type'].endswith('LoadImageFromFile'):
            raise UsageError(
                f'the test pipeline of the config starts with {load["type"]}: only LoadImageFromFile can be served.'
            )
        options = {name: value for name, value in load.items() if name not in ('type', 'backend_args')}
        self.decoding = (options.get('color_type', 'color'), options.get('imdecode_backend'))
        self.pipeline = Compose([dict(options, type='LoadImageFromNDArray'), *steps])
        self._try()

    def _try(self) -> None:
        """Runs one picture, which also makes the first request as quick as the others."""
        try:
            [sample] = self.predict([self.pipeline(dict(img=np.zeros((*self.exported.signature.size, 3), np.uint8)))])
            if self.is_segmentor and len(sample.seg_logits.data) != (wanted := self.model.decode_head.out_channels):
                raise ValueError(f'it gives {len(sample.seg_logits.data)} classes, and the config has {wanted}')
        except UsageError:
            raise
        except Exception as error:  # of a runtime, which has types of its own
            raise UsageError(f'{self.exported.path} does not work with the config: {error}') from error

    @property
    def is_segmentor(self) -> bool:
        return self.exported.signature.what == 'segmentor'

    def prepare(self, data: bytes) -> dict:
        """Decodes an image file and passes it through the test pipeline.

        Raises:
            Refused: it cannot be used.
        """
        picture = read_picture(data, self.max_pixels, *self.decoding)
        try:
            return self.pipeline(dict(img=picture))
        except (cv2.error, ZeroDivisionError) as error:
            height, width = picture.shape[:2]
            raise Refused(
                422,
                f'a picture of {width}x{height} pixels cannot be scaled to what the model takes: send '
                'one that is less narrow.',
            ) from error

    def group(self, prepared: dict) -> Hashable:
        """The same for pictures that can run together."""
        signature = self.exported.signature
        if not self.is_segmentor and not signature.free_size:
            return signature.size  # all of them are padded to it
        return tuple(prepared['inputs'].shape)

    @torch.inference_mode()
    def predict(self, batch: Sequence[dict]) -> list[BaseDataElement]:
        """Predicts on pictures of one group; what comes out is what mmdet's or mmseg's ``test_step`` gives."""
        return self.model.test_step(
            dict(inputs=[one['inputs'] for one in batch], data_samples=[one['data_samples'] for one in batch])
        )

    def found(self, sample: BaseDataElement, min_score: float) -> dict:
        """The detections of one picture as they go into JSON; masks are run-length codes of COCO."""
        instances = sample.pred_instances[sample.pred_instances.scores >= min_score]
        height, width = sample.ori_shape[:2]
        detections = [
            dict(label=label, name=self.classes[label] if self.classes else None, score=score, box=box)
            for label, score, box in zip(*(instances[key].tolist() for key in ('labels', 'scores', 'bboxes')))
        ]
        if 'masks' in instances:
            from mmdet.structures.mask import encode_mask_results

            for detection, code in zip(detections, encode_mask_results(instances.masks.numpy())):
                detection['mask'] = dict(size=code['size'], counts=code['counts'].decode())
        return dict(width=width, height=height, detections=detections)

    def drawn(self, sample: BaseDataElement) -> bytes:
        """The labels of one picture as a grey PNG of its size, of 8 bits, or of 16 where there are more classes."""
        labels = sample.pred_sem_seg.data[0].numpy()
        stream = io.BytesIO()
        Image.fromarray(labels.astype(np.uint8 if len(self.classes) <= 256 else np.uint16)).save(stream, 'PNG')
        return stream.getvalue()


@dataclass
class _Waiting:
    picture: dict
    group: Hashable
    answer: asyncio.Future


class Batcher:
    """Gathers pictures that arrive at the same time, and runs them in one thread, group by group.

    A context manager: pictures are computed within it.

    Args:
        run: computes a batch of pictures: as many results, in their order.
        group: says of a picture with which others it can run.
        limits: see :class:`Limits`.
    """

    def __init__(self, run: Callable[[list], Sequence], group: Callable[[dict], Hashable], limits: Limits):
        self.run, self.group, self.limits = run, group, limits
        self.waiting = 0

    async def __aenter__(self) -> 'Batcher':
        self.queue: asyncio.Queue[_Waiting] = asyncio.Queue()  # bounded by admitted()
        self.thread = ThreadPoolExecutor(1, 'model')
        self.worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_) -> None:
        self.worker.cancel()
        await asyncio.gather(self.worker, return_exceptions=True)
        self.thread.shutdown()

    @property
    def alive(self) -> bool:
        return not self.worker.done()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place among those who wait.

        Raises:
            Refused: there is none.
        """
        if self.waiting >= self.limits.max_waiting:
            raise Refused(503, f'{self.waiting} requests are waiting already: try again later.')
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    async def __call__(self, picture: dict) -> tuple[object, int]:
        """The result for a picture, and how many were computed with it.

        Raises:
            Refused: the model failed.
        """
        one = _Waiting(picture, self.group(picture), asyncio.get_running_loop().create_future())
        self.queue.put_nowait(one)
        return await one.answer

    async def _gather(self) -> list[_Waiting]:
        clock = asyncio.get_running_loop().time
        gathered = [await self.queue.get()]
        closes = clock() + self.limits.max_delay_ms / 1000
        while len(gathered) < self.limits.max_batch:
            if not self.queue.empty():
                gathered.append(self.queue.get_nowait())
                continue
            try:
                gathered.append(await asyncio.wait_for(self.queue.get(), closes - clock()))
            except _TIMEOUT:
                break
        return gathered

    async def _work(self) -> None:
        while True:
            groups: dict[Hashable, list[_Waiting]] = {}
            for one in await self._gather():
                if not one.answer.done():  # else nobody waits for it any more
                    groups.setdefault(one.group, []).append(one)
            for group in groups.values():
                await self._compute(group)

    async def _compute(self, group: list[_Waiting]) -> None:
        try:
            results = await asyncio.get_running_loop().run_in_executor(
                self.thread, self.run, [one.picture for one in group]
            )
        except Exception:
            logger.exception('a batch of %d failed', len(group))
            failure = Refused(
                500,
                'the model failed on this picture or on one that was computed with it; the log of the server says why.',
            )
            for one in group:
                if not one.answer.done():
                    one.answer.set_exception(failure)
            return
        for one, result in zip(group, results):
            if not one.answer.done():
                one.answer.set_result((result, len(group)))


class _BoundedBody:
    """Ends an upload that is too large or too slow, while it is being received."""

    def __init__(self, app, limits: Limits):
        self.app, self.limits = app, limits

    async def __call__(self, scope, receive, send) -> None:
        if scope['type'] != 'http':
            return await self.app(scope, receive, send)
        from fastapi import HTTPException  # FastAPI passes on this one alone while it reads a form

        announced = int(dict(scope['headers']).get(b'content-length', 0))
        received, more = 0, True
        clock = asyncio.get_running_loop().time
        closes = clock() + self.limits.timeout

        async def receive_some():
            nonlocal received, more
            if not more:
                return await receive()
            if announced > self.limits.max_bytes + FORM_BYTES:
                raise HTTPException(413, too_many_bytes(self.limits))
            try:
                message = await asyncio.wait_for(receive(), closes - clock())
            except _TIMEOUT as error:
                raise HTTPException(408, f'the upload took longer than {self.limits.timeout:g} s.') from error
            received += len(message.get('body', b''))
            more = message.get('more_body', False)
            if received > self.limits.max_bytes + FORM_BYTES:
                raise HTTPException(413, too_many_bytes(self.limits))
            return message

        return await self.app(scope, receive_some, send)


def too_many_bytes(limits: Limits) -> str:
    return f'the file is larger than the {limits.max_bytes} bytes that this server takes: scale the picture down.'


def create_app(predictor: Predictor, limits: Limits | None = None):
    """The server, an application of FastAPI: ``POST /predict``, ``GET /health`` and ``GET /metadata``.

    Every error is JSON, ``{"detail": "what was wrong"}``. Of a file with a fixed batch pictures run one by one.

    Args:
        predictor: the model.
        limits: what it takes; the ``max_pixels`` are those of the predictor.

    Raises:
        UsageError: a package is missing.
    """
    check_server()
    import fastapi
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response

    signature, limits = predictor.exported.signature, limits or Limits()
    if not signature.dynamic_batch:
        limits = replace(limits, max_batch=1)
    batcher = Batcher(predictor.predict, predictor.group, limits)

    @asynccontextmanager
    async def lifespan(app: fastapi.FastAPI):
        # Of its own, so that decoding leaves processors to the model.
        app.state.helpers = ThreadPoolExecutor(2, 'pictures')
        async with batcher:
            yield
        app.state.helpers.shutdown()

    app = fastapi.FastAPI(title='mmcasvit', description=__doc__, lifespan=lifespan)
    app.state.batcher = batcher
    app.add_middleware(_BoundedBody, limits=limits)

    @app.exception_handler(Refused)
    async def refuse(request: fastapi.Request, error: Refused) -> JSONResponse:
        headers = {'Retry-After': '1'} if error.status == 503 else None
        return JSONResponse(dict(detail=str(error)), error.status, headers)

    @app.exception_handler(Exception)  # which is logged with its traceback all the same
    async def apologise(request: fastapi.Request, error: Exception) -> JSONResponse:
        return JSONResponse(dict(detail='the server failed on this request; its log says why.'), 500)

    @app.exception_handler(RequestValidationError)
    async def explain(request: fastapi.Request, error: RequestValidationError) -> JSONResponse:
        wrong = '; '.join(f'{".".join(map(str, one["loc"]))}: {one["msg"]}' for one in error.errors())
        return JSONResponse(
            dict(detail=f'{wrong}. Send the file as the field "image" of a multipart form: curl -F image=@picture.jpg'),
            422,
        )

    @app.get('/health')
    async def health() -> Response:
        """200 while pictures are computed, else 503."""
        if not batcher.alive:
            return JSONResponse(dict(status='the worker has ended', waiting=batcher.waiting), 503)
        return JSONResponse(dict(status='ok', waiting=batcher.waiting))

    @app.get('/metadata')
    async def metadata() -> dict:
        """What the exported file says of itself, the names of the classes, and what is taken."""
        return dict(
            file=predictor.exported.path.name,
            **asdict(signature),
            classes=predictor.classes,
            limits=asdict(replace(limits, max_pixels=predictor.max_pixels)),
        )

    async def answer(image: fastapi.UploadFile, min_score: float) -> Response:
        loop, helpers = asyncio.get_running_loop(), app.state.helpers
        prepared = await loop.run_in_executor(helpers, predictor.prepare, await image.read())
        sample, batch = await batcher(prepared)
        headers = {'X-Batch-Size': str(batch)}
        if predictor.is_segmentor:
            drawn = await loop.run_in_executor(helpers, predictor.drawn, sample)
            return Response(drawn, headers=headers, media_type='image/png')
        return JSONResponse(await loop.run_in_executor(helpers, predictor.found, sample, min_score), headers=headers)

    @app.post('/predict')
    async def predict(image: fastapi.UploadFile, min_score: float | None = fastapi.Query(None, ge=0, le=1)) -> Response:
        """Detections as JSON, or labels as PNG. The header X-Batch-Size says how many pictures ran together."""
        if image.size > limits.max_bytes:
            raise Refused(413, too_many_bytes(limits))
        if min_score is not None and predictor.is_segmentor:
            raise Refused(422, 'min_score is for detectors, and this is a segmentor: leave it out.')
        with batcher.admitted():
            try:
                return await asyncio.wait_for(answer(image, min_score or 0), limits.timeout)
            except _TIMEOUT as error:
                raise Refused(504, f'no answer within {limits.timeout:g} s.') from error

    return app
