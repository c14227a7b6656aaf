"""What a checkpoint must hold for a run to be resumed from it."""

import re
from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import nn

from mmcasvit.engine.hooks.check_weights import CheckWeightsHook
from mmcasvit.utils.errors import WeightsError


@pytest.fixture
def runner():
    model = nn.Linear(2, 2)
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters()))
    return SimpleNamespace(model=model, optim_wrapper=optimizer, _resume=True, _train_loop={})


@pytest.fixture
def checkpoint(runner):
    return dict(
        meta=dict(epoch=1, iter=3, config='x'),
        message_hub={},
        state_dict=runner.model.state_dict(),
        optimizer=runner.optim_wrapper.state_dict(),
    )


def test_a_whole_one_is_resumed_without_its_config(runner, checkpoint):
    CheckWeightsHook().after_load_checkpoint(runner, checkpoint)
    assert checkpoint['meta'] == dict(epoch=1, iter=3)


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(meta=None), 'meta.epoch must be an integer of at least 0, got None'),
        (dict(meta=dict(epoch=-1, iter=3)), 'meta.epoch must be an integer of at least 0, got -1'),
        (dict(meta=dict(epoch=1, iter='x')), "meta.iter must be an integer of at least 0, got 'x'"),
        (dict(meta=dict(epoch=1, iter=True)), 'meta.iter must be'),
        (dict(optimizer=3), 'holds no state of an optimizer'),
        (dict(optimizer=dict(param_groups=[])), 'holds no state of an optimizer'),
        (dict(optimizer=dict(param_groups=[3])), 'holds no state of an optimizer'),
        (dict(optimizer=dict(param_groups=[dict(momentum=0)])), 'AdamW has betas, and the checkpoint momentum'),
        (dict(state_dict={}), 'no weights'),
    ],
)
def test_one_that_cannot_be_resumed_is_refused(change, words, runner, checkpoint):
    with pytest.raises(WeightsError, match=re.escape(words)):
        CheckWeightsHook().after_load_checkpoint(runner, checkpoint | change)
