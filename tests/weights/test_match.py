"""One function fits a file to a model: what it compares, refuses, keeps and reports."""

import re

import pytest
import torch
from helpers.reference import fill
from mmengine.model import BaseModel
from mmengine.runner.checkpoint import load_checkpoint
from torch import nn
from torch.testing import assert_close

from mmcasvit import CASViT, WeightsError
from mmcasvit.weights.match import fit, load


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.conv, self.norm, self.fc_cls = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, classes)


def weights(**kwargs):
    return fill(Net(**kwargs)).state_dict()


def test_everything_fits():
    found = fit(dict(state_dict=weights()), Net().state_dict())
    assert found.fatal == found.leftover == found.kept == []
    assert (found.matched, found.total, found.container) == (9, 9, 'state_dict')
    model = Net()
    load(model, dict(model=weights()), what='x.pth')
    assert_close(model.state_dict(), weights())


def test_missing_reshaped_and_left_over_tensors_are_told_apart():
    content = weights(classes=5) | {'extra': torch.ones(1)}
    del content['norm.weight'], content['norm.num_batches_tracked']
    found = fit(content, Net().state_dict())
    assert found.missing == ['norm.weight']
    assert [key for key, *_ in found.reshaped] == ['fc_cls.weight', 'fc_cls.bias']
    assert found.leftover == ['extra']
    assert found.kept == ['norm.num_batches_tracked']
    with pytest.raises(WeightsError, match=r'(?s)nothing was loaded.*5 tensors fit.*fc_cls.weight: file \(5, 4\)'):
        found.refuse()
    found.refuse(only_under='conv.')


def test_what_may_miss_or_differ_keeps_its_initial_value():
    content = {key: value for key, value in weights(classes=5).items() if not key.startswith('norm')}
    model = Net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = load(model, content, 'x', may_miss=re.compile('norm'), may_differ=re.compile('fc_cls'))
    assert {key.partition('.')[0] for key in found.kept} == {'norm', 'fc_cls'}
    after = model.state_dict()
    assert_close(after['conv.weight'], content['conv.weight'])
    for key in found.kept:
        assert_close(after[key], before[key])
    assert 'kept as initialized: norm.weight' in found.report('x')


UNUSABLE = {
    'layout is sparse_coo': lambda value: value.to_sparse(),
    'meta device': lambda value: value.to('meta'),
    'it is quantized': lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
}


@pytest.mark.parametrize('reason', UNUSABLE)
def test_tensors_that_cannot_be_copied_are_refused(reason):
    content = weights() | {'conv.weight': UNUSABLE[reason](weights()['conv.weight'])}
    model = Net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=rf'(?s)1 tensors cannot be copied: conv.weight \(.*{reason}'):
        load(model, content, 'x')
    assert_close(model.state_dict(), before)


class Detector(BaseModel):
    def __init__(self):
        super().__init__()
        self.backbone = CASViT(dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 24)))
        self.fc_cls = nn.Linear(24, 4)

    def forward(self, x):
        return self.backbone(x)


@pytest.mark.parametrize('reason', UNUSABLE)
def test_mmengine_loads_no_model_with_a_tensor_that_cannot_be_copied(tmp_path, reason):
    state = fill(Detector()).state_dict()
    key = 'backbone.network.0.0.mlp.fc1.weight'
    state[key] = UNUSABLE[reason](state[key])
    torch.save(dict(state_dict=state), tmp_path / 'x.pth')
    with pytest.raises(WeightsError, match=rf'(?s)cannot be copied.*{reason}'):
        load_checkpoint(Detector(), str(tmp_path / 'x.pth'), map_location='cpu')


def test_an_error_of_pytorch_while_it_copies_is_an_error(tmp_path):
    class Refusing(nn.Linear):
        def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
            errors.append('While copying the parameter named "x", an exception occurred')

    torch.save(dict(state_dict=fill(Detector()).state_dict()), tmp_path / 'x.pth')
    model = Detector()
    model.fc_cls = Refusing(24, 4)
    with pytest.raises(WeightsError, match='not loaded as a whole: While copying'):
        load_checkpoint(model, str(tmp_path / 'x.pth'), map_location='cpu')
    with pytest.raises(WeightsError, match=r'not loaded as a whole: .*While copying'):
        load(model, str(tmp_path / 'x.pth'))
