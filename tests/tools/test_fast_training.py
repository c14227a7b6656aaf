"""tools/train.py --fast: the same losses up to rounding, and runs that can be resumed with and without it."""

import json
import shutil

import pytest
import torch
from helpers.repository import ROOT
from torch.testing import assert_close

pytestmark = pytest.mark.slow
# The small UperNet as a config that has nothing of --fast yet.
CONFIG = """
_base_ = {base!r}
model = dict(
    data_preprocessor=dict(size=(64, 96)),
    backbone=dict(arch=dict(_delete_=True, depths=(1, 1, 1, 1), channels=[8, 12, 16, 24]), norm_eval=True),
    decode_head=dict(in_channels=[8, 12, 16, 24], channels=16),
    auxiliary_head=dict(in_channels=16, channels=8))
custom_hooks = [hook for hook in _base_.custom_hooks if hook['type'] != 'mmcasvit.ChannelsLastHook']
optim_wrapper = dict(optimizer=dict(fused=None))
train_cfg = dict(max_iters=4, val_interval=4)
default_hooks = dict(checkpoint=dict(interval=2, max_keep_ckpts=2), logger=dict(interval=1))
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
randomness = dict(seed=0)
"""


@pytest.fixture(scope='module')
def train(run_tool, shapes, tmp_path_factory):
    """Return a function that trains into a folder, and returns the losses, the last checkpoint, and the output."""
    cwd = tmp_path_factory.mktemp('fast')
    base = ROOT / 'configs/segmentation/upernet_casvit-xs_600i_shapes.py'
    (cwd / 'tiny.py').write_text(CONFIG.format(base=str(base)))

    def run(name, *flags, start=None):
        if start:  # from the middle of another run
            (cwd / name).mkdir()
            shutil.copy(cwd / start / 'iter_2.pth', cwd / name)
            flags = *flags, '--resume', f'{name}/iter_2.pth'
        done = run_tool(
            'train.py', 'tiny.py', '--work-dir', name, *flags, '--cfg-options', f'data_root={shapes}/ade', cwd=cwd
        )
        lines = [
            json.loads(line)
            for file in sorted((cwd / name).glob('*/vis_data/scalars.json'))
            for line in file.read_text().splitlines()
        ]
        losses = [line['loss'] for line in lines if 'loss' in line]
        return losses, torch.load(cwd / name / 'iter_4.pth', weights_only=False), done.stdout

    return run


@pytest.fixture(scope='module')
def plain(train):
    return train('plain')


@pytest.fixture(scope='module')
def fast(train):
    return train('fast', '--fast')


def moments(checkpoint):
    return {
        (number, name): value
        for number, state in checkpoint['optimizer']['state'].items()
        for name, value in state.items()
    }


def test_losses_and_weights_are_the_same_up_to_rounding(plain, fast):
    (wanted, checkpoint, said), (found, faster, out) = plain, fast
    assert len(wanted) == 4
    assert found == pytest.approx(wanted, rel=1e-3)  # of four steps, each of which starts from the rounding of the last
    assert found[0] == pytest.approx(wanted[0], rel=1e-5)
    assert list(faster['state_dict']) == list(checkpoint['state_dict'])
    for name, value in checkpoint['state_dict'].items():
        assert_close(
            faster['state_dict'][name], value, rtol=1e-2, atol=1e-3, msg=lambda text, name=name: f'{name}: {text}'
        )
    assert 'fast: ' not in said
    for name in ('channels_last', 'fused AdamW', 'folded norms', 'shortcuts', 'compile off'):
        assert f'fast: {name} (' in out


def test_a_fast_run_is_resumed_to_the_last_bit(train, fast):
    wanted = fast[1]
    _, found, _ = train('resumed', '--fast', start='fast')
    assert_close(found['state_dict'], wanted['state_dict'], rtol=0, atol=0)
    assert_close(moments(found), moments(wanted), rtol=0, atol=0)


@pytest.mark.parametrize('start, flags', [('fast', ()), ('plain', ('--fast',))])
def test_a_run_is_resumed_in_the_other_way(train, plain, fast, start, flags):
    losses, found, _ = train(f'from_{start}', *flags, start=start)
    assert losses == pytest.approx(plain[0][2:], rel=1e-3)
    wanted, found = moments(plain[1]), moments(found)
    # A bias before a norm has no gradient but rounding, which is small next to all others.
    largest = {
        name: max(float(value.abs().max()) for key, value in wanted.items() if key[1] == name)
        for name in ('step', 'exp_avg', 'exp_avg_sq')
    }
    for key, value in wanted.items():
        atol = max(1e-2 * float(value.abs().max()), 1e-5 * largest[key[1]])
        assert_close(found[key], value, rtol=1e-2, atol=atol, msg=lambda text, key=key: f'{key}: {text}')
