"""The server: its answers, its batches, its limits and its errors."""

import asyncio
import importlib.util
import io
import json
import re
import struct
import threading
import zlib

import mmcv
import numpy as np
import pytest
import torch
from helpers.serving import SIZE, ask, ask_together, encoded, httpx, image_files, post, serving_app, tiny_predictor
from helpers.tiny_models import export, tiny
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from PIL import Image
from pycocotools import mask as coco_masks

from mmcasvit.export.comparison import synthetic_images
from mmcasvit.export.evaluation import image_pipeline, substitute
from mmcasvit.export.formats import load_exported
from mmcasvit.serve.app import check_server, create_app
from mmcasvit.serve.images import read_image
from mmcasvit.serve.limits import Limits
from mmcasvit.serve.predictor import Predictor
from mmcasvit.utils.errors import Refused, UsageError


@pytest.fixture(scope='module')
def predictors(tmp_path_factory):
    folder = tmp_path_factory.mktemp('served')
    return dict(
        detector=tiny_predictor('mask_rcnn', folder / 'detector.pt'),
        segmentor=tiny_predictor('semantic_fpn', folder / 'segmentor.pt'),
    )


@pytest.fixture
def segmentor(predictors):
    return predictors['segmentor']


def read_in_an_evaluation(predictor, twin, file, tmp_path):
    """Load a file by the whole test pipeline."""
    (tmp_path / 'image').write_bytes(file)
    init_default_scope(tiny(twin).cfg.default_scope)
    pipeline = Compose(image_pipeline(tiny(twin).cfg, predictor.exported.signature))
    return pipeline(dict(img_path=str(tmp_path / 'image'), img_id=0))


def evaluated(predictor, twin, file, tmp_path):
    """Predict on an image as an evaluation does, in a batch of its own."""
    data = read_in_an_evaluation(predictor, twin, file, tmp_path)
    model = substitute(tiny(twin), predictor.exported)
    with torch.no_grad():
        return model.test_step(dict(inputs=[data['inputs']], data_samples=[data['data_samples']]))[0]


@pytest.mark.parametrize('size', [SIZE, (50, 130)], ids=['as exported', 'scaled and padded'])
def test_a_detector_answers_as_it_is_evaluated(predictors, size, tmp_path):
    [file] = image_files(1, size)
    predictor = predictors['detector']
    wanted = evaluated(predictor, 'mask_rcnn', file, tmp_path).pred_instances
    answer = ask(predictor, file)
    assert answer.status_code == 200
    found = answer.json()
    assert (found['height'], found['width']) == size
    assert len(found['detections']) == len(wanted) > 0
    for key, name in (('label', 'labels'), ('score', 'scores'), ('box', 'bboxes')):
        torch.testing.assert_close(torch.tensor([one[key] for one in found['detections']]), wanted[name])
    masks = np.stack([coco_masks.decode(one['mask']) for one in found['detections']])
    assert (masks == wanted.masks.numpy()).all()
    assert masks.any()
    assert {one['name'] for one in found['detections']} <= {'disc', 'square', 'triangle', 'star', 'cross', 'ring'}

    half = sorted(one['score'] for one in found['detections'])[len(wanted) // 2]
    fewer = ask(predictor, file, min_score=half).json()['detections']
    assert fewer == [one for one in found['detections'] if one['score'] >= half]


@pytest.mark.parametrize('size', [SIZE, (50, 130)], ids=['as exported', 'scaled and padded'])
def test_a_segmentor_answers_with_an_image_of_labels(predictors, size, tmp_path):
    [file] = image_files(1, size)
    wanted = evaluated(predictors['segmentor'], 'semantic_fpn', file, tmp_path).pred_sem_seg.data[0]
    answer = ask(predictors['segmentor'], file)
    assert (answer.status_code, answer.headers['Content-Type']) == (200, 'image/png')
    found = np.array(Image.open(io.BytesIO(answer.content)))
    assert found.dtype == np.uint8
    assert found.shape == size
    assert (found == wanted.numpy()).all()
    assert len(np.unique(found)) > 1


KINDS = dict(
    grayscale=lambda image: encoded(image.convert('L')),
    transparent=lambda image: encoded(image.convert('RGBA')),
    palette=lambda image: encoded(image.convert('P')),
    sixteen_bits=lambda image: encoded(np.asarray(image.convert('L'), dtype=np.uint16) * 257),
    cmyk=lambda image: encoded(image.convert('CMYK'), 'JPEG'),
    rotated=lambda image: encoded(image, 'JPEG', exif=bytes(exif_rotated())),
    webp=lambda image: encoded(image, 'WEBP'),
    tiff=lambda image: encoded(image, 'TIFF'),
    bmp=lambda image: encoded(image, 'BMP'),
    two_in_one=lambda image: encoded(image, 'MPO', save_all=True, append_images=[image.transpose(0)]),
)


def exif_rotated():
    exif = Image.Exif()
    exif[0x112] = 6
    return exif.tobytes()


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_image_is_read_as_in_an_evaluation(kind, predictors, tmp_path):
    file = KINDS[kind](Image.fromarray(synthetic_images(1, (60, 80))[0]))
    wanted = read_in_an_evaluation(predictors['detector'], 'mask_rcnn', file, tmp_path)
    found = predictors['detector'].prepare(file)
    assert torch.equal(found['inputs'], wanted['inputs'])
    assert found['data_samples'].ori_shape == ((80, 60) if kind == 'rotated' else (60, 80))


def test_images_that_arrive_together_run_together(predictors, monkeypatch):
    """The graph itself records its batch sizes."""
    predictor, files, sizes = predictors['detector'], image_files(3), []
    alone = [ask(predictor, file) for file in files]
    run = predictor.exported._run
    monkeypatch.setattr(predictor.exported, '_run', lambda x: (sizes.append(len(x)), run(x))[1])
    together = ask_together(predictor, files, max_batch=2, max_delay_ms=2000)
    assert sizes == [2, 1]
    assert sorted(answer.headers['X-Batch-Size'] for answer in together) == ['1', '2', '2']
    for found, wanted in zip(together, alone):
        assert wanted.headers['X-Batch-Size'] == '1'
        for one, other in zip(found.json()['detections'], wanted.json()['detections'], strict=True):
            assert one['label'] == other['label']
            torch.testing.assert_close(torch.tensor(one['box']), torch.tensor(other['box']), rtol=0, atol=1e-2)
            torch.testing.assert_close(one['score'], other['score'], rtol=0, atol=1e-4)


def test_images_of_other_proportions_share_only_the_batch_of_a_detector(predictors):
    """A detector's images are padded to the fixed size of the file; mmseg needs images of one size."""
    files = image_files(1, (40, 96)) + image_files(1, (64, 50))
    for what, size in (('detector', '2'), ('segmentor', '1')):
        answers = ask_together(predictors[what], files, max_batch=2, max_delay_ms=2000)
        assert [answer.headers['X-Batch-Size'] for answer in answers] == [size, size]


def test_a_file_with_a_fixed_batch_runs_one_by_one(tmp_path):
    predictor = tiny_predictor('semantic_fpn', tmp_path / 'model.pt', argmax=True, dynamic_batch=False)
    answers = ask_together(predictor, image_files(3), max_batch=8, max_delay_ms=100)
    assert [(answer.status_code, answer.headers['X-Batch-Size']) for answer in answers] == [(200, '1')] * 3


def huge_png():
    """Return a PNG of 40000 x 40000 pixels by its header, with almost no data after it."""

    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

    header = struct.pack('>IIBBBBB', 40000, 40000, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(bytes(9))) + chunk(b'IEND', b'')


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    'data, status, words',
    [
        (b'', 422, 'the file is empty'),
        (
            b'Just text, named image.jpg.',
            415,
            'not an image of a supported format, .* send JPEG, PNG, BMP, TIFF or WEBP',
        ),
        (encoded(noise(9, 9), 'GIF'), 415, 'not an image of a supported format'),
        (encoded(noise(60, 90), 'JPEG')[:2000], 422, 'the image is damaged: .*truncated'),
        (encoded(noise(60, 90))[:2000], 422, 'the image is damaged'),
        (b'\x89PNG\r\n\x1a\n' + bytes(40), 415, 'not an image'),
        (encoded(np.zeros((100, 101, 3), np.uint8)), 413, 'has 101x100 pixels, .* at most 10000'),
        (huge_png(), 413, 'too many pixels, .* at most 10000'),
        (encoded(noise(60, 90), 'BMP'), 413, 'larger than 16000 bytes'),
        (encoded(noise(1, 3000)), 422, '3000x1 pixels cannot be resized'),
    ],
    ids=['empty', 'text', 'GIF', 'cut JPEG', 'cut PNG', 'bad header', 'pixels', 'bomb', 'bytes', 'narrow'],
)
def test_a_bad_file_is_refused_with_its_reason(data, status, words, predictors, monkeypatch):
    monkeypatch.setattr(predictors['detector'], 'max_pixels', 10000)
    answer = ask(predictors['detector'], data, dict(max_bytes=16000), name='image.jpg')
    assert answer.status_code == status
    assert re.search(words, answer.json()['detail']), answer.json()


def test_an_image_with_too_many_pixels_is_not_decoded(monkeypatch):
    file = encoded(noise(60, 90), 'BMP')
    monkeypatch.setattr(Image.Image, 'load', lambda self: pytest.fail('decoded'))
    monkeypatch.setattr(mmcv, 'imfrombytes', lambda *_, **__: pytest.fail('decoded'))
    with pytest.raises(Refused, match='has 90x60 pixels'):
        read_image(file, 60 * 90 - 1)


def test_other_requests_are_told_what_to_send(segmentor):
    async def run():
        async with serving_app(segmentor) as client:
            for request in (
                client.post('/predict', json={}),
                client.post('/predict', data=dict(image='text')),
                client.post('/predict', files=dict(file=('a.png', image_files(1)[0]))),
            ):
                answer = await request
                assert answer.status_code == 422
                assert 'Send the file as the field "image"' in answer.json()['detail']
            answer = await post(client, image_files(1)[0], min_score=2)
            assert answer.status_code == 422
            assert answer.json()['detail'].startswith('query.min_score')
            answer = await post(client, image_files(1)[0], min_score=0.5)
            assert (answer.status_code, answer.json()['detail'][:26]) == (422, 'min_score is for detectors')
            assert (await client.get('/predict')).status_code == 405

    asyncio.run(run())


@pytest.mark.parametrize('announced', [True, False])
def test_an_upload_ends_as_soon_as_it_is_too_large(announced, segmentor):
    """An upload of unannounced size is cut off while it is being received."""
    sent = 0

    async def body():
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        for _ in range(100):
            sent += 2**16
            yield bytes(2**16)
        yield b'\r\n--x--\r\n'

    async def run():
        headers = {'Content-Type': 'multipart/form-data; boundary=x'}
        if announced:
            headers['Content-Length'] = str(100 * 2**16)
        async with serving_app(segmentor, max_bytes=2**18) as client:
            # ASGITransport would collect the whole body first.
            return await raw_post(client._transport.app, headers, body())

    status, detail = asyncio.run(run())
    assert (status, detail) == (
        413,
        'the file is larger than 262144 bytes, the limit of this server: scale the image down.',
    )
    assert sent <= (0 if announced else 6 * 2**16)


async def raw_post(app, headers, body):
    """Post a body piece by piece over ASGI, and return the status and detail of the answer."""
    answer = {}

    async def receive():
        try:
            return dict(type='http.request', body=await anext(body), more_body=True)
        except StopAsyncIteration:
            return dict(type='http.request', body=b'', more_body=False)

    async def send(message):
        answer['status'] = answer.get('status') or message.get('status')
        answer['body'] = answer.get('body', b'') + message.get('body', b'')

    scope = dict(
        type='http',
        method='POST',
        path='/predict',
        query_string=b'',
        http_version='1.1',
        scheme='http',
        headers=[(name.lower().encode(), value.encode()) for name, value in headers.items()],
    )
    await app(scope, receive, send)
    return answer['status'], json.loads(answer['body'])['detail']


def test_an_upload_that_takes_too_long_is_ended(segmentor):
    async def body():
        yield b'--x\r\n'
        await asyncio.sleep(60)

    async def run():
        async with serving_app(segmentor, timeout=0.2) as client:
            return await raw_post(client._transport.app, {'Content-Type': 'multipart/form-data; boundary=x'}, body())

    assert asyncio.run(run()) == (408, 'the upload took longer than 0.2 s.')


@pytest.fixture
def held(segmentor, monkeypatch):
    """Block the model until the event is set."""
    event, predict = threading.Event(), segmentor.predict
    monkeypatch.setattr(segmentor, 'predict', lambda batch: (event.wait(30), predict(batch))[1])
    return event


def test_a_full_queue_turns_requests_away(segmentor, held):
    async def run():
        async with serving_app(segmentor, max_waiting=2, max_batch=1) as client:
            first = [asyncio.create_task(post(client, file)) for file in image_files(2)]
            while (await client.get('/health')).json()['waiting'] < 2:
                await asyncio.sleep(0.01)
            refused = await post(client, image_files(1)[0])
            held.set()
            accepted = await asyncio.gather(*first)
            return refused, accepted, await post(client, image_files(1)[0]), (await client.get('/health')).json()

    refused, accepted, later, health = asyncio.run(run())
    assert (refused.status_code, refused.headers['Retry-After']) == (503, '1')
    assert refused.json()['detail'] == '2 requests are waiting already: try again later.'
    assert [answer.status_code for answer in [*accepted, later]] == [200, 200, 200]
    assert health == dict(status='ok', waiting=0)


def test_a_request_that_times_out_is_told_so_and_no_longer_computed(segmentor, held, monkeypatch):
    sizes, run_model = [], segmentor.exported._run
    monkeypatch.setattr(segmentor.exported, '_run', lambda x: (sizes.append(len(x)), run_model(x))[1])

    async def run():
        async with serving_app(segmentor, timeout=3, max_batch=1) as client:
            late = await asyncio.gather(*(post(client, file) for file in image_files(3)))
            held.set()
            return late, await post(client, image_files(1)[0])

    late, later = asyncio.run(run())
    assert [(answer.status_code, answer.json()['detail']) for answer in late] == [(504, 'no answer within 3 s.')] * 3
    assert later.status_code == 200
    assert sizes == [1, 1]  # the one that was being computed, and the later one


def test_a_failed_batch_does_not_affect_the_next(segmentor, monkeypatch, caplog):
    predict, broken = segmentor.predict, [True]
    monkeypatch.setattr(segmentor, 'predict', lambda batch: 1 / 0 if broken.pop() else predict(batch))

    async def run():
        async with serving_app(segmentor, max_batch=2, max_delay_ms=2000) as client:
            failed = await asyncio.gather(*(post(client, file) for file in image_files(2)))
            broken.append(False)
            return failed, await post(client, image_files(1)[0]), await client.get('/health')

    failed, later, health = asyncio.run(run())
    assert [answer.status_code for answer in failed] == [500, 500]
    assert failed[0].json()['detail'].startswith('the model failed on this image')
    assert 'a batch of 2 failed' in caplog.text
    assert 'ZeroDivisionError' in caplog.text
    assert (later.status_code, health.status_code) == (200, 200)


def test_a_failure_after_the_model_is_json_too(predictors, monkeypatch):
    monkeypatch.setattr(predictors['detector'], 'to_json', lambda *_: 1 / 0)
    answer = ask(predictors['detector'], image_files(1)[0])
    assert (answer.status_code, answer.json()['detail'][:17]) == (500, 'the server failed')


def test_the_server_describes_its_model(predictors):
    async def run():
        async with serving_app(predictors['detector'], max_batch=3) as client:
            return await client.get('/metadata'), await client.get('/health')

    metadata, health = asyncio.run(run())
    found = metadata.json()
    assert (found['file'], found['what'], found['size']) == ('detector.pt', 'detector', list(SIZE))
    assert found['outputs'] == ['boxes', 'scores', 'labels', 'masks']
    assert found['classes'] == ['disc', 'square', 'triangle', 'star', 'cross', 'ring']
    assert (found['limits']['max_batch'], found['limits']['max_pixels']) == (3, 25_000_000)
    assert (health.status_code, health.json()) == (200, dict(status='ok', waiting=0))


def test_health_tells_when_the_worker_has_ended(segmentor):
    async def run():
        app = create_app(segmentor)
        async with app.router.lifespan_context(app):
            app.state.batcher.worker.cancel()
            await asyncio.sleep(0)
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url='http://test') as client:
                return await client.get('/health')

    assert asyncio.run(run()).status_code == 503


def test_what_cannot_be_served_is_refused(predictors, tmp_path, monkeypatch):
    path = export(tiny('semantic_fpn'), tmp_path / 'backbone.pt')
    with pytest.raises(UsageError, match='a backbone, which predicts nothing'):
        Predictor(load_exported(path), tiny('semantic_fpn').cfg)
    with pytest.raises(UsageError, match='holds a segmentor, and the config has a detector'):
        Predictor(predictors['segmentor'].exported, tiny('mask_rcnn').cfg)
    other = tiny('semantic_fpn').cfg.copy()
    other.model = {**other.model, 'decode_head': {**other.model.decode_head, 'num_classes': 5}}
    with pytest.raises(UsageError, match='does not work with the config: it outputs 8 classes, and the config has 5'):
        Predictor(predictors['segmentor'].exported, other)
    for wrong, words in (
        (dict(max_batch=0), 'at least 1'),
        (dict(timeout=0), 'above 0'),
        (dict(max_pixels=10**9), 'as an attack'),
    ):
        with pytest.raises(UsageError, match=words):
            Limits(**wrong)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    needed = r'needs fastapi, uvicorn, python-multipart: pip install "mmcasvit\[serve\]"'
    with pytest.raises(UsageError, match=needed):
        check_server()
