"""The hook that watches the stages of a backbone: what it measures, when it warns, and that it changes nothing."""

import json
import signal
from types import SimpleNamespace

import pytest
import torch
from helpers.reports import Page
from helpers.tiny_backbone import TINY
from helpers.toy_run import config, train
from mmengine.model import BaseModel
from torch import nn
from torch.testing import assert_close

from mmcasvit import CASViT, CompileHook, StageHealthHook, get_config
from mmcasvit.engine.compare_runs import differences, outcome
from mmcasvit.report.logs import join, read_runs
from mmcasvit.report.page import render_report


class Model(BaseModel):
    """Classifier with a small CAS-ViT, whose losses depend on all of its outputs."""

    def __init__(self, **backbone):
        super().__init__()
        self.backbone = CASViT(TINY, **backbone)
        self.head = nn.Linear(sum(self.backbone.out_channels), 2)

    def forward(self, inputs, labels, mode='tensor'):
        maps = self.backbone(inputs.repeat(1, 1, 8, 8))
        scores = self.head(torch.cat([x.mean((2, 3)) for x in maps], 1))
        return dict(loss=nn.functional.cross_entropy(scores, labels)) if mode == 'loss' else [scores]


class Recorder:
    """Stands in for a runner: keeps the scalars and what is logged."""

    def __init__(self, model):
        self.model, self.iter, self.cfg = model, 0, {}
        self.scalars, self.warnings, self.said = {}, [], []
        self.visualizer = SimpleNamespace(add_scalars=lambda scalars, step: self.scalars.update({step: scalars}))
        self.logger = SimpleNamespace(warning=self.warnings.append, info=self.said.append)

    def step(self, hook, x):
        hook.before_train_iter(self, self.iter)
        self.model(x)
        hook.after_train_iter(self, self.iter)
        self.iter += 1


def measured(backbone, x, steps=1, **options):
    """Let a new hook watch forward passes in training mode, and return what it left."""
    model = nn.Module()
    model.backbone = backbone.train()
    model.forward = lambda x: backbone(x)
    hook, runner = StageHealthHook(interval=1, **options), Recorder(model)
    hook.before_train(runner)
    for _ in range(steps):
        runner.step(hook, x)
    return runner


def hooks_of(model):
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


class Pyramid(nn.Module):
    """A backbone of another kind, with two outputs and a norm each."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.norm1(x)
        return x, self.norm2(x[:, :, ::2, ::2])


def test_the_numbers_are_those_of_their_definitions():
    torch.manual_seed(0)
    x = torch.randn(8, 4, 6, 6) * torch.tensor([1.0, 2, 3, 4])[:, None, None]
    backbone = Pyramid()
    backbone.norm1.running_var.fill_(0.5)
    with torch.no_grad():
        backbone.norm1.weight[:2] = 1e-4
    runner = measured(backbone, x)
    found, maps = runner.scalars[1], backbone.train()(x)
    for number, (y, given) in enumerate(zip(maps, (x, maps[0][:, :, ::2, ::2])), 1):
        y, given = (z.detach().transpose(0, 1).flatten(1) for z in (y, given))
        assert_close(found[f'stages/spread_{number}'], float(y.std(1, correction=0).median()))
        # The second norm brings the variance of 1e-8 to that divided by its eps, which is not dead.
        assert found[f'stages/dead_channels_{number}'] == (0.5 if number == 1 else 0)
        ratio = (given.var(1, correction=0) + 1e-5) / ((0.5 if number == 1 else 1.0) + 1e-5)
        assert_close(found[f'stages/variance_ratio_{number}'], float(ratio.median()))


def test_stages_of_a_casvit_are_seen_before_the_norms_that_hide_them():
    torch.manual_seed(0)
    backbone = CASViT(TINY, out_indices=(1, 3))
    outputs = []
    backbone.network[4].register_forward_hook(lambda _, __, x: outputs.append(x))
    runner = measured(backbone, torch.randn(4, 3, 64, 64))
    spread = outputs[0].transpose(0, 1).flatten(1).std(1, correction=0).median()
    assert_close(runner.scalars[1]['stages/spread_3'], float(spread))
    names = {f'stages/{kind}_{n}' for kind in ('spread', 'dead_channels', 'variance_ratio') for n in (1, 2, 3, 4)}
    assert runner.scalars[1].keys() == names


def shrink(backbone, stage, factor):
    """Shrink all that writes into the maps of a stage."""
    with torch.no_grad():
        writers = [backbone.network[2 * stage - 1].norm]
        for block in backbone.network[2 * stage]:
            writers += [block.local_perception.network[-1], block.attn.proj, block.mlp.fc2]
        for layer in writers:
            layer.weight *= factor
            layer.bias *= factor


@pytest.mark.parametrize('stage', [1, 2, 3])
def test_a_dying_stage_is_named_once_with_the_remedy(stage):
    torch.manual_seed(0)
    backbone, x = CASViT(TINY), torch.randn(4, 3, 64, 64)
    assert measured(backbone, x, steps=3).warnings == []
    shrink(backbone, stage, 1e-4)
    runner = measured(backbone, x, steps=3)
    assert runner.scalars[1][f'stages/dead_channels_{stage + 1}'] == 1
    (warning,) = runner.warnings
    assert f'stage {stage + 1} of the backbone is dying' in warning
    for remedy in ('learning rate', 'norm_decay_mult=0', 'warm-up'):
        assert remedy in warning


def test_a_shrinking_stage_explodes_on_what_does_not_shrink_as_the_warning_says():
    torch.manual_seed(0)
    backbone, x = CASViT(TINY), torch.randn(4, 3, 64, 64)
    for norm in backbone.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    measured(backbone, x)
    before = backbone.eval()(x)[2].abs().max()
    backbone.network[3].norm.weight.data *= 1e-4
    shrink(backbone, 2, 1e-2)
    runner = measured(backbone, x, steps=2)  # the statistics of the norms follow
    assert any('stage 3 of the backbone is dying' in warning for warning in runner.warnings)
    backbone.network[3].norm.weight.data *= 1e6  # the stage has inputs of their old size again
    assert backbone.eval()(x)[2].abs().max() > 100 * before


def test_norms_that_are_dead_or_outgrown_are_warned_of():
    torch.manual_seed(0)
    backbone, x = CASViT(TINY), torch.randn(4, 3, 64, 64)
    norm = backbone.network[6][0].attn.oper_k[0].block[1]
    norm.running_var.fill_(1e-7)
    (warning,) = measured(backbone, x).warnings
    assert 'stage 4 of the backbone is dying: 100 %' in warning
    backbone.network[2][0].norm1.running_var.fill_(1e-3)
    warnings = measured(backbone, x).warnings
    assert any('stage 2 of the backbone outgrows the statistics of its norms' in warning for warning in warnings)
    assert not any('stage 2' in warning for warning in measured(backbone, x, ratio=1e9).warnings)


def test_frozen_statistics_do_not_count():
    torch.manual_seed(0)
    backbone = CASViT(TINY, norm_eval=True)
    backbone.network[6][0].norm1.running_var.fill_(1e-7)
    runner = measured(backbone, torch.randn(2, 3, 64, 64))
    assert runner.warnings == []
    assert not any('variance_ratio' in name for name in runner.scalars[1])


def test_hooks_are_on_only_while_it_measures():
    model = nn.Module()
    model.backbone, present = CASViT(TINY), []

    def forward(x):
        present.append(hooks_of(model) > 0)
        model.backbone(x)

    model.forward = forward
    hook, runner = StageHealthHook(interval=3), Recorder(model.train())
    hook.before_train(runner)
    for _ in range(7):
        runner.step(hook, torch.randn(2, 3, 64, 64))
    assert present == [False, False, True, False, False, True, False]
    assert hooks_of(model) == 0
    assert list(runner.scalars) == [3, 6]


@pytest.mark.parametrize('what', ['none', 'tokens', 'compiled', 'compiled step'])
def test_models_that_cannot_be_watched_are_left_alone(what):
    model = nn.Module()
    if what != 'none':
        model.backbone = nn.Flatten(2) if what == 'tokens' else CASViT(TINY)
    model.forward = lambda x: model.backbone(x) if what == 'tokens' else None
    hook, runner = StageHealthHook(interval=1), Recorder(model)
    if what == 'compiled':
        CompileHook(backend='eager').before_run(runner)
    if what == 'compiled step':
        runner.cfg = dict(compile=True)
    hook.before_train(runner)
    for _ in range(3):
        runner.step(hook, torch.randn(2, 3, 64, 64))
    (said,) = runner.said
    assert dict(none='has no backbone', tokens='does not return maps').get(what, 'is compiled') in said
    assert runner.scalars == {}
    assert hooks_of(model) == 0


def test_the_model_may_be_wrapped():
    """See tests/engine/test_processes.py for several processes."""
    torch.manual_seed(0)
    model = nn.DataParallel(Model())
    hook, runner = StageHealthHook(interval=1), Recorder(model)
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    model(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]), mode='loss')
    hook.after_train_iter(runner, 0)
    assert runner.scalars[1]['stages/spread_4'] > 0
    assert hooks_of(model) == 0


@pytest.mark.parametrize(
    'arguments, words', [(dict(interval=0), 'interval'), (dict(dead=0), 'dead'), (dict(ratio=1), 'ratio')]
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        StageHealthHook(**arguments)


def settings(work_dir, watched, backbone=None, **case):
    chosen = config(work_dir, by_epoch=True, interval=3, **case)
    chosen['model'] = dict(type=Model, drop_path_rate=0.3, **(backbone or {}))
    if watched:
        chosen['custom_hooks'].append(dict(type='mmcasvit.StageHealthHook', interval=2))
    return chosen


@pytest.mark.parametrize(
    'case', [dict(), dict(amp=True, gather=2, backbone=dict(with_cp=True))], ids=['plain', 'amp, gathered, recomputed']
)
def test_training_is_the_same_with_the_hook_bit_for_bit(tmp_path, case):
    for watched in (False, True):
        assert train(settings(tmp_path / str(watched), watched, **case)) == 0
    found, wanted = outcome(tmp_path / 'True'), outcome(tmp_path / 'False')
    logged = [name for name in found if '/stages/' in name]
    assert len(logged) == 6 * 4 * 3, 'six measurements of three numbers of four stages'
    assert all(0 <= found[name] < 100 for name in logged)
    others = {name: value for name, value in found.items() if name in wanted or not name.startswith('log/')}
    assert differences(others, wanted) == []


def test_the_curves_are_in_tensorboard_and_in_the_report_also_after_a_resume(tmp_path):
    first = settings(tmp_path, True, kill=('after', 7))
    second = settings(tmp_path, True, resume=True)
    for chosen in (first, second):
        chosen['visualizer']['vis_backends'].append(dict(type='TensorboardVisBackend'))
        chosen['log_level'] = 'INFO'  # the report reads from the log where a run was resumed
    assert train(first) == -signal.SIGKILL
    assert train(second) == 0
    history = join(read_runs(tmp_path))
    steps, values = history.stages['stages/spread_1']
    assert steps == [2, 4, 6, 8, 10, 12]
    assert min(values) > 0
    assert not any('stages/' in name for name in [*history.training, *history.validation])
    page = Page(render_report(tmp_path))
    assert any(image['alt'].startswith('spread, dead channels') for image in page.images)

    reader = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    folder = sorted(tmp_path.glob('2*/vis_data'))[-1]
    events = reader.EventAccumulator(str(folder))
    events.Reload()
    lines = [json.loads(line) for line in (folder / 'scalars.json').read_text().splitlines()]
    wanted = {line['step']: line['stages/spread_1'] for line in lines if 'stages/spread_1' in line}
    assert {event.step: pytest.approx(event.value) for event in events.Scalars('stages/spread_1')} == wanted


@pytest.mark.parametrize(
    'name',
    [
        'mask-rcnn_casvit-m_fpn_1x_coco',
        'retinanet_casvit-xs_fpn_6e_shapes',
        'upernet_casvit-xs_8xb2-160k_ade20k-512x512',
        'semantic-fpn_casvit-xs_300i_shapes',
        'rtmdet_casvit-xs_8xb32-300e_coco-320',
        'ssdlite_casvit-xs_24e_shapes',
        'casvit-xs_8xb128-300e_in1k-224',
    ],
)
def test_recipes_have_it(name):
    assert [hook.type for hook in get_config(name).custom_hooks].count('mmcasvit.StageHealthHook') == 1
