"""Norms, strategies and settings of several processes; test_processes.py compares whole runs."""

import pytest
import torch
from helpers.checkpoints import save, truncate
from mmengine.config import Config
from torch import nn
from torch.testing import assert_close

from mmcasvit.engine import distributed
from mmcasvit.engine.distributed import CPUSyncBatchNorm, FSDPStrategy, use_cpus


def test_the_norm_is_that_of_pytorch_where_nothing_is_shared():
    torch.manual_seed(0)
    theirs, ours = nn.BatchNorm2d(4), CPUSyncBatchNorm(4)
    x = torch.randn(3, 4, 5, 6)
    assert_close(ours(x), theirs(x))
    assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.fixture
def twins(monkeypatch):
    """Pretend that a second process does the same as this one."""
    monkeypatch.setattr(distributed, 'is_distributed', lambda: True)
    monkeypatch.setattr(torch.distributed, 'all_reduce', lambda x: x.mul_(2))


@pytest.mark.parametrize('shape', [(3, 4), (3, 4, 5), (3, 4, 5, 6)])
@pytest.mark.parametrize(
    'options', [{}, dict(momentum=None), dict(track_running_stats=False), dict(affine=False)], ids=str
)
def test_the_norm_is_that_of_pytorch_on_the_images_of_all_processes(twins, shape, options):
    torch.manual_seed(0)
    theirs = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(4, **options).double()
    ours = CPUSyncBatchNorm(4, **options).double()
    if theirs.affine:
        nn.init.normal_(theirs.weight)
        nn.init.normal_(theirs.bias)
    ours.load_state_dict(theirs.state_dict())
    for _ in range(2):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        both = torch.cat([x.detach()] * 2).requires_grad_()
        factors = torch.randn(shape, dtype=torch.float64)
        found, wanted = ours(x), theirs(both)
        assert_close(found, wanted[: len(x)])
        (found * factors).sum().backward()
        (wanted * torch.cat([factors] * 2)).sum().backward()
        assert_close(x.grad, both.grad[: len(x)])
    assert_close(ours.state_dict(), theirs.state_dict())


def test_a_norm_needs_channels(twins):
    with pytest.raises(ValueError, match='expected at least 2 dimensions, got 1'):
        CPUSyncBatchNorm(4)(torch.zeros(4))


def test_every_synchronized_norm_runs_on_the_cpu_and_keeps_its_weights():
    norm = nn.SyncBatchNorm(4)
    model = nn.Sequential(nn.Sequential(norm), nn.BatchNorm2d(4))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    distributed._sync_on_cpus(model)
    assert (type(model[0][0]), type(model[1])) == (CPUSyncBatchNorm, nn.BatchNorm2d)
    assert_close(model.state_dict(), before)


def test_a_model_on_a_cpu_is_wrapped_without_the_ids_of_gpus(monkeypatch):
    given = []
    monkeypatch.setattr(
        distributed.MMDistributedDataParallel, '__init__', lambda self, *args, **kwargs: given.append((args, kwargs))
    )
    model = nn.Sequential(nn.SyncBatchNorm(4))
    distributed.CPUDistributedDataParallel(model, device_ids=[0], find_unused_parameters=True)
    assert given == [((model,), dict(device_ids=None, find_unused_parameters=True))]
    assert isinstance(model[0], CPUSyncBatchNorm)


@pytest.mark.parametrize('given', [None, dict(type='Other')])
def test_a_run_on_cpus_is_connected_by_gloo(monkeypatch, given):
    started = []
    monkeypatch.setattr(torch.distributed, 'init_process_group', started.append)
    cfg = Config({} if given is None else dict(model_wrapper_cfg=given, find_unused_parameters=True))
    use_cpus(cfg)
    assert started == ['gloo']
    assert cfg.model_wrapper_cfg == (
        given or dict(type='CPUDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=False)
    )
    cfg = Config(dict(find_unused_parameters=True))
    use_cpus(cfg)
    assert cfg.model_wrapper_cfg.find_unused_parameters is True


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_sharded_checkpoints_are_one_file_unless_the_config_says_otherwise(monkeypatch, device):
    given = []
    monkeypatch.setattr(distributed, 'get_device', lambda: device)
    monkeypatch.setattr(FSDPStrategy.__base__, '__init__', lambda self, **kwargs: given.append(kwargs))
    FSDPStrategy()
    FSDPStrategy(model_wrapper=dict(use_orig_params=False), state_dict_cfg='local')
    wrapper = dict(type='MMFullyShardedDataParallel', use_orig_params=True)
    if device == 'cpu':
        wrapper['device_id'] = torch.device('cpu')
        state = given[0]['state_dict_cfg']
        assert state['state_dict_type'] == 'FULL_STATE_DICT'
        for kind in ('state_dict_config', 'optim_state_dict_config'):
            assert (state[kind]['rank0_only'], state[kind]['offload_to_cpu']) == (True, False)
    else:
        assert given[0]['state_dict_cfg'] == 'full'
    assert given[0]['model_wrapper'] == wrapper
    assert given[1] == dict(model_wrapper=dict(wrapper, use_orig_params=False), state_dict_cfg='local')


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_norms_of_a_sharded_model_run_on_the_cpu_where_it_does(monkeypatch, device):
    monkeypatch.setattr(distributed, 'get_device', lambda: device)
    monkeypatch.setattr(FSDPStrategy.__base__, '_wrap_model', lambda self, model: ('wrapped', model))
    wrapped, model = object.__new__(FSDPStrategy)._wrap_model(nn.Sequential(nn.SyncBatchNorm(4)))
    assert wrapped == 'wrapped'
    assert isinstance(model[0], CPUSyncBatchNorm) == (device == 'cpu')


def test_a_sharded_run_resumes_from_the_checkpoint_before_a_damaged_one(monkeypatch, tmp_path):
    monkeypatch.setattr(FSDPStrategy.__base__, 'resume', lambda self, filename, **kwargs: (filename, kwargs))
    strategy = object.__new__(FSDPStrategy)
    save(tmp_path, 3, 6)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_6.pth'))
    last = str(tmp_path / 'iter_6.pth')
    assert strategy.resume(last, resume_optimizer=True) == (last, dict(resume_optimizer=True))
    assert strategy.resume(str(tmp_path / 'iter_3.pth')) == (str(tmp_path / 'iter_3.pth'), {})
    truncate(tmp_path / 'iter_6.pth')
    assert strategy.resume(last) == (str(tmp_path / 'iter_3.pth'), {})
    (tmp_path / 'none').mkdir()
    assert strategy.resume(str(tmp_path / 'none/iter_6.pth'))[0] == str(tmp_path / 'none/iter_6.pth')
