"""Memory of a training step: how much the forward pass keeps, and that keeping less changes no gradient."""

import json

import pytest
import torch
from helpers import tiny_backbone
from helpers.reference import image
from torch.nn.modules.batchnorm import _BatchNorm
from torch.profiler import ProfilerActivity, profile
from torch.testing import assert_close

from mmcasvit import CASViT

EXACT = dict(rtol=1e-10, atol=1e-10)


def tiny(**kwargs):
    return tiny_backbone.tiny(**kwargs).double()


def train_step(model, x, dtype=None):
    """Run a forward and a backward pass, and return the gradients of the input and of the parameters."""
    x = x.clone().requires_grad_()
    torch.manual_seed(0)
    with torch.autocast('cpu', dtype=dtype, enabled=dtype is not None):
        outputs = model(x)
    sum((output.double() * image(i, output.shape)).sum() for i, output in enumerate(outputs)).backward()
    return {'input': x.grad, **{name: parameter.grad for name, parameter in model.named_parameters()}}


@pytest.mark.parametrize('with_cp', [True, 'selective'])
@pytest.mark.parametrize(
    'kwargs',
    [
        dict(norm_eval=False),
        dict(norm_eval=True),
        dict(frozen_stages=2),
        dict(norm_cfg=dict(type='BN', momentum=None)),
        dict(norm_cfg=dict(type='GN', num_groups=4)),
        dict(act_cfg=dict(type='RReLU')),  # draws random numbers, like drop path
    ],
    ids=str,
)
def test_checkpointing_changes_neither_gradients_nor_statistics(with_cp, kwargs):
    plain, saving = tiny(drop_path_rate=0.3, **kwargs), tiny(drop_path_rate=0.3, with_cp=with_cp, **kwargs)
    for _ in range(2):
        expected, found = (train_step(model, image(1, (2, 3, 64, 64))) for model in (plain, saving))
        assert_close(found, expected, **EXACT)
    assert_close(plain.state_dict(), saving.state_dict(), **EXACT)
    momenta = [[m.momentum for m in model.modules() if isinstance(m, _BatchNorm)] for model in (plain, saving)]
    assert momenta[0] == momenta[1]


@pytest.mark.parametrize('with_cp', [True, 'selective'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_checkpointing_recomputes_in_the_same_precision(with_cp, dtype):
    x = image(1, (2, 3, 64, 64)).float()
    expected, found = (train_step(tiny(with_cp=value).float(), x, dtype) for value in (False, with_cp))
    assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    'norm_cfg',
    [
        dict(type='BN'),
        dict(type='BN', requires_grad=False),
        dict(type='BN', affine=False),
        dict(type='SyncBN'),
        dict(type='BN', track_running_stats=False),
        dict(type='GN', num_groups=4),
    ],
    ids=str,
)
def test_training_with_frozen_statistics_equals_eval_mode(norm_cfg):
    model, reference = (tiny(norm_eval=True, norm_cfg=norm_cfg) for _ in range(2))
    x = image(1, (2, 3, 64, 96))
    assert_close(train_step(model.train(), x), train_step(reference.eval(), x), **EXACT)
    assert_close(model.state_dict(), reference.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize('training', [True, False], ids=['train', 'eval'])
def test_only_the_output_norms_run_in_training_with_frozen_statistics(training):
    model, called = tiny(norm_eval=True).train(training), []
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    for name, norm in norms.items():
        norm.register_forward_hook(lambda *_, name=name: called.append(name))
    model(image(1, (1, 3, 64, 64)))
    assert sorted(called) == (['norm0', 'norm2', 'norm4', 'norm6'] if training else sorted(norms))


@pytest.mark.parametrize('norm_eval', [True, False])
@pytest.mark.parametrize('dtype, tolerance', [(torch.bfloat16, 0.1), (torch.float16, 0.02)], ids=str)
def test_gradients_under_autocast_stay_close_to_full_precision(norm_eval, dtype, tolerance):
    x = image(1, (2, 3, 64, 64)).float()
    expected = train_step(tiny(norm_eval=norm_eval), x.double())
    found = train_step(tiny(norm_eval=norm_eval).float(), x, dtype)
    flat = [torch.cat([gradient.double().flatten() for gradient in grads.values()]) for grads in (found, expected)]
    assert (flat[0] - flat[1]).norm() < tolerance * flat[1].norm()


@pytest.mark.parametrize('with_cp', [False, True, 'selective'])
@pytest.mark.parametrize('norm_eval', [True, False])
def test_channels_last_changes_no_gradient(with_cp, norm_eval):
    model = tiny(norm_eval=norm_eval, with_cp=with_cp).to(memory_format=torch.channels_last)
    x = image(1, (2, 3, 64, 64))
    found = train_step(model, x.contiguous(memory_format=torch.channels_last))
    assert_close(found, train_step(tiny(norm_eval=norm_eval), x), **EXACT)


@pytest.mark.slow
@pytest.mark.parametrize('norm_eval, with_cp', [(True, 'selective'), (False, True)])
def test_a_compiled_step_is_one_graph_with_the_same_gradients_and_statistics(norm_eval, with_cp):
    kwargs = dict(norm_eval=norm_eval, drop_path_rate=0.3)
    plain, model = tiny(**kwargs), tiny(with_cp=with_cp, **kwargs)
    x = image(1, (2, 3, 64, 64))
    torch.compiler.reset()
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True)
    found = train_step(compiled, x)
    expected = train_step(plain, x)
    assert_close({name.removeprefix('_orig_mod.'): value for name, value in found.items()}, expected, **EXACT)
    assert_close(model.state_dict(), plain.state_dict(), **EXACT)


@pytest.mark.parametrize('with_cp', [True, 'selective'])
def test_checkpointing_works_under_distributed_data_parallel(with_cp, tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        model = tiny(with_cp=with_cp, drop_path_rate=0.3)
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        x = image(1, (2, 3, 64, 64))
        found = train_step(parallel, x)
    finally:
        torch.distributed.destroy_process_group()
    expected = train_step(tiny(drop_path_rate=0.3), x)
    assert_close({name.removeprefix('module.'): value for name, value in found.items()}, expected, **EXACT)


def saved_bytes(model, x):
    """Return the bytes that the forward pass keeps for the backward pass, without parameters and the input."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers(), x)}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(x)
    assert all(output.requires_grad for output in outputs)
    return sum(saved.values())


def peak_bytes(model, x, path):
    """Return the peak memory of a training step, without parameters and gradients."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        torch.autograd.backward([output.sum() for output in model(x)])
    profiler.export_chrome_trace(str(path))
    events = [event for event in json.loads(path.read_text())['traceEvents'] if event['name'] == '[memory]']
    events.sort(key=lambda event: event['ts'])
    totals = [event['args']['Total Allocated'] for event in events]
    return max(totals) - (totals[0] - events[0]['args']['Bytes'])


@pytest.mark.parametrize('norm_eval', [True, False])
def test_memory_of_a_training_step(norm_eval, tmp_path):
    """At the 800x1216 of the recipes the shares are even smaller, because constant costs weigh less."""
    x = torch.rand(1, 3, 256, 384)
    models = {with_cp: CASViT('xs', norm_eval=norm_eval, with_cp=with_cp) for with_cp in (False, 'selective', True)}
    saved = {with_cp: saved_bytes(model, x) for with_cp, model in models.items()}
    peak = {with_cp: peak_bytes(model, x, tmp_path / 'trace.json') for with_cp, model in models.items()}
    for with_cp, share in (('selective', 0.55), (True, 0.3)):
        assert saved[with_cp] < share * saved[False], saved
        assert peak[with_cp] < share * peak[False], peak


def test_frozen_statistics_keep_less_than_batch_statistics():
    x = torch.rand(1, 3, 256, 384)
    frozen, batch = (saved_bytes(CASViT('xs', norm_eval=norm_eval), x) for norm_eval in (True, False))
    assert frozen < 0.9 * batch
