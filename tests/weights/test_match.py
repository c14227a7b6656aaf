"""One function fits a file to a model: what it compares, refuses, keeps and reports."""

import logging
import re

import pytest
import torch
from helpers.reference import fill
from mmengine.model import BaseModel
from mmengine.runner.checkpoint import load_checkpoint
from torch import nn
from torch.testing import assert_close

from mmcasvit import CASViT, WeightsError
from mmcasvit.weights.match import Fit, compare, fit, load


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
    'it is complex': lambda value: value.to(torch.complex64),
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


def misfit(**changes):
    """Return a made-up fit of which only some entries matter."""
    empty = dict(missing=[], reshaped=[], unusable={}, leftover=[], matched=3, total=4, container='')
    return Fit(**{'weights': {}, 'expected': 'A', 'found': 'B', **empty, **changes})


def reshaped(*keys):
    return [(key, (2, 3), (4, 3)) for key in keys]


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(matched=0, leftover=['network.0.x', 'norm.x', 'head.x'], missing=['neck.x']), 'holds only a backbone'),
        (dict(matched=1, leftover=['network.0.x'], missing=['neck.x']), 'trained with, or start training from'),
        (dict(matched=0, leftover=['network.0.x', 'neck.y'], missing=['neck.x']), 'No name in the file'),
        (dict(matched=0, missing=['neck.x']), 'No name in the file'),
        (dict(matched=0, unusable=dict(x='it is quantized')), 'Save the weights again'),
        (dict(missing=['network.0.x']), 'set arch to that of the file'),
        (dict(reshaped=reshaped('patch_embed.0.weight')), 'set arch to that of the file'),
        (dict(missing=['backbone.norm0.weight', 'backbone.norm2.bias']), 'had fewer outputs'),
        (dict(missing=['backbone.norm0.weight', 'backbone.network.0.x']), 'or a checkpoint of this config'),
        (dict(missing=['backbone.norm0.weight', 'neck.x']), 'or a checkpoint of this config'),
        (dict(reshaped=reshaped('head.fc_cls.weight')), 'Set num_classes'),
        (dict(reshaped=reshaped('decode_head.conv_seg.weight', 'neck.x')), 'Set num_classes'),
        (dict(reshaped=reshaped('neck.x')), 'trained with, or start training from'),
        (dict(missing=['fc_cls.weight']), 'trained with, or start training from'),
    ],
)
def test_the_advice_fits_what_is_wrong(changes, words):
    assert words in misfit(**changes).advice


def test_what_is_wrong_is_told_in_lines():
    found = misfit(
        matched=2,
        reshaped=reshaped('fc_cls.weight'),
        unusable=dict(x='it is quantized'),
        missing=['a', 'b', 'c', 'd'],
        leftover=['e'],
    )
    assert str(found).splitlines() == [
        '  expected: A, found: B',
        '  2 tensors fit.',
        '  1 tensors of another shape: fc_cls.weight: file (2, 3), model (4, 3)',
        '  The shapes of classification layers differ: the file was trained on another number of classes, or '
        'num_classes of the config is not that of the data.',
        '  1 tensors cannot be copied: x (it is quantized)',
        '  4 tensors missing in the file: a, b, c and 1 more',
        '  1 tensors of the file not used: e',
    ]
    assert str(misfit()).splitlines() == ['  expected: A, found: B', '  3 tensors fit.']
    many = ['k1', 'k2', 'k3', 'k4']
    for change in (dict(leftover=many), dict(unusable=dict.fromkeys(many, 'x')), dict(reshaped=reshaped(*many))):
        line = str(misfit(**change)).splitlines()[-1]
        assert 'k3' in line
        assert 'k4' not in line
        assert line.endswith(' and 1 more')
    assert found.fatal == ['a', 'b', 'c', 'd', 'fc_cls.weight', 'x']


def test_a_refusal_says_whether_anything_was_loaded_and_looks_where_it_is_told():
    found = misfit(missing=['backbone.x'])
    with pytest.raises(WeightsError, match=r'^x\.pth does not fit the model; nothing was loaded\.\n  expected'):
        found.refuse(what='x.pth')
    with pytest.raises(WeightsError, match=r'^the checkpoint does not fit the model\.\n  expected'):
        found.refuse(only_under='backbone.', loaded=True)
    found.refuse(only_under='neck.')
    misfit(leftover=['x']).refuse()


def test_the_report_names_what_was_kept_and_left_over():
    keys = [f'k{number}' for number in range(25)]
    assert misfit().report('x.pth').splitlines() == [
        'A: 3 of 4 tensors loaded from x.pth',
        '  none missing',
        '  nothing left over',
    ]
    lines = misfit(container='model', kept=keys, leftover=[*[f'head.{k}' for k in keys[:13]], *keys[:4]]).report('x')
    assert lines.splitlines() == [
        "A: 3 of 4 tensors loaded from x (under 'model')",
        f'  not in the file, kept as initialized: {", ".join(keys[:24])} and 1 more',
        f'  left over, classification head: {", ".join(f"head.{k}" for k in keys[:12])} and 1 more',
        '  left over: 4 tensors, such as k0, k1, k2 and 1 more',
    ]
    for leftover, kind in ((['norm.x'], 'classification head: norm.x'), (['x.norm.y'], '1 tensors, such as x.norm.y')):
        assert misfit(leftover=leftover).report('x').splitlines()[2:] == [
            f'  left over, {kind}' if 'head' in kind else f'  left over: {kind}'
        ]


def test_the_batch_counters_and_allowed_keys_are_kept_and_their_shapes_not_loaded():
    expected = {'norm.num_batches_tracked': torch.tensor(0), 'a': torch.ones(2), 'b': torch.ones(3), 'c': torch.ones(1)}
    weights = {'b': torch.ones(4), 'd': torch.ones(1)}
    found = compare(weights, expected, 'model', re.compile('a'), re.compile('b'))
    assert found.kept == ['norm.num_batches_tracked', 'a', 'b']
    assert (found.missing, found.reshaped, found.leftover) == (['c'], [], ['d'])
    assert list(found.weights) == ['d']
    assert list(weights) == ['b', 'd'], 'the argument is left alone'
    assert (found.matched, found.total, found.container) == (0, 4, 'model')
    strict = compare(weights, expected)
    assert strict.missing == ['a', 'c']
    assert strict.reshaped == [('b', (4,), (3,))]
    assert strict.container == ''


def test_a_tensor_of_another_shape_is_not_also_unusable():
    found = compare(dict(a=torch.ones(3, device='meta'), b=torch.ones(1)), dict(a=torch.ones(2), b=torch.ones(1)))
    assert (found.unusable, found.matched) == ({}, 1)
    found = compare(dict(a=torch.ones(2, device='meta'), b=torch.ones(1)), dict(a=torch.ones(2), b=torch.ones(1)))
    assert (list(found.unusable), found.matched) == (['a'], 1)


def test_the_numbers_of_classes_are_told_where_they_differ():
    three, five = ({'fc_cls.weight': torch.ones(number + 1, 2)} for number in (3, 5))
    found = compare(five, three)
    assert (found.expected, found.found) == ('no CAS-ViT at all with 3 classes', 'no CAS-ViT at all with 5 classes')
    for weights, expected in ((three, three), ({}, three), (three, {})):
        assert 'classes' not in compare(weights, expected).expected + compare(weights, expected).found


def test_loading_says_what_came_from_the_file(monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr('mmcasvit.weights.match.print_log', lambda text, **options: said.append((text, options)))
    load(Net(), dict(model=weights()), 'given')
    torch.save(dict(model=weights()), tmp_path / 'x.pth')
    load(Net(), tmp_path / 'x.pth')
    assert [text.splitlines()[0] for text, _ in said] == [
        "no CAS-ViT at all: 9 of 9 tensors loaded from given (under 'model')",
        f"no CAS-ViT at all: 9 of 9 tensors loaded from {tmp_path}/x.pth (under 'model')",
    ]
    assert said[0][1]['level'] == logging.INFO
