"""What --fast chooses for a device and a config."""

import pytest
from mmengine.config import Config

from mmcasvit.apis import fast
from mmcasvit.apis.config import get_config
from mmcasvit.apis.fast import use_fast_training

MASK_RCNN = 'mask-rcnn_casvit-xs_fpn_1x_coco'
UPERNET = 'upernet_casvit-xs_8xb2-160k_ade20k-512x512'


@pytest.fixture(autouse=True)
def _triton(monkeypatch):
    monkeypatch.setattr(fast, 'find_spec', lambda name: object())


def choose(cfg, device):
    """Return what is on, what is off with its reason, and the hooks that were added."""
    before = len(cfg.get('custom_hooks') or [])
    choices = use_fast_training(cfg, device)
    added = [hook['type'].removeprefix('mmcasvit.') for hook in cfg.custom_hooks[before:]]
    off = {choice.name: choice.reason for choice in choices if not choice.on}
    return {choice.name for choice in choices if choice.on}, off, added


@pytest.mark.parametrize('name', [MASK_RCNN, UPERNET])
def test_a_recipe_on_a_cpu(name):
    cfg = get_config(name)
    on, off, added = choose(cfg, 'cpu')
    assert on == {'channels_last', 'fused AdamW', 'folded norms', 'shortcuts'}
    assert set(off) == {'kept memory', 'compile'}
    assert added == ['ChannelsLastHook', 'ShortcutsHook']
    assert cfg.optim_wrapper.optimizer.fused is True


def test_the_choices_of_a_config_are_kept():
    cfg = get_config(UPERNET)
    lines = [str(choice) for choice in use_fast_training(cfg, 'cpu')]
    once = cfg.to_dict()
    assert [str(choice) for choice in use_fast_training(cfg, 'cpu')] == lines
    assert cfg.to_dict() == once
    cfg.custom_hooks.append(dict(type='mmcasvit.CompileHook', dynamic=True))
    on, _, added = choose(cfg, 'cpu')
    assert 'compile' in on
    assert added == []


@pytest.mark.parametrize(
    'name, on, off, added',
    [
        (MASK_RCNN, {'fused AdamW', 'folded norms'}, {'channels_last', 'shortcuts', 'kept memory', 'compile'}, []),
        (
            'mask-rcnn_casvit-xs_fpn_amp-1x_coco',
            {'channels_last', 'fused AdamW', 'folded norms'},
            {'shortcuts', 'kept memory', 'compile'},
            ['ChannelsLastHook'],
        ),
        (
            'upernet_casvit-xs_8xb2-amp-160k_ade20k-512x512',
            {'channels_last', 'fused AdamW', 'folded norms', 'compile'},
            {'shortcuts', 'kept memory'},
            ['ChannelsLastHook', 'CompileHook'],
        ),
    ],
)
def test_a_recipe_on_a_gpu(name, on, off, added):
    found_on, found_off, found_added = choose(get_config(name), 'cuda')
    assert (found_on, set(found_off), found_added) == (on, off, added)


def test_what_cannot_be_switched_on_is_said_and_left_alone():
    cfg = Config(
        dict(
            model=dict(type='RetinaNet', backbone=dict(type='mmcasvit.CASViT')),
            optim_wrapper=dict(optimizer=dict(type='RAdam', lr=0.1)),
        )
    )
    on, off, added = choose(cfg, 'cpu')
    assert on == {'channels_last'}
    assert off['fused RAdam'] == 'PyTorch has no fused form of it'
    assert 'norm_eval=True' in off['folded norms']
    assert 'RPNHead and UPerHead' in off['shortcuts']
    assert 'KeepMemoryHook' in off['kept memory']
    assert added == ['ChannelsLastHook']
    assert 'fused' not in cfg.optim_wrapper.optimizer


@pytest.mark.parametrize(
    'wrapper, reason',
    [
        (dict(type='DeepSpeedOptimWrapper', optimizer=dict(type='AdamW')), 'wrapper of its own'),
        (dict(constructor='Two', a=dict(optimizer=dict(type='AdamW'))), 'wrapper of its own'),
        (dict(type='OptimWrapper', optimizer=dict(type='AdamW', fused=False)), 'fused=False'),
    ],
)
def test_optimizers_that_stay_as_they_are(wrapper, reason):
    cfg = Config(dict(model=dict(), optim_wrapper=wrapper))
    before = cfg.optim_wrapper.to_dict()
    _, off, _ = choose(cfg, 'cpu')
    assert any(reason in text for text in off.values())
    assert cfg.optim_wrapper.to_dict() == before


def test_compiling_on_a_gpu_needs_triton(monkeypatch):
    monkeypatch.setattr(fast, 'find_spec', lambda name: None)
    assert 'triton' in choose(get_config(UPERNET), 'cuda')[1]['compile']
