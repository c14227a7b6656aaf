"""Synthetic weights and images, the authors' outputs for them, and a second implementation of the model.

The figures in ``tests/data`` are outputs of the authors' implementation in float64 on these weights and images.
"""

import argparse
import json
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.testing import assert_close

DATA = Path(__file__).parents[1] / 'data'
OFFICIAL_OUTPUTS = json.loads((DATA / 'official_outputs.json').read_text())
OFFICIAL_SHAPES = json.loads((DATA / 'official_backbone_shapes.json').read_text())
# Names and shapes of the layers after the backbone that mmdet 2.24.0 and mmsegmentation 0.24.0 build for the published
# recipes (and their own UperNet) and each arch; for xs also their outputs for synthetic weights and maps, in float64.
OLD_VERSIONS = json.loads((DATA / 'old_versions.json').read_text())


def weight(key, shape):
    rng = np.random.RandomState(zlib.crc32(key.encode()))
    if key.endswith('num_batches_tracked'):
        return torch.zeros(tuple(shape), dtype=torch.int64)
    if key.endswith('running_var'):
        value = rng.uniform(0.5, 1.5, shape)
    elif key.endswith('running_mean') or key.endswith('bias'):
        value = rng.normal(0, 0.1, shape)
    elif len(shape) == 1:
        value = rng.uniform(0.3, 0.7, shape)
    else:
        value = rng.normal(0, 0.7 / np.sqrt(np.prod(shape[1:])), shape)
    return torch.from_numpy(np.asarray(value))


def image(seed, shape):
    return torch.from_numpy(np.random.RandomState(seed).normal(size=shape))


def fill(model):
    """Set every tensor of a model to its reference value, including BatchNorm statistics, and return the model."""
    model.load_state_dict({key: weight(key, value.shape) for key, value in model.state_dict().items()})
    return model


def published_weights(arch):
    """Return the state dict of an ImageNet checkpoint: the backbone without output norms, and both heads."""
    shapes = {
        key: shape
        for key, shape in OFFICIAL_SHAPES[arch].items()
        if not key.startswith(('norm0', 'norm2', 'norm4', 'norm6'))
    }
    width = shapes['network.6.0.norm1.weight'][0]
    shapes |= {f'norm.{name}': [width] for name in ('weight', 'bias', 'running_mean', 'running_var')}
    shapes |= {'norm.num_batches_tracked': []}
    for head in ('head', 'dist_head'):
        shapes |= {f'{head}.weight': [1000, width], f'{head}.bias': [1000]}
    return {key: weight(key, shape).float() if shape else weight(key, shape) for key, shape in shapes.items()}


def published_checkpoint(arch):
    """Return a checkpoint as the authors' training code saves it."""
    return dict(
        model=published_weights(arch),
        epoch=299,
        optimizer=dict(state={}, param_groups=[]),
        args=argparse.Namespace(model=f'rcvit_{arch}', lr=6e-3),
    )


def published_dense_checkpoint(kind, arch):
    """Return a checkpoint of the authors' detector or segmentor as mmcv 1.5 saves it; kind as in config names."""
    shapes = {f'backbone.{key}': shape for key, shape in OFFICIAL_SHAPES[arch].items()}
    shapes |= OLD_VERSIONS['shapes'][arch][kind]
    state = OrderedDict(
        (key, weight(key, shape).float() if shape else weight(key, shape)) for key, shape in shapes.items()
    )
    detector = kind in ('retinanet', 'mask-rcnn')
    meta = dict(
        CLASSES=tuple(f'class {i}' for i in range(80 if detector else 150)),
        epoch=12,
        iter=43980,
        seed=0,
        hook_msgs=dict(best_score=np.float64(0.4)),
        mmcv_version='1.5.3',
        time='Mon Jan  1 00:00:00 2024',
        config='model = dict()',
        PALETTE=None if detector else [[i, 0, 0] for i in range(150)],
    )
    return dict(meta=meta, state_dict=state, optimizer=dict(state={}, param_groups=[dict(lr=2e-4, params=[0])]))


def assert_official_logits(logits, expected):
    """Compare logits with those of the authors' model: their shape, statistics and some values."""
    assert list(logits.shape) == expected['shape']
    found = torch.stack([logits.mean(), logits.std(), logits.norm(), *logits.flatten()[expected['index']]])
    wanted = [expected['mean'], expected['std'], expected['l2'], *expected['value']]
    assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def functional_forward(state, x, training):
    """Compute the outputs of CAS-ViT a second way, without modules, from a flat state dict.

    Returns:
        The four outputs, each ``(N, C_i, H / 2^(i+2), W / 2^(i+2))``.
    """

    def conv(x, name, **kwargs):
        return F.conv2d(x, state[f'{name}.weight'], state.get(f'{name}.bias'), **kwargs)

    def depthwise(x, name):
        return conv(x, name, padding=1, groups=x.shape[1])

    def norm(x, name):
        if training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        else:
            mean, var = state[f'{name}.running_mean'], state[f'{name}.running_var']
        scale = state[f'{name}.weight'] / (var + 1e-5).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + state[f'{name}.bias'][:, None, None]

    def gates(x, name):
        x = x * conv(norm(depthwise(x, f'{name}.0.block.0'), f'{name}.0.block.1').relu(), f'{name}.0.block.3').sigmoid()
        return x * conv(x.mean((2, 3), keepdim=True), f'{name}.1.block.1').sigmoid()

    def block(x, name):
        local = norm(conv(x, f'{name}.local_perception.network.0'), f'{name}.local_perception.network.1')
        local = F.gelu(depthwise(local, f'{name}.local_perception.network.2'))
        x = x + conv(local, f'{name}.local_perception.network.4')
        q, k, v = conv(norm(x, f'{name}.norm1'), f'{name}.attn.qkv').split(x.shape[1], 1)
        added = gates(q, f'{name}.attn.oper_q') + gates(k, f'{name}.attn.oper_k')
        x = x + depthwise(depthwise(added, f'{name}.attn.dwc') * v, f'{name}.attn.proj')
        return x + conv(F.gelu(conv(norm(x, f'{name}.norm2'), f'{name}.mlp.fc1')), f'{name}.mlp.fc2')

    for place in ('0', '3'):
        x = conv(x, f'patch_embed.{place}', stride=2, padding=1)
        x = norm(x, f'patch_embed.{int(place) + 1}').relu()
    outputs = []
    for stage in (0, 2, 4, 6):
        if stage:
            x = norm(conv(x, f'network.{stage - 1}.proj', stride=2, padding=1), f'network.{stage - 1}.norm')
        depth = 1 + max(int(key.split('.')[2]) for key in state if key.startswith(f'network.{stage}.'))
        for i in range(depth):
            x = block(x, f'network.{stage}.{i}')
        outputs.append(norm(x, f'norm{stage}'))
    return outputs
