"""The real-time recipes stay light, and differ from what they are made of only where their comments say so."""

import pytest
import torch
from helpers.configs import build, load
from helpers.repository import ROOT

from mmcasvit.benchmark.counts import on_meta
from mmcasvit.plugin.source import read_config

RECIPES = sorted(path.name for path in (ROOT / 'configs/realtime').glob('*.py') if 'shapes' not in path.name)
BUDGET = 2.2  # multiply-adds of the model over those of its backbone


def input_size(cfg):
    """Return (height, width) of what the recipe trains on."""
    if cfg.default_scope == 'mmseg':
        return tuple(cfg.model.data_preprocessor.size)
    width, height = next(step.scale for step in cfg.test_dataloader.dataset.pipeline if step.type == 'Resize')
    return height, width


@pytest.mark.parametrize('name', RECIPES)
def test_a_recipe_keeps_to_its_budget(name):
    """The masks of RTMDet-Ins are not counted: what they cost depends on the image, at most 0.1 GMACs for 100 boxes."""
    cfg = load(f'realtime/{name}')
    size = input_size(cfg)
    assert f'{size[0]}' in name.removesuffix('.py').rsplit('-', 1)[1]
    with torch.device('meta'):
        model = build(cfg).eval()
    image = torch.zeros(1, 3, *size)
    backbone = on_meta(model.backbone, image, lambda backbone, x: backbone(x)).macs
    whole = on_meta(model, image, lambda model, x: model(x, mode='tensor')).macs
    assert 0 < backbone < whole <= BUDGET * backbone


def steps(pipeline, side):
    """Return the steps of a pipeline, with sizes for images of 640 pixels and without what cannot change the images."""
    plain = [part for step in pipeline for part in step.get('transforms', [step])]
    return [
        {
            key: tuple(length * 640 // side for length in value)
            if key in ('img_scale', 'scale', 'crop_size', 'size')
            else value
            for key, value in step.items()
            if key not in ('_scope_', 'backend_args')
        }
        for step in plain
    ]


@pytest.mark.parametrize('name', [name for name in RECIPES if name.startswith('rtmdet')])
def test_rtmdet_trains_as_published(name):
    cfg, kind = load(f'realtime/{name}'), name.split('_')[0]
    side, arch = input_size(cfg)[0], cfg.model.backbone.arch
    scale = 'tiny' if arch == 'xs' or side < 640 else arch
    published = read_config(f'mmdet::rtmdet/{kind}_{scale}_8xb32-300e_coco.py')
    (*_, average, switch), (published_average, published_switch) = cfg.custom_hooks, published.custom_hooks
    for ours, theirs in (
        (cfg.train_dataloader.dataset.pipeline, published.train_dataloader.dataset.pipeline),
        (switch.switch_pipeline, published_switch.switch_pipeline),
        (cfg.test_dataloader.dataset.pipeline, published.test_dataloader.dataset.pipeline),
    ):
        assert steps(ours, side) == steps(theirs, 640)
    assert switch.switch_epoch == published_switch.switch_epoch
    assert average.items() >= published_average.items()
    assert cfg.train_cfg.max_epochs == published.train_cfg.max_epochs
    assert cfg.train_dataloader.batch_size == published.train_dataloader.batch_size
    assert cfg.optim_wrapper.paramwise_cfg == published.optim_wrapper.paramwise_cfg
    assert [step.end for step in cfg.param_scheduler] == [step.end for step in published.param_scheduler]
    assert cfg.val_evaluator.metric == published.val_evaluator.metric
