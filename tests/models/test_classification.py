"""The ImageNet classifier: the authors' function, the published recipes, the changing image sizes, the tools."""

import importlib.util
import json
import pickle
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.reference import (
    OFFICIAL_OUTPUTS,
    functional_forward,
    image,
    published_checkpoint,
    published_weights,
    weight,
)
from helpers.repository import ROOT, write_tiny_config
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope, init_default_scope
from torch.testing import assert_close

from mmcasvit import CASViT
from mmcasvit.apis.config import load_config
from mmcasvit.datasets.shapes import COLOURS, THINGS, draw_object
from mmcasvit.datasets.unreadable import SkipUnreadable
from mmcasvit.utils.errors import UsageError
from mmcasvit.weights.names import to_authors_names, to_own_names

FOLDER = ROOT / 'configs/classification'
TRAIN_XS = FOLDER / 'casvit-xs_8xb128-300e_in1k-224.py'
SHAPES = FOLDER / 'casvit-xs_8e_shapes.py'
# Both of one kind: the batch is that of one GPU, and the gradients of two steps are gathered on 8 of them.
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
PUBLISHED_MILLIONS = dict(xs=3.20, s=5.76, m=12.42, t=21.76)

needs_mmpretrain = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ('mmpretrain', 'torchvision')),
    reason='needs mmpretrain and torchvision',
)


def load(path):
    cfg = Config.fromfile(path)
    init_default_scope('mmpretrain')
    return cfg


def build(cfg):
    from mmpretrain.registry import MODELS

    return MODELS.build(cfg.model)


@needs_mmpretrain
@pytest.mark.parametrize('case', OFFICIAL_OUTPUTS['logits'], ids=lambda c: f'{c["arch"]}-{c["seed"]}-{c["mode"]}')
def test_logits_are_those_of_the_authors(case):
    model = build(load(FOLDER / f'casvit-{case["arch"]}_8xb128-300e_in1k-224.py')).double()
    state = {key: weight(key, value.shape) for key, value in to_authors_names(model.state_dict()).items()}
    model.load_state_dict(to_own_names(state))
    with torch.no_grad():
        logits = model.train(case['mode'] == 'train')(image(case['seed'], case['shape']), mode='tensor')
    expected = case['logits']
    assert list(logits.shape) == expected['shape']
    found = torch.stack([logits.mean(), logits.std(), logits.norm(), *logits.flatten()[expected['index']]])
    wanted = [expected['mean'], expected['std'], expected['l2'], *expected['value']]
    assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@needs_mmpretrain
@pytest.mark.parametrize('arch', PUBLISHED_MILLIONS)
def test_the_model_is_the_published_one_tensor_by_tensor(arch):
    model = build(load(FOLDER / f'casvit-{arch}_ft-8xb64-30e_in1k-384.py'))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == PUBLISHED_MILLIONS[arch]
    names = {key: value.shape for key, value in to_authors_names(model.state_dict()).items()}
    assert names == {key: value.shape for key, value in published_weights(arch).items()}


@needs_mmpretrain
def test_both_heads_learn_the_smoothed_labels():
    from mmpretrain.structures import DataSample

    load(TRAIN_XS)
    from mmcasvit.models.cls_head import CASViTClsHead

    head = CASViTClsHead(5, 8, loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'), cal_acc=True)
    head.init_weights()
    assert 0 < head.dist_head.weight.std() < 0.04
    assert not torch.equal(head.head.weight, head.dist_head.weight)
    feats, labels = torch.randn(7, 8), torch.arange(7) % 5
    losses = head.loss((feats,), [DataSample().set_gt_label(int(label)) for label in labels])
    expected = [F.cross_entropy(layer(feats), labels, label_smoothing=0.1) for layer in (head.head, head.dist_head)]
    assert_close(losses['loss'], sum(expected) / 2)
    right = (head((feats,)).argmax(1) == labels).float().mean() * 100
    assert_close(losses['accuracy_top-1'][0].item(), right.item())
    losses['loss'].backward()
    assert all(p.grad.abs().sum() > 0 for p in head.parameters())
    with pytest.raises(TypeError, match='topks'):
        CASViTClsHead(5, 8, topks=(1,))


@needs_mmpretrain
@pytest.mark.parametrize('ending', RECIPES)
@pytest.mark.parametrize('arch', PUBLISHED_MILLIONS)
def test_a_recipe_holds_its_figures(arch, ending):
    recipe = RECIPES[ending]
    cfg = load(FOLDER / f'casvit-{arch}{ending}.py')
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
    cfg = load(TRAIN_XS)
    optimizer = build_optim_wrapper(build(cfg), cfg.optim_wrapper).optimizer
    for group in optimizer.param_groups:
        for parameter in group['params']:
            assert group['weight_decay'] == (0.05 if parameter.ndim > 1 else 0)


@needs_mmpretrain
def test_there_is_a_config_for_every_arch_and_no_other():
    wanted = {f'casvit-{arch}{ending}.py' for arch in PUBLISHED_MILLIONS for ending in RECIPES} | {SHAPES.name}
    assert {path.name for path in FOLDER.glob('*.py')} == wanted


class Order:
    """A sampler as mmengine hands it over."""

    seed = 3

    def __init__(self, length, epoch=0):
        self.length, self.epoch = length, epoch

    def __len__(self):
        return self.length

    def __iter__(self):
        return iter(np.random.default_rng(self.epoch).permutation(self.length).tolist())


@needs_mmpretrain
class TestMultiScale:
    def sampler(self, length=1000, epoch=0, **kwargs):
        from mmcasvit.datasets.multi_scale import MultiScaleBatchSampler

        return MultiScaleBatchSampler(
            Order(length, epoch), **dict(dict(batch_size=8, sizes=(32, 64, 96), base_size=64), **kwargs)
        )

    @pytest.mark.parametrize('length', [1, 7, 32, 47, 48, 49, 1000])
    def test_every_image_comes_once_in_batches_of_one_size(self, length):
        sampler = self.sampler(length)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert sorted(index for batch in batches for index, _ in batch) == list(range(length))
        assert all(len({side for _, side in batch}) == 1 for batch in batches)
        full = {32: 32, 64: 8, 96: 8}  # the pixels of 8 images of 64, and never fewer than 8 images
        assert all(len(batch) == full[batch[0][1]] for batch in batches[:-1])
        assert 0 < len(batches[-1]) <= full[batches[-1][0][1]]

    def test_epochs_are_of_one_length_and_differ(self):
        orders = [[batch[0][1] for batch in self.sampler(epoch=epoch)] for epoch in range(4)]
        assert len({len(order) for order in orders}) == 1
        assert len({tuple(order) for order in orders}) == 4
        assert orders[0] == [batch[0][1] for batch in self.sampler()], 'the same on every process'
        counts = np.unique(orders[0], return_counts=True)[1]
        assert np.ptp(counts) <= 1

    def test_processes_get_other_images_of_the_same_size(self, monkeypatch):
        from mmcasvit.datasets.multi_scale import MultiScaleBatchSampler

        batches = []
        for rank in range(2):
            monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda rank=rank: (rank, 2))
            order = DefaultSampler(range(301), shuffle=True, seed=5)
            order.set_epoch(2)
            batches.append(list(MultiScaleBatchSampler(order, 8, (32, 64, 96), 64)))
        first, second = ([(len(batch), batch[0][1]) for batch in part] for part in batches)
        assert first == second
        seen = [{index for batch in part for index, _ in batch} for part in batches]
        assert seen[0] | seen[1] == set(range(301))
        assert len(seen[0] & seen[1]) <= 1

    def test_the_recipe_keeps_the_pixels_of_its_batch(self):
        recipe = RECIPES['_8xb128-300e_in1k-224']
        sampler = self.sampler(batch_size=128, sizes=recipe['sizes'], base_size=224)
        assert sampler.batch_sizes == {160: 250, 192: 174, 224: 128, 256: 128, 288: 128, 320: 128}

    def test_a_base_size_that_never_comes_is_refused(self):
        with pytest.raises(ValueError, match=r'one of the sizes \(32, 64, 96\), got 128'):
            self.sampler(base_size=128)

    def test_the_loader_crops_to_the_size_of_the_batch(self, shapes):
        from mmengine.runner import Runner

        cfg = load(SHAPES)
        cfg.merge_from_dict(
            {
                'train_dataloader.dataset.dataset.data_root': f'{shapes}/imagenet',
                'train_dataloader.batch_size': 2,
                'train_dataloader.num_workers': 0,
                'train_dataloader.persistent_workers': False,
            }
        )
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
        loader.batch_sampler.sampler.set_epoch(1)
        batches = list(loader)
        assert {tuple(batch['inputs'].shape[2:]) for batch in batches} == {(48, 48), (64, 64), (80, 80)}
        labels = [int(sample.gt_label) for batch in batches for sample in batch['data_samples']]
        assert sorted(labels) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
        assert loader.dataset.metainfo['classes'] == ('cross', 'disc', 'ring', 'square', 'star', 'triangle')

    def test_an_image_that_cannot_be_read_gives_way_to_another_one(self, shapes, tmp_path):
        from mmpretrain.registry import DATASETS

        root = shutil.copytree(shapes / 'imagenet', tmp_path / 'imagenet')
        cfg = load(SHAPES).train_dataloader.dataset
        cfg.dataset.data_root = str(root)
        data = DATASETS.build(cfg)
        broken = Path(data.dataset.get_data_info(0)['img_path'])
        broken.write_bytes(broken.read_bytes()[:-40])
        sample = data[0, 48]
        assert sample['inputs'].shape[1:] == (48, 48)
        assert sample['data_samples'].img_path != str(broken)
        [steps] = [part for part in data.dataset.pipeline.transforms if isinstance(part, SkipUnreadable)]
        assert list(steps.skipped.read()) == [str(broken)]


@pytest.fixture(scope='module')
def published_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'cas-vit-xs.pth'
    torch.save(published_checkpoint('xs'), path)
    return path


def published_scores(photos):
    """Class probabilities of pictures ``(N, 256, 256, 3)`` in BGR, by the second form of the model."""
    state = published_weights('xs')
    state |= {key.replace('norm.', 'norm6.'): value for key, value in state.items() if key.startswith('norm.')}
    for stage, width in zip((0, 2, 4), CASViT.arch_settings['xs']['channels']):  # not looked at
        state |= {
            f'norm{stage}.{name}': torch.ones(width) for name in ('weight', 'bias', 'running_mean', 'running_var')
        }
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    rgb = torch.from_numpy(np.stack(photos)[:, 16:240, 16:240, ::-1].copy()).float()
    pooled = functional_forward(state, ((rgb - mean) / std).permute(0, 3, 1, 2), training=False)[3].mean((2, 3))
    logits = [F.linear(pooled, state[f'{head}.weight'], state[f'{head}.bias']) for head in ('head', 'dist_head')]
    return (sum(logits) / 2).softmax(1)


@needs_mmpretrain
@pytest.mark.slow
def test_a_published_file_evaluates_and_predicts_with_nothing_missing(run_tool, published_file, tmp_path):
    rng = np.random.default_rng(0)
    photos = [cv2.GaussianBlur(rng.integers(0, 256, (256, 256, 3), np.uint8), (0, 0), 4) for _ in range(4)]
    for folder in ('val', 'meta', 'train'):
        (tmp_path / 'imagenet' / folder).mkdir(parents=True)
    for i, photo in enumerate(photos):
        cv2.imwrite(str(tmp_path / f'imagenet/val/{i}.png'), photo)
    scores = published_scores(photos)
    labels = [int(scores[0].argmax()), 0, 1, 2]
    (tmp_path / 'imagenet/meta/val.txt').write_text(''.join(f'{i}.png {k}\n' for i, k in enumerate(labels)))

    run_tool(
        'test.py',
        TRAIN_XS,
        published_file,
        '--work-dir',
        'test',
        '--out',
        'scores.pkl',
        '--show-dir',
        'drawn',
        '--cfg-options',
        f'data_root={tmp_path}/imagenet/',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
        cwd=tmp_path,
    )
    found = pickle.loads((tmp_path / 'scores.pkl').read_bytes())
    assert_close(torch.stack([sample['pred_score'] for sample in found]), scores)
    metrics = json.loads(next((tmp_path / 'test').glob('*/*.json')).read_text())
    right = sum(int(row.argmax()) == label for row, label in zip(scores, labels))
    assert metrics['accuracy/top1'] == pytest.approx(25 * right)
    assert len(list((tmp_path / 'drawn').iterdir())) == 4

    run_tool(
        'infer.py',
        tmp_path / 'imagenet/val',
        TRAIN_XS,
        published_file,
        '--out-dir',
        'out',
        '--batch-size',
        '3',
        cwd=tmp_path,
    )
    for i, row in enumerate(scores):
        answer = json.loads((tmp_path / f'out/preds/{i}.json').read_text())
        assert_close(torch.tensor(answer['pred_scores']), row)
        assert answer['pred_label'] == int(row.argmax())
        assert len(answer['pred_class']) > 2
        assert cv2.imread(str(tmp_path / f'out/vis/{i}.png')).shape == (448, 448, 3)


@pytest.fixture(scope='module')
def trained(run_tool, shapes, tmp_path_factory):
    """A tiny classifier trained for one iteration, resumed for a second one. Returns its folder and its config."""
    cwd = tmp_path_factory.mktemp('classifier')
    config = cwd / 'tiny.py'
    config.write_text(f"""
_base_ = {str(SHAPES)!r}
model = dict(
    backbone=dict(arch=dict(_delete_=True, depths=(1, 1, 1, 1), channels=(8, 12, 16, 24))),
    head=dict(in_channels=24))
train_dataloader = dict(
    batch_size=12, num_workers=0, persistent_workers=False, batch_sampler=dict(sizes=(64, )),
    dataset=dict(dataset=dict(data_root='{shapes}/imagenet/')))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root='{shapes}/imagenet/'))
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1, save_optimizer=True))
train_cfg = dict(val_interval=1)
param_scheduler = []
""")
    run_tool('train.py', config, '--work-dir', 'run', '--cfg-options', 'train_cfg.max_epochs=1', cwd=cwd)
    run_tool('train.py', config, '--work-dir', 'run', '--resume', '--cfg-options', 'train_cfg.max_epochs=2', cwd=cwd)
    return cwd, config


@needs_mmpretrain
@pytest.mark.slow
def test_a_checkpoint_holds_the_moving_average_and_resumes_from_it(trained):
    first, second = (torch.load(trained[0] / f'run/epoch_{k}.pth', weights_only=False) for k in (1, 2))
    plain = [
        {key.removeprefix('module.'): value for key, value in content['ema_state_dict'].items()}
        for content in (first, second)
    ]
    assert_close(first['state_dict'], {key: value for key, value in plain[0].items() if key != 'steps'})
    for key, average in second['state_dict'].items():
        if average.is_floating_point():
            assert_close(average, 0.95 * plain[0][key] + 0.05 * plain[1][key], msg=key)
    assert not torch.equal(plain[0]['head.dist_head.weight'], plain[1]['head.dist_head.weight'])
    assert int(plain[1]['steps']) == 2


@needs_mmpretrain
@pytest.mark.slow
def test_a_checkpoint_feeds_the_dense_recipes(trained, tmp_path):
    checkpoint = str(trained[0] / 'run/epoch_2.pth')
    cfg = Config.fromfile(
        write_tiny_config(
            tmp_path / 'tiny.py', ROOT / 'configs/detection/retinanet_casvit-xs_fpn_1x_coco.py', (12, 16, 24)
        )
    )
    cfg.merge_from_dict(
        {
            'model.backbone.arch.channels': (8, 12, 16, 24),
            'model.backbone.init_cfg': dict(type='Pretrained', checkpoint=checkpoint),
        }
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        from mmdet.registry import MODELS

        model = MODELS.build(cfg.model)
        model.init_weights()
    averages = torch.load(checkpoint, weights_only=False)['state_dict']
    for key, value in model.backbone.state_dict().items():
        if not key.startswith('norm'):
            assert_close(value, averages[f'backbone.{key}'], msg=key)
    # as from a published file: the classifier's own norm is not that of the fourth output
    assert_close(model.backbone.norm6.state_dict(), torch.nn.BatchNorm2d(24).state_dict())


@pytest.mark.parametrize('prefix', [None, 'backbone'])
def test_both_names_of_a_classifier_start_the_same_backbone(published_file, tmp_path, prefix):
    torch.save(dict(state_dict=to_own_names(published_weights('xs'))), tmp_path / 'own.pth')
    models = []
    for init_cfg in (dict(checkpoint=str(published_file)), dict(checkpoint=str(tmp_path / 'own.pth'), prefix=prefix)):
        models.append(CASViT('xs', init_cfg=dict(type='Pretrained', **init_cfg)))
        models[-1].init_weights()
    assert_close(models[1].state_dict(), models[0].state_dict())


def test_the_made_up_pictures_are_one_object_each(shapes):
    for split, count in (('train', 2), ('val', 1)):
        files = sorted((shapes / 'imagenet' / split).glob('*/*.jpg'))
        assert len(files) == count * len(THINGS)
        assert {file.parent.name for file in files} == set(THINGS)
        assert len({file.name for file in files}) == len(files)
    rng = np.random.default_rng(0)
    for category in THINGS:
        picture = draw_object(rng, category, side=64)
        assert picture.shape == (64, 64, 3)
        # bluish or reddish, as its class is coloured, somewhere near the middle
        colour = np.array(COLOURS[category]) / np.linalg.norm(COLOURS[category])
        middle = picture[24:40, 24:40].reshape(-1, 3).astype(float)
        likeness = middle @ colour / np.linalg.norm(middle, axis=1)
        assert (likeness > 0.95).any(), category


def test_missing_images_are_named_with_the_way_to_get_them(monkeypatch, tmp_path):
    from mmcasvit.apis.preflight import check_data

    monkeypatch.chdir(tmp_path)
    dataset = Config.fromfile(FOLDER / '_base_/imagenet.py').train_dataloader.dataset
    cfg = Config(dict(default_scope='mmpretrain', train_dataloader=dict(dataset=dataset)))
    for missing in ('data/imagenet', 'data/imagenet/train'):
        words = rf'train split not found: {tmp_path}/{missing}\. .*image-net\.org.*data_root=DIR'
        with pytest.raises(UsageError, match=words):
            check_data(cfg, 'train')
        (tmp_path / missing).mkdir(parents=True)
    check_data(cfg, 'train')


def test_a_missing_mmpretrain_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmpretrain', None)
    with pytest.raises(UsageError, match=r'needs mmpretrain, which is not .*pip install "mmcasvit\[classification\]"'):
        load_config(SHAPES)
    monkeypatch.setitem(sys.modules, 'mmpretrain.datasets.transforms', None)
    monkeypatch.delitem(sys.modules, 'mmcasvit.datasets.multi_scale', raising=False)
    with pytest.raises(ImportError, match=r'pip install "mmcasvit\[classification\]"'):
        importlib.import_module('mmcasvit.datasets.multi_scale')


@needs_mmpretrain
def test_a_torchvision_of_another_pytorch_is_named(monkeypatch):
    def fail(name):
        raise RuntimeError('operator torchvision::nms does not exist')

    monkeypatch.setattr('mmcasvit.tooling.importlib', SimpleNamespace(util=importlib.util, import_module=fail))
    with pytest.raises(UsageError, match=r'nms does not exist\. Install the torchvision that was built for'):
        load_config(SHAPES)
