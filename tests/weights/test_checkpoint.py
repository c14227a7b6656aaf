import argparse
import copy
import functools
import http.server
import pathlib
import pickle
import re
import shutil
import sys
import threading
import urllib.error

import numpy as np
import pytest
import torch
from helpers.attack import Attack
from helpers.reference import published_checkpoint, published_weights
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from torch.testing import assert_close

from mmcasvit import CASViT, WeightsError, load_pretrained
from mmcasvit.apis.runner import prepare
from mmcasvit.cli import add_common_arguments
from mmcasvit.weights import checkpoint
from mmcasvit.weights.checkpoint import (
    _LOCAL_SAFETENSORS,
    _history_buffer_method,
    _local_file,
    forget_config,
    read_ahead,
    read_checkpoint,
    use_safe_checkpoint_reader,
    write_checkpoint,
)
from mmcasvit.weights.names import count_classes, find_weights


def save(tmp_path, content, name='weights.pth'):
    torch.save(content, tmp_path / name)
    return str(tmp_path / name)


def pretrained(path, arch='xs', **kwargs):
    model = CASViT(arch, init_cfg=dict(type='Pretrained', checkpoint=path, **kwargs))
    model.init_weights()
    return model


@pytest.fixture
def log(monkeypatch):
    lines = []
    for module in ('checkpoint', 'match'):
        monkeypatch.setattr(f'mmcasvit.weights.{module}.print_log', lambda text, **kwargs: lines.append(text))
    return lines


def test_a_published_file_loads_whole_and_says_so(tmp_path, log):
    model = pretrained(save(tmp_path, published_checkpoint('xs')))
    weights = published_weights('xs')
    for key, value in model.state_dict().items():
        if not key.startswith('norm'):
            assert_close(value, weights[key])
    assert '515 of 535 tensors loaded' in log[0]
    assert "under 'model'" in log[0]
    assert 'not in the file, kept as initialized: norm0.weight' in log[0]
    assert 'classification head: norm.weight' in log[0]
    assert 'dist_head.bias' in log[0]


@pytest.mark.parametrize(
    'wrap',
    [
        lambda w: dict(model_ema=w),
        lambda w: dict(state_dict=w),
        lambda w: w,
        lambda w: {f'module.{k}': v for k, v in w.items()},
        lambda w: dict(state_dict={f'backbone.{k}': v for k, v in w.items()} | {'neck.weight': torch.ones(1)}),
    ],
    ids=['model_ema', 'state_dict', 'bare', 'module', 'detector'],
)
def test_other_wrappings_load(tmp_path, log, wrap):
    weights = published_weights('xs')
    model = pretrained(save(tmp_path, wrap(weights)))
    assert '515 of 535' in log[0]
    assert_close(model.network[6][1].mlp.fc2.weight.data, weights['network.6.1.mlp.fc2.weight'])


def test_an_explicit_prefix_is_used(tmp_path, log):
    weights = {f'student.net.{k}': v for k, v in published_weights('xs').items()}
    pretrained(save(tmp_path, weights), prefix='student.net')
    assert '515 of 535' in log[0]


def test_a_pretrained_entry_in_a_list_goes_last(tmp_path):
    path = save(tmp_path, published_checkpoint('xs'))
    model = CASViT(
        'xs',
        init_cfg=[
            dict(type='Pretrained', checkpoint=path),
            dict(type='Constant', layer='BatchNorm2d', val=3.0, bias=0.0),
        ],
    )
    given = [dict(cfg) for cfg in model.init_cfg]
    model.init_weights()
    assert model.init_cfg == given
    assert_close(model.network[1].norm.weight.data, published_weights('xs')['network.1.norm.weight'])
    assert_close(model.norm0.weight.data, torch.full((48,), 3.0))


@pytest.mark.parametrize(
    'content, words',
    [
        (lambda: published_checkpoint('m'), "expected: arch 'xs', found: arch 'm'"),
        (lambda: {'model': {'layer1.weight': torch.ones(1)}}, 'layer1.weight'),
        (lambda: {'model': {k: v for k, v in published_weights('xs').items() if '.attn.' not in k}}, 'attn.qkv.weight'),
        (lambda: {'epoch': 3}, 'no weights'),
        (lambda: [torch.ones(1)], 'a list'),
    ],
    ids=['another arch', 'another model', 'a part missing', 'no weights', 'no dict'],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, content, words):
    path = save(tmp_path, content())
    model = CASViT('xs', init_cfg=dict(type='Pretrained', checkpoint=path))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=words):
        model.init_weights()
    assert_close(model.state_dict(), before)


def test_s_and_m_are_told_apart_by_shape(tmp_path):
    words = r"(?s)arch 's', found: arch 'm'.*patch_embed.0.weight: file \(32, 3, 3, 3\)"
    with pytest.raises(WeightsError, match=words):
        load_pretrained(CASViT('s'), save(tmp_path, published_checkpoint('m')))


@pytest.mark.parametrize(
    'place',
    [
        lambda a: dict(model=published_weights('xs'), extra=a),
        lambda a: dict(model=published_weights('xs'), args=argparse.Namespace(path=a)),
    ],
    ids=['top', 'namespace'],
)
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, place):
    trace = tmp_path / 'was_here'
    path = save(tmp_path, place(Attack(str(trace))))
    with pytest.raises(WeightsError, match='could run code'):
        load_pretrained(CASViT('xs'), path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), 'the attack must work where pickles are trusted, or this test shows nothing'


def unsafe(tmp_path):
    """A file like the published ones with a path among its arguments, which needs code to be read."""
    return save(tmp_path, dict(model=published_weights('xs'), args=argparse.Namespace(out=pathlib.Path('x'))))


def test_unknown_objects_are_refused_with_a_hint(tmp_path):
    with pytest.raises(WeightsError, match=r'(?s)pathlib.*If you trust.*--trust-checkpoint.*trust=True'):
        read_checkpoint(unsafe(tmp_path))


def test_a_trusted_file_is_executed_and_that_is_said(tmp_path, log):
    trace = tmp_path / 'was_here'
    content = read_checkpoint(save(tmp_path, dict(model=published_weights('xs'), extra=Attack(str(trace)))), trust=True)
    assert trace.exists()
    assert len(content['model']) == len(published_weights('xs'))
    assert len(log) == 1
    assert 'EXECUTED, with posix.mkdir' in log[0]


def test_trust_executes_nothing_where_it_is_not_needed(tmp_path, log, monkeypatch):
    path = save(tmp_path, published_checkpoint('xs'))
    read = torch.load
    monkeypatch.setattr(torch, 'load', lambda *args, weights_only, **kwargs: read(*args, weights_only=True, **kwargs))
    assert set(read_checkpoint(path, trust=True)['model']) == set(published_weights('xs'))
    assert log == []


@pytest.mark.parametrize('content', [b'no checkpoint', pickle.dumps(Attack.__base__)], ids=['text', 'an object'])
def test_trust_makes_no_checkpoint_of_another_file(tmp_path, content):
    (tmp_path / 'x.pth').write_bytes(content)
    with pytest.raises(WeightsError, match=r'x\.pth'):
        read_checkpoint(tmp_path / 'x.pth', trust=True)


def test_trust_reaches_a_backbone_through_its_config(tmp_path, log):
    model = pretrained(unsafe(tmp_path), trust=True)
    assert_close(model.network[1].norm.weight.data, published_weights('xs')['network.1.norm.weight'])
    assert 'EXECUTED' in log[0]
    with pytest.raises(WeightsError, match='If you trust'):
        pretrained(unsafe(tmp_path))


@pytest.mark.parametrize(
    'init_cfg',
    [
        dict(type='Pretrained', checkpoint='x.pth'),
        [dict(type='Constant', val=1.0), dict(type='Pretrained', checkpoint='x.pth')],
    ],
    ids=['one', 'list'],
)
def test_the_flag_of_the_tools_reaches_loaders_and_backbones(tmp_path, monkeypatch, init_cfg):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    path = unsafe(tmp_path)
    for arguments, reads in (([], False), (['--trust-checkpoint'], True)):
        parser = argparse.ArgumentParser()
        add_common_arguments(parser)
        cfg = Config(dict(model=dict(backbone=dict(type='mmcasvit.CASViT', init_cfg=init_cfg)), work_dir='x'))
        prepare(cfg, parser.parse_args(arguments))
        given = cfg.model.backbone.init_cfg
        assert (given[-1] if isinstance(given, list) else given).get('trust', False) == reads
        if reads:
            assert 'model' in CheckpointLoader.load_checkpoint(path)
        else:
            with pytest.raises(WeightsError, match='If you trust'):
                CheckpointLoader.load_checkpoint(path)


def test_safetensors_are_read_with_what_is_in_their_header(tmp_path):
    weights = published_weights('xs')
    write_checkpoint(dict(state_dict=weights, meta=dict(epoch=3)), tmp_path / 'x.safetensors')
    content = read_checkpoint(tmp_path / 'x.safetensors')
    assert content['meta'] == dict(epoch=3)
    assert_close(content['state_dict'], weights, rtol=0, atol=0)
    load_pretrained(CASViT('xs'), tmp_path / 'x.safetensors')
    (tmp_path / 'bad.safetensors').write_bytes(b'bad')
    with pytest.raises(WeightsError, match=r'bad\.safetensors is not a safetensors file'):
        read_checkpoint(tmp_path / 'bad.safetensors')


def test_safetensors_are_named_where_they_are_missing(tmp_path, monkeypatch):
    (tmp_path / 'x.safetensors').write_bytes(b'')
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(WeightsError, match=r'pip install "mmcasvit\[safetensors\]"'):
        read_checkpoint(tmp_path / 'x.safetensors')


@pytest.mark.parametrize(
    'content', [b'', b'bad', b'no checkpoint', b'PK\x03\x04broken'], ids=['empty', 'word', 'text', 'cut zip']
)
def test_damaged_files_are_named(tmp_path, content):
    (tmp_path / 'x.pth').write_bytes(content)
    with pytest.raises(WeightsError, match=r'x\.pth is not a checkpoint, or is damaged'):
        read_checkpoint(tmp_path / 'x.pth')


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r'not found: .*nowhere\.pth'):
        read_checkpoint(tmp_path / 'nowhere.pth')


def test_mmengine_checkpoints_are_read(tmp_path):
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    path = save(tmp_path, dict(state_dict={'a': torch.ones(2)}, message_hub=dict(log_scalars={'loss': buffer})))
    content = read_checkpoint(path)
    assert content['message_hub']['log_scalars']['loss'].mean() == 1.5
    assert find_weights(content) == ('state_dict', {'a': content['state_dict']['a']})


def test_classes_are_counted_by_the_layer_that_tells_them_apart():
    for weights, classes in (
        ({'roi_head.bbox_head.fc_cls.weight': torch.ones(81, 4), 'roi_head.mask_head.conv_logits.weight': 0}, 80),
        ({'bbox_head.retina_cls.weight': torch.ones(720, 1), 'bbox_head.retina_reg.weight': torch.ones(36, 1)}, 80),
        ({'decode_head.conv_seg.weight': torch.ones(150, 1)}, 150),
        ({'head.head.weight': torch.ones(10, 4), 'head.dist_head.weight': torch.ones(10, 4)}, 10),
        ({'neck.fc.weight': torch.ones(3, 3), 'fc_cls.bias': torch.ones(3)}, None),
    ):
        assert count_classes(weights) == classes


@pytest.fixture
def server(tmp_path):
    """The address of a server of the files below tmp_path/site."""
    (tmp_path / 'site').mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / 'site')
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{running.server_port}'
        running.shutdown()


def test_addresses_that_end_alike_are_different_files(tmp_path, server, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    for name, value in (('a', 1.0), ('b', 2.0)):
        (tmp_path / 'site' / name).mkdir()
        save(tmp_path / 'site' / name, dict(state_dict=dict(x=torch.tensor(value))), 'epoch_1.pth')
    for name, value in (('a', 1.0), ('b', 2.0), ('a', 1.0)):
        assert read_checkpoint(f'{server}/{name}/epoch_1.pth')['state_dict']['x'] == value
    shutil.rmtree(tmp_path / 'site' / 'a')
    assert read_checkpoint(f'{server}/a/epoch_1.pth')['state_dict']['x'] == 1, 'it is downloaded once'
    with pytest.raises(WeightsError, match=r'/a/epoch_2.pth could not be downloaded to .*404'):
        read_checkpoint(f'{server}/a/epoch_2.pth')


def test_an_address_that_cannot_be_reached_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    with pytest.raises(WeightsError, match=r'http://127\.0\.0\.1:9/x\.pth could not be downloaded'):
        read_checkpoint('http://127.0.0.1:9/x.pth')


def test_a_file_that_was_read_ahead_is_not_read_again(tmp_path, monkeypatch):
    path = save(tmp_path, dict(state_dict=dict(x=torch.ones(1))))
    ahead = read_ahead(path)
    with monkeypatch.context() as patch:
        patch.setattr(torch, 'load', None)
        assert read_checkpoint(path)['state_dict'] is ahead['state_dict']
    assert read_checkpoint(path)['state_dict'] is not ahead['state_dict']
    read_ahead(path)
    save(tmp_path, dict(state_dict=dict(x=torch.zeros(7))))  # replaced in the meantime
    assert read_checkpoint(path)['state_dict']['x'].tolist() == [0] * 7


@pytest.mark.parametrize('meta', ['no json', '[' * 10**5])
def test_metadata_of_safetensors_that_is_not_json_is_named(tmp_path, meta):
    safetensors = pytest.importorskip('safetensors.torch')
    safetensors.save_file(dict(x=torch.ones(1)), tmp_path / 'x.safetensors', dict(meta=meta))
    with pytest.raises(WeightsError, match=r'the metadata of .*x\.safetensors is not JSON'):
        read_checkpoint(tmp_path / 'x.safetensors')


def test_only_the_means_of_log_buffers_pass_for_getattr():
    for name in ('min', 'max', 'current', 'mean'):
        assert _history_buffer_method(HistoryBuffer, name) is getattr(HistoryBuffer, name)
    for owner, name in ((HistoryBuffer, '__init__'), (HistoryBuffer, 'statistics'), (list, 'mean'), (max, 'min')):
        with pytest.raises(pickle.UnpicklingError, match='is not allowed'):
            _history_buffer_method(owner, name)


def test_what_is_read_ahead_is_trusted_only_if_it_is_said(tmp_path, log):
    path = save(tmp_path, dict(args=argparse.Namespace(out=pathlib.Path('x'))))
    with pytest.raises(WeightsError, match='If you trust'):
        read_ahead(path)
    ahead = read_ahead(path, trust=True)
    assert read_checkpoint(path) is ahead


class Failing:
    def __reduce__(self):
        return int, ('no number',)


def test_a_trusted_pickle_that_fails_is_named(tmp_path, log):
    with pytest.raises(WeightsError, match=r'x\.pth cannot be unpickled: ValueError: invalid literal'):
        read_checkpoint(save(tmp_path, dict(a=Failing()), 'x.pth'), trust=True)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folder of downloads; a download writes the address into its file."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda path, file: pathlib.Path(file).write_text(path))
    return tmp_path / 'checkpoints'


@pytest.mark.parametrize(
    'address, name', [('http://h/a/x.pth', 'x.pth'), ('https://h/x.pth?v=1', 'x.pth'), ('http://h/', 'checkpoint')]
)
def test_an_address_is_downloaded_once_by_the_main_process(hub, monkeypatch, address, name):
    monkeypatch.setattr(checkpoint, 'is_main_process', lambda: False)
    with pytest.raises(WeightsError, match=r'could not be downloaded to .*: see the first process'):
        _local_file(address)
    monkeypatch.setattr(checkpoint, 'is_main_process', lambda: True)
    file = _local_file(address)
    assert file.read_text() == address
    assert file.parent == hub
    assert file.name.endswith(f'-{name}')
    monkeypatch.setattr(torch.hub, 'download_url_to_file', None)
    assert _local_file(address) == file


@pytest.mark.parametrize('error', [OSError('x'), ValueError('x'), urllib.error.URLError('x')])
def test_a_failed_download_is_named_after_all_processes_know_of_it(hub, monkeypatch, error):
    def fail(path, file):
        raise error

    waited = []
    monkeypatch.setattr(torch.hub, 'download_url_to_file', fail)
    monkeypatch.setattr(checkpoint, 'barrier', lambda: waited.append(True))
    with pytest.raises(WeightsError, match=r'http://h/x\.pth could not be downloaded to .*: .*x'):
        _local_file('http://h/x.pth')
    assert waited == [True]


def test_a_file_is_preferred_to_published_weights_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(checkpoint, '_find_published', lambda name, trust: (name, trust))
    assert _local_file('casvit-xs', True) == ('casvit-xs', True)
    (tmp_path / 'casvit-xs').touch()
    assert _local_file('casvit-xs') == pathlib.Path('casvit-xs')
    assert _local_file('~/casvit-xs') == tmp_path / 'casvit-xs'
    for name in ('casvit-s.pth', 'a/casvit-s', '~/casvit-s'):
        with pytest.raises(WeightsError, match='checkpoint not found'):
            _local_file(name)
    monkeypatch.setattr(checkpoint, '_find_published', None)
    with pytest.raises(WeightsError, match='checkpoint not found'):
        _local_file('casvit-s')


def test_tensors_are_read_to_the_device_that_is_asked_for(tmp_path):
    path = save(tmp_path, dict(state_dict=dict(x=torch.ones(1))))
    assert read_checkpoint(path, 'meta')['state_dict']['x'].is_meta
    write_checkpoint(dict(state_dict=dict(x=torch.ones(1))), tmp_path / 'x.safetensors')
    for device, found in ((None, 'cpu'), ('cpu', 'cpu')):
        assert read_checkpoint(tmp_path / 'x.safetensors', device)['state_dict']['x'].device.type == found


@pytest.mark.parametrize(
    'metadata, meta', [(None, {}), (dict(format='pt'), {}), (dict(meta='[1]'), {}), (dict(meta='{"a": 1}'), dict(a=1))]
)
def test_safetensors_of_other_programs_have_no_meta(tmp_path, metadata, meta):
    safetensors = pytest.importorskip('safetensors.torch')
    safetensors.save_file(dict(x=torch.ones(1)), tmp_path / 'x.safetensors', metadata)
    assert read_checkpoint(tmp_path / 'x.safetensors')['meta'] == meta


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_file_is_written_as_a_whole_and_for_everyone_to_read(tmp_path, suffix):
    path = tmp_path / f'x{suffix}'
    path.write_text('old')
    weights = dict(x=torch.arange(6.0).view(2, 3).t())
    write_checkpoint(dict(state_dict=weights, meta=dict(mean=np.arange(2))), path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    (tmp_path / 'other').touch()
    assert path.stat().st_mode == (tmp_path / 'other').stat().st_mode
    content = read_checkpoint(path)
    assert_close(content['state_dict'], weights, check_stride=False)
    assert list(content['meta']['mean']) == [0, 1]


@pytest.mark.parametrize(
    'reason, seen', [(OSError(28, 'full'), OSError), (ValueError('x'), RuntimeError), (None, RuntimeError)]
)
def test_a_failed_write_gives_its_reason_and_leaves_the_old_file(tmp_path, monkeypatch, reason, seen):
    def fail(content, file):
        file.write(b'half')
        error = RuntimeError('unexpected pos 64 vs 0')
        error.__context__ = reason
        raise error

    (tmp_path / 'x.pth').write_text('old')
    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(seen):
        write_checkpoint({}, tmp_path / 'x.pth')
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [('x.pth', 'old')]


@pytest.mark.parametrize('meta', [None, 'text', dict(iter=3), dict(config='x', cfg='y', iter=3)])
def test_the_config_of_a_checkpoint_is_forgotten(meta):
    content = dict(state_dict={}) if meta is None else dict(state_dict={}, meta=meta)
    before = copy.deepcopy(content)
    forget_config(content)
    assert content == (before | dict(meta=dict(iter=3)) if isinstance(meta, dict) else before)


@pytest.mark.parametrize('trust', [False, True])
def test_mmengine_reads_local_and_downloaded_files_safely(tmp_path, monkeypatch, trust, log):
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    use_safe_checkpoint_reader(*([True] if trust else []))
    monkeypatch.setattr(checkpoint, '_local_file', lambda path, trust: unsafe_file)
    unsafe_file = pathlib.Path(unsafe(tmp_path))
    for path in (str(unsafe_file), 'http://h/x.pth', 'https://h/x.pth'):
        if trust:
            assert set(CheckpointLoader.load_checkpoint(path)) == {'model', 'args'}
        else:
            with pytest.raises(WeightsError, match='If you trust'):
                CheckpointLoader.load_checkpoint(path)


def test_safetensors_of_other_storage_are_left_to_its_reader():
    for path, own in (('a/x.safetensors', True), ('s3://a/x.safetensors', False), ('x.safetensors.pth', False)):
        assert bool(re.match(_LOCAL_SAFETENSORS, path)) == own


def test_a_tensor_with_a_wrong_checksum_is_refused(tmp_path):
    path = save(tmp_path, dict(x=torch.arange(1000)))
    assert len(read_checkpoint(path)['x']) == 1000
    raw = bytearray(pathlib.Path(path).read_bytes())
    raw[raw.index(torch.arange(500, 502).numpy().tobytes())] ^= 1
    pathlib.Path(path).write_bytes(raw)
    with pytest.raises(WeightsError, match='the checksum of weights/data/0 is wrong'):
        read_checkpoint(path)


@pytest.mark.parametrize(
    'content, words',
    [
        (dict(state_dict=[1]), 'its state_dict is a list'),
        (dict(meta=[1]), 'its meta is a list'),
        (dict(meta=dict(dataset_meta='x')), 'its dataset_meta is a str'),
        ({3: 1}, '3 is not the name of a tensor'),
        *(({name: {3: 1}}, '3 is not the name of a tensor') for name in ('state_dict', 'model', 'model_ema')),
        (dict(meta=dict(dataset_meta=dict(classes='ab'))), 'the classes in its meta are not a list of names'),
        (dict(meta=dict(dataset_meta=dict(classes=['a', 3]))), 'the classes in its meta'),
        (dict(meta=dict(CLASSES=[3])), 'the CLASSES in its meta'),
        (dict(state_dict={}, meta=dict(CLASSES=('a',), dataset_meta=dict(classes=['a', 'b']))), ''),
        (dict(model=3), ''),
        (dict(state_dict=None), 'its state_dict is a NoneType'),
        (dict(meta=0), 'its meta is a int'),
        (dict(meta=dict(dataset_meta='')), 'its dataset_meta is a str'),
    ],
)
def test_parts_of_another_form_are_named(tmp_path, content, words):
    if not words:
        assert read_checkpoint(save(tmp_path, content)) == content
        return
    with pytest.raises(WeightsError, match=f'is not a checkpoint: {words}'):
        read_checkpoint(save(tmp_path, content))


def test_an_address_that_is_none_is_refused():
    with pytest.raises(WeightsError, match=r'http://\[ is not an address'):
        read_checkpoint('http://[')


def test_parts_of_meta_that_are_none_are_left_out(tmp_path):
    part = dict(x=torch.ones(1))
    assert read_checkpoint(save(tmp_path, dict(part, meta=None)))['meta'] == {}
    assert read_checkpoint(save(tmp_path, dict(part, meta=dict(dataset_meta=None, epoch=3))))['meta'] == dict(epoch=3)
