"""Token mixers: each computes its published formula, and fits into the backbone and the deploy form."""

import re

import numpy as np
import pytest
import torch
from helpers import tiny_backbone
from helpers.reference import fill, image
from helpers.repository import ROOT
from helpers.tiny_backbone import TINY
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

from mmcasvit import CASViT, deploy
from mmcasvit.models.casvit import AdditiveTokenMixer
from mmcasvit.models.deployed_casvit import DeployedStage
from mmcasvit.models.token_mixers import build_token_mixer
from mmcasvit.registry import TOKEN_MIXERS

EXACT = dict(rtol=1e-10, atol=1e-10)
OTHERS = ['self_attention', 'separable', 'efficient_additive', 'pooling', 'identity']
ABLATIONS = [
    dict(type='additive', spatial_gate=spatial, channel_gate=channel)
    for spatial, channel in ((False, True), (True, False), (False, False))
]


def tiny(token_mixer, **kwargs):
    return tiny_backbone.tiny(token_mixer=token_mixer, **kwargs).double()


def mixer_of(token_mixer, channels):
    return fill(build_token_mixer(token_mixer, channels, norm_cfg=dict(type='BN'), with_cp=False)).double().eval()


def softmax(scores):
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return scores / scores.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Arrays:
    """Weights of a mixer as arrays, and layers on positions ``(HW, C)`` in NumPy, without convolutions."""

    def __init__(self, mixer):
        self.state = {key: value.numpy() for key, value in mixer.state_dict().items()}

    def linear(self, positions, name):
        weight = self.state[f'{name}.weight']
        return positions @ weight.reshape(weight.shape[:2]).T + self.state.get(f'{name}.bias', 0)

    def depthwise(self, x, name):
        """Convolve a map ``(C, H, W)``."""
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        kernel, height, width = self.state[f'{name}.weight'][:, 0], *x.shape[1:]
        out = sum(
            padded[:, i : i + height, j : j + width] * kernel[:, i, j, None, None] for i in range(3) for j in range(3)
        )
        return out + self.state[f'{name}.bias'][:, None, None]

    def norm(self, x, name):
        mean, var, weight, bias = (
            self.state[f'{name}.{key}'][:, None, None] for key in ('running_mean', 'running_var', 'weight', 'bias')
        )
        return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def self_attention(arrays, positions, shape):
    """arXiv 1706.03762, equation 1, head by head: heads of 10, the largest number up to 16 that divides 20."""
    q, k, v = np.split(arrays.linear(positions, 'qkv'), 3, axis=1)
    heads = [slice(0, 10), slice(10, 20)]
    return arrays.linear(
        np.concatenate([softmax(q[:, head] @ k[:, head].T / np.sqrt(10)) @ v[:, head] for head in heads], axis=1),
        'proj',
    )


def separable(arrays, positions, shape):
    """arXiv 2206.02680, equation 3: y = (sum(softmax(x W_I) * x W_K) * ReLU(x W_V)) W_O."""
    inputs = arrays.linear(positions, 'qkv')
    score, key, value = inputs[:, 0], inputs[:, 1:21], inputs[:, 21:]
    context = sum(share * vector for share, vector in zip(softmax(score), key))
    return arrays.linear(np.maximum(value, 0) * context, 'proj')


def efficient_additive(arrays, positions, shape):
    """arXiv 2303.15446, equations 4 to 6, with the normalizations of the authors' code."""
    query, key = (
        [vector / np.linalg.norm(vector) for vector in arrays.linear(positions, name)] for name in ('query', 'key')
    )
    alpha = np.array([vector @ arrays.state['weight'] / np.sqrt(20) for vector in query])
    alpha /= np.linalg.norm(alpha)
    common = sum(share * vector for share, vector in zip(alpha, query))
    return arrays.linear(np.stack([arrays.linear(vector * common, 'proj') for vector in key]) + query, 'final')


def pooling(arrays, positions, shape):
    """arXiv 2111.11418, equation 4: the mean of the 5x5 positions inside the map minus the middle one."""
    height, width = shape
    x = positions.reshape(height, width, -1)
    return np.stack(
        [
            x[max(0, i - 2) : i + 3, max(0, j - 2) : j + 3].mean((0, 1)) - x[i, j]
            for i in range(height)
            for j in range(width)
        ]
    )


def identity(arrays, positions, shape):
    return positions


def additive(spatial, channel):
    """arXiv 2408.03703, section 3.2, with the remaining gates."""

    def compute(arrays, positions, shape):
        def gated(x, name):
            if spatial:
                inner = np.maximum(arrays.norm(arrays.depthwise(x, f'{name}.0.block.0'), f'{name}.0.block.1'), 0)
                x = x * sigmoid(np.tensordot(arrays.state[f'{name}.0.block.3.weight'][0, :, 0, 0], inner, 1))
            if channel:
                weight = arrays.state[f'{name}.1.block.1.weight'][:, :, 0, 0]
                x = x * sigmoid(weight @ x.mean((1, 2)))[:, None, None]
            return x

        q, k, v = np.split(arrays.linear(positions, 'qkv').T.reshape(-1, *shape), 3)
        context = arrays.depthwise(gated(q, 'oper_q') + gated(k, 'oper_k'), 'dwc')
        return arrays.depthwise(context * v, 'proj').reshape(len(q), -1).T

    return compute


@pytest.mark.parametrize(
    'token_mixer, formula',
    [
        (dict(type='self_attention', head_channels=16), self_attention),
        ('separable', separable),
        ('efficient_additive', efficient_additive),
        (dict(type='pooling', size=5), pooling),
        ('identity', identity),
        ('additive', additive(True, True)),
        *((ablation, additive(ablation['spatial_gate'], ablation['channel_gate'])) for ablation in ABLATIONS),
    ],
    ids=lambda value: '' if callable(value) else str(value),
)
def test_a_mixer_computes_its_formula(token_mixer, formula):
    mixer, x = mixer_of(token_mixer, 20), image(3, (2, 20, 5, 7))
    with torch.no_grad():
        found = mixer(x, nn.Identity()) if isinstance(mixer, AdditiveTokenMixer) else mixer(x)
    assert found.shape == x.shape
    for one, wanted in zip(found, x.numpy()):
        wanted = formula(Arrays(mixer), wanted.reshape(20, -1).T, (5, 7))
        assert_close(one.flatten(1).T, torch.from_numpy(wanted), **EXACT)


def test_pooling_equals_that_of_another_library():
    modeling = pytest.importorskip('transformers.models.poolformer.modeling_poolformer')
    x = image(0, (2, 4, 5, 6))
    assert_close(mixer_of('pooling', 4)(x), modeling.PoolFormerPooling(3)(x), **EXACT)


def test_separable_attention_equals_that_of_another_library():
    modeling = pytest.importorskip('transformers.models.mobilevitv2.modeling_mobilevitv2')
    config = modeling.MobileViTV2Config(attn_dropout=0.0)
    other, ours = fill(modeling.MobileViTV2LinearSelfAttention(config, 12)).double().eval(), mixer_of('separable', 12)
    ours.load_state_dict(
        {
            name: other.state_dict()[f'{theirs}.convolution.{name.split(".")[1]}']
            for name, theirs in (
                ('qkv.weight', 'qkv_proj'),
                ('qkv.bias', 'qkv_proj'),
                ('proj.weight', 'out_proj'),
                ('proj.bias', 'out_proj'),
            )
        }
    )
    x = image(0, (2, 12, 5, 6))
    # The other takes (N, C, pixels of a patch, patches): one pixel, with all positions as patches.
    assert_close(ours(x).flatten(2), other(x.flatten(2).unsqueeze(2)).squeeze(2), **EXACT)


def test_efficient_additive_attention_equals_that_of_another_library():
    modeling = pytest.importorskip('transformers.models.swiftformer.modeling_swiftformer')
    other = modeling.SwiftFormerEfficientAdditiveAttention(modeling.SwiftFormerConfig(), 12)
    other, ours = fill(other).double().eval(), mixer_of('efficient_additive', 12)
    names = dict(query='to_query', key='to_key', proj='proj', final='final')
    state = {'weight': other.state_dict()['w_g'].flatten()}
    for name, theirs in names.items():
        state[f'{name}.weight'] = other.state_dict()[f'{theirs}.weight'][:, :, None, None]
        state[f'{name}.bias'] = other.state_dict()[f'{theirs}.bias']
    ours.load_state_dict(state)
    x = image(0, (2, 12, 5, 6))
    assert_close(ours(x).flatten(2).transpose(1, 2), other(x.flatten(2).transpose(1, 2)), rtol=1e-6, atol=1e-6)


def test_all_names_are_documented():
    TOKEN_MIXERS.import_from_location()
    assert {'additive', *OTHERS} <= set(TOKEN_MIXERS.module_dict)
    for name in ('additive', *OTHERS):
        assert f"``'{name}'``" in CASViT.__doc__, name


@pytest.mark.parametrize(
    'token_mixer, error, words',
    [
        (
            'attention',
            ValueError,
            "unknown token_mixer 'attention'. Valid: additive, efficient_additive, identity, "
            'pooling, self_attention, separable',
        ),
        (None, ValueError, 'unknown token_mixer None'),
        (dict(size=3), ValueError, "unknown token_mixer {'size': 3}"),
        (
            dict(type='additive', spatial_gates=False),
            TypeError,
            "'spatial_gates'. It takes: spatial_gate, channel_gate",
        ),
        (dict(type='additive', with_cp=True), TypeError, "no argument 'with_cp'"),
        (dict(type='identity', size=3), TypeError, "'identity' has no argument 'size'. It takes: none"),
        (dict(type='pooling', size=4), ValueError, 'odd, got 4'),
        (dict(type='pooling', size=-3), ValueError, 'size must be a positive integer, got -3'),
        (dict(type='self_attention', head_channels=0), ValueError, 'head_channels must be a positive integer, got 0'),
    ],
    ids=str,
)
def test_the_error_for_a_wrong_mixer_names_the_valid_ones(token_mixer, error, words):
    with pytest.raises(error, match=words):
        CASViT(TINY, token_mixer=token_mixer)


@pytest.mark.parametrize('token_mixer', [*OTHERS, *ABLATIONS], ids=str)
def test_another_mixer_changes_no_other_weights(token_mixer):
    given = token_mixer if isinstance(token_mixer, str) else dict(token_mixer)
    plain, other = (CASViT(TINY, token_mixer=mixer).state_dict() for mixer in ('additive', given))
    assert given == token_mixer
    assert all('.attn.' in key for key in plain.keys() ^ other.keys())
    if isinstance(token_mixer, dict):  # the remaining gates keep their names
        assert plain.keys() > other.keys()
        assert {'.oper_q.0.': token_mixer['spatial_gate'], '.oper_k.1.': token_mixer['channel_gate']} == {
            part: any(part in key for key in other) for part in ('.oper_q.0.', '.oper_k.1.')
        }


@pytest.mark.parametrize('token_mixer', [*OTHERS, *ABLATIONS], ids=str)
@pytest.mark.parametrize('norm_eval', [False, True])
def test_checkpointing_changes_neither_gradients_nor_statistics(token_mixer, norm_eval):
    def step(with_cp):
        model, x = tiny(token_mixer, with_cp=with_cp, norm_eval=norm_eval, drop_path_rate=0.3), image(1, (2, 3, 64, 64))
        torch.manual_seed(0)
        sum((out * image(i, out.shape)).sum() for i, out in enumerate(model(x.requires_grad_()))).backward()
        grads = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert [name for name, grad in grads.items() if grad is None] == []
        return dict(x=x.grad, **grads), model.state_dict()

    expected = step(False)
    for with_cp in (True, 'selective'):
        assert_close(step(with_cp), expected, **EXACT)


@pytest.mark.parametrize('token_mixer', [*OTHERS, *ABLATIONS], ids=str)
def test_the_deploy_form_folds_the_norms_around_another_mixer(token_mixer):
    model, x = tiny(token_mixer).eval(), image(2, (2, 3, 64, 96))
    with torch.no_grad():
        wanted, deployed = model(x), deploy(model)
        found = deployed(x)
    assert not any(isinstance(part, _BatchNorm) for part in deployed.modules())
    assert_close(list(found), list(wanted), **EXACT)
    assert_close(list(model(x)), list(wanted), rtol=0, atol=0)
    mixers = [type(block.attn) for stage in model.network[::2] for block in stage]
    assert [type(block.attn) for stage in deployed.stages for block in stage] == mixers


def test_only_the_complete_additive_mixer_gets_the_fast_form():
    stages = [type(deploy(tiny(mixer)).stages[0]) for mixer in ('additive', dict(type='additive'), *ABLATIONS)]
    assert stages == [DeployedStage, DeployedStage, nn.Sequential, nn.Sequential, nn.Sequential]


@pytest.mark.parametrize(
    'norm_cfg', [dict(type='GN', num_groups=4), dict(type='BN', track_running_stats=False)], ids=lambda cfg: cfg['type']
)
@pytest.mark.parametrize('token_mixer', ['pooling', ABLATIONS[1]], ids=str)
def test_norms_that_cannot_be_folded_are_kept(token_mixer, norm_cfg):
    model, x = tiny(token_mixer, norm_cfg=norm_cfg).eval(), image(2, (2, 3, 64, 64))
    with torch.no_grad():
        assert_close(list(deploy(model)(x)), list(model(x)), **EXACT)


def test_a_mixer_keeps_its_own_norms_in_the_deploy_form():
    @TOKEN_MIXERS.register_module('with_norm', force=True)
    class WithNorm(nn.Module):
        def __init__(self, channels, norm_cfg, groups=1):
            super().__init__()
            assert norm_cfg == dict(type='BN')
            self.layers = nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, groups=groups), nn.BatchNorm2d(channels)
            )

        def forward(self, x):
            return self.layers(x)

    try:
        model, x = tiny(dict(type='with_norm', groups=4)).eval(), image(2, (2, 3, 64, 64))
        with torch.no_grad():
            assert_close(list(deploy(model)(x)), list(model(x)), **EXACT)
        assert sum(isinstance(part, _BatchNorm) for part in deploy(model).modules()) == sum(TINY['depths'])
        with pytest.raises(TypeError, match='It takes: groups'):
            tiny(dict(type='with_norm', group=4))
    finally:
        TOKEN_MIXERS.module_dict.pop('with_norm')


def test_the_example_of_the_documentation_runs():
    """Like test_docs.py, but without a separate process."""
    (code,) = re.findall(
        r'^```python run\n(.*?)^```', (ROOT / 'docs/reference/ablation.md').read_text(), re.MULTILINE | re.DOTALL
    )
    before = set(TOKEN_MIXERS.module_dict)
    try:
        exec(code, {})
        added = set(TOKEN_MIXERS.module_dict) - before
        assert len(added) == 1
        name = added.pop()
        model, x = tiny(name).eval(), image(2, (1, 3, 64, 64))
        with torch.no_grad():
            assert_close(list(deploy(model)(x)), list(model(x)), **EXACT)
    finally:
        for name in set(TOKEN_MIXERS.module_dict) - before:
            TOKEN_MIXERS.module_dict.pop(name)
