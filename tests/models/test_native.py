"""The blocks of the deploy form in C++: the same outputs as those of the model, and a way out without them."""

import copy
import gc

import pytest
import torch
from helpers.reference import fill, image
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from mmcasvit import CASViT, deploy
from mmcasvit.models import deployed_casvit, native

# Multiples of the number of lanes, and numbers in between.
WIDE = dict(depths=(1, 2, 1, 1), channels=(36, 20, 33, 64))
# Of four stages, those that torch.compile leaves to C++. PyTorch 2.7 takes it for an export.
COMPILED_STAGES = 0 if torch.__version__.startswith('2.7.') else 4
needs_compiler = pytest.mark.skipif(not native.is_available(), reason='there is no C++ compiler')


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield
    torch.compiler.reset()


@pytest.fixture
def again():
    """Forget the library before and after a test."""
    functions = native.library, native.is_available
    for function in functions:
        function.cache_clear()
    yield
    for function in functions:
        function.cache_clear()


@pytest.fixture
def used(monkeypatch):
    """Return a list that grows with each block that C++ computes."""
    return counted(monkeypatch, 'block')


@pytest.fixture
def halved(monkeypatch):
    """Return a list that grows with each downsampling that C++ computes."""
    return counted(monkeypatch, 'halve')


def counted(monkeypatch, name):
    calls, compute = [], getattr(native, name)
    monkeypatch.setattr(native, name, lambda *args: calls.append(1) or compute(*args))
    return calls


def backbone(arch=WIDE, **kwargs):
    return fill(CASViT(arch, **kwargs)).eval()


def compiled(model, graphs=None):
    def keep(graph, inputs):
        if graphs is not None:
            graphs.append(graph)
        return graph

    return torch.compile(deploy(model), backend=keep, fullgraph=True)


def stages(graphs, operator='stage'):
    """Return how many stages of one graph, or other layers, are an operator in C++."""
    (graph,) = graphs
    return sum(f'mmcasvit.{operator}' in str(node.target) for node in graph.graph.nodes)


@needs_compiler
@pytest.mark.parametrize('approximate', ['none', 'tanh'])
@pytest.mark.parametrize('shape', [(1, 3, 64, 96), (2, 3, 77, 131), (3, 3, 32, 33), (1, 3, 40, 620)], ids=str)
def test_the_outputs_are_those_of_the_model(shape, approximate):
    model, x, graphs = backbone(act_cfg=dict(type='GELU', approximate=approximate)), image(1, shape), []
    for found, wanted in zip(compiled(model, graphs)(x.float()), model.double()(x)):
        assert_close(found.double(), wanted, rtol=0, atol=2e-6 * wanted.abs().max().item())
    assert stages(graphs) == stages(graphs, 'halve') == COMPILED_STAGES


@needs_compiler
@pytest.mark.parametrize('threads', [1, 2, 3])
@pytest.mark.parametrize('height', [5, 127, 383])  # of the first map: 2, 32 and 96 rows
def test_the_threads_share_the_rows(height, threads):
    model, x, before = backbone(), image(1, (2, 3, height, 20)), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        outputs = deploy(model)(x.float())
    finally:
        torch.set_num_threads(before)
    for found, wanted in zip(outputs, model.double()(x)):
        assert_close(found.double(), wanted, rtol=0, atol=2e-6 * wanted.abs().max().item())


@needs_compiler
def test_gelu_is_exact_in_its_tails_too(used):
    stage = deploy(backbone(dict(depths=(1, 1, 1, 1), channels=(32, 32, 32, 32)))).stages[0]
    for weight in stage.parameters():
        weight.zero_()
    for conv in (stage[0].fc1, stage[0].fc2):
        conv.weight.view(conv.out_channels, -1)[:32, :32] = torch.eye(32)
    x = torch.linspace(-8, 8, 32 * 400).view(1, 20, 20, 32).movedim(-1, 1)
    wanted = x.double() + torch.nn.functional.gelu(x.double())
    assert ((stage(x.clone()).double() - wanted).abs() <= 4e-7 * x.abs()).all()
    assert len(used) == 1


@needs_compiler
@pytest.mark.parametrize('shape', [(1, 3, 64, 96), (2, 3, 77, 131)], ids=str)
def test_the_eager_deploy_form_uses_them(shape, used, halved):
    model, x = backbone(), image(1, shape)
    for found, wanted in zip(deploy(model)(x.float()), model.double()(x)):
        assert_close(found.double(), wanted, rtol=0, atol=2e-6 * wanted.abs().max().item())
    assert (len(used), len(halved)) == (sum(WIDE['depths']), 4)


@needs_compiler
@pytest.mark.parametrize('shape', [(1, 3, 1, 1), (2, 3, 2, 5), (1, 3, 77, 131), (3, 3, 34, 620)], ids=str)
@pytest.mark.parametrize(
    'arrange',
    [lambda x: x.contiguous(memory_format=torch.channels_last), lambda x: x.mT.contiguous().mT],
    ids=['channels_last', 'transposed'],
)
def test_downsampling_reads_any_memory_format(shape, arrange, halved):
    model, x = deploy(backbone()), image(2, shape).float()
    for layers in model.downsamples:
        wanted = torch.nn.Sequential(*layers).double()(x.double())
        layers.float()
        assert_close(layers(arrange(x)).double(), wanted, rtol=0, atol=2e-6 * wanted.abs().max().item())
        x = layers(x)
    assert len(halved) == 8


@needs_compiler
def test_downsampling_that_it_cannot_compute_is_left_to_pytorch(halved):
    (stem, *_), x = deploy(backbone('xs')).downsamples, image(3, (1, 3, 32, 32)).float()
    assert stem(x[0]).shape == (48, 8, 8)
    with pytest.raises(RuntimeError, match='to have 3 channels, but got 4'):
        stem(torch.zeros(1, 4, 32, 32))
    assert not halved
    unfolded = deploy(backbone('xs', norm_cfg=dict(type='GN', num_groups=4)))
    unfolded(x)
    assert not halved


def _scale(layers):
    for weight in layers.parameters():
        weight *= 1.5


def _replace(layers):
    for part in list(layers.modules()):
        for name, child in part.named_children():
            if isinstance(child, torch.nn.Conv2d):
                _scale(child)
                setattr(part, name, copy.deepcopy(child))


def _assign(layers):
    for weight in layers.parameters():
        weight.data = weight.data * 1.5


@needs_compiler
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    'change',
    [
        _scale,
        _replace,
        _assign,
        lambda layers: layers.load_state_dict({name: 1.5 * value for name, value in layers.state_dict().items()}),
        lambda layers: layers.to(torch.float8_e5m2),
    ],
    ids=['scaled', 'replaced', 'assigned', 'loaded', 'rounded'],
)
def test_weights_that_change_are_read_again(change, dtype):
    model = deploy(backbone()).to(dtype)
    for layers, channels in ((model.stages[1], 20), (model.downsamples[1], 36)):
        x = image(7, (1, channels, 6, 10)).to(dtype)
        before = layers(x.clone())
        change(layers)
        layers.to(dtype)
        found, wanted = layers(x.clone()), copy.deepcopy(layers)(x.clone())
        assert torch.equal(found, wanted)
        assert not torch.equal(found, before)


@needs_compiler
@pytest.mark.parametrize('backend', [None, 'eager', 'inductor'])
def test_weights_are_packed_once(backend, monkeypatch):
    if backend and not COMPILED_STAGES:
        pytest.skip('this PyTorch takes compiling for an export')
    packed = counted(monkeypatch, 'pack')
    model, x = deploy(backbone()), image(8, (1, 3, 64, 64)).float()
    run = torch.compile(model, backend=backend) if backend else model
    run(x)
    assert len(packed) == 6 * sum(WIDE['depths']) + 5  # of each block, of the stem and before three stages
    run(x)
    assert len(packed) == 6 * sum(WIDE['depths']) + 5
    model.stages[0][0].fc1.weight.zero_()
    for found, wanted in zip(run(x), copy.deepcopy(model)(x)):
        assert_close(found, wanted)


@needs_compiler
@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize('dtype', native.DTYPES, ids=str)
def test_what_was_made_of_the_weights_goes_with_the_model(dtype, mode):
    gc.collect()
    before = len(deployed_casvit._made_of)
    model = deploy(backbone()).to(dtype)
    with mode():
        model(image(8, (1, 3, 64, 64)).to(dtype))
    assert len(deployed_casvit._made_of) == before + (8 if dtype == torch.float32 else 4)
    del model
    gc.collect()
    assert len(deployed_casvit._made_of) == before


@needs_compiler
def test_weights_of_which_pytorch_counts_no_changes_are_packed_each_time():
    with torch.inference_mode():
        model, x = deploy(backbone()), image(8, (1, 3, 64, 64)).float()
        model(x)
        for weight in model.parameters():
            weight *= 1.1
        wanted = copy.deepcopy(model)(x)
        for a, b in zip(model(x), wanted):
            assert torch.equal(a, b)


@needs_compiler
@pytest.mark.parametrize('dtype', native.DTYPES, ids=str)
def test_weights_of_another_type_are_an_error(dtype):
    (other,) = set(native.DTYPES) - {dtype}
    model, x = deploy(backbone()).to(dtype), image(8, (1, 3, 64, 64)).to(other)
    with pytest.raises(RuntimeError, match='should be the same'):
        model(x)
    with pytest.raises(RuntimeError, match='same'):
        model.stages[0](image(8, (1, 36, 8, 8)).to(other))


@needs_compiler
def test_whoever_watches_the_layers_sees_them(used):
    model, x, seen = deploy(backbone()), image(1, (1, 3, 64, 96)).float(), []
    handle = model.stages[1][1].query_key.register_forward_hook(lambda *_: seen.append(1))
    wanted = model(x)
    assert (len(seen), len(used)) == (1, 3)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert counter.get_total_flops() > 0
    assert len(used) == 3
    handle.remove()
    for found, value in zip(model(x), wanted):
        assert_close(found, value, rtol=0, atol=2e-6 * value.abs().max().item())
    assert len(used) == 8


@needs_compiler
def test_gradients_pass_through_the_deploy_form(used):
    model, x = deploy(backbone()), image(1, (1, 3, 64, 96)).float().requires_grad_()
    with torch.enable_grad():
        model(x)[3].sum().backward()
    assert x.grad.abs().sum() > 0
    assert not used


@needs_compiler
@pytest.mark.parametrize('threads', [1, 3, 8])
def test_any_number_of_threads(threads):
    model, x = backbone(), image(2, (2, 3, 64, 96)).float()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = compiled(model)(x)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(found, model(x)):
        assert_close(a, b, rtol=0, atol=2e-6 * b.abs().max().item())


@needs_compiler
@pytest.mark.parametrize('approximate', ['none', 'tanh'])
def test_bf16_is_as_accurate_as_in_the_model(approximate):
    model, x, graphs = backbone(act_cfg=dict(type='GELU', approximate=approximate)), image(3, (2, 3, 77, 96)), []
    wanted = model(x.float())
    eager = copy.deepcopy(model).bfloat16()(x.bfloat16())
    half = torch.compile(deploy(model).bfloat16(), backend=lambda graph, _: graphs.append(graph) or graph)
    for a, b, c in zip(half(x.bfloat16()), eager, wanted):
        assert a.dtype == torch.bfloat16
        assert (a.float() - c).norm() <= 1.1 * (b.float() - c).norm() + 1e-3 * c.norm()
    assert stages(graphs) == COMPILED_STAGES


@needs_compiler
@pytest.mark.parametrize('value', [1e4, -1e4])
def test_large_activations_are_as_accurate_as_in_the_model(value):
    model, x = backbone(dict(WIDE, channels=(16, 20, 33, 64))), torch.full((1, 3, 32, 32), value)
    found, eager, wanted = deploy(model)(x), model(x), model.double()(x.double())
    for a, b, c in zip(found, eager, wanted):
        assert (a - c).norm() <= 5 * (b - c).norm() + 1e-6 * c.norm()  # the gates enlarge every difference


@needs_compiler
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_nan_stays_nan(dtype):
    nan = torch.full((1, 3, 32, 32), -1, dtype=torch.int32).view(torch.float32).to(dtype)
    assert torch.isnan(deploy(backbone()).to(dtype)(nan)[3]).all()


@needs_compiler
@pytest.mark.parametrize(
    'change',
    [
        lambda model: (deploy(model.double()), torch.float64),
        lambda model: (deploy(model).half(), torch.float16),
        lambda model: (deploy(backbone(act_cfg=dict(type='ReLU'))), torch.float32),
        lambda model: (deploy(backbone(dict(depths=(1, 1, 1, 1), channels=(4, 8, 12, 15)))), torch.float32),
    ],
    ids=['fp64', 'fp16', 'another activation', 'narrow maps'],
)
def test_what_it_cannot_compute_is_left_to_the_compiler(change):
    (model, dtype), graphs = change(backbone()), []
    torch.compile(model, backend=lambda graph, _: graphs.append(graph) or graph)(image(4, (1, 3, 64, 64)).to(dtype))
    assert stages(graphs) == 0


@needs_compiler
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_the_operator_follows_the_rules_of_the_compiler(dtype):
    stage = deploy(backbone()).to(dtype).stages[1]
    x = image(5, (2, 20, 7, 9)).to(dtype)
    torch.library.opcheck(torch.ops.mmcasvit.stage.default, (x, stage.weights(), 'none'))


@needs_compiler
@pytest.mark.parametrize('outputs', [(20,), (18, 36)], ids=str)
def test_the_operator_for_downsampling_does_so_too(outputs):
    x, inputs = image(6, (2, 3, 7, 10)).float(), (3, *outputs)
    weights = [torch.rand(following, count, 3, 3) for count, following in zip(inputs, outputs)]
    biases = [torch.rand(count) for count in outputs]
    torch.library.opcheck(torch.ops.mmcasvit.halve.default, (x, [*weights, *biases], True))


def test_without_a_compiler_it_says_so_and_the_outputs_are_the_same(again, monkeypatch, tmp_path):
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', str(tmp_path))
    monkeypatch.setenv('CXX', 'no-such-compiler')
    model, x, graphs = backbone(), image(6, (1, 3, 64, 96)).float(), []
    said = []
    monkeypatch.setattr(native, 'print_log', lambda message, **_: said.append(message))
    found = compiled(model, graphs)(x)
    assert stages(graphs) == 0
    if COMPILED_STAGES == 0:
        deploy(model)(x)
    assert len(said) == 1
    assert 'no-such-compiler' in said[0]
    for a, b in zip(found, model(x)):
        assert_close(a, b, rtol=0, atol=2e-6 * b.abs().max().item())


@needs_compiler
def test_it_is_compiled_once(again, monkeypatch, tmp_path):
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', str(tmp_path))
    assert native.is_available()
    (file,) = (tmp_path / 'mmcasvit').iterdir()
    built = file.stat().st_mtime_ns
    native.library.cache_clear()
    monkeypatch.setattr(native.subprocess, 'run', None)
    assert native.library()
    assert file.stat().st_mtime_ns == built
