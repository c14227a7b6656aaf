"""The classifier without a framework: the authors' logits, features, training, names of weights."""

import copy

import pytest
import torch
from helpers.reference import OFFICIAL_OUTPUTS, assert_official_logits, fill, image, weight
from helpers.tiny_backbone import TINY
from torch import nn
from torch.testing import assert_close

from mmcasvit.models.classifier import CASViTClassifier
from mmcasvit.weights.names import to_authors_names


@pytest.mark.parametrize(
    'case',
    [case for case in OFFICIAL_OUTPUTS['logits'] if case['arch'] == 'xs'],
    ids=lambda c: f'{c["seed"]}-{c["mode"]}',
)
def test_logits_are_those_of_the_authors(case):
    model = CASViTClassifier(case['arch']).double()
    names = to_authors_names(model.state_dict())
    model.load_state_dict({key: weight(key, value.shape) for key, value in names.items()})
    with torch.no_grad():
        logits = model.train(case['mode'] == 'train')(image(case['seed'], case['shape']))
    assert_official_logits(logits, case['logits'])


def test_a_pruned_model_ends_with_its_last_stage(x, classifier):
    model = classifier
    with torch.no_grad():
        maps = model.forward_intermediates(x)[1]
        last, [early] = model.forward_intermediates(x, [1], stop_early=True)
        assert torch.equal(last, maps[1])
        assert torch.equal(early, maps[1])
        assert model.prune_intermediate_layers([-3, 0]) == [1, 0]
        assert torch.equal(model(x), maps[1])
    assert (model.num_classes, model.num_features, model.get_classifier()[0]) == (0, 12, model.head.head)
    assert isinstance(model.head.head, nn.Identity)
    with pytest.raises(ValueError, match='0 to 1'):
        model.forward_intermediates(x, [2])


def test_training_reaches_every_parameter_and_both_heads(x):
    model = fill(CASViTClassifier(TINY, 5, drop_path_rate=0.1)).train()
    torch.manual_seed(0)  # drop path keeps each branch for at least one image
    model(x).square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    model.set_distilled_training()
    logits = model(x)
    assert [out.shape for out in logits] == [(2, 5), (2, 5)]
    assert not torch.equal(*logits)
    assert model.eval()(x).shape == (2, 5)


@pytest.mark.parametrize('enable', [True, 'selective'])
def test_grad_checkpointing_keeps_gradients_and_saves_memory(enable, x):
    grads, saved = [], []
    original = fill(CASViTClassifier(TINY, 5))
    for recompute in (False, enable):
        model = copy.deepcopy(original).train()
        model.set_grad_checkpointing(recompute)
        saved.append(0)

        def count(tensor):
            saved[-1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = model(x).square().mean()
        loss.backward()
        grads.append([p.grad for p in model.parameters()])
    assert_close(grads[1], grads[0])
    assert saved[1] < 0.7 * saved[0]
    model.set_grad_checkpointing(False)
    assert not any(getattr(module, 'with_cp', False) for module in model.modules())


def test_weights_under_the_authors_names_load_inside_another_model():
    inner = fill(CASViTClassifier(TINY, 5))
    outer = nn.Sequential(nn.Identity(), CASViTClassifier(TINY, 5))
    outer.load_state_dict({f'1.{key}': value for key, value in to_authors_names(inner.state_dict()).items()})
    assert_close(dict(outer[1].state_dict()), dict(inner.state_dict()))
