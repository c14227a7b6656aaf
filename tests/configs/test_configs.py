"""Every config builds, trains for a step and predicts, and has the settings of its recipe."""

import re

import pytest
import torch
from helpers.configs import build, load, random_batch
from helpers.repository import ROOT
from mmengine.config import Config

from mmcasvit import CASViT

ALL = sorted(path.relative_to(ROOT / 'configs').as_posix() for path in (ROOT / 'configs').glob('*/*.py'))
# test_classification_recipes.py tests the classification configs, test_ablation.py those of the token mixers.
CONFIGS = [name for name in ALL if not name.startswith(('classification/', 'ablation/'))]
# RTMDet is this project's own, for tools/start.py, and test_realtime.py tests the settings of the real-time recipes.
FULL = [name for name in CONFIGS if not any(word in name for word in ('shapes', 'rtmdet', 'realtime/'))]

_DETECTION = dict(lr=2e-4, decay=1e-4, batch=4, base=32, epochs=12, steps=[8, 11], warmup=500, scale=(1333, 800))
# Settings of the published recipes, by the start of the file name.
RECIPES = {
    'detection/retinanet': dict(_DETECTION, indices=(1, 2, 3)),
    'detection/mask-rcnn': _DETECTION,
    'segmentation/semantic-fpn': dict(lr=2e-4, decay=1e-4, batch=4, base=32, iters=40000, warmup=0, power=0.9),
    'segmentation/upernet': dict(lr=6e-5, decay=0.01, batch=2, base=16, iters=160000, warmup=1500, power=1.0),
}
DROP_PATH = dict(xs=0.0, s=0.0, m=0.1, t=0.1)


@pytest.mark.parametrize('name', [name for name in CONFIGS if name.startswith('detection/')])
def test_test_time_augmentation_keeps_the_image_size(name):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    [resize], plain = cfg.tta_pipeline[1].transforms[0], cfg.test_dataloader.dataset.pipeline[1]
    assert (resize.type, resize.get('scale'), resize.get('scale_factor')) == (
        plain.type,
        plain.get('scale'),
        plain.get('scale_factor'),
    )


# The others differ in the optimizer wrapper or the pipeline, so their models are tested with the config they inherit.
SAME_MODEL = ('amp-', 'ms-3x', '300e_coco-320', '300e_coco-416')
MODELS = [name for name in CONFIGS if not any(word in name for word in SAME_MODEL)]
LARGER = [name for name in FULL if name in MODELS and '_casvit-xs_' not in name]


@pytest.mark.parametrize('name', [name for name in MODELS if name not in LARGER])
def test_a_config_builds_learns_and_predicts(name):
    cfg = load(name)
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = (64, 96)
        cfg.model.data_preprocessor.test_cfg = dict(size_divisor=32)
    model = build(cfg)
    assert isinstance(model.backbone, CASViT)
    head_input = cfg.model.get('neck', cfg.model.get('decode_head')).in_channels
    assert tuple(head_input) == model.backbone.out_channels
    model.train()
    batch = random_batch(cfg, (64, 96))
    losses = model(**model.data_preprocessor(batch, True), mode='loss')
    loss = model.parse_losses(losses)[0]
    assert torch.isfinite(loss)
    loss.backward()
    unused = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []
    model.eval()
    with torch.no_grad():
        predictions = model(**model.data_preprocessor(random_batch(cfg, (64, 96)), False), mode='predict')
    assert len(predictions) == 2


def entries(node, place=''):
    """Return the values of a config by their dotted names."""
    if not isinstance(node, dict):
        return {place: node}
    return {key: value for name, part in node.items() for key, value in entries(part, f'{place}.{name}').items()}


@pytest.mark.parametrize('name', LARGER)
def test_a_larger_arch_changes_nothing_but_the_backbone_and_what_reads_it(name):
    """Without weights: those of xs learn and predict above."""
    cfg = load(name)
    ours, smallest = entries(cfg.to_dict()), entries(load(re.sub('_casvit-._', '_casvit-xs_', name)).to_dict())
    changed = {key for key in ours.keys() | smallest.keys() if ours.get(key) != smallest.get(key)}
    readers = {f'.model.{part}.in_channels' for part in ('neck', 'decode_head', 'auxiliary_head')}
    assert '.model.backbone.arch' in changed
    assert changed <= {'.model.backbone.arch', '.model.backbone.drop_path_rate', *readers}
    with torch.device('meta'):
        model = build(cfg).eval()
        maps = model.extract_feat(torch.empty(2, 3, 64, 96))
        if cfg.default_scope == 'mmseg':
            assert model.decode_head(maps).shape == (2, 150, 16, 24)
            if model.with_auxiliary_head:
                assert model.auxiliary_head(maps).shape == (2, 150, 4, 6)
    assert isinstance(model.backbone, CASViT)
    if 'neck' in cfg.model:
        assert tuple(cfg.model.neck.in_channels) == model.backbone.out_channels
        assert {x.shape[1] for x in maps} == {256}


@pytest.mark.parametrize('name', FULL)
def test_a_recipe_has_its_published_settings(name):
    recipe = next(settings for start, settings in RECIPES.items() if name.startswith(start))
    if 'ms-3x' in name:
        recipe = recipe | dict(epochs=36, steps=[27, 33])
    cfg = load(name)
    assert cfg.optim_wrapper.type == ('AmpOptimWrapper' if 'amp-' in name else 'OptimWrapper')
    arch = cfg.model.backbone.arch
    assert f'casvit-{arch}_' in name
    assert cfg.model.backbone.get('drop_path_rate', 0.0) == DROP_PATH[arch]
    assert cfg.model.backbone.norm_eval is True
    assert not cfg.keys() & {'find_unused_parameters', 'model_wrapper_cfg'}
    assert tuple(cfg.model.backbone.get('out_indices', (0, 1, 2, 3))) == recipe.get('indices', (0, 1, 2, 3))
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', recipe['lr'], recipe['decay'])
    assert cfg.optim_wrapper.get('clip_grad') is None
    assert cfg.train_dataloader.batch_size == recipe['batch']
    assert cfg.auto_scale_lr.base_batch_size == recipe['base']
    warmups = [s for s in cfg.param_scheduler if s.type == 'LinearLR']
    assert sum(s.end for s in warmups) == recipe['warmup']
    decay = cfg.param_scheduler[-1]
    if 'epochs' in recipe:
        assert cfg.train_cfg.max_epochs == decay.end == recipe['epochs']
        assert decay.milestones == recipe['steps']
        assert warmups[0].start_factor * optimizer.lr == pytest.approx(1e-6)
        resize = next(t for t in cfg.train_dataloader.dataset.pipeline if 'Resize' in t.type)
        assert tuple(resize.get('scale') or resize.scales[-1]) == recipe['scale']
        assert cfg.model.neck.out_channels == 256
        assert cfg.model.neck.num_outs == 5
    else:
        assert cfg.train_cfg.max_iters == decay.end == recipe['iters']
        assert (decay.type, decay.power, decay.eta_min) == ('PolyLR', recipe['power'], 0)
        train, test = cfg.train_dataloader.dataset.pipeline, cfg.test_dataloader.dataset.pipeline
        assert next(t for t in train if t.type == 'RandomCrop').crop_size == (512, 512)
        assert next(t for t in train if t.type == 'RandomResize').ratio_range == (0.5, 2.0)
        assert next(t for t in test if t.type == 'ResizeToMultiple').size_divisor == 32
        assert cfg.model.decode_head.num_classes == 150
    if 'semantic-fpn' in name:
        assert cfg.model.neck.out_channels == 256
        assert cfg.model.decode_head.channels == 128
        assert cfg.model.decode_head.dropout_ratio == 0.1
        assert cfg.model.decode_head.norm_cfg.type == 'SyncBN'


def test_every_recipe_exists_for_every_arch():
    for start in RECIPES:
        for arch in DROP_PATH:
            matching = [name for name in FULL if name.startswith(f'{start}_casvit-{arch}_')]
            assert len(matching) == (3 if 'mask-rcnn' in start else 2), (start, arch)


def test_file_names_are_unique():
    names = [name.rsplit('/', 1)[-1] for name in ALL]
    assert len(set(names)) == len(names)
