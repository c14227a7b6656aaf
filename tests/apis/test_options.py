"""Where training starts: resumed, from load_from, or from the initial weights, and never by accident."""

import pytest
import torch
from mmengine.config import Config

from mmcasvit.apis.options import use_start
from mmcasvit.utils.errors import UsageError, WeightsError


@pytest.fixture
def cfg(tmp_path):
    torch.save(dict(state_dict={}), tmp_path / 'start.pth')
    (tmp_path / 'run').mkdir()
    return Config(dict(work_dir=str(tmp_path / 'run'), load_from=str(tmp_path / 'start.pth')))


def start_of(cfg, resume):
    decision = use_start(cfg, resume, trust=False)
    return bool(cfg.get('resume')), cfg.load_from and cfg.load_from.rpartition('/')[2], decision


def test_without_a_checkpoint_resuming_is_an_error_that_keeps_load_from(cfg, tmp_path):
    with pytest.raises(UsageError, match=r'run has no checkpoint.*--resume auto'):
        use_start(cfg, 'latest', trust=False)
    assert start_of(cfg, None) == (False, 'start.pth', '')
    resumed, file, decision = start_of(cfg, 'auto')
    assert (resumed, file) == (False, 'start.pth')
    assert decision == f'--resume auto: nothing to resume, started from load_from, {tmp_path}/start.pth.'
    cfg.load_from = None
    assert start_of(cfg, 'auto')[2].endswith('started from the initial weights.')


def test_a_checkpoint_is_resumed(cfg, tmp_path):
    for step in (1, 2):
        torch.save(dict(state_dict={}), tmp_path / f'run/iter_{step}.pth')
    (tmp_path / 'run/last_checkpoint').write_text(str(tmp_path / 'run/iter_2.pth'))
    assert start_of(cfg, 'latest') == (True, 'iter_2.pth', '')
    assert start_of(cfg, 'auto')[2] == f'--resume auto: resumed from {tmp_path}/run/iter_2.pth.'
    assert start_of(cfg, str(tmp_path / 'run/iter_1.pth')) == (True, 'iter_1.pth', '')


def test_a_missing_file_is_named_before_the_run(cfg, tmp_path):
    with pytest.raises(WeightsError, match='checkpoint not found'):
        use_start(cfg, str(tmp_path / 'nowhere.pth'), trust=False)
    cfg.load_from = str(tmp_path / 'gone.pth')
    with pytest.raises(WeightsError, match=r'checkpoint not found: .*gone\.pth'):
        use_start(cfg, None, trust=False)
