"""The classifier of mmpretrain: the authors' logits and weights, and the loss of its two heads."""

import pytest
import torch
import torch.nn.functional as F
from helpers.configs import build, load, needs_mmpretrain
from helpers.reference import OFFICIAL_OUTPUTS, assert_official_logits, image, published_weights, weight
from torch.testing import assert_close

from mmcasvit.weights.names import to_authors_names, to_own_names

PUBLISHED_MILLIONS = dict(xs=3.20, s=5.76, m=12.42, t=21.76)


@needs_mmpretrain
@pytest.mark.parametrize('case', OFFICIAL_OUTPUTS['logits'], ids=lambda c: f'{c["arch"]}-{c["seed"]}-{c["mode"]}')
def test_logits_are_those_of_the_authors(case):
    model = build(load(f'classification/casvit-{case["arch"]}_8xb128-300e_in1k-224.py')).double()
    state = {key: weight(key, value.shape) for key, value in to_authors_names(model.state_dict()).items()}
    model.load_state_dict(to_own_names(state))
    with torch.no_grad():
        logits = model.train(case['mode'] == 'train')(image(case['seed'], case['shape']), mode='tensor')
    assert_official_logits(logits, case['logits'])


@needs_mmpretrain
@pytest.mark.parametrize('arch', PUBLISHED_MILLIONS)
def test_the_model_has_the_tensors_of_the_published_one(arch):
    model = build(load(f'classification/casvit-{arch}_ft-8xb64-30e_in1k-384.py'))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == PUBLISHED_MILLIONS[arch]
    names = {key: value.shape for key, value in to_authors_names(model.state_dict()).items()}
    assert names == {key: value.shape for key, value in published_weights(arch).items()}


@needs_mmpretrain
def test_both_heads_learn_the_smoothed_labels():
    from mmpretrain.structures import DataSample

    load('classification/casvit-xs_8xb128-300e_in1k-224.py')
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
