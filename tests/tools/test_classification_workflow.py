"""The classifier in the tools: evaluating a published file, training, resuming, and starting a detector from it."""

import json
import pickle

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.configs import needs_mmpretrain
from helpers.reference import functional_forward, published_checkpoint, published_weights
from helpers.repository import ROOT, write_tiny_config
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch.testing import assert_close

from mmcasvit import CASViT

TRAIN_XS = ROOT / 'configs/classification/casvit-xs_8xb128-300e_in1k-224.py'
SHAPES = ROOT / 'configs/classification/casvit-xs_8e_shapes.py'


@pytest.fixture(scope='module')
def published_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'cas-vit-xs.pth'
    torch.save(published_checkpoint('xs'), path)
    return path


def published_scores(photos):
    """Return class probabilities of images ``(N, 256, 256, 3)`` in BGR, by the second implementation of the model."""
    state = published_weights('xs')
    state |= {key.replace('norm.', 'norm6.'): value for key, value in state.items() if key.startswith('norm.')}
    for stage, width in zip((0, 2, 4), CASViT.arch_settings['xs']['channels']):  # not used
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
def test_a_published_file_evaluates_and_predicts(run_tool, published_file, tmp_path):
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
    """Train a tiny classifier for one iteration, resume it for a second one, and return its folder and its config."""
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
def test_a_checkpoint_initializes_a_detector(trained, tmp_path):
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
    # As from a published file, the norm of the classifier is not that of the fourth output.
    assert_close(model.backbone.norm6.state_dict(), torch.nn.BatchNorm2d(24).state_dict())
