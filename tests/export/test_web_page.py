"""The page in a browser finds what PyTorch finds, and asks no other machine for anything."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.browser import open_browser
from helpers.repository import ROOT
from helpers.tiny_models import needs, tiny
from helpers.web_pages import start_server
from mmengine.dataset import Compose, pseudo_collate

from mmcasvit.datasets.shapes import draw_scene
from mmcasvit.export.comparison import Difference
from mmcasvit.export.evaluation import image_pipeline, substitute
from mmcasvit.export.formats import load_exported
from mmcasvit.export.signature import Signature
from mmcasvit.export.web.folder import RUNTIME, write_page

# After npm install onnxruntime-web in the repository, or elsewhere.
DIST = Path(os.environ.get('ORT_DIST', ROOT / RUNTIME))
pytestmark = [
    pytest.mark.slow,
    needs('onnx'),
    pytest.mark.skipif(not DIST.is_dir(), reason='needs npm install onnxruntime-web in the repository, or ORT_DIST'),
]
SIZE = (64, 96)
FORBIDDEN = 'http://127.0.0.1:9/'
# Pages report predictions as events; the document holds the last of them for the tests.
LISTEN = """document.addEventListener('prediction', ({ detail }) => {
    window.last = detail;
    document.body.dataset.seen = Number(document.body.dataset.seen ?? 0) + 1;
})"""
DETECTIONS = """async () => {
    const { paste } = await import('/finish.js');
    const { shape, found } = last;
    const masks = (found.masks ?? []).slice(0, 20).map((mask, i) => {
        const part = paste(mask, found.side, found.boxes[i], shape, 0.5);
        return { ...part, inside: Array.from(part.inside) };
    });
    return { boxes: found.boxes, scores: found.scores, labels: found.labels, masks };
}"""
LABELS = """() => {
    const { labels, probabilities, width, height } = last.found;
    return { labels: Array.from(labels), probabilities: probabilities && Array.from(probabilities), width, height };
}"""


@pytest.fixture(scope='module')
def browser():
    # Whatever the browser itself wants to tell its makers, it finds no machine but this one.
    flags = [
        '--disable-gpu',
        '--disable-quic',
        '--disable-sync',
        '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost',
    ]
    flags += ['--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream']
    with open_browser(*flags) as opened:
        yield opened


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    written = {}

    def write(twin, **options):
        key = (twin, *options.items())
        if key not in written:
            kind = 'detector' if 'rcnn' in twin or 'retina' in twin else 'segmentor'
            written[key] = tmp_path_factory.mktemp('pages') / twin
            write_page(tiny(twin), Signature('onnx', kind, SIZE, **options), written[key], DIST)
        return written[key]

    return write


@pytest.fixture
def opened(browser):
    """Yield a function that opens a page and waits for its model; in the end, check what it asked for and logged."""
    context = browser.new_context(viewport=dict(width=1200, height=900))
    wrong, asked, addresses = [], set(), []
    # Those of workers as well: the browser reports them over its debugging protocol.
    context.on('request', lambda request: asked.add(request.url))

    def visit(address):
        addresses.append(address)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on('console', lambda message: wrong.append(message.text) if is_wrong(message) else None)
        page.on('pageerror', lambda error: wrong.append(str(error)))
        page.goto(address)
        page.wait_for_selector('#status[data-state=ready]')
        page.evaluate(LISTEN)
        return page

    yield visit
    context.close()
    assert not wrong
    assert {name for url in asked for name in ('model.onnx', '.wasm') if url.endswith(name)} == {'model.onnx', '.wasm'}
    assert all(url.startswith((f'{address}/', 'blob:', 'data:')) for url in asked for address in addresses), asked


def is_wrong(message):
    return message.type == 'error' and FORBIDDEN not in message.text


def give(page, path):
    seen = int(page.evaluate('document.body.dataset.seen ?? 0'))
    page.set_input_files('#file', path)
    page.wait_for_selector(f'body[data-seen="{seen + 1}"]')


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """Write images that are resized without and with padding, and one turned by its EXIF entry, as PNG and JPEG."""
    folder = tmp_path_factory.mktemp('scenes')
    for name, size in {
        'same.png': SIZE,
        'larger.png': (100, 150),
        'upright.png': (130, 70),
        'photo.jpg': (150, 225),
    }.items():
        cv2.imwrite(str(folder / name), draw_scene(np.random.default_rng(3), *size).image)
    return folder


@torch.no_grad()
def predict(model, signature, path):
    """Predict with the test pipeline, as the tools do."""
    pipeline = Compose(image_pipeline(model.cfg, signature))
    return model.test_step(pseudo_collate([pipeline(dict(img_path=str(path), img_id=0))]))[0]


def with_area(found):
    """Leave out the boxes that random weights place in the padding: clipped to the image, they overlap with nothing."""
    keep = (found['boxes'][:, 2:] > found['boxes'][:, :2]).all(1)
    return {name: values[keep] for name, values in found.items()}


def expected(twin, folder, path):
    """Return what PyTorch predicts, or the file where it pads to a fixed size, which PyTorch does not."""
    run = load_exported(folder / 'model.onnx')
    model = tiny(twin) if path.stem != 'upright' else substitute(tiny(twin), run)
    return predict(model, run.signature, path)


@pytest.mark.parametrize('twin', ['mask_rcnn', 'retinanet'])
def test_a_detector_finds_what_pytorch_finds(twin, pages, opened, scenes):
    folder = pages(twin)
    with start_server(folder) as address:
        page = opened(address)
        for name, boxes in {'same.png': 0.05, 'larger.png': 1.0, 'upright.png': 1.0, 'photo.jpg': 1.0}.items():
            give(page, scenes / name)
            wanted = expected(twin, folder, scenes / name).pred_instances
            found = page.evaluate(DETECTIONS)
            got = {key: torch.tensor(found[key]) for key in ('boxes', 'scores', 'labels')}
            difference = Difference()
            difference.add(
                with_area(got), with_area(dict(boxes=wanted.bboxes, scores=wanted.scores, labels=wanted.labels)), 1.0
            )
            assert len(wanted.scores) > 20
            assert difference.by_output['detections'] <= (1e-3 if name == 'same.png' else 0.02), (name, difference)
            assert difference.by_output['boxes'] <= boxes, (name, difference)
            assert difference.by_output['scores'] <= 1e-3, (name, difference)
            if twin == 'mask_rcnn' and name == 'same.png':
                for mask, wanted_mask in zip(found['masks'], wanted.masks, strict=False):
                    whole = np.zeros(SIZE, bool)
                    part = np.reshape(mask['inside'], (mask['height'], mask['width'])).astype(bool)
                    whole[mask['top'] :, mask['left'] :][: mask['height'], : mask['width']] = part
                    assert (whole != wanted_mask.numpy()).mean() < 1e-3
                assert len(found['masks']) == 20


@pytest.mark.parametrize('twin', ['semantic_fpn', 'upernet'])
def test_a_segmentor_finds_what_pytorch_finds(twin, pages, opened, scenes):
    folder = pages(twin)
    with start_server(folder) as address:
        page = opened(address)
        for name in ('same.png', 'larger.png', 'upright.png', 'photo.jpg'):
            give(page, scenes / name)
            wanted = expected(twin, folder, scenes / name)
            found = page.evaluate(LABELS)
            labels = np.reshape(found['labels'], (found['height'], found['width']))
            assert labels.shape == cv2.imread(str(scenes / name)).shape[:2]
            assert len(np.unique(labels)) > 1
            assert (labels == wanted.pred_sem_seg.data[0].numpy()).mean() > 0.999, name
            assert found['probabilities'] is None
        slider = page.locator('#threshold')
        slider.fill('0.2')
        page.wait_for_selector('body[data-seen="5"]')  # the probabilities
        probabilities = wanted.seg_logits.data.softmax(0).amax(0).flatten()
        torch.testing.assert_close(
            torch.tensor(page.evaluate(LABELS)['probabilities']), probabilities, rtol=0, atol=1e-3
        )


def test_a_graph_with_argmax_and_an_open_size_gives_the_same_classes(pages, opened, scenes):
    folder = pages('semantic_fpn', argmax=True, dynamic_size=True)
    with start_server(folder) as address:
        page = opened(address)
        assert page.locator('#threshold').is_hidden()
        for name in ('same.png', 'larger.png'):
            give(page, scenes / name)
            run = load_exported(folder / 'model.onnx')
            model = substitute(tiny('semantic_fpn'), run)
            wanted = predict(model, run.signature, scenes / name).pred_sem_seg.data[0]
            found = page.evaluate(LABELS)
            assert (torch.tensor(found['labels']) == wanted.flatten()).float().mean() > 0.999, name


PIPELINES = [
    (dict(rule='within', scale=[150, 60]), None, [dict(type='Resize', scale=(60, 150), keep_ratio=True)]),
    (dict(rule='factor', factor=[1.3, 1.3]), None, [dict(type='Resize', scale_factor=1.3)]),
    (dict(rule='stretch', size=[77, 55]), None, [dict(type='Resize', scale=(55, 77))]),
    (None, dict(divisor=32, value=[3, 2, 1]), [dict(type='Pad', size_divisor=32, pad_val=dict(img=(1, 2, 3)))]),
    (
        dict(rule='stretch', size=[77, 55]),
        dict(size=[80, 90], value=[114] * 3),
        [dict(type='Resize', scale=(55, 77)), dict(type='Pad', size=(90, 80), pad_val=114)],
    ),
]


@pytest.mark.parametrize('channels', ['rgb', 'bgr'])
def test_images_are_prepared_as_mmcv_does(pages, opened, channels):
    image = np.random.default_rng(0).integers(0, 256, (91, 133, 3), np.uint8)
    mean, std = [10.0, 20.0, 30.0], [2.0, 4.0, 8.0]
    rgba = np.concatenate([image[..., ::-1], np.full_like(image[..., :1], 255)], 2)
    script = """async ([rgba, shape, input]) => {
        const { plan, prepare } = await import('/prepare.js');
        const planned = plan(...shape, input);
        return [planned, Array.from(prepare(Uint8ClampedArray.from(rgba), shape, planned, input))];
    }"""
    with start_server(pages('semantic_fpn')) as address:
        page = opened(address)
        for resize, pad, steps in PIPELINES:
            wanted = Compose(steps)(dict(img=image, img_shape=image.shape[:2]))
            wanted_image = wanted['img'][..., ::-1] if channels == 'rgb' else wanted['img']
            normalized = (wanted_image.astype(np.float32) - mean) / std
            size = [side + 3 for side in normalized.shape[:2]]  # of a graph with a larger fixed size
            given = dict(size=size, resize=resize, pad=pad, channels=channels, mean=mean, std=std)
            planned, found = page.evaluate(script, [rgba.flatten().tolist(), list(image.shape[:2]), given])
            assert planned['used'] == list(normalized.shape[:2])
            assert planned['scale'] == pytest.approx(list(wanted.get('scale_factor', (1, 1))))
            found = np.reshape(found, (3, *size)).transpose(1, 2, 0)
            assert (found[-3:] == 0).all()
            assert (found[:, -3:] == 0).all()
            gap = np.abs(found[:-3, :-3] - normalized) * std
            # OpenCV rounds a few of the weights to the other side where it uses wide registers.
            assert gap.max() <= 1 + 1e-3
            assert (gap > 1e-3).mean() < 5e-3, (resize, pad)


def test_the_controls_redraw_and_the_camera_runs(pages, opened, scenes, tmp_path):
    (tmp_path / 'text.png').write_text('no image')
    drawn = "() => document.getElementById('canvas').toDataURL()"
    with start_server(pages('retinanet')) as address:
        page = opened(address)
        assert page.evaluate('crossOriginIsolated')
        assert page.locator('#isolation').is_hidden()
        give(page, scenes / 'larger.png')
        first, count = page.evaluate(drawn), page.locator('#results tbody tr').count()
        assert count == page.evaluate('last.found.scores.filter((score) => score >= 0.3).length') > 0
        page.locator('#threshold').fill('1')
        assert page.get_by_text('Nothing lies above the threshold.').is_visible()
        assert page.evaluate(drawn) != first
        page.locator('#threshold').fill('0.3')
        assert page.evaluate(drawn) == first

        page.set_input_files('#file', tmp_path / 'text.png')
        page.get_by_text('text.png cannot be read as an image.').wait_for()
        page.get_by_role('button', name='Start the camera').click()
        page.wait_for_selector('body[data-seen="3"]')
        assert 'images/s' in page.locator('#times').inner_text()
        assert page.evaluate('last.shape') == [480, 640]
        page.get_by_role('button', name='Stop the camera').click()
        page.get_by_role('button', name='Start the camera').wait_for()
        page.locator('#threads').select_option('1')
        page.get_by_text('Ready on 1 CPU thread', exact=True).wait_for()


def test_another_server_gives_one_thread(pages, opened, scenes):
    with start_server(pages('retinanet'), '-m', 'http.server', '0', '--bind', '127.0.0.1') as address:
        page = opened(address.replace('127.0.0.1', 'localhost'))
        assert not page.evaluate('crossOriginIsolated')
        assert page.locator('#isolation').is_visible()
        assert page.locator('#status').inner_text() == 'Ready on 1 CPU thread'
        give(page, scenes / 'same.png')
        # The page itself refuses other machines, whatever the server sends.
        refused = f"fetch('{FORBIDDEN}').then(() => 'sent', () => 'refused')"
        broken = "new Promise((done) => addEventListener('securitypolicyviolation', (e) => done(e.blockedURI)))"
        assert page.evaluate(f'Promise.all([{broken}, {refused}])') == [FORBIDDEN, 'refused']
