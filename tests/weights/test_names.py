"""Where checkpoints keep their weights, what the names tell about a model, and names in both directions."""

import pytest
import torch
from helpers.reference import published_weights
from torch.testing import assert_close

from mmcasvit import CASViT, WeightsError
from mmcasvit.archs import ARCHS
from mmcasvit.weights.names import (
    count_classes,
    describe_arch,
    describe_model,
    find_weights,
    is_authors_classifier,
    is_own_classifier,
    match_names,
    neutral_output_norms,
    to_authors_names,
    to_own_names,
)

A, B, C, D = (torch.full((), float(number)) for number in range(4))


@pytest.mark.parametrize(
    'content, found',
    [
        (dict(model_ema=dict(a=A), model=dict(a=B), state_dict=dict(a=C)), ('state_dict', dict(a=C))),
        (dict(model_ema=dict(a=A), model=dict(a=B)), ('model', dict(a=B))),
        (dict(model_ema=dict(a=A), state_dict=None), ('model_ema', dict(a=A))),
        (dict(a=A, epoch=3), ('', dict(a=A))),
        (dict(state_dict={'module.a': A, 'module.b': B}), ('state_dict', dict(a=A, b=B))),
        (dict(state_dict={'module.a': A, 'b': B}), ('state_dict', {'module.a': A, 'b': B})),
        ({'module.module.a': A}, ('', {'module.a': A})),
    ],
)
def test_weights_are_found_under_the_first_key_that_has_any(content, found):
    assert find_weights(content) == found


@pytest.mark.parametrize(
    'content, words', [({}, 'the file holds: nothing'), (dict(epoch=3, x='y'), 'the file holds: epoch, x')]
)
def test_a_file_without_weights_says_what_it_holds(content, words):
    with pytest.raises(WeightsError, match=rf'no weights under state_dict, model, model_ema or at the top; {words}\.'):
        find_weights(content)


@pytest.mark.parametrize('arch', list(ARCHS))
def test_an_arch_is_told_by_depths_and_channels(arch):
    with torch.device('meta'):
        weights = CASViT(arch).state_dict()
    assert describe_arch(weights) == f'arch {arch!r}'
    assert describe_model({f'backbone.{key}': value for key, value in weights.items()} | dict(x=A)) == f'arch {arch!r}'
    assert describe_model(weights) == f'arch {arch!r}'


def test_another_cas_vit_is_told_by_its_numbers():
    weights = {
        **{f'network.{stage}.0.norm1.weight': torch.zeros(4 + stage) for stage in (0, 2, 4)},
        'network.2.10.x': A,
        'network.1.7.x': A,
        'x.network.0.9.x': A,
    }
    assert describe_arch(weights) == 'a CAS-ViT of depths (1, 11, 1, 0) and channels (4, 6, 8, 0)'
    assert describe_arch({'network.x': A, 'network.1.0.x': A}) == 'no CAS-ViT at all'


@pytest.mark.parametrize(
    'weights, classes',
    [
        ({'neck.bias': torch.ones(3), 'roi_head.bbox_head.fc_cls.weight': torch.ones(81, 4)}, 80),
        ({'retina_cls.weight': torch.ones(18, 1), 'retina_reg.weight': torch.ones(12, 1)}, 6),
        ({'retina_cls.weight': torch.ones(18, 1)}, None),
        ({'retina_reg.weight': torch.ones(12, 1), 'x.weight': torch.ones(3)}, None),
        ({'conv_seg.weight': torch.ones(150, 1)}, 150),
        ({'head.dist_head.weight': torch.ones(10, 4)}, 10),
        ({'weight': torch.ones(10, 4), 'conv_seg.bias': torch.ones(3)}, None),
    ],
)
def test_classes_are_counted(weights, classes):
    assert count_classes(weights) == classes


THEIRS = ['patch_embed.0.weight', 'network.0.x', 'norm.weight', 'head.weight', 'dist_head.weight', 'other.head.weight']
OURS = [
    'backbone.patch_embed.0.weight',
    'backbone.network.0.x',
    'backbone.norm6.weight',
    'head.head.weight',
    'head.dist_head.weight',
    'other.head.weight',
]


def test_names_are_translated_in_both_directions():
    theirs, ours = (dict(zip(names, range(9))) for names in (THEIRS, OURS))
    assert to_own_names(theirs) == ours
    assert to_authors_names(ours) == theirs
    assert match_names(theirs, ours) == ours
    for weights, rename in ((ours, to_own_names), (theirs, to_authors_names)):
        renamed = rename(weights)
        assert renamed == weights
        assert renamed is not weights
    assert match_names(theirs, theirs) == theirs


@pytest.mark.parametrize(
    'names, authors, own',
    [
        (THEIRS, True, False),
        (OURS, False, True),
        (['patch_embed.x', 'head.x'], True, False),
        (['network.x', 'head.x'], True, False),
        (['network.x', 'neck.x'], False, False),
        (['head.x', 'backbone.network.x'], False, False),
        (['x.head.dist_head.weight'], False, False),
    ],
)
def test_classifiers_are_told_apart_by_their_names(names, authors, own):
    weights = dict.fromkeys(names)
    assert (is_authors_classifier(weights), is_own_classifier(weights)) == (authors, own)


def test_missing_output_norms_are_made_up_and_present_ones_left_alone():
    weights = {
        'backbone.network.0.0.norm1.weight': torch.ones(4, dtype=torch.float64),
        'backbone.network.2.0.norm1.weight': torch.ones(6),
        'backbone.norm2.weight': torch.ones(6),
        'network.4.0.norm1.weight': torch.ones(8),
    }
    norms = neutral_output_norms(weights)
    assert_close(
        norms,
        {
            'backbone.norm0.weight': torch.ones(4, dtype=torch.float64),
            'backbone.norm0.bias': torch.zeros(4, dtype=torch.float64),
            'backbone.norm0.running_mean': torch.zeros(4, dtype=torch.float64),
            'backbone.norm0.running_var': torch.ones(4, dtype=torch.float64),
            'backbone.norm0.num_batches_tracked': torch.tensor(0),
        },
    )
    whole = {f'backbone.{key}': value for key, value in published_weights('xs').items()}
    added = neutral_output_norms(whole)
    assert {key.split('.')[1] for key in added} == {'norm0', 'norm2', 'norm4', 'norm6'}
