"""The deploy form: the same outputs, in every mode of execution, for backbones and whole models."""

import copy
import json
import pickle
from types import SimpleNamespace

import cv2
import pytest
import torch
from helpers import tiny_backbone, tiny_models
from helpers.reference import fill, image
from helpers.tiny_backbone import TINY
from helpers.tiny_models import tiny_config
from mmcv.cnn import ConvModule
from mmengine.hooks import EMAHook
from mmengine.model import BaseTTAModel
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

from mmcasvit import CASViT, DeployHook, WeightsError, deploy, get_model
from mmcasvit.apis.preflight import check_deployable
from mmcasvit.models import deployed_casvit
from mmcasvit.utils.errors import UsageError

EXACT = 1e-10


def tiny(**kwargs):
    return tiny_backbone.tiny(**kwargs).eval()


def assert_near(found, wanted, relative=EXACT):
    """Compare relative to the largest value of each wanted tensor."""
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted):
        assert_close(a, b, rtol=0, atol=relative * b.abs().max().item())


def norms(model):
    return [name for name, part in model.named_modules() if isinstance(part, _BatchNorm)]


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize('arch', CASViT.arch_settings)
def test_outputs_are_those_of_the_model(arch):
    model, images = fill(CASViT(arch)).eval(), [image(0, (2, 3, *size)) for size in ((64, 96), (77, 131))]
    deployed = deploy(model)
    assert norms(deployed) == []
    for x in images:
        assert_near(deployed(x.float()), model(x.float()), 1e-5)
    model.double()
    deployed = deploy(model)
    for x in images:
        assert_near(deployed(x), model(x))


def test_the_model_is_left_as_it_was():
    model = tiny(drop_path_rate=0.5, frozen_stages=1).train()
    before, parts = copy.deepcopy(model.state_dict()), list(model.modules())
    flags = [(part.training, part) for part in parts], [p.requires_grad for p in model.parameters()]
    deployed = deploy(model)
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert list(model.modules()) == parts
    assert flags == ([(part.training, part) for part in parts], [p.requires_grad for p in model.parameters()])
    assert not {p.data_ptr() for p in deployed.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert not any(p.requires_grad for p in deployed.parameters())


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(norm_cfg=dict(type='SyncBN')),
        dict(norm_cfg=dict(type='BN', affine=False)),
        dict(norm_cfg=dict(type='BN', eps=0.01)),
        dict(act_cfg=dict(type='SiLU')),
        dict(act_cfg=dict(type='LeakyReLU')),
        dict(in_channels=5),
        dict(out_indices=(0, 2)),
        dict(out_indices=3),
        dict(frozen_stages=2, norm_eval=True),
        dict(drop_path_rate=0.5, with_cp=True),
    ],
    ids=str,
)
def test_variants(kwargs):
    model = tiny(**kwargs).double()
    x = image(1, (2, kwargs.get('in_channels', 3), 64, 64))
    wanted = model(x)
    deployed = deploy(model.train())
    assert norms(deployed) == []
    assert deployed.out_channels == model.out_channels
    assert deployed.out_strides == model.out_strides
    assert_near(deployed(x), wanted)


@pytest.mark.parametrize(
    'norm_cfg',
    [dict(type='GN', num_groups=4), dict(type='BN', track_running_stats=False), dict(type='IN', affine=True)],
    ids=lambda cfg: cfg['type'],
)
def test_norms_that_cannot_be_folded_are_kept(norm_cfg):
    model = tiny(norm_cfg=norm_cfg).double()
    kept = [type(part) for part in model.modules() if type(part) is type(model.norm0)]
    deployed = deploy(model)
    assert [type(part) for part in deployed.modules() if type(part) is type(model.norm0)] == kept
    assert_near(deployed(image(2, (2, 3, 64, 64))), model(image(2, (2, 3, 64, 64))))


@pytest.mark.parametrize('pixels', [1, 7, 10**6])
def test_the_mlp_may_be_split_anywhere(pixels, monkeypatch):
    monkeypatch.setattr(deployed_casvit, 'PIXELS_PER_THREAD', pixels)
    model, x = tiny().double(), image(3, (2, 3, 64, 64))
    assert_near(deploy(model)(x), model(x))


def test_inputs_and_outputs_are_not_overwritten():
    deployed = deploy(tiny())
    first, second = image(4, (2, 3, 64, 96)).float(), image(5, (2, 3, 64, 96)).float()
    second = second.contiguous(memory_format=torch.channels_last)
    for x in (first, second):
        kept = x.clone()
        outputs = deployed(x)
        kept_outputs = [output.clone() for output in outputs]
        deployed(first + second)
        assert_close(x, kept, rtol=0, atol=0)
        assert_close(list(outputs), kept_outputs, rtol=0, atol=0)
        assert all(output.is_contiguous(memory_format=torch.channels_last) for output in outputs)


def test_the_path_without_overwriting_computes_the_same(monkeypatch):
    model, x = tiny().double(), image(6, (2, 3, 64, 96))
    deployed = deploy(model)
    monkeypatch.setattr(deployed_casvit, '_is_eager_on_cpu', lambda x: False)
    assert_near(deployed(x), model(x))


def test_training_the_deploy_form_is_an_error():
    deployed = deploy(tiny())
    with pytest.raises(RuntimeError, match='for inference'):
        deployed.train()
    with pytest.raises(RuntimeError, match='inference'):
        nn.Sequential(deployed).train()
    assert not any(part.training for part in deployed.eval().modules())
    with pytest.raises(ValueError, match='no CASViT in this DeployedCASViT'):
        deploy(deployed)


def test_it_saves_and_loads(tmp_path):
    x = torch.rand(1, 3, 64, 64)
    deployed = deploy(tiny())
    torch.save(deployed.state_dict(), tmp_path / 'deployed.pth')
    other = deploy(CASViT(TINY))
    other.load_state_dict(torch.load(tmp_path / 'deployed.pth', weights_only=True))
    assert_close(list(other(x)), list(deployed(x)), rtol=0, atol=0)


def test_it_traces_for_other_sizes_too():
    model = tiny().double()
    traced = torch.jit.trace(deploy(model), image(7, (1, 3, 64, 96)))
    for shape in [(1, 3, 64, 96), (2, 3, 77, 131)]:
        assert_near(traced(image(8, shape)), model(image(8, shape)))


def test_it_exports_as_plain_operations_for_any_size():
    model = fill(CASViT(dict(depths=(1, 1, 1, 1), channels=(4, 4, 4, 4)))).eval().double()
    auto = torch.export.Dim.AUTO
    exported = torch.export.export(
        deploy(model), (image(7, (2, 3, 64, 96)),), dynamic_shapes=({0: auto, 2: auto, 3: auto},)
    )
    for shape in [(2, 3, 64, 96), (3, 3, 77, 131)]:
        assert_near(exported.module()(image(8, shape)), model(image(8, shape)))
    functional = exported.run_decompositions()
    used = {node.target for node in functional.graph.nodes if node.op == 'call_function'}
    # Other runtimes would transpose maps before and after a matrix product.
    assert torch.ops.aten.convolution.default in used
    assert not {torch.ops.aten.addmm.default, torch.ops.aten.mm.default} & used
    assert all(target.namespace == 'aten' for target in used if hasattr(target, 'namespace'))


class Mean(nn.Module):
    """Model of a user with a backbone inside."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, x):
        first, _, _, last = self.backbone(x)
        return first.mean(), last.mean()


def test_it_scripts_for_any_size(tmp_path):
    model = tiny().double()
    torch.jit.save(torch.jit.script(deploy(model)), tmp_path / 'scripted.pt')
    scripted, around = torch.jit.load(tmp_path / 'scripted.pt'), torch.jit.script(Mean(deploy(model)))
    for shape in [(1, 3, 64, 96), (2, 3, 77, 131)]:
        x = image(8, shape)
        assert_near(scripted(x), model(x))
        assert_near(around(x), Mean(model)(x))


@pytest.mark.parametrize('backend', ['eager', 'aot_eager'])
def test_it_compiles_as_one_graph(backend):
    model, x = tiny().double(), image(9, (2, 3, 64, 96))
    compiled = torch.compile(deploy(model), backend=backend, fullgraph=True)
    assert_near(compiled(x), model(x))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_low_precision(dtype):
    model, x = tiny(), image(10, (1, 3, 64, 96)).float()
    wanted = model(x)
    with torch.autocast('cpu', dtype=dtype):
        mixed = deploy(model)(x)
    low = deploy(model).to(dtype)(x.to(dtype))
    for outputs in (mixed, low):
        for output, expected in zip(outputs, wanted):
            assert (output.float() - expected).norm() < 0.03 * expected.norm()


class Model(nn.Module):
    """Backbone with heads."""

    def __init__(self, *heads):
        super().__init__()
        self.backbone = tiny(out_indices=0)
        self.heads = nn.ModuleList(heads)

    def forward(self, x):
        x = self.backbone(x)[0]
        return tuple(head(x) for head in self.heads)

    test_step = forward


def head(**kwargs):
    return ConvModule(8, 8, 3, padding=1, **{'norm_cfg': dict(type='BN'), **kwargs})


def test_norms_of_heads_are_folded_where_the_formula_holds():
    sharing = head(), head()
    sharing[1].conv = sharing[0].conv
    folded = [head(), head(act_cfg=None, norm_cfg=dict(type='SyncBN')), head(bias=True, groups=2), *sharing]
    kept = [
        head(order=('norm', 'conv', 'act')),
        head(order=('conv', 'act', 'norm')),
        head(with_spectral_norm=True),
        head(conv_cfg=dict(type='ConvWS')),
        head(norm_cfg=dict(type='GN', num_groups=2)),
        head(norm_cfg=dict(type='BN', track_running_stats=False)),
        head(conv_cfg=dict(type='deconv')),
    ]
    model = fill(Model(*folded, *kept)).eval().double()
    for part in folded:  # as a switch of mmengine does for training
        part.turn_on_efficient_conv_bn_eval()
    deployed, x = deploy(model), image(11, (2, 3, 64, 64))
    assert_near(deployed(x), model(x))
    assert norms(deployed.heads[: len(folded)]) == []
    assert [
        any(map(bool, norms(part))) or 'gn' in dict(part.named_children()) for part in deployed.heads[len(folded) :]
    ] == [True] * len(kept)


CONFIGS = [
    'retinanet_casvit-xs_fpn_1x_coco',
    'mask-rcnn_casvit-xs_fpn_1x_coco',
    'semantic-fpn_casvit-xs_8xb4-40k_ade20k-512x512',
    'upernet_casvit-xs_8xb2-160k_ade20k-512x512',
    'rtmdet_casvit-xs_24e_shapes',
    'ssdlite_casvit-xs_24e_shapes',
]


def kept_affine(deployed):
    """Return the stages whose outputs are still scaled and shifted in the backbone."""
    return [i for i, norm in enumerate(deployed.backbone.output_norms) if isinstance(norm, deployed_casvit.Affine)]


AFFINE = [[3], [], [], [0, 1, 2, 3], [1, 2, 3], [2, 3]]


@pytest.mark.parametrize('config, affine', list(zip(CONFIGS, AFFINE)), ids=lambda v: str(v)[:9])
def test_whole_models(config, affine):
    """The lateral convolutions of an FPN take over the norms, but not of an output that a padded convolution reads."""
    model = fill(get_model(tiny_config(config))).double()
    deployed, x = deploy(model), image(12, (2, 3, 64, 96))
    assert norms(deployed) == []
    assert kept_affine(deployed) == affine
    assert_near(deployed.extract_feat(x), model.extract_feat(x))
    if hasattr(model, 'decode_head'):
        assert_near(deployed(x, mode='tensor'), model(x, mode='tensor'))
    elif hasattr(model, 'bbox_head'):
        for found, wanted in zip(deployed(x, mode='tensor'), model(x, mode='tensor')):
            assert_near(found, wanted)


def test_a_neck_takes_over_the_norms_only_if_nothing_else_reads_the_backbone():
    class Reader(type(get_model(tiny_config(CONFIGS[1])))):
        """Detector that returns the maps of the backbone with those of the neck."""

        def extract_feat(self, x):
            return (*self.backbone(x), *super().extract_feat(x))

    model = fill(get_model(tiny_config(CONFIGS[1]))).double()
    model.__class__ = Reader
    deployed, x = deploy(model), image(12, (1, 3, 64, 96))
    assert kept_affine(deployed) == [0, 1, 2, 3]
    assert_near(deployed.extract_feat(x), model.extract_feat(x))


def test_the_deploy_form_of_a_detector_saves_and_loads(tmp_path):
    model = fill(get_model(tiny_config(CONFIGS[0])))
    deployed, x = deploy(model), torch.rand(1, 3, 64, 64)
    torch.save(deployed.state_dict(), tmp_path / 'deployed.pth')
    other = deploy(get_model(tiny_config(CONFIGS[0])))
    other.load_state_dict(torch.load(tmp_path / 'deployed.pth', weights_only=True))
    assert_close(other.extract_feat(x), deployed.extract_feat(x), rtol=0, atol=0)


def test_the_deploy_form_of_a_model_without_head_weights_refuses_to_predict():
    model = get_model(tiny_config(CONFIGS[0]))
    weights = {key: value for key, value in model.state_dict().items() if not key.startswith('bbox_head')}
    load_state_dict(model, weights)
    with pytest.raises(WeightsError, match='cannot predict'):
        deploy(model).extract_feat(torch.rand(1, 3, 64, 64))


class Averaged(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        return data_samples_list


@pytest.mark.parametrize('wrapper', [None, Averaged], ids=str)
def test_the_hook_deploys_during_testing(wrapper):
    model = Model(head()).eval() if wrapper is None else wrapper(Model(head())).eval()
    runner = SimpleNamespace(model=model)
    hook = DeployHook()
    hook.before_test_epoch(runner)
    tested = runner.model if wrapper is None else runner.model.module
    assert type(runner.model) is type(model)
    assert runner.model is not model
    assert norms(tested) == []
    hook.after_test_epoch(runner, {})
    assert runner.model is model
    assert norms(model) != []


def test_the_hook_deploys_averaged_weights_that_another_hook_swaps_in():
    hooks = Runner.__new__(Runner)
    hooks._hooks = []
    hooks.register_hook(DeployHook())
    hooks.register_hook(EMAHook())
    assert [type(hook) for hook in hooks.hooks] == [EMAHook, DeployHook]


@pytest.fixture
def evaluate(run_tool, tmp_path):
    """Evaluate a tiny model with random statistics as it is, deployed, and in fp16: metrics and output files."""

    def run(config, out, *options):
        cfg = tiny_config(config)
        cfg.dump(tmp_path / 'tiny.py')
        torch.save(dict(state_dict=fill(get_model(cfg)).state_dict()), tmp_path / 'tiny.pth')
        found = []
        for name, flags in (('plain', []), ('deployed', ['--deploy']), ('half', ['--simulate-fp16'])):
            done = run_tool(
                'test.py',
                'tiny.py',
                'tiny.pth',
                *flags,
                '--work-dir',
                name,
                '--out',
                f'{name}_{out}',
                '--cfg-options',
                *options,
                'test_dataloader.num_workers=0',
                'test_dataloader.persistent_workers=False',
                cwd=tmp_path,
            )
            assert ('deploy form' in done.stdout + done.stderr) == bool(flags)
            assert ('simulated fp16' in done.stdout + done.stderr) == (name == 'half')
            metrics = json.loads(next((tmp_path / name).glob('*/*.json')).read_text())
            metrics = {key: value for key, value in metrics.items() if 'time' not in key}
            found.append((metrics, tmp_path / f'{name}_{out}'))
        return found

    return run


@pytest.mark.slow
def test_a_detector_is_evaluated_deployed(evaluate, shapes):
    (plain, plain_file), (deployed, deployed_file), (half, half_file) = evaluate(
        'retinanet_casvit-xs_fpn_6e_shapes', 'out.pkl', f'data_root={shapes}/coco/', 'model.test_cfg.score_thr=0.'
    )
    assert plain == pytest.approx(deployed, abs=0.01)
    for a, b in zip(*(pickle.loads(file.read_bytes()) for file in (plain_file, deployed_file))):
        assert len(a['pred_instances']['scores']) == 100
        assert_close(b['pred_instances']['scores'], a['pred_instances']['scores'], rtol=1e-4, atol=1e-6)
    assert half == pytest.approx(plain, abs=0.01)
    assert half_file.read_bytes() != deployed_file.read_bytes()


@pytest.mark.slow
def test_a_segmentor_is_evaluated_deployed(evaluate, shapes):
    (plain, plain_masks), (deployed, deployed_masks), (half, half_masks) = evaluate(
        'semantic-fpn_casvit-xs_300i_shapes', 'masks', f'data_root={shapes}/ade', 'model.data_preprocessor.size=(64,96)'
    )
    assert plain['mIoU'] > 0
    assert plain == pytest.approx(deployed, abs=0.05)
    for file in plain_masks.iterdir():
        assert (cv2.imread(str(file), -1) == cv2.imread(str(deployed_masks / file.name), -1)).mean() > 0.999
        assert (cv2.imread(str(file), -1) == cv2.imread(str(half_masks / file.name), -1)).mean() > 0.98
    assert half == pytest.approx(plain, abs=1)


def test_a_model_without_casvit_cannot_be_deployed_by_the_tools():
    with pytest.raises(UsageError, match='no CASViT'):
        check_deployable(nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match='no CASViT in this Conv2d'):
        deploy(nn.Conv2d(1, 1, 1))


@pytest.mark.parametrize('name', ['semantic_fpn', 'upernet', 'segformer'])
def test_logits_are_contiguous_since_scaling_them_is_slow_otherwise(name):
    model = tiny_models.tiny(name)
    maps = model.extract_feat(image(1, (1, 3, 64, 96)).float())
    wanted = model.decode_head(maps)
    deployed = deploy(model)
    found = deployed.decode_head([x.contiguous(memory_format=torch.channels_last) for x in maps])
    assert found.is_contiguous()
    assert_close(found, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())
