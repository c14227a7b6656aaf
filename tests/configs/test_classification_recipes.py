"""The classification configs: the figures of the published recipes, weight decay, one config for every arch."""

import pytest
from helpers.configs import build, load, needs_mmpretrain
from helpers.repository import ROOT
from mmengine.optim import build_optim_wrapper

from mmcasvit import CASViT

ARCHS = ('xs', 's', 'm', 't')
# The batch is that of one GPU of 8, and each step accumulates the gradients of two batches.
RECIPES = {
    '_8xb128-300e_in1k-224': dict(
        lr=6e-3,
        epochs=300,
        batch=128,
        base=1024,
        size=224,
        drop_path=0.1,
        cosine=(20, 300),
        sizes=(160, 192, 224, 256, 288, 320),
    ),
    '_ft-8xb64-30e_in1k-384': dict(
        lr=5e-5,
        epochs=30,
        batch=64,
        base=512,
        size=384,
        drop_path=0.0,
        cosine=None,
        sizes=(160, 192, 256, 288, 320, 384),
    ),
}


@needs_mmpretrain
@pytest.mark.parametrize('ending', RECIPES)
@pytest.mark.parametrize('arch', ARCHS)
def test_a_recipe_has_the_published_figures(arch, ending):
    recipe = RECIPES[ending]
    cfg = load(f'classification/casvit-{arch}{ending}.py')
    backbone, head = cfg.model.backbone, cfg.model.head
    assert (backbone.arch, backbone.drop_path_rate) == (arch, recipe['drop_path'])
    assert (head.num_classes, head.in_channels) == (1000, CASViT.arch_settings[arch]['channels'][-1])
    assert (head.loss.type, head.loss.label_smooth_val) == ('LabelSmoothLoss', 0.1)

    wrapper = cfg.optim_wrapper
    assert (wrapper.optimizer.type, wrapper.optimizer.lr, wrapper.get('clip_grad')) == ('AdamW', recipe['lr'], None)
    assert cfg.train_dataloader.batch_size == recipe['batch']
    assert 8 * recipe['batch'] == recipe['base'] == cfg.auto_scale_lr.base_batch_size
    assert wrapper.accumulative_counts * recipe['base'] == (2048 if recipe['epochs'] == 300 else 1024)
    ema = next(hook for hook in cfg.custom_hooks if hook.type == 'EMAHook')
    assert (1 - ema.momentum, ema.interval, ema.update_buffers) == (0.9995, wrapper.accumulative_counts, True)

    warmup, *rest = cfg.param_scheduler
    assert (warmup.type, warmup.begin, warmup.end, warmup.by_epoch) == ('LinearLR', 0, 20, True)
    assert cfg.train_cfg.max_epochs == recipe['epochs']
    assert [(s.type, s.begin, s.end, s.eta_min) for s in rest] == (
        [('CosineAnnealingLR', *recipe['cosine'], 1e-6)] if recipe['cosine'] else []
    )

    sampler = cfg.train_dataloader.batch_sampler
    assert (tuple(sampler.sizes), sampler.base_size) == (recipe['sizes'], recipe['size'])
    augment = next(t for t in cfg.train_dataloader.dataset.dataset.pipeline if t.type == 'RandAugment')
    assert (augment.policies, augment.num_policies, augment.magnitude_level, augment.magnitude_std) == (
        'timm_increasing',
        2,
        9,
        0.5,
    )
    resizes = [t for t in cfg.test_dataloader.dataset.pipeline if t.type in ('ResizeEdge', 'CenterCrop', 'Resize')]
    assert [(t.type, t.get('scale', t.get('crop_size'))) for t in resizes] == (
        [('ResizeEdge', 256), ('CenterCrop', 224)] if recipe['size'] == 224 else [('Resize', (384, 384))]
    )


@needs_mmpretrain
def test_biases_and_norms_do_not_decay():
    cfg = load('classification/casvit-xs_8xb128-300e_in1k-224.py')
    optimizer = build_optim_wrapper(build(cfg), cfg.optim_wrapper).optimizer
    for group in optimizer.param_groups:
        for parameter in group['params']:
            assert group['weight_decay'] == (0.05 if parameter.ndim > 1 else 0)


@needs_mmpretrain
def test_there_is_a_config_for_each_arch_and_no_other():
    wanted = {f'casvit-{arch}{ending}.py' for arch in ARCHS for ending in RECIPES} | {'casvit-xs_8e_shapes.py'}
    assert {path.name for path in (ROOT / 'configs/classification').glob('*.py')} == wanted
