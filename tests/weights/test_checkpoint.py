import argparse
import functools
import http.server
import pathlib
import pickle
import shutil
import sys
import threading

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
from mmcasvit.weights.checkpoint import read_ahead, read_checkpoint, write_checkpoint
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
