"""Servers in this process, requests to them, and image files to send."""

import asyncio
import io
from contextlib import asynccontextmanager

import pytest
from PIL import Image

from helpers.tiny_models import export, tiny
from mmcasvit.export.comparison import synthetic_images
from mmcasvit.export.formats import load_exported
from mmcasvit.serve.app import create_app
from mmcasvit.serve.limits import Limits
from mmcasvit.serve.predictor import Predictor

httpx = pytest.importorskip('httpx')
pytest.importorskip('fastapi')
pytest.importorskip('python_multipart')
SIZE = (64, 96)


def encoded(image, format='PNG', **options):
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, format, **options)
    return stream.getvalue()


def image_files(count, size=SIZE):
    return [encoded(image) for image in synthetic_images(count, size)]


def tiny_predictor(twin, path, **options):
    """Export a tiny model with a dynamic batch and return its predictor."""
    what = 'segmentor' if 'fpn' in twin else 'detector'
    options = dict(what=what, size=SIZE, dynamic_batch=True) | options
    return Predictor(load_exported(export(tiny(twin), path, **options)), tiny(twin).cfg)


@asynccontextmanager
async def serving_app(predictor, **limits):
    """Yield a client of a server in this process."""
    app = create_app(predictor, Limits(**limits))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url='http://test') as client:
            yield client


def post(client, data, name='image.png', **params):
    return client.post('/predict', files=dict(image=(name, data)), params=params)


def ask(predictor, data, limits=None, **params):
    """Send one request to a server of its own."""

    async def run():
        async with serving_app(predictor, **limits or {}) as client:
            return await post(client, data, **params)

    return asyncio.run(run())


def ask_together(predictor, files, **limits):
    async def run():
        async with serving_app(predictor, **limits) as client:
            return await asyncio.gather(*(post(client, data) for data in files))

    return asyncio.run(run())
