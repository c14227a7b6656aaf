"""Load checks: no program loads a file that does not fit without saying so."""

import copy
import pickle

import pytest
import torch
from helpers.attack import Attack
from helpers.reference import fill, published_checkpoint
from helpers.repository import ROOT, write_tiny_config
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel, ExponentialMovingAverage
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, load_checkpoint
from torch import nn
from torch.testing import assert_close

from mmcasvit import CASViT, WeightsError
from mmcasvit.models.load_checks import _find_and_compare
from mmcasvit.weights.checkpoint import write_checkpoint
from mmcasvit.weights.names import to_own_names

ARCH = dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 24))


class Model(BaseModel):
    """Backbone with a classification layer, under the names of mmdet."""

    def __init__(self, classes=3, **kwargs):
        super().__init__()
        self.backbone = CASViT(**{'arch': ARCH, **kwargs})
        self.fc_cls = nn.Linear(self.backbone.out_channels[-1], classes + 1)

    def forward(self, x):
        return self.fc_cls(self.backbone(x)[-1].mean((2, 3)))


class PlainModule(nn.Module):
    """Model that is not one of mmengine."""

    def __init__(self):
        super().__init__()
        self.backbone, self.fc_cls = CASViT(ARCH), nn.Linear(24, 4)


X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def log(monkeypatch):
    lines = []
    monkeypatch.setattr('mmcasvit.models.load_checks.print_log', lambda text, **kwargs: lines.append(text))
    return lines


def save(content, path):
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize(
    'wrap',
    [
        lambda state: dict(state_dict=state, meta={}),
        lambda state: dict(model=state, optimizer=dict(state={}), epoch=3),
        lambda state: dict(model_ema=state),
        lambda state: state,
        lambda state: dict(model={f'module.{key}': value for key, value in state.items()}),
    ],
    ids=['state_dict', 'model', 'model_ema', 'bare', 'module'],
)
def test_mmengine_finds_weights_under_any_key(tmp_path, wrap, log):
    wanted = fill(Model()).state_dict()
    model = Model()
    load_checkpoint(model, save(wrap(wanted), tmp_path / 'x.pth'), map_location='cpu')
    assert_close(model.state_dict(), wanted)
    assert log == []
    model.eval()(X)


def test_mmengine_loads_safetensors(tmp_path):
    wanted = fill(Model()).state_dict()
    write_checkpoint(
        dict(state_dict=wanted, meta=dict(dataset_meta=dict(classes=('a', 'b')))), tmp_path / 'x.safetensors'
    )
    model = Model()
    content = load_checkpoint(model, str(tmp_path / 'x.safetensors'), map_location='cpu')
    assert_close(model.state_dict(), wanted)
    assert content['meta']['dataset_meta']['classes'] == ['a', 'b']


@pytest.mark.parametrize(
    'content, words',
    [
        (
            lambda: fill(Model(arch='xs')).state_dict(),
            r"expected: a CAS-ViT of depths \(1, 1, 1, 1\).*found: arch 'xs'.*of another shape.*Give the config",
        ),
        (
            lambda: {'backbone.layer1.weight': torch.ones(1), 'fc_cls.bias': torch.ones(4)},
            r'found: no CAS-ViT at all.*missing in the file: backbone.patch_embed',
        ),
        (
            lambda: {f'student.{key}': value for key, value in Model().state_dict().items()},
            r'No name in the file is one of this model.*converted',
        ),
        (lambda: published_checkpoint('xs'), 'The file holds only a backbone: give it as model.backbone.init_cfg'),
        (
            lambda: {key: value for key, value in Model().state_dict().items() if 'backbone.norm0' not in key},
            r'missing in the file: backbone.norm0.weight.*fewer outputs.*--pretrained FILE',
        ),
        (lambda: dict(epoch=3), '0 tensors fit'),
        (lambda: dict(state_dict={}), '0 tensors fit'),
    ],
    ids=['another arch', 'another model', 'other names', 'ImageNet file', 'an output less', 'no weights', 'empty'],
)
def test_the_refusal_of_a_file_without_the_backbone_is_one_message(tmp_path, content, words):
    # PyTorch has loaded what fits by then, so the message does not say that nothing was loaded.
    with pytest.raises(WeightsError, match=rf'(?s)does not fit the model\.\n.*{words}'):
        load_checkpoint(Model(), save(content(), tmp_path / 'x.pth'), map_location='cpu')


def test_a_model_with_other_classes_trains_but_does_not_predict(tmp_path, log):
    wanted = fill(Model(classes=5)).state_dict()
    path = save(dict(state_dict=wanted), tmp_path / 'x.pth')
    model = Model()
    load_checkpoint(model, path, map_location='cpu')
    assert_close(
        model.backbone.state_dict(),
        {key.removeprefix('backbone.'): value for key, value in wanted.items() if key.startswith('backbone.')},
    )
    assert len(log) == 1
    assert 'with 3 classes, found: a CAS-ViT' in log[0]
    assert 'with 5 classes' in log[0]
    for copied in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(WeightsError, match=r'(?s)cannot predict.*fc_cls.weight: file \(6, 24\), model \(4, 24\)'):
            copied.eval()(X)
        copied.train()(X)
        assert copied.eval()(X).shape == (2, 4)


def test_predictions_work_again_after_loading_a_file_that_fits(tmp_path):
    model = Model().eval()
    load_checkpoint(model, save(Model(classes=5).state_dict(), tmp_path / 'other.pth'), map_location='cpu')
    load_checkpoint(model, save(fill(Model()).state_dict(), tmp_path / 'right.pth'), map_location='cpu')
    assert_close(model(X), fill(Model()).eval()(X))


def test_loading_a_part_on_purpose_is_not_checked(tmp_path, log):
    model = Model().eval()
    head = {'fc_cls.bias': torch.full((4,), 2.0)}
    missing, unexpected = model.load_state_dict(head, strict=False)
    assert {'fc_cls.weight', 'backbone.patch_embed.0.weight'} < set(missing)
    assert unexpected == []
    assert_close(model.fc_cls.bias.data, head['fc_cls.bias'])
    assert model.load_state_dict({}, strict=False).unexpected_keys == []
    model(X)
    with pytest.raises(RuntimeError, match='Missing key'):
        model.load_state_dict(head)
    load_checkpoint(PlainModule(), save(head, tmp_path / 'x.pth'), map_location='cpu')
    assert log == []


def test_averages_and_copies_load_and_refuse_like_the_model(tmp_path, log):
    model = fill(Model())
    average = ExponentialMovingAverage(model)
    state = copy.deepcopy(average.state_dict())
    for value in state.values():
        value.mul_(2) if value.is_floating_point() else None
    average.load_state_dict(state)
    assert_close(average.module.fc_cls.weight.data, 2 * model.fc_cls.weight.data)
    path = save({'backbone.x': torch.ones(1)}, tmp_path / 'x.pth')
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), average.module):
        with pytest.raises(WeightsError):
            load_checkpoint(copied, path, map_location='cpu')
    assert log == []


def test_a_runner_finds_the_weights_before_its_other_hooks_need_them(tmp_path):
    wanted = fill(Model()).state_dict()
    path = save(dict(model=wanted, epoch=3), tmp_path / 'x.pth')
    runner = Runner(
        Model(),
        work_dir=str(tmp_path),
        default_scope='mmengine',
        experiment_name='ema',
        custom_hooks=[dict(type='EMAHook'), dict(type='mmcasvit.CheckWeightsHook')],
    )
    runner.call_hook('before_run')
    runner.load_checkpoint(path)
    assert_close(runner.model.state_dict(), wanted)
    averaged = next(hook for hook in runner.hooks if isinstance(hook, EMAHook)).ema_model.module
    assert_close(averaged.state_dict(), wanted)
    del wanted['fc_cls.bias']
    with pytest.raises(WeightsError, match='nothing was loaded'):
        runner.load_checkpoint(save(dict(model=wanted), tmp_path / 'x.pth'))
    runner._resume = True
    with pytest.raises(WeightsError, match='no state of a training run'):
        runner.resume(path)


@pytest.mark.parametrize('container', ['model', ''])
def test_weights_that_moved_leave_nothing_behind_where_the_loader_looks(container):
    model, weights = Model(), Model().state_dict()
    state = (dict(model=weights) if container else dict(weights)) | dict(epoch=3, extra=torch.ones(1))
    if container:
        del state['extra']
    _find_and_compare(model, state, '', {}, False, [], [], [])
    assert set(state) == set(weights) | (set() if container else {'epoch', 'extra'})
    assert model._fit.leftover == ([] if container else ['extra'])
    inner = {f'part.{key}': value for key, value in weights.items()} | {'other.x': torch.ones(1)}
    _find_and_compare(model, before := dict(inner), 'part.', {}, False, [], [], [])
    assert before.keys() == inner.keys()
    assert model._fit.fatal == model._fit.leftover == []


def test_values_other_than_tensors_are_kept(tmp_path):
    class WithState(Model):
        def get_extra_state(self):
            return {'note': 7}

        def set_extra_state(self, state):
            self.note = state['note']

    model = WithState()
    load_checkpoint(model, save(WithState().state_dict(), tmp_path / 'x.pth'), map_location='cpu')
    assert model.note == 7


def test_a_model_sharded_by_fsdp_loads(tmp_path):
    """Its parts contain no whole tensors and are not checked."""
    import torch.distributed as dist
    from torch.distributed.fsdp import FullyShardedDataParallel

    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        wanted = fill(Model()).state_dict()
        model = Model()
        model.backbone.network[0] = FullyShardedDataParallel(model.backbone.network[0], device_id=torch.device('cpu'))
        model = FullyShardedDataParallel(model, device_id=torch.device('cpu'))
        model.load_state_dict(wanted)
        assert_close(model.state_dict(), wanted)
    finally:
        dist.destroy_process_group()


def test_the_authors_classifier_is_renamed_for_a_classifier(tmp_path):
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.dist_head = nn.Linear(220, 1000), nn.Linear(220, 1000)

    class Classifier(BaseModel):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = CASViT('xs', out_indices=3), Heads()

        def forward(self, x):
            return self.backbone(x)

    model = Classifier()
    theirs = published_checkpoint('xs')
    load_checkpoint(model, save(theirs, tmp_path / 'x.pth'), map_location='cpu')
    assert_close(model.state_dict(), to_own_names(theirs['model']))


CONFIGS = dict(
    mmdet=ROOT / 'configs/detection/mask-rcnn_casvit-xs_fpn_6e_shapes.py',
    mmseg=ROOT / 'configs/segmentation/semantic-fpn_casvit-xs_300i_shapes.py',
)


def programs(scope):
    """Return the functions of the framework that build a model from a config and a checkpoint."""
    if scope == 'mmdet':
        from mmdet.apis import DetInferencer as Inferencer
        from mmdet.apis import init_detector as init
    else:
        from mmseg.apis import MMSegInferencer as Inferencer
        from mmseg.apis import init_model as init
    return [
        lambda config, file: init(str(config), file, device='cpu'),
        lambda config, file: Inferencer(str(config), file, device='cpu').model,
    ]


@pytest.mark.parametrize('scope', CONFIGS)
def test_the_functions_of_the_frameworks_load_and_refuse(tmp_path, scope, log):
    pytest.importorskip(scope)
    import importlib

    registry = importlib.import_module(f'{scope}.registry')
    config = write_tiny_config(tmp_path / f'{scope}_tiny.py', CONFIGS[scope])
    cfg = Config.fromfile(config)
    init_default_scope(scope)
    wanted = fill(registry.MODELS.build(cfg.model)).state_dict()
    meta = dict(dataset_meta=dict(classes=('a', 'b'), palette=[[0, 0, 0], [1, 1, 1]]))
    files = [save(dict(model=wanted, meta=meta), tmp_path / 'model.pth'), str(tmp_path / 'x.safetensors')]
    write_checkpoint(dict(state_dict=wanted, meta=meta), tmp_path / 'x.safetensors')
    wider = save(
        dict(
            state_dict={key: torch.cat([value, value]) if value.ndim else value for key, value in wanted.items()},
            meta=meta,
        ),
        tmp_path / 'wider.pth',
    )
    head = 'roi_head.bbox_head.fc_cls' if scope == 'mmdet' else 'decode_head.conv_seg'
    others = {key: value[:-1] if key.startswith(head) else value for key, value in wanted.items()}
    other_classes = save(dict(state_dict=others, meta=meta), tmp_path / 'classes.pth')
    for load, file in zip(programs(scope), files):
        model = load(config, file)
        assert_close(model.state_dict(), wanted)
        assert tuple(model.dataset_meta['classes']) == ('a', 'b')
        assert log == []
        with pytest.raises(WeightsError, match=r'(?s)does not fit the model.*of another shape'):
            load(config, wider)
        model = load(config, other_classes)
        with pytest.raises(WeightsError, match=r'(?s)cannot predict.*with \d classes.*with \d classes'):
            model.backbone(X)
        log.clear()


def test_mmengine_treats_other_pickles_as_before(tmp_path):
    """Importing the package allows more plain values, and no code."""
    from mmengine.logging import HistoryBuffer

    content = published_checkpoint('xs') | dict(log=HistoryBuffer([1.0], [1]))
    torch.load(save(content, tmp_path / 'x.pth'), weights_only=True)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(save(Attack(str(tmp_path / 'trace')), tmp_path / 'y.pth'), weights_only=True)
    assert not (tmp_path / 'trace').exists()
