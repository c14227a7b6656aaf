"""The backbone: the authors' outputs and names, its arguments, freezing, precision, registries."""

import copy

import pytest
import torch
from helpers.reference import (
    OFFICIAL_OUTPUTS,
    OFFICIAL_SHAPES,
    fill,
    functional_forward,
    image,
    published_checkpoint,
    published_weights,
)
from helpers.tiny_backbone import TINY, tiny
from mmengine.registry import MODELS as ROOT_MODELS
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

from mmcasvit import CASViT
from mmcasvit.weights.names import to_own_names

CLOSE = dict(rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('case', OFFICIAL_OUTPUTS['features'], ids=lambda c: f'{c["arch"]}-{c["seed"]}-{c["mode"]}')
def test_features_are_those_of_the_authors(case):
    model = fill(CASViT(case['arch']).double()).train(case['mode'] == 'train')
    check_features(model, case)


@pytest.mark.parametrize(
    'case', [c for c in OFFICIAL_OUTPUTS['features'] if c['mode'] == 'eval'], ids=lambda c: f'{c["arch"]}-{c["seed"]}'
)
def test_features_with_folded_norms_are_those_of_the_authors(case):
    check_features(fill(CASViT(case['arch'], norm_eval=True).double()).train(), case)


def check_features(model, case):
    with torch.no_grad():
        outputs = model(image(case['seed'], case['shape']))
    assert len(outputs) == len(case['stages'])
    for output, expected in zip(outputs, case['stages']):
        assert list(output.shape) == expected['shape']
        flat = output.flatten()
        found = torch.stack([flat.mean(), flat.std(correction=0), flat.norm()])
        wanted = torch.tensor([expected[name] for name in ('mean', 'std', 'l2')], dtype=torch.float64)
        if (found[1] - wanted[1]).abs() > 1e-9 * wanted[
            1
        ]:  # the figures may use either convention of the standard deviation
            found[1] = flat.std()
        assert_close(found, wanted, rtol=1e-9, atol=1e-12)
        assert_close(
            flat[expected['index']], torch.tensor(expected['value'], dtype=torch.float64), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize(
    'training, norm_eval', [(False, False), (True, False), (True, True)], ids=['eval', 'train', 'norm_eval']
)
def test_outputs_and_gradients_equal_those_of_a_second_implementation(training, norm_eval):
    model = tiny(norm_eval=norm_eval).double().train(training)
    x = image(0, (2, 3, 64, 96)).requires_grad_()
    state = {
        key: value.clone().requires_grad_(value.is_floating_point())
        for key, value in copy.deepcopy(model.state_dict()).items()
    }
    y = x.detach().clone().requires_grad_()
    outputs, expected = model(x), functional_forward(state, y, training and not norm_eval)
    assert_close(list(outputs), expected, **CLOSE)
    for values in (outputs, expected):
        sum((value * image(9 + i, value.shape)).sum() for i, value in enumerate(values)).backward()
    assert_close(x.grad, y.grad, **CLOSE)
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, state[name].grad, msg=lambda text, name=name: f'{name}: {text}', **CLOSE)


@pytest.mark.parametrize('arch, millions', [('xs', 2.759132), ('s', 5.250704), ('m', 11.652224), ('t', 20.738080)])
def test_parameters_and_names_are_the_published_ones(arch, millions):
    model = CASViT(arch)
    assert sum(p.numel() for p in model.parameters()) == round(millions * 1e6)
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == OFFICIAL_SHAPES[arch]


@pytest.mark.parametrize('arch', [*CASViT.arch_settings, TINY], ids=str)
def test_declared_channels_and_strides_are_the_real_ones(arch):
    model = CASViT(arch).eval()
    with torch.no_grad():
        outputs = model(torch.rand(1, 3, 64, 96))
    assert CASViT.strides == model.out_strides
    assert tuple(output.shape for output in outputs) == tuple(
        (1, channels, 64 // stride, 96 // stride) for channels, stride in zip(model.out_channels, model.out_strides)
    )
    settings = CASViT.arch_settings[arch] if isinstance(arch, str) else arch
    assert model.out_channels == settings['channels']


@pytest.mark.parametrize('height, width', [(32, 32), (33, 57), (63, 32), (100, 131)])
def test_any_size_from_32_pixels_works(height, width):
    outputs = tiny().eval()(torch.rand(1, 3, height, width))
    for output, stride in zip(outputs, CASViT.strides):
        assert output.shape[-2:] == (-(-height // stride), -(-width // stride))


@pytest.mark.parametrize('indices', [(0,), (3,), (1, 2, 3), (-1,), (0, -2), (-3, -2, -1), 2, [0, 2]], ids=str)
def test_out_indices_select_stages(indices):
    x = torch.rand(1, 3, 64, 64)
    every = tiny().eval()(x)
    model = tiny(out_indices=indices).eval()
    wanted = [indices] if isinstance(indices, int) else indices
    assert_close(list(model(x)), [every[i] for i in wanted])
    assert model.out_channels == tuple(TINY['channels'][i] for i in wanted)


@pytest.mark.parametrize('indices', [(0,), (0, 2), (1, 2, 3)], ids=str)
def test_every_parameter_gets_a_gradient(indices):
    model = tiny(out_indices=indices)
    sum(output.mean() for output in model(torch.rand(2, 3, 64, 64))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    'kwargs, error, words',
    [
        (dict(arch='xxl'), ValueError, "unknown arch 'xxl'.*xs, s, m, t, l"),
        (dict(arch=dict(depths=(1, 1, 1, 1))), ValueError, 'depths and channels'),
        (dict(arch=dict(depths=(1, 1, 1), channels=(8, 8, 8, 8))), ValueError, 'four positive integers'),
        (dict(arch=dict(depths=(1, 1, 1, 1), channels=(7, 8, 8, 8))), ValueError, 'even'),
        (dict(out_indices=(0, 4)), ValueError, '0, 1, 2, 3'),
        (dict(out_indices=()), ValueError, '0, 1, 2, 3'),
        (dict(out_indices=(3, -1)), ValueError, 'each once'),
        (dict(frozen_stages=5), ValueError, '1 to 4'),
        (dict(drop_path_rate=1.0), ValueError, 'less than 1'),
        (dict(with_cp='all'), ValueError, "False, True or 'selective', got 'all'"),
        (dict(with_cp=1), ValueError, "False, True or 'selective', got 1"),
        (dict(drop_path=0.1), TypeError, "unexpected keyword argument 'drop_path'"),
    ],
)
def test_the_error_for_a_wrong_argument_names_the_valid_ones(kwargs, error, words):
    with pytest.raises(error, match=words):
        CASViT(**kwargs)


def test_the_constructor_does_not_change_its_arguments():
    arch, indices, norm = copy.deepcopy(TINY), [0, -1], dict(type='BN', requires_grad=True)
    CASViT(arch, out_indices=indices, norm_cfg=norm)
    assert (arch, indices, norm) == (TINY, [0, -1], dict(type='BN', requires_grad=True))


@pytest.mark.parametrize('frozen_stages', range(-1, 5))
def test_frozen_stages(frozen_stages):
    model = tiny(frozen_stages=frozen_stages).train()
    parts = [['patch_embed.']] + [[f'network.{2 * k}.'] + [f'network.{2 * k - 1}.'] * (k > 0) for k in range(4)]
    frozen = tuple(name for part in parts[: frozen_stages + 1] for name in part)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen or '-'), name
    before = copy.deepcopy(model.state_dict())
    for output in model(torch.rand(2, 3, 64, 64)):
        output.mean()
    for name, buffer in model.named_buffers():
        if name.endswith('running_mean'):
            assert torch.equal(buffer, before[name]) == name.startswith(frozen or '-'), name


@pytest.mark.parametrize('norm_type', ['BN', 'SyncBN'])
def test_norm_eval_keeps_statistics(norm_type):
    model = tiny(norm_eval=True, norm_cfg=dict(type=norm_type)).train()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert model.training
    assert model.network[0].training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_drop_path_rises_linearly_over_all_blocks():
    model = CASViT(TINY, drop_path_rate=0.4)
    rates = [getattr(block.drop_path, 'drop_prob', 0.0) for stage in model.network[::2] for block in stage]
    assert_close(torch.tensor(rates), torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4]))


def test_drop_path_acts_only_in_training():
    model = tiny(drop_path_rate=0.9, norm_eval=True)
    x = torch.rand(1, 3, 64, 64)
    plain = tiny().eval()(x)
    assert_close(model.eval()(x), plain)
    torch.manual_seed(0)
    assert not torch.allclose(model.train()(x)[-1], plain[-1])


@pytest.mark.parametrize('dtype, tolerance', [(torch.bfloat16, 0.1), (torch.float16, 0.02)], ids=str)
def test_autocast_stays_close_to_full_precision(dtype, tolerance):
    model = tiny().eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), torch.autocast('cpu', dtype=dtype):
        outputs = model(x)
    for output, expected in zip(outputs, model(x)):
        assert (output.float() - expected).norm() < tolerance * expected.norm()


def test_bfloat16_weights_work():
    model = tiny().bfloat16().eval()
    assert all(output.dtype == torch.bfloat16 for output in model(torch.rand(1, 3, 64, 64).bfloat16()))


def test_other_inputs_and_layers():
    model = CASViT(TINY, in_channels=4, norm_cfg=dict(type='GN', num_groups=4), act_cfg=dict(type='SiLU'))
    assert model(torch.rand(1, 4, 64, 64))[0].shape == (1, 8, 16, 16)
    assert isinstance(model.network[0][0].mlp.act, torch.nn.SiLU)


@pytest.mark.parametrize('registry', ['root', 'mmdet', 'mmseg'])
def test_builds_from_every_registry(registry):
    models = ROOT_MODELS if registry == 'root' else pytest.importorskip(f'{registry}.registry').MODELS
    model = models.build(dict(type='mmcasvit.CASViT', arch=TINY, out_indices=(1, 2)))
    assert isinstance(model, CASViT)


@pytest.mark.parametrize('prefix', [None, 'backbone'])
def test_a_classifier_under_either_set_of_names_initializes_the_same_backbone(tmp_path, prefix):
    torch.save(published_checkpoint('xs'), tmp_path / 'published.pth')
    torch.save(dict(state_dict=to_own_names(published_weights('xs'))), tmp_path / 'own.pth')
    models = []
    for file, arguments in (('published.pth', {}), ('own.pth', dict(prefix=prefix))):
        checkpoint = str(tmp_path / file)
        models.append(CASViT('xs', init_cfg=dict(type='Pretrained', checkpoint=checkpoint, **arguments)))
        models[-1].init_weights()
    assert_close(models[1].state_dict(), models[0].state_dict())
