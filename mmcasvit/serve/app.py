"""HTTP server that runs an exported detector or segmentor on uploaded images, in batches of images of one size."""

import asyncio
import importlib.util
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from mmcasvit.utils.errors import Refused, UsageError

from .batcher import Batcher
from .limits import Limits
from .predictor import Predictor
from .uploads import BoundedBody, OpenRequests

if TYPE_CHECKING:
    import fastapi


def check_server() -> None:
    """Check that the packages of the server are installed.

    Raises:
        UsageError: If one is not.
    """
    needed = {'fastapi': 'fastapi', 'uvicorn': 'uvicorn', 'python_multipart': 'python-multipart'}
    if missing := [name for module, name in needed.items() if importlib.util.find_spec(module) is None]:
        raise UsageError(f'the server needs {", ".join(missing)}: pip install "mmcasvit[serve]"')


def create_app(predictor: Predictor, limits: Limits | None = None) -> 'fastapi.FastAPI':
    """Create the FastAPI application, which answers ``POST /predict``, ``GET /health`` and ``GET /metadata``.

    Every error is JSON, ``{"detail": "what was wrong"}``. If the batch of the file is fixed, images run one by one.

    Args:
        predictor: Model to serve.
        limits: Limits of the server, except ``max_pixels``, which is that of the predictor.

    Raises:
        UsageError: If a package is missing.
    """
    check_server()
    import fastapi
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response

    signature, limits = predictor.exported.signature, limits or Limits()
    if not signature.dynamic_batch:
        limits = replace(limits, max_batch=1)
    batcher, requests = Batcher(predictor.predict, predictor.group, limits), OpenRequests(limits)

    @asynccontextmanager
    async def lifespan(app: fastapi.FastAPI):
        app.state.helpers = ThreadPoolExecutor(2, 'images')  # few threads, so that decoding leaves CPU to the model
        async with batcher:
            yield
        app.state.helpers.shutdown(wait=False, cancel_futures=True)

    app = fastapi.FastAPI(title='mmcasvit', description=__doc__, lifespan=lifespan)
    app.state.batcher = batcher
    app.add_middleware(BoundedBody, requests=requests)

    @app.exception_handler(Refused)
    async def refuse(request: fastapi.Request, error: Refused) -> JSONResponse:
        headers = {'Retry-After': '1'} if error.status == 503 else None
        return JSONResponse(dict(detail=str(error)), error.status, headers)

    @app.exception_handler(Exception)  # Starlette still logs the traceback
    async def apologize(request: fastapi.Request, error: Exception) -> JSONResponse:
        return JSONResponse(dict(detail='the server failed on this request; see its log.'), 500)

    @app.exception_handler(RequestValidationError)
    async def explain(request: fastapi.Request, error: RequestValidationError) -> JSONResponse:
        wrong = '; '.join(f'{".".join(map(str, one["loc"]))}: {one["msg"]}' for one in error.errors())
        advice = 'Send the file as the field "image" of a multipart form: curl -F image=@image.jpg'
        return JSONResponse(dict(detail=f'{wrong}. {advice}'), 422)

    @app.get('/health')
    async def health() -> Response:
        """Return 200 while the server computes predictions, otherwise 503."""
        if not batcher.alive:
            return JSONResponse(dict(status='the worker has ended', waiting=len(requests)), 503)
        return JSONResponse(dict(status='ok', waiting=len(requests)))

    @app.get('/metadata')
    async def metadata() -> dict:
        """Return the signature of the exported file, the class names and the limits."""
        return dict(
            file=predictor.exported.path.name,
            **asdict(signature),
            classes=predictor.classes,
            limits=asdict(replace(limits, max_pixels=predictor.max_pixels)),
        )

    async def answer(image: fastapi.UploadFile, min_score: float) -> Response:
        loop, helpers, gone = asyncio.get_running_loop(), app.state.helpers, threading.Event()
        try:
            # The helpers read the file, so that few files at a time are in memory.
            prepared = await loop.run_in_executor(helpers, lambda: predictor.prepare(image.file.read()))
            sample, batch = await batcher(prepared)
            headers = {'X-Batch-Size': str(batch)}
            if predictor.is_segmentor:
                png = await loop.run_in_executor(helpers, predictor.to_png, sample, gone)
                return Response(png, headers=headers, media_type='image/png')
            found = await loop.run_in_executor(helpers, predictor.to_json, sample, min_score, gone)
            return JSONResponse(found, headers=headers)
        finally:
            gone.set()  # a thread that still works on the answer stops

    @app.post('/predict')
    async def predict(image: fastapi.UploadFile, min_score: float | None = fastapi.Query(None, ge=0, le=1)) -> Response:
        """Return detections as JSON or labels as PNG. The header X-Batch-Size holds the size of the batch."""
        if image.size > limits.max_bytes:
            raise Refused(413, limits.too_many_bytes)
        if min_score is not None and predictor.is_segmentor:
            raise Refused(422, 'min_score is for detectors, and this is a segmentor: leave it out.')
        try:
            return await asyncio.wait_for(answer(image, min_score or 0), limits.timeout)
        except asyncio.TimeoutError as error:
            raise Refused(504, f'no answer within {limits.timeout:g} s.') from error

    return app
