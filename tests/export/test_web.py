"""The folder of a page: what is written, what model.json says, and what is refused."""

import copy
import json
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from helpers.repository import load_tool
from helpers.tiny_models import needs, tiny
from helpers.web_pages import RUNTIME_FILES, start_server, write_runtime

from mmcasvit.export.signature import Signature
from mmcasvit.export.web import folder as module
from mmcasvit.export.web.folder import PAGE, check_folder, describe, find_runtime, write_page
from mmcasvit.export.web.preparation import describe_input
from mmcasvit.utils.errors import UsageError

DETECTOR, SEGMENTOR = (Signature('onnx', kind, (64, 96)) for kind in ('detector', 'segmentor'))


@pytest.fixture
def runtime(tmp_path):
    return write_runtime(tmp_path / 'node_modules/onnxruntime-web/dist')


@pytest.fixture
def quick(monkeypatch):
    """Write a few bytes in the place of the model, which other tests export."""
    monkeypatch.setattr(module, 'export', lambda model, signature, path, fold: path.write_bytes(b'graph'))


def configured(name, pipeline=None, **preprocessor):
    model = copy.copy(tiny(name))
    model.cfg = copy.deepcopy(model.cfg)
    if pipeline is not None:
        loaded, packed = (dict(type=name) for name in ('LoadImageFromFile', 'PackDetInputs'))
        model.cfg.test_dataloader.dataset.pipeline = [loaded, *pipeline, packed]
    return model


def test_the_folder_holds_page_model_description_and_runtime(runtime, quick, tmp_path):
    write_page(tiny('mask_rcnn'), DETECTOR, tmp_path / 'page', runtime)
    written = {str(file.relative_to(tmp_path / 'page')) for file in (tmp_path / 'page').rglob('*') if file.is_file()}
    page = {'app.js', 'draw.js', 'finish.js', 'index.html', 'prepare.js', 'serve.py', 'style.css', 'worker.js'}
    assert written == page | {'model.onnx', 'model.json'} | {f'ort/{name}' for name in RUNTIME_FILES}
    described = json.loads((tmp_path / 'page/model.json').read_text())
    assert described['name'] == 'mask-rcnn_casvit-xs_fpn_6e_shapes'
    assert (described['task'], described['bytes'], described['runtime']) == ('detector', 5, '1.2.3')
    assert described['classes'] == ['disc', 'square', 'triangle', 'star', 'cross', 'ring']
    assert described['palette'][0] == [220, 20, 60]
    assert described['output'] == dict(mask_threshold=0.5)
    assert str(tmp_path) not in (tmp_path / 'page/model.json').read_text()


def test_no_file_of_the_page_names_another_machine():
    for file in PAGE.iterdir():
        if file.is_file():
            text = file.read_text().replace('http://www.w3.org/2000/svg', '').replace('http://localhost', '')
            assert 'http://' not in text, file
            assert 'https://' not in text, file


def test_a_segmentor_is_described_with_its_head():
    model = configured('semantic_fpn')
    assert describe(model, SEGMENTOR)['output'] == dict(classes=8, argmax=False, align_corners=False, threshold=None)
    model.dataset_meta = dict(classes=['a'], palette=None)
    assert describe(model, SEGMENTOR)['palette'] is None
    model.test_cfg = dict(mode='slide', crop_size=(64, 64), stride=(32, 32))
    with pytest.raises(UsageError, match=r"mode 'slide'.*model\.test_cfg\.mode=whole"):
        describe(model, SEGMENTOR)


def test_masks_that_the_page_cannot_draw_are_refused():
    with pytest.raises(UsageError, match=r'those of RTMDet-Ins cover the image: use --format onnx\.'):
        describe(configured('rtmdet_ins'), Signature('onnx', 'detector', (64, 96)))


@pytest.mark.parametrize(
    'steps, dynamic, resize, pad',
    [
        ([], False, dict(rule='fit', size=[64, 96]), None),
        ([dict(type='Resize', scale=(1333, 800), keep_ratio=True)], False, dict(rule='fit', size=[64, 96]), None),
        ([], True, None, None),
        (
            [dict(type='mmdet.Resize', scale=(800, 1333), keep_ratio=True)],
            True,
            dict(rule='within', scale=[1333, 800]),
            None,
        ),
        ([dict(type='Resize', scale=(48, 32))], False, dict(rule='stretch', size=[64, 96]), None),
        ([dict(type='Resize', scale=(96, 64))], True, dict(rule='stretch', size=[64, 96]), None),
        ([dict(type='Resize', scale=80)], True, dict(rule='stretch', size=[80, 80]), None),
        ([dict(type='Resize', scale_factor=(2.0, 0.5))], True, dict(rule='factor', factor=[2.0, 0.5]), None),
        ([dict(type='Resize', scale_factor=1.5)], True, dict(rule='factor', factor=[1.5, 1.5]), None),
        (
            [dict(type='Pad', size=(90, 60), pad_val=dict(img=(1, 2, 3)))],
            False,
            dict(rule='fit', size=[64, 96]),
            dict(size=[60, 90], value=[3, 2, 1]),
        ),
        ([dict(type='Pad', size_divisor=32)], True, None, dict(divisor=32, value=[0, 0, 0])),
        ([dict(type='Pad', size_divisor=16, pad_val=114)], True, None, dict(divisor=16, value=[114] * 3)),
    ],
)
def test_the_test_pipeline_is_described(steps, dynamic, resize, pad):
    model = configured('retinanet', steps)
    signature = Signature('onnx', 'detector', (64, 96), dynamic_size=dynamic)
    found = describe_input(model.cfg, model.data_preprocessor, signature)
    assert found['size'] == (None if dynamic else [64, 96])
    assert (found['resize'], found['pad']) == (resize, pad)
    assert found['channels'] == 'rgb'
    assert found['mean'] == pytest.approx([123.675, 116.28, 103.53])
    assert found['std'] == pytest.approx([58.395, 57.12, 57.375])


@pytest.mark.parametrize(
    'steps, words',
    [
        ([dict(type='CenterCrop', crop_size=64)], "cannot prepare images as {'type': 'CenterCrop'"),
        ([dict(type='Resize', scale=(96, 64), backend='pillow')], 'cannot prepare'),
        ([dict(type='Resize', scale=(96, 64), interpolation='area')], 'cannot prepare'),
        ([dict(type='Pad', pad_to_square=True)], 'cannot prepare'),
        ([dict(type='Pad', size=(96, 64), padding_mode='reflect')], 'cannot prepare'),
        ([dict(type='Pad', size_divisor=1, size=(96, 64))], 'cannot prepare'),
        ([dict(type='Pad', size_divisor=1), dict(type='Resize', scale=(96, 64))], 'cannot prepare'),
    ],
)
def test_a_pipeline_that_the_page_lacks_is_refused(steps, words):
    model = configured('retinanet', steps)
    with pytest.raises(UsageError, match=words) as caught:
        describe_input(model.cfg, model.data_preprocessor, Signature('onnx', 'detector', (64, 96), dynamic_size=True))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'step, words',
    [(dict(size=(640, 640)), 'add --size 640 640'), (dict(size_divisor=20), 'multiples of 20: choose such a --size')],
)
def test_a_padding_that_exceeds_the_size_is_refused(step, words):
    model = configured('retinanet', [dict(type='Pad', **step)])
    with pytest.raises(UsageError, match=words):
        describe_input(model.cfg, model.data_preprocessor, DETECTOR)


def test_other_preprocessors_are_described_or_refused():
    model = configured('semantic_fpn')
    preprocessor = copy.copy(model.data_preprocessor)
    preprocessor._channel_conversion = preprocessor._enable_normalize = False
    found = describe_input(model.cfg, preprocessor, SEGMENTOR)
    assert (found['channels'], found['mean'], found['std']) == ('bgr', [0.0] * 3, [1.0] * 3)
    preprocessor.test_cfg = dict(size_divisor=32)
    with pytest.raises(UsageError, match='test_cfg of the data preprocessor'):
        describe_input(model.cfg, preprocessor, SEGMENTOR)


def test_the_runtime_is_found_or_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match='run npm install onnxruntime-web here, or name its dist'):
        find_runtime()
    here = write_runtime(tmp_path / 'node_modules/onnxruntime-web/dist')
    assert find_runtime().resolve() == here
    assert find_runtime(here) == here
    (here / RUNTIME_FILES[-1]).unlink()
    with pytest.raises(UsageError, match=f'has no {RUNTIME_FILES[-1]}'):
        find_runtime(here)
    with pytest.raises(UsageError, match=r'has no ort\.wasm\.min\.mjs: --ort-dist names the dist folder'):
        find_runtime(tmp_path)


def test_a_page_is_replaced_by_force_and_nothing_else_is(runtime, quick, tmp_path):
    out = tmp_path / 'page'
    check_folder(out)
    write_page(tiny('semantic_fpn'), SEGMENTOR, out, runtime)
    (out / 'old').touch()
    with pytest.raises(UsageError, match=r'exists\. Choose another name by --out, or overwrite it by --force'):
        check_folder(out)
    write_page(tiny('semantic_fpn'), SEGMENTOR, out, runtime)
    assert not (out / 'old').exists()

    other = tmp_path / 'photos'
    other.mkdir()
    (other / 'index.html').write_text('mine')
    (tmp_path / 'link').symlink_to(out)
    for path in (other, tmp_path, tmp_path / 'link', other / 'index.html'):
        with pytest.raises(UsageError, match='exists and is not a page of --format web'):
            check_folder(path, overwrite=True)
    with pytest.raises(UsageError, match='is not a page'):
        write_page(tiny('semantic_fpn'), SEGMENTOR, other, runtime)
    assert (other / 'index.html').read_text() == 'mine'
    with pytest.raises(UsageError, match='no folder'):
        check_folder(tmp_path / 'none/page')


def test_an_export_that_fails_leaves_the_old_page(runtime, quick, tmp_path, monkeypatch):
    write_page(tiny('semantic_fpn'), SEGMENTOR, tmp_path / 'page', runtime)

    def fail(*_):
        raise UsageError('no memory')

    monkeypatch.setattr(module, 'export', fail)
    with pytest.raises(UsageError, match='no memory'):
        write_page(tiny('semantic_fpn'), SEGMENTOR, tmp_path / 'page', runtime)
    assert (tmp_path / 'page/model.onnx').read_bytes() == b'graph'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['node_modules', 'page']


@needs('onnx')
@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--what', 'backbone'], 'leave out --what backbone'),
        (['--dynamic', 'batch'], 'leave out batch'),
        (['--preprocess', 'rgb'], 'leave out --preprocess'),
        (['--precision', 'int8'], 'not in int8'),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments, words, monkeypatch):
    tool = load_tool('export')
    common = ['export.py', 'config.py', 'x.pth', '--format', 'web', '--size', '64', '96']
    monkeypatch.setattr(sys, 'argv', [*common, *arguments])
    with pytest.raises(UsageError, match=words):
        tool.check_arguments(tool.parse_args(), 'segmentor')


def test_the_folder_around_a_page_must_exist(monkeypatch):
    tool = load_tool('export')
    monkeypatch.setattr(sys, 'argv', ['export.py', 'config.py', 'x.pth', '--format', 'web', '--out', 'none/page'])
    with pytest.raises(UsageError, match='no folder'):
        tool.check_out(tool.parse_args())


@needs('onnx')
@pytest.mark.parametrize(
    'arguments, words', [(['web'], 'npm install onnxruntime-web'), (['pt2', '--ort-dist', '.'], 'is for --format web')]
)
def test_the_tool_looks_for_the_runtime_first(arguments, words, run_main):
    status, output = run_main('export', 'semantic-fpn_casvit-xs_300i_shapes', 'none.pth', '--format', *arguments)
    assert status == 2
    assert words in output.err.splitlines()[-1]


def test_the_server_sends_the_headers_for_threads(runtime, quick, tmp_path):
    write_page(tiny('semantic_fpn'), SEGMENTOR, tmp_path / 'page', runtime)
    with start_server(tmp_path / 'page') as address:
        answer = urllib.request.urlopen(f'{address}/')
        assert answer.headers['Cross-Origin-Opener-Policy'] == 'same-origin'
        assert answer.headers['Cross-Origin-Embedder-Policy'] == 'require-corp'
        assert answer.headers['Content-Security-Policy'].startswith("default-src 'self'; ")
        assert answer.read() == (PAGE / 'index.html').read_bytes()
        for name, kind in ((RUNTIME_FILES[0], 'text/javascript'), (RUNTIME_FILES[-1], 'application/wasm')):
            assert urllib.request.urlopen(f'{address}/ort/{name}').headers['Content-Type'] == kind
        with pytest.raises(urllib.error.HTTPError, match='404'):
            urllib.request.urlopen(f'{address}/../test.py')
        taken = [sys.executable, tmp_path / 'page/serve.py', '--port', address.rpartition(':')[2]]
        done = subprocess.run(taken, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith('error: port ')
