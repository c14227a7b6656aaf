"""The page that explores models: its parts alone, its script without a browser, and the whole in a browser."""

import importlib.util
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from helpers.reference import fill
from helpers.repository import ROOT, load_tool
from helpers.tiny_models import tiny_config
from mmengine.config import Config
from PIL import Image
from torch.testing import assert_close

from mmcasvit import WeightsError, get_model, list_configs
from mmcasvit.utils.errors import UsageError
from mmcasvit.visualization import explore as exploring
from mmcasvit.visualization.explore import (
    MAX_SIDE,
    _confidence,
    check_choice,
    confine,
    draw_over,
    enlarge,
    find_runs,
    legend,
    list_found,
    load_model,
    measure,
    predict,
    read_upload,
    seen,
)

BROWSERS = ('chromium', 'chromium-headless-shell', 'chromium-browser', 'google-chrome', 'google-chrome-stable')


@pytest.fixture(scope='module')
def picture(shapes):
    return shapes / 'coco/val2017/000000000001.jpg'


def spread_scores(model, picture):
    """Has a head with random weights find objects of the third class, with scores from low to high."""
    layer, inputs = model.roi_head.bbox_head.fc_cls, []
    handle = layer.register_forward_hook(lambda _, args, __: inputs.append(args[0]))
    predict(model, picture)
    handle.remove()
    with torch.no_grad():
        offset = inputs[0] - inputs[0].mean(0)
        direction = offset[offset.norm(dim=1).argmax()]
        direction *= 2 / (offset @ direction).std()
        layer.weight.zero_()
        layer.bias.zero_()
        layer.weight[2] = direction
        layer.bias[2] = -1.3 - inputs[0].mean(0) @ direction


@pytest.fixture(scope='module')
def work(tmp_path_factory, pixels):
    """What two tiny runs left behind, with a checkpoint that is none."""
    root = tmp_path_factory.mktemp('explore') / 'work'
    for name, kind in (('detector', 'mask_rcnn'), ('segmentor', 'semantic_fpn')):
        torch.manual_seed(0)
        cfg = tiny_config(kind)
        if name == 'detector':
            cfg.model.test_cfg.rcnn.max_per_img = 20  # a hundred masks take seconds to draw
        model = get_model(cfg)
        fill(model.backbone)
        if name == 'detector':
            spread_scores(model, pixels)
        (root / name).mkdir(parents=True)
        cfg.dump(root / name / f'tiny-{name}.py')
        torch.save(dict(state_dict=model.state_dict()), root / name / 'epoch_1.pth')
    (root / 'broken.pth').write_bytes(b'no checkpoint')
    return root


def load(work, name):
    return load_model(str(work / name / f'tiny-{name}.py'), str(work / name / 'epoch_1.pth'))


@pytest.fixture(scope='module')
def models(work):
    return {name: load(work, name) for name in ('detector', 'segmentor')}


@pytest.fixture(scope='module')
def pixels(picture):
    return read_upload(picture.read_bytes())


def encoded(size, kind='PNG', **settings):
    file = io.BytesIO()
    Image.new('RGB', size, (200, 30, 90)).save(file, kind, **settings)
    return file.getvalue()


def test_runs_are_found_with_the_best_checkpoint_first(tmp_path, monkeypatch):
    for place, names in dict(
        a=['a.py', 'epoch_1.pth', 'epoch_2.pth', 'best_x_epoch_1.pth', 'notes.txt'], none=['b.py'], loose=['c.pth']
    ).items():
        (tmp_path / place).mkdir()
        for age, name in enumerate(names):
            (tmp_path / place / name).touch()
            os.utime(tmp_path / place / name, (100 + age, 100 + age))
    checkpoints = ['best_x_epoch_1.pth', 'epoch_2.pth', 'epoch_1.pth']
    assert find_runs([tmp_path]) == {str(tmp_path / 'a/a.py'): [str(tmp_path / 'a' / name) for name in checkpoints]}
    monkeypatch.chdir(tmp_path)
    assert find_runs([Path('a')]) == {'a/a.py': [f'a/{name}' for name in checkpoints]}


def test_only_files_of_the_given_folders_are_opened(tmp_path, monkeypatch):
    inside, outside = tmp_path / 'in', tmp_path / 'out'
    for folder in (inside, outside):
        folder.mkdir()
        (folder / 'x.pth').touch()
    (inside / 'link.pth').symlink_to(outside / 'x.pth')
    (inside / 'circle.pth').symlink_to(inside / 'circle.pth')
    monkeypatch.chdir(tmp_path)
    assert confine('in/x.pth', [outside, Path('in')]) == inside / 'x.pth'
    assert confine('in/../in/x.pth', [Path('in')]) == inside / 'x.pth'
    for path in ('in/../out/x.pth', str(outside / 'x.pth'), 'in/link.pth', 'out/none.pth', '/etc/passwd', '~/x.pth'):
        with pytest.raises(UsageError, match='lies outside of the folders'):
            confine(path, [Path('in')])
    for path in ('in/none.pth', 'in', 'in/circle.pth', 'in/' + 'x' * 5000, 'in/x\0.pth'):
        with pytest.raises(UsageError, match=r'file not found|is no path'):
            confine(path, [Path('in')])


def test_a_config_is_of_a_run_or_of_the_project(work):
    checkpoint = str(work / 'detector/epoch_1.pth')
    for config in (
        list_configs()[0],
        str(ROOT / 'configs/detection/retinanet_casvit-xs_fpn_6e_shapes.py'),
        str(work / 'detector/tiny-detector.py'),
    ):
        assert Path(check_choice(config, checkpoint, [work])[0]).is_file()
    for config, file, words in (
        (None, checkpoint, 'choose a config'),
        ('x', '', 'choose a checkpoint'),
        (str(ROOT / 'setup.py'), checkpoint, 'outside'),
        (list_configs()[0], 'http://127.0.0.1:1/x.pth', 'outside'),
    ):
        with pytest.raises(UsageError, match=words):
            check_choice(config, file, [work])


def test_an_upload_is_decoded_as_the_tools_decode_a_file(picture):
    np.testing.assert_array_equal(read_upload(picture.read_bytes()), mmcv.imread(str(picture), channel_order='rgb'))
    large = read_upload(encoded((MAX_SIDE * 2, 400)))
    assert large.shape == (200, MAX_SIDE, 3)
    assert large[7, 7].tolist() == [200, 30, 90]


@pytest.mark.parametrize(
    'content, words',
    [
        (None, 'drop in an image'),
        (b'', 'drop in an image'),
        (b'<html>', 'no image'),
        (encoded((64, 64))[:-30], 'damaged'),
        (encoded((1, 1)), 'a single pixel'),
        (encoded((9000, 9000), compress_level=1), '9000x9000 pixels'),
    ],
    ids=['none', 'empty', 'text', 'cut off', 'one pixel', 'too large'],
)
def test_a_bad_upload_is_refused(content, words):
    with pytest.raises(UsageError, match=words):
        read_upload(content)


def test_a_detector_runs_once_for_all_thresholds(models, pixels):
    model, runs = models['detector'], []
    handle = model.backbone.register_forward_hook(lambda *_: runs.append(1))
    found = predict(model, pixels)
    drawn = {thr: draw_over(model, found, thr, 0.8) for thr in (0.0, 0.3, 1.0)}
    handle.remove()
    assert len(runs) == 1
    scores = found.sample.pred_instances.scores
    assert 0 < (scores > 0.3).sum() < len(scores)
    assert drawn[0.0].shape == pixels.shape
    np.testing.assert_array_equal(drawn[1.0], pixels)
    assert (drawn[0.0] != drawn[0.3]).any()
    faint, strong = (
        np.abs(draw_over(model, found, 0.3, opacity).astype(int) - pixels).mean() for opacity in (0.1, 0.9)
    )
    assert faint < strong
    rows = list_found(model, found, 0.3)
    assert len(rows) == (scores > 0.3).sum()
    best = found.sample.pred_instances[int(scores.argmax())]
    assert rows[0]['class'] == model.dataset_meta['classes'][int(best.labels)]
    assert rows[0]['score'] == pytest.approx(float(best.scores), abs=5e-4)
    box = [rows[0][side] for side in ('left', 'top', 'right', 'bottom')]
    assert box == pytest.approx(best.bboxes[0].tolist(), abs=0.06)
    assert legend(model)['disc'] == '#dc143c'


def test_a_small_picture_is_drawn_large(models, pixels):
    found = predict(models['detector'], pixels)
    large = enlarge(found, 200)
    assert large.picture.shape == (128, 192, 3)
    before, after = found.sample.pred_instances, large.sample.pred_instances
    assert_close(after.bboxes, 2 * before.bboxes)
    assert_close(after.masks[:, 1::2, 1::2], before.masks)
    assert before.masks.shape[1:] == (64, 96)
    assert draw_over(models['detector'], large, 0.3, 0.8).shape == (128, 192, 3)
    assert enlarge(found, 191) is found
    found = predict(models['segmentor'], pixels)
    large = enlarge(found, 200)
    for thr in (0.0, float(np.median(found.confidence))):
        drawn = draw_over(models['segmentor'], large, thr, 1.0)[::2, ::2]
        sure = found.confidence > thr
        np.testing.assert_array_equal(drawn[sure], draw_over(models['segmentor'], found, thr, 1.0)[sure])


def test_a_segmentation_is_drawn_where_it_is_probable(models, pixels):
    model = models['segmentor']
    found = predict(model, pixels)
    with torch.no_grad():
        logits = model(
            model.data_preprocessor(
                dict(inputs=[torch.from_numpy(pixels[..., ::-1].copy()).permute(2, 0, 1)], data_samples=None)
            )['inputs']
        )
        logits = torch.nn.functional.interpolate(logits, pixels.shape[:2], mode='bilinear', align_corners=False)
    wanted, labels = logits.softmax(1)[0].max(0)
    assert_close(torch.from_numpy(found.confidence), wanted, rtol=1e-4, atol=1e-5)
    palette = np.array(model.dataset_meta['palette'], np.uint8)
    np.testing.assert_array_equal(draw_over(model, found, 0.0, 1.0), palette[labels.numpy()])
    np.testing.assert_array_equal(draw_over(model, found, 0.0, 0.0), pixels)
    middle = float(np.median(found.confidence))
    sure = found.confidence > middle
    assert 0.4 < sure.mean() < 0.6
    drawn = draw_over(model, found, middle, 1.0)
    np.testing.assert_array_equal(drawn[sure], palette[labels.numpy()][sure])
    np.testing.assert_array_equal(drawn[~sure], pixels[~sure])
    rows = list_found(model, found, middle)
    assert sum(row['share of the pixels, %'] for row in rows) == pytest.approx(100 * sure.mean(), abs=0.5)
    label = model.dataset_meta['classes'].index(rows[0]['class'])
    assert rows[0]['share of the pixels, %'] == pytest.approx(100 * (sure & (labels.numpy() == label)).mean(), abs=0.06)


def test_one_channel_holds_the_probability_of_the_second_class():
    scores = torch.tensor([[[0.9, 0.2]]])
    assert_close(torch.from_numpy(_confidence(scores, torch.tensor([[1.0, 0.0]]))), torch.tensor([[0.9, 0.8]]))


def test_models_of_two_frameworks_take_turns(models, pixels):
    first = predict(models['detector'], pixels)
    predict(models['segmentor'], pixels)
    again = predict(models['detector'], pixels)
    assert_close(again.sample.pred_instances.scores, first.sample.pred_instances.scores)


def test_both_forms_are_measured_in_turns(models, pixels):
    model, runs = models['segmentor'], []
    handle = model.backbone.register_forward_hook(lambda *_: runs.append(1))
    rows = measure(model, pixels, rounds=3)
    handle.remove()
    assert [row['form'] for row in rows] == ['eager', 'deploy']
    for row in rows:
        low, high = map(float, row['quartiles, ms'].split(' to '))
        assert low - 0.1 <= row['median, ms'] <= high + 0.1
        assert row['images per second'] == pytest.approx(1000 / row['median, ms'], rel=0.1)
    # Two to warm up, one that says how long it takes, and in each round one to fill the caches and one that counts.
    assert len(runs) == 3 + 2 * 3


def test_what_cannot_be_shown_is_refused(work, pixels, tmp_path):
    detector, segmentor = (str(work / name / f'tiny-{name}.py') for name in ('detector', 'segmentor'))
    with pytest.raises(WeightsError):
        load_model(detector, str(work / 'broken.pth'))
    with pytest.raises(WeightsError, match='missing'):
        load_model(segmentor, str(work / 'detector/epoch_1.pth'))
    cfg = Config.fromfile(segmentor)
    del cfg.test_dataloader.dataset['metainfo']
    cfg.dump(tmp_path / 'nameless.py')
    with pytest.raises(UsageError, match='says what the classes are called'):
        load_model(str(tmp_path / 'nameless.py'), str(work / 'segmentor/epoch_1.pth'))
    model = load_model(segmentor, str(work / 'segmentor/epoch_1.pth'))
    model.backbone = torch.nn.Sequential()
    with pytest.raises(UsageError, match='whose backbone is a CASViT'):
        seen(model, pixels, None, 0.3, 'HiResCAM')
    assert load(work, 'segmentor').cfg.default_scope == 'mmseg'  # nothing is locked any more


@pytest.fixture
def tool(monkeypatch):
    module = load_tool('explore')

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['explore.py', *map(str, args)])
        module.main()

    run.module = module
    return run


def test_the_server_is_for_this_machine_and_tells_nobody(tool, work, monkeypatch):
    pytest.importorskip('streamlit')
    started = []
    monkeypatch.setattr(tool.module.cli, 'main', lambda args, **_: started.append(args))
    tool(work, '--port', 8765)
    flags = started[0]
    assert flags[0] == 'run'
    assert flags[-4:] == ['--', str(work), '--port', '8765']
    for flag in (
        'server.address=127.0.0.1',
        'server.port=8765',
        'browser.gatherUsageStats=false',
        'server.maxUploadSize=20',
        'server.enableXsrfProtection=true',
        'server.allowedHosts=127.0.0.1',
    ):
        assert f'--{flag}' in flags


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['none'], 'folder not found'),
        (['.', '--port', '0'], '--port must lie'),
        (['.', '--max-upload', '0'], '--max-upload'),
        (['.'], 'pip install "mmcasvit[explore]"'),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_arguments_are_one_line(tool, tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    if 'pip' in words:
        monkeypatch.setattr(tool.module, 'st', None)
    elif tool.module.st is None:
        pytest.skip('needs streamlit')
    with pytest.raises(SystemExit) as ended:
        tool(*arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith('error: ')
    assert words in error[-1]


def plain(message):
    return re.sub(r'\\(.)', r'\1', message.value)


def press(page, label):
    next(button for button in page.button if button.label == label).click()
    page.run()
    assert not page.exception


def choose(box, value):
    box.options.append(value)  # what is typed in stands in no list
    return box.set_value(value)


def test_the_page_without_a_browser(work, picture, monkeypatch):
    testing = pytest.importorskip('streamlit.testing.v1')
    runs = []
    monkeypatch.setattr(exploring, 'predict', lambda *args: runs.append(args) or predict(*args))
    monkeypatch.setattr(sys, 'argv', ['explore.py', str(work), '--device', 'cpu'])
    page = testing.AppTest.from_file(str(ROOT / 'tools/explore.py'), default_timeout=300).run()
    assert 'press Predict' in page.info[0].value
    detector, segmentor = (str(work / name / f'tiny-{name}.py') for name in ('detector', 'segmentor'))
    config, checkpoint = page.sidebar.selectbox
    assert config.options == [detector, segmentor, *list_configs()]
    assert (config.value, checkpoint.value) == (detector, str(work / 'detector/epoch_1.pth'))
    press(page, 'Predict')
    assert plain(page.error[0]) == 'drop in an image first.'
    page.file_uploader[0].upload('bad.png', b'no image', 'image/png').run()
    press(page, 'Predict')
    assert 'this is no image' in plain(page.error[0])

    page.file_uploader[0].set_value(('scene.jpg', picture.read_bytes(), 'image/jpeg')).run()
    press(page, 'Predict')
    assert not page.error
    assert page.text[0].value == 'scene.jpg, 96x64 pixels, by tiny-detector with epoch_1.pth'

    assert len(runs) == 1
    image, prediction = (element.proto.imgs[0].url for element in page.get('image'))
    boxes = len(page.dataframe[0].value)
    page.slider[0].set_value(0.6).run()
    assert len(page.dataframe[0].value) < boxes
    moved = [element.proto.imgs[0].url for element in page.get('image')]
    assert moved[0] == image
    assert moved[1] != prediction
    page.slider[1].set_value(0.1).run()
    assert page.get('image')[1].proto.imgs[0].url not in (prediction, moved[1])
    page.slider[0].set_value(1.0).run()
    assert not page.dataframe
    assert any('Nothing lies above' in text.value for text in page.markdown)
    assert len(runs) == 1

    press(page, 'Look inside')
    assert len(page.get('image')) == 3
    page.number_input[0].set_value(3)
    press(page, 'Measure')
    assert page.dataframe[0].value['form'].tolist() == ['eager', 'deploy']
    assert len(page.get('image')) == 3

    choose(page.sidebar.selectbox[1], str(work / 'broken.pth'))
    press(page, 'Predict')
    assert 'broken.pth' in plain(page.error[0])
    assert not page.get('image')
    page.sidebar.selectbox[1].options.append(str(work / 'broken.pth'))
    choose(page.sidebar.selectbox[1], str(work / 'segmentor/epoch_1.pth'))
    press(page, 'Predict')
    assert 'missing' in plain(page.error[0])
    page.sidebar.selectbox[0].set_value(segmentor).run()
    assert page.sidebar.selectbox[1].value == str(work / 'segmentor/epoch_1.pth')
    press(page, 'Predict')
    assert not page.error
    assert page.slider[0].label == 'Probability threshold'
    assert len(runs) == 2


def test_the_config_of_a_classifier_is_named_as_such(work):
    if importlib.util.find_spec('mmpretrain') is None:
        pytest.skip('needs mmpretrain')
    with pytest.raises(UsageError, match=r'config of a classifier|importing that failed'):
        load_model('casvit-xs_8e_shapes', str(work / 'detector/epoch_1.pth'))


@pytest.fixture(scope='module')
def server(work, tmp_path_factory):
    """The address of a page that is served, and the file of its log."""
    pytest.importorskip('streamlit')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp('server') / 'log'
    address = f'http://127.0.0.1:{port}'
    command = [sys.executable, ROOT / 'tools/explore.py', work, '--port', str(port), '--device', 'cpu']
    with log.open('w') as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONUNBUFFERED': '1'},
        )
        try:
            for _ in range(1200):
                assert process.poll() is None, log.read_text()
                try:
                    urllib.request.urlopen(f'{address}/_stcore/health', timeout=5)
                    break
                except OSError:
                    time.sleep(0.1)
            yield address, log
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture
def browser():
    api = pytest.importorskip('playwright.sync_api', reason='needs playwright')
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f'needs a browser: {", ".join(BROWSERS)}')
    with api.sync_playwright() as playwright:
        # In a container Chromium's own sandbox cannot be set up; the only page it opens is ours.
        opened = playwright.chromium.launch(executable_path=found, args=['--no-sandbox'])
        yield opened
        opened.close()


@pytest.mark.slow
def test_the_page_in_a_browser(server, browser, work, picture):
    from playwright.sync_api import expect

    expect.set_options(timeout=120_000)
    address, log = server
    page = browser.new_page(viewport=dict(width=1400, height=1000))
    page.set_default_timeout(120_000)
    wrong, asked = [], set()
    page.on('console', lambda message: wrong.append(message.text) if message.type == 'error' else None)
    page.on('pageerror', lambda error: wrong.append(str(error)))
    page.on('request', lambda request: asked.add(request.url))
    page.goto(address)
    predict_button = page.get_by_role('button', name='Predict')
    predict_button.click()
    expect(page.get_by_text('drop in an image first.')).to_be_visible()

    page.locator('input[type=file]').set_input_files(picture)
    expect(page.get_by_text(picture.name)).to_be_visible()
    predict_button.click()
    prediction = page.locator('[data-testid=stImage] img').nth(1)
    expect(prediction).to_be_visible()
    assert prediction.evaluate('image => image.decode().then(() => image.naturalWidth)') == 480
    before = prediction.get_attribute('src')
    assert log.read_text().count('predicted ') == 1

    slider = page.get_by_role('slider', name='Score threshold')
    slider.focus()
    for _ in range(20):
        slider.press('ArrowRight')
    expect(prediction).not_to_have_attribute('src', before)
    moved = prediction.get_attribute('src')
    page.get_by_role('slider', name='Opacity').press('Home')
    expect(prediction).not_to_have_attribute('src', moved)
    assert log.read_text().count('predicted ') == 1

    page.get_by_role('tab', name='What the model sees').click()
    page.get_by_role('button', name='Look inside').click()
    figure = page.locator('[data-testid=stImage] img').nth(2)
    expect(figure).to_be_visible()
    assert figure.evaluate('image => image.decode().then(() => image.naturalWidth)') > 1400
    page.get_by_role('tab', name='Latency').click()
    page.get_by_role('button', name='Measure').click()
    expect(page.get_by_text('One image at a time')).to_be_visible()

    box = page.get_by_role('combobox', name='Checkpoint')
    box.fill(str(work / 'broken.pth'))
    box.press('Enter')
    predict_button.click()
    expect(page.get_by_role('alert').get_by_text('broken.pth')).to_be_visible()
    expect(page.locator('[data-testid=stImage]')).to_have_count(0)
    box.fill('/etc/passwd')
    box.press('Enter')
    predict_button.click()
    expect(page.get_by_text('lies outside of the folders')).to_be_visible()
    box.fill(str(work / 'detector/epoch_1.pth'))
    box.press('Enter')
    predict_button.click()
    expect(prediction).to_be_visible()
    assert log.read_text().count('predicted ') == 2
    assert not wrong
    assert all(url.startswith((address, 'data:', 'blob:')) for url in asked), asked
