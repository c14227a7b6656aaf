"""Checkpoints are converted from the authors' code and back, and models compute what the old versions computed."""

import sys

import pytest
import torch
from helpers.configs import build, load
from helpers.reference import (
    OFFICIAL_SHAPES,
    OLD_VERSIONS,
    fill,
    image,
    published_checkpoint,
    published_dense_checkpoint,
    published_weights,
)
from helpers.repository import ROOT, load_tool
from mmengine.model import revert_sync_batchnorm
from torch.testing import assert_close

from mmcasvit import CASViT
from mmcasvit.weights.checkpoint import read_checkpoint
from mmcasvit.weights.names import find_weights, to_authors_names, to_own_names

CONFIGS = {
    'retinanet': 'detection/retinanet_casvit-{}_fpn_1x_coco.py',
    'mask-rcnn': 'detection/mask-rcnn_casvit-{}_fpn_1x_coco.py',
    'semantic-fpn': 'segmentation/semantic-fpn_casvit-{}_8xb4-40k_ade20k-512x512.py',
    'upernet': 'segmentation/upernet_casvit-{}_8xb2-160k_ade20k-512x512.py',
}
XS = {kind: str(ROOT / 'configs' / name.format('xs')) for kind, name in CONFIGS.items()}
UNUSED = {f'backbone.norm0.{name}' for name in ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')}


@pytest.fixture
def convert(monkeypatch, capsys):
    """Run the tool in this process, and return what it printed, or its error if the exit status is 2."""
    tool = load_tool('convert_weights')

    def run(*args, fails=False):
        monkeypatch.setattr(sys, 'argv', ['convert_weights.py', *map(str, args)])
        if not fails:
            tool.main()
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as status:
            tool.main()
        assert status.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith('error: ')
        return error

    return run


def save(content, path):
    torch.save(content, path)
    return path


def assert_same(weights, wanted):
    """Check that the tensors are bitwise equal, in any order."""
    assert set(weights) == set(wanted)
    assert_close(weights, wanted, rtol=0, atol=0)


@pytest.mark.parametrize('arch', ['xs', 'm'])
@pytest.mark.parametrize('kind', CONFIGS)
def test_names_and_shapes_match_the_old_versions(kind, arch):
    with torch.device('meta'):
        model = build(load(CONFIGS[kind].format(arch)))
    ours = {key: list(value.shape) for key, value in model.state_dict().items()}
    theirs = {f'backbone.{key}': shape for key, shape in OFFICIAL_SHAPES[arch].items()}
    theirs |= OLD_VERSIONS['shapes'][arch][kind]
    left_over = UNUSED if kind == 'retinanet' else set()
    assert set(theirs) - set(ours) == left_over
    assert ours == {key: shape for key, shape in theirs.items() if key not in left_over}


def head_outputs(kind, model, maps):
    if kind == 'retinanet':
        return [output for outputs in model.bbox_head(model.neck(maps)) for output in outputs]
    if kind == 'mask-rcnn':
        rpn = [output for outputs in model.rpn_head(model.neck(maps)) for output in outputs]
        return [
            *rpn,
            *model.roi_head.bbox_head(image(10, (2, 256, 7, 7))),
            model.roi_head.mask_head(image(11, (2, 256, 14, 14))),
        ]
    if kind == 'semantic-fpn':
        return [model.decode_head(model.neck(maps))]
    return [model.decode_head(maps), model.auxiliary_head(maps)]


@pytest.mark.parametrize('kind', CONFIGS)
def test_necks_and_heads_compute_the_outputs_of_the_old_versions(kind):
    cfg = load(CONFIGS[kind].format('xs'))
    model = fill(revert_sync_batchnorm(build(cfg)).double()).eval()
    maps = tuple(image(i, (2, channels, 16 >> i, 24 >> i)) for i, channels in enumerate((48, 56, 112, 220)))
    with torch.no_grad():
        outputs = head_outputs(kind, model, maps[1:] if kind == 'retinanet' else maps)
    wanted = OLD_VERSIONS['outputs'][kind]
    assert len(outputs) == len(wanted)
    for output, old in zip(outputs, wanted):
        assert list(output.shape) == old['shape']
        flat = output.flatten()
        found = torch.stack([flat.mean(), flat.std(), *flat[old['index']]])
        assert_close(
            found, torch.tensor([old['mean'], old['std'], *old['value']], dtype=torch.float64), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize('kind', CONFIGS)
def test_a_dense_checkpoint_survives_a_round_trip(convert, tmp_path, kind):
    theirs = published_dense_checkpoint(kind, 'xs')
    source = save(theirs, tmp_path / 'theirs.pth')
    printed = convert(source, tmp_path / 'ours.pth', '--config', XS[kind])
    own = torch.load(tmp_path / 'ours.pth', weights_only=True)
    expected = build(load(CONFIGS[kind].format('xs')))
    expected.load_state_dict(own['state_dict'])  # strict: every name fits, and none is left over
    assert f"arch 'xs': {len(own['state_dict'])} of {len(own['state_dict'])} tensors" in printed
    assert ('not in the model, kept aside: backbone.norm0.weight' in printed) == (kind == 'retinanet')
    assert own['meta']['dataset_meta']['classes'] == theirs['meta']['CLASSES']
    assert own['meta']['dataset_meta'].get('palette') == theirs['meta']['PALETTE']
    assert own['meta']['epoch'] == 12

    convert(tmp_path / 'ours.pth', tmp_path / 'back.pth', '--reverse', '--config', XS[kind])
    back = torch.load(tmp_path / 'back.pth', weights_only=True)
    assert_same(back['state_dict'], theirs['state_dict'])
    assert back['meta']['CLASSES'] == theirs['meta']['CLASSES']
    assert back['meta'].get('PALETTE') == theirs['meta']['PALETTE']


def test_an_own_retinanet_gets_the_norm_of_the_authors(convert, tmp_path):
    weights = published_dense_checkpoint('retinanet', 'xs')['state_dict']
    own = {key: value for key, value in weights.items() if key not in UNUSED}
    source = save(dict(meta=dict(dataset_meta=dict(classes=['a'])), state_dict=own), tmp_path / 'own.pth')
    printed = convert(source, tmp_path / 'back.pth', '--reverse', '--config', XS['retinanet'])
    assert 'added without effect on the outputs: backbone.norm0.weight' in printed
    back = torch.load(tmp_path / 'back.pth', weights_only=True)['state_dict']
    assert set(back) == set(weights)
    norm = torch.nn.BatchNorm2d(48).eval()
    norm.load_state_dict({key.removeprefix('backbone.norm0.'): back[key] for key in UNUSED})
    x = image(0, (1, 48, 4, 4)).float()
    assert_close(norm(x), x, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_without_the_unused_norm_is_complete(convert, tmp_path):
    theirs = published_dense_checkpoint('retinanet', 'xs')
    for key in UNUSED:
        del theirs['state_dict'][key]
    printed = convert(save(theirs, tmp_path / 'theirs.pth'), '--config', XS['retinanet'])
    assert 'not in the model' not in printed


@pytest.mark.parametrize('arch', ['xs', 's'])
def test_a_classifier_survives_a_round_trip_without_a_config(convert, tmp_path, arch):
    source = save(published_checkpoint(arch), tmp_path / 'theirs.pth')
    count = len(published_weights(arch))
    assert f"arch '{arch}': {count} of {count} tensors of the classifier match" in convert(source)
    convert(source, tmp_path / 'ours.pth')
    own = torch.load(tmp_path / 'ours.pth', weights_only=True)['state_dict']
    assert all(key.startswith(('backbone.', 'head.head.', 'head.dist_head.')) for key in own)
    model = CASViT(arch, out_indices=3)
    model.load_state_dict({key.removeprefix('backbone.'): value for key, value in own.items() if 'head' not in key})
    assert_close(model.norm6.weight.data, published_weights(arch)['norm.weight'], rtol=0, atol=0)
    assert_close(own['head.dist_head.bias'], published_weights(arch)['dist_head.bias'], rtol=0, atol=0)

    convert(tmp_path / 'ours.pth', tmp_path / 'back.pth', '--reverse')
    assert_same(torch.load(tmp_path / 'back.pth', weights_only=True)['model'], published_weights(arch))


def test_a_converted_classifier_initializes_a_backbone(convert, tmp_path):
    convert(save(published_checkpoint('xs'), tmp_path / 'theirs.pth'), tmp_path / 'ours.safetensors')
    model = CASViT('xs', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'ours.safetensors')))
    model.init_weights()
    assert_close(model.network[3].proj.weight.data, published_weights('xs')['network.3.proj.weight'])


def test_prefixes_and_averages_are_found(convert, tmp_path):
    weights = published_weights('xs')
    average = {key: value * 2 if value.is_floating_point() else value for key, value in weights.items()}
    theirs = dict(model={f'module.{key}': value for key, value in weights.items()}, model_ema=average)
    source = save(theirs, tmp_path / 'theirs.pth')
    convert(source, tmp_path / 'last.pth')
    convert(source, tmp_path / 'average.pth', '--ema')
    last, ema = (read_checkpoint(tmp_path / name)['state_dict'] for name in ('last.pth', 'average.pth'))
    assert_same(last, to_own_names(weights))
    assert_same(ema, to_own_names(average))
    assert 'no moving average' in convert(save(dict(model=weights), tmp_path / 'x.pth'), '--ema', fails=True)


def test_safetensors_hold_weights_and_class_names(convert, tmp_path):
    theirs = published_dense_checkpoint('semantic-fpn', 'xs')
    source = save(theirs, tmp_path / 'theirs.pth')
    convert(source, tmp_path / 'ours.safetensors', '--config', XS['semantic-fpn'])
    content = read_checkpoint(tmp_path / 'ours.safetensors')
    assert_same(find_weights(content)[1], theirs['state_dict'])
    assert content['meta']['dataset_meta']['classes'] == list(theirs['meta']['CLASSES'])
    assert (tmp_path / 'ours.safetensors').stat().st_mode & 0o444 == source.stat().st_mode & 0o444
    convert(tmp_path / 'ours.safetensors', tmp_path / 'back.pth', '--reverse', '--config', XS['semantic-fpn'])
    assert_same(torch.load(tmp_path / 'back.pth', weights_only=True)['state_dict'], theirs['state_dict'])


def broken(change):
    content = published_checkpoint('xs')
    change(content['model'])
    return content


@pytest.mark.parametrize(
    'content, options, words',
    [
        (
            lambda: broken(lambda w: w.pop('network.4.1.attn.qkv.weight')),
            [],
            ['1 tensors missing in the file: backbone.network.4.1.attn.qkv.weight', 'nothing was written'],
        ),
        (
            lambda: broken(lambda w: w.update({'head.weight': torch.ones(10, 220)})),
            [],
            ['head.head.weight: file (10, 220)'],
        ),
        (
            lambda: broken(lambda w: [w.pop(f'dist_head.{name}') for name in ('weight', 'bias')]),
            [],
            ['not a classifier'],
        ),
        (lambda: published_dense_checkpoint('semantic-fpn', 'xs'), [], ["arch 'xs'", '--config FILE']),
        (
            lambda: published_dense_checkpoint('semantic-fpn', 's'),
            ['--config', XS['semantic-fpn']],
            ["expected: arch 'xs', found: arch 's'"],
        ),
        (
            lambda: published_checkpoint('xs'),
            ['--config', XS['semantic-fpn']],
            ['holds only a backbone', '--pretrained FILE'],
        ),
    ],
    ids=['missing tensor', 'other head', 'one head', 'no config', 'other arch', 'not a segmentor'],
)
def test_weights_that_do_not_fit_are_reported_and_not_written(convert, tmp_path, content, options, words):
    source = save(content(), tmp_path / 'theirs.pth')
    error = convert(source, tmp_path / 'ours.pth', *options, fails=True)
    assert all(word in error for word in words), error
    assert [file.name for file in tmp_path.iterdir()] == ['theirs.pth']
    convert(source, *options, '--check', fails=True)


def test_wrong_arguments_are_refused(convert, tmp_path):
    source = save(published_checkpoint('xs'), tmp_path / 'theirs.pth')
    for args, words in (
        ([tmp_path / 'x.pth', '--check'], '--check writes nothing'),
        ([tmp_path / 'x.bin'], '.pth or .safetensors'),
        ([tmp_path / 'x.safetensors', '--reverse'], 'must end in .pth'),
        ([tmp_path / 'x.pth', '--reverse', '--ema'], '--ema'),
        ([tmp_path / 'none' / 'x.pth'], 'folder not found'),
        (['--config', 'none.py'], 'config not found'),
    ):
        assert words in convert(source, *args, fails=True)
    assert 'checkpoint not found' in convert(tmp_path / 'none.pth', fails=True)


def test_a_file_is_replaced_only_on_demand_and_never_half_written(convert, tmp_path, monkeypatch):
    source = save(published_checkpoint('xs'), tmp_path / 'theirs.pth')
    target = tmp_path / 'ours.pth'
    target.write_bytes(b'precious')
    assert '--force' in convert(source, target, fails=True)
    assert target.read_bytes() == b'precious'

    def fail_half_way(content, file):
        file.write(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(torch, 'save', fail_half_way)
    with pytest.raises(OSError, match='disk full'):
        convert(source, target, '--force')
    assert target.read_bytes() == b'precious'
    assert {file.name for file in tmp_path.iterdir()} == {'theirs.pth', 'ours.pth'}
    monkeypatch.undo()
    monkeypatch.setattr(sys, 'argv', sys.argv)
    convert(source, target, '--force')
    assert len(torch.load(target, weights_only=True)['state_dict']) == len(published_weights('xs'))


def test_names_are_mapped_by_pure_functions():
    names = {key: key for key in published_weights('xs')}
    own = to_own_names(names)
    assert names == {key: key for key in published_weights('xs')}
    assert own['backbone.norm6.weight'] == 'norm.weight'
    assert own['head.head.weight'] == 'head.weight'
    assert len(own) == len(names)
    assert to_authors_names(own) == names
    assert to_own_names(own) == own
    dense = {'backbone.norm6.weight': 1, 'roi_head.bbox_head.fc_cls.weight': 2}
    assert to_own_names(dense) == to_authors_names(dense) == dense
