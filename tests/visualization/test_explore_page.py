"""tools/explore.py: its arguments, the page without a browser, and the page in one."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from helpers.browser import open_browser
from helpers.repository import ROOT, load_tool

from mmcasvit import list_configs
from mmcasvit.visualization import explore


@pytest.fixture
def tool(monkeypatch):
    module = load_tool('explore')

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['explore.py', *map(str, args)])
        module.main()

    run.module = module
    return run


def test_the_server_listens_only_on_this_machine_and_sends_no_statistics(tool, work, monkeypatch):
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
    box.options.append(value)  # a typed path is not in the list
    return box.set_value(value)


def test_the_page_without_a_browser(work, image_file, monkeypatch):
    testing = pytest.importorskip('streamlit.testing.v1')
    runs, predict = [], explore.predict
    monkeypatch.setattr(explore, 'predict', lambda *args: runs.append(args) or predict(*args))
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
    assert 'the file is not an image' in plain(page.error[0])

    page.file_uploader[0].set_value(('scene.jpg', image_file.read_bytes(), 'image/jpeg')).run()
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


@pytest.fixture(scope='module')
def server(work, tmp_path_factory):
    """Serve the page, and yield its address and the file of its log."""
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
    with open_browser() as opened:
        yield opened


@pytest.mark.slow
def test_the_page_in_a_browser(server, browser, work, image_file):
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

    page.locator('input[type=file]').set_input_files(image_file)
    expect(page.get_by_text(image_file.name)).to_be_visible()
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
