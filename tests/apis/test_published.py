"""Published weights are found by name, downloaded once, verified before they get their name, and used offline."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import http.server
import os
import stat
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers.attack import Attack
from helpers.reference import published_checkpoint, published_dense_checkpoint, published_weights
from helpers.repository import ROOT
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader
from torch.testing import assert_close

import mmcasvit
from mmcasvit import CASViT, WeightsError, get_model, load_pretrained
from mmcasvit.__main__ import main
from mmcasvit.apis import published
from mmcasvit.models.classifier import CASViTClassifier
from mmcasvit.utils.errors import UsageError
from mmcasvit.weights import published as cache

PAGE = b'<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>'
XS = 'casvit-xs_8xb128-300e_in1k-224.pth'
RETINANET = 'retinanet_casvit-xs_fpn_1x_coco'
SEGMENTOR = 'semantic-fpn_casvit-xs_8xb4-40k_ade20k-512x512'


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Return the bytes of files as the authors publish them."""
    folder = tmp_path_factory.mktemp('files')
    contents = dict(
        xs=published_checkpoint('xs'),
        s=published_checkpoint('s'),
        retinanet=published_dense_checkpoint('retinanet', 'xs'),
        segmentor=published_dense_checkpoint('semantic-fpn', 'xs'),
        unsafe=dict(published_checkpoint('xs'), more=Attack(str(folder / 'harmed'))),
    )
    for name, content in contents.items():
        torch.save(content, folder / name)
    return {name: (folder / name).read_bytes() for name in contents}


class Site:
    """Server that stands in for every address of the metafiles.

    Attributes:
        answer: Bytes that it sends for any file; None sends an error of the server.
        missing: How many of these bytes it does not send.
        asked: The paths that were asked for.
    """

    def __init__(self):
        self.answer, self.missing, self.pause, self.asked = None, 0, 0, []
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                site.asked.append(self.path)
                time.sleep(site.pause)
                if site.answer is None:
                    self.send_error(503)
                    return
                self.send_response(200)
                self.send_header('Content-Length', str(len(site.answer)))
                self.end_headers()
                self.wfile.write(site.answer[: len(site.answer) - site.missing])

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.address = f'http://127.0.0.1:{self.server.server_port}'
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def site(monkeypatch, tmp_path):
    """Serve all published weights from this machine, into an empty folder."""
    running = Site()
    moved = tuple(
        dataclasses.replace(each, address=f'{running.address}/file/d/{each.alias}/view?usp=sharing')
        for each in published.list_published()
    )
    for module in ('mmcasvit.apis.published', 'mmcasvit.__main__'):
        monkeypatch.setattr(f'{module}.list_published', lambda: moved)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.chdir(tmp_path)
    yield running
    running.stop()


def left():
    """Return the names in the folder of published weights."""
    return sorted(path.name for path in cache.cache_folder().iterdir() if path.name != '.lock')


def put_by_hand(content, name=XS):
    cache.cache_folder().mkdir(parents=True, exist_ok=True)
    file = cache.cache_folder() / name
    file.write_bytes(content)
    return file


def program(monkeypatch, capsys, *args, fails=False):
    """Run ``python -m mmcasvit weights`` in this process, and return what it printed."""
    monkeypatch.setattr(sys, 'argv', ['mmcasvit', 'weights', *args])
    if fails:
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
    else:
        main()
    printed = capsys.readouterr()
    return printed.out + (printed.err.partition('error: ')[2] if fails else '')


def test_weights_are_downloaded_once_and_used_offline(site, files, monkeypatch, tmp_path):
    site.answer = files['xs']
    old = os.umask(0o022)
    try:
        model = CASViT('xs', init_cfg=dict(type='Pretrained', checkpoint='xs'))
        model.init_weights()
    finally:
        os.umask(old)
    site.stop()
    weights = published_weights('xs')
    assert_close(model.network[0][0].mlp.fc1.weight, weights['network.0.0.mlp.fc1.weight'])
    folder = tmp_path / 'torch' / 'hub' / 'checkpoints' / 'mmcasvit'
    assert left() == [XS, f'{XS}.sha256']
    assert (folder / XS).read_bytes() == files['xs']
    assert stat.S_IMODE((folder / XS).stat().st_mode) == 0o644
    assert (folder / f'{XS}.sha256').read_text() == f'{hashlib.sha256(files["xs"]).hexdigest()}  {XS}\n'
    monkeypatch.setattr(cache, '_verify', None)
    load_pretrained(CASViT('xs'), 'xs')
    load_pretrained(CASViT('xs'), XS.removesuffix('.pth'))  # the name of the config
    classifier = CASViTClassifier('xs')
    classifier.load_pretrained('xs')
    assert_close(classifier.state_dict()['head.dist_head.weight'], weights['dist_head.weight'])
    hub = torch.hub.load(str(ROOT), 'casvit_xs', source='local', pretrained=True)
    assert_close(hub.state_dict(), classifier.state_dict())
    assert site.asked == ['/file/d/xs/view?usp=sharing']


@pytest.mark.parametrize('name, content, pixel', [(RETINANET, 'retinanet', False), (SEGMENTOR, 'segmentor', True)])
def test_whole_models_come_by_the_name_of_their_config(site, files, name, content, pixel):
    site.answer = files[content]
    model = get_model(name, pretrained=True)
    site.stop()
    layer = model.decode_head.conv_seg if pixel else model.bbox_head.retina_cls
    again = CheckpointLoader.load_checkpoint(f'{content.replace("segmentor", "semantic-fpn")}-xs')  # mmengine's loader
    key = 'decode_head.conv_seg.weight' if pixel else 'bbox_head.retina_cls.weight'
    assert_close(layer.weight, again['state_dict'][key])
    assert len(site.asked) == 1


def test_published_weights_belong_to_one_config(site):
    with pytest.raises(UsageError, match='either checkpoint or pretrained'):
        get_model(RETINANET, 'x.pth', pretrained=True)
    with pytest.raises(WeightsError, match='Published weights: xs, xs-384, s, '):
        get_model('upernet_casvit-xs_600i_shapes', pretrained=True)
    assert site.asked == []


def test_verification_does_not_change_the_model_that_is_being_built(site, files):
    site.answer = files['segmentor']
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        mmcasvit.published_file('semantic-fpn-xs')
        assert DefaultScope.get_current_instance().scope_name == 'mmdet'
        assert torch.equal(torch.rand(3), expected)


BY_HAND = r'xs could not be downloaded: .*Download http://\S+ with a browser, and save it as \S+/' + XS


@pytest.mark.parametrize(
    'answer, missing, error, message',
    [
        (None, 0, UsageError, BY_HAND),
        (PAGE, 0, UsageError, r'a web page instead of the file.*Download http'),
        ('xs', 1000, WeightsError, r'xs from http://\S+ is not a checkpoint, or is damaged'),
        ('s', 0, WeightsError, "xs from .* does not fit the model; nothing was loaded.\n.*'xs', found: arch 's'"),
        ('retinanet', 0, WeightsError, 'xs from .* does not fit'),
        ('unsafe', 0, WeightsError, r'xs from .* was not loaded: its pickle holds \w*\.mkdir'),
    ],
    ids=['error', 'page', 'truncated', 'other arch', 'other model', 'unsafe'],
)
def test_nothing_is_left_of_a_failed_download(site, files, answer, missing, error, message):
    site.answer, site.missing = files.get(answer, answer), missing
    for _ in range(2):
        with pytest.raises(error, match=message) as caught:
            load_pretrained(CASViT('xs'), 'xs')
        assert error is WeightsError or '\n' not in str(caught.value)
        assert '.unfinished' not in str(caught.value)
        assert left() == []
    site.answer, site.missing = files['xs'], 0
    load_pretrained(CASViT('xs'), 'xs')
    assert left() == [XS, f'{XS}.sha256']


def test_flipped_bits_are_noticed(site, files):
    data = bytearray(files['xs'])
    data[len(data) // 2] ^= 0xFF
    site.answer = bytes(data)
    with pytest.raises(WeightsError, match=r'xs from http\S+ is .*damaged: the checksum of \S+ is wrong'):
        mmcasvit.published_file('xs')


def test_without_a_network_the_address_and_the_file_are_named(site):
    site.stop()
    with pytest.raises(UsageError, match=BY_HAND):
        mmcasvit.published_file('xs')
    assert left() == []


def test_the_cause_of_a_failed_download_is_named(site, monkeypatch):
    def fetch(address, target):
        raise OSError(f'Pool(host=x): Max retries exceeded with url: {"/" * 200} (Caused by NameError("no such host"))')

    monkeypatch.setattr(cache, '_fetch', fetch)
    with pytest.raises(UsageError, match=r'xs could not be downloaded: NameError\("no such host"\)\. Download http'):
        mmcasvit.published_file('xs')


def test_without_gdown_the_address_and_the_file_are_named(site, monkeypatch):
    monkeypatch.setattr(cache, '_DRIVE', '127.0.0.1')
    monkeypatch.setitem(sys.modules, 'gdown', None)
    with pytest.raises(UsageError, match=BY_HAND) as caught:
        mmcasvit.published_file('xs')
    assert 'gdown is not installed (pip install gdown)' in str(caught.value)
    assert site.asked == left() == []


def test_gdown_downloads_from_drive(site, files, monkeypatch, capfd):
    pytest.importorskip('gdown')
    monkeypatch.setattr(cache, '_DRIVE', '127.0.0.1')
    site.answer = PAGE
    with pytest.raises(UsageError, match=BY_HAND):
        mmcasvit.published_file('xs')
    site.answer = None
    with pytest.raises(UsageError, match=BY_HAND):
        mmcasvit.published_file('xs')
    assert left() == []
    site.answer = files['xs']
    file = mmcasvit.published_file('xs')
    assert set(site.asked) == {'/uc?id=xs'}
    put_by_hand(b'', 'new')
    assert file.stat().st_mode == file.with_name('new').stat().st_mode
    file.with_name('new').unlink()
    assert left() == [XS, f'{XS}.sha256']
    assert '100%' in capfd.readouterr().err, 'progress is shown'


def test_a_file_put_there_by_hand_is_verified_once(site, files, monkeypatch):
    file = put_by_hand(files['s'])
    for _ in range(2):
        with pytest.raises(WeightsError, match=f"{XS} does not fit the model.*\n.*'xs', found: arch 's'"):
            mmcasvit.published_file('xs')
    put_by_hand(PAGE)
    with pytest.raises(WeightsError, match=f'{XS} is a web page, not a checkpoint'):
        mmcasvit.published_file('xs')
    assert left() == [XS], 'what a user put there is not deleted'
    put_by_hand(files['xs'])
    assert mmcasvit.published_file('xs') == file
    assert left() == [XS, f'{XS}.sha256']
    put_by_hand(files['s'])
    with pytest.raises(WeightsError, match='has changed since it was verified'):
        mmcasvit.published_file('xs')
    assert site.asked == []


def test_a_folder_that_cannot_be_written_to_is_enough_to_read(site, files, monkeypatch):
    with tempfile.TemporaryDirectory() as home:  # pytest's own folders are closed to other users
        os.chmod(home, 0o755)
        monkeypatch.setenv('TORCH_HOME', home)
        file = put_by_hand(files['xs'])
        user = os.geteuid()
        file.parent.chmod(0o555)
        try:
            if user == 0:  # may write anywhere
                os.seteuid(65534)
            assert mmcasvit.published_file('xs') == file
            with pytest.raises(UsageError, match=r's cannot be saved as .*: Permission denied.*TORCH_HOME'):
                mmcasvit.published_file('s')
        finally:
            os.seteuid(user)
            file.parent.chmod(0o755)
        assert left() == [XS]


@pytest.mark.parametrize('locks', [True, False])
def test_processes_that_ask_at_once_do_not_disturb_each_other(site, files, monkeypatch, locks):
    if not locks:
        monkeypatch.setattr(cache, 'FileLock', contextlib.nullcontext)
    site.answer, site.pause = files['xs'], 0.3
    with concurrent.futures.ThreadPoolExecutor() as threads:
        found = list(threads.map(lambda _: mmcasvit.published_file('xs').read_bytes(), range(3)))
    assert found == [files['xs']] * 3
    assert left() == [XS, f'{XS}.sha256']
    assert len(site.asked) == (1 if locks else 3)


def test_a_file_comes_before_a_name(site, tmp_path):
    torch.save(dict(state_dict=dict(x=torch.ones(1))), 'xs')
    assert list(CheckpointLoader.load_checkpoint('xs')['state_dict']) == ['x']
    with pytest.raises(WeightsError, match='No name in the file is one of this model'):
        load_pretrained(CASViT('xs'), 'xs')
    assert site.asked == []


def test_an_unknown_name_lists_the_others(site):
    with pytest.raises(WeightsError) as caught:
        load_pretrained(CASViT('xs'), 'xl')
    assert f'{Path("xl").absolute()}. Published weights: xs, xs-384, s, s-384, m, ' in str(caught.value)
    assert '\n' not in str(caught.value)


def test_the_program_lists_gets_and_checks(site, files, monkeypatch, capsys):
    rows = program(monkeypatch, capsys, 'list').splitlines()
    assert rows[0].split() == ['xs', XS.removesuffix('.pth'), 'Top', '1', 'Accuracy', '78.3']
    assert len(rows) == 20
    assert program(monkeypatch, capsys, 'check') == f'no published weights in {cache.cache_folder()}\n'
    assert program(monkeypatch, capsys, 'get', fails=True).startswith('weights get: give one or more of xs, ')
    assert 'checkpoint not found' in program(monkeypatch, capsys, 'get', 'xl', fails=True)
    site.answer = files['xs']
    path = str(cache.cache_folder() / XS)
    assert program(monkeypatch, capsys, 'get', 'xs') == f'{path}\n'
    assert program(monkeypatch, capsys, 'list', 'xs').split()[-1] == 'downloaded'
    assert program(monkeypatch, capsys, 'check') == f"{path}: arch 'xs', 524 of 524 tensors match\n"
    put_by_hand(files['s'])
    printed = program(monkeypatch, capsys, 'check', 'xs', 's', fails=True)
    assert 'has changed since it was verified' in printed
    assert printed.endswith('2 of 2 files cannot be used\n')
