"""timm's users: the models keep timm's contract, compute what CASViT computes, and load the authors' files safely."""

import argparse
import copy
import importlib
import os
import pickle
import sys

import pytest
import torch
from helpers.reference import OFFICIAL_OUTPUTS, image, weight
from torch import nn
from torch.testing import assert_close

from mmcasvit import CASViT, WeightsError
from mmcasvit.apis.convert import expected_classifier
from mmcasvit.models.classifier import CASViTClassifier, adapt_channels
from mmcasvit.weights.names import to_authors_names, to_own_names

try:
    import timm

    import mmcasvit.models.timm_models  # noqa: F401
except (ImportError, RuntimeError):
    timm = None

ARCHS = ('xs', 's', 'm', 't')
TINY = dict(depths=(1, 2, 1, 1), channels=(8, 12, 16, 24))
needs_timm = pytest.mark.skipif(timm is None, reason='needs timm and the torchvision of the installed PyTorch')


def randomised(model):
    """In evaluation mode, with norms that do something."""
    rng = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in [
                (module.weight.data, 0.3, 0.7),
                (module.bias.data, -0.1, 0.1),
                (module.running_mean, -0.1, 0.1),
                (module.running_var, 0.5, 1.5),
            ]:
                tensor.uniform_(low, high, generator=rng)
    return model.eval()


@pytest.fixture
def tiny(monkeypatch):
    """Makes xs small, in which nothing but its table differs."""
    monkeypatch.setitem(CASViT.arch_settings, 'xs', TINY)


@pytest.fixture
def classifier(tiny):
    return randomised(CASViTClassifier())


@pytest.fixture
def published(classifier, tmp_path):
    """A file as the authors' code saves it."""
    file = tmp_path / 'cas-vit-xs.pth'
    torch.save(dict(model=to_authors_names(classifier.state_dict()), epoch=299, args=argparse.Namespace(lr=6e-3)), file)
    return str(file)


@pytest.fixture(scope='module')
def x():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    'case',
    [case for case in OFFICIAL_OUTPUTS['logits'] if case['arch'] == 'xs'],
    ids=lambda c: f'{c["seed"]}-{c["mode"]}',
)
def test_logits_are_those_of_the_authors(case):
    model = CASViTClassifier(case['arch']).double()
    names = to_authors_names(model.state_dict())
    model.load_state_dict({key: weight(key, value.shape) for key, value in names.items()})
    with torch.no_grad():
        logits = model.train(case['mode'] == 'train')(image(case['seed'], case['shape']))
    expected = case['logits']
    found = torch.stack([logits.mean(), logits.std(), logits.norm(), *logits.flatten()[expected['index']]])
    wanted = [expected['mean'], expected['std'], expected['l2'], *expected['value']]
    assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.fixture(scope='module', params=ARCHS)
def arch(request):
    return request.param


@pytest.fixture(scope='module')
def model(arch):
    return randomised(timm.create_model(f'casvit_{arch}'))


@needs_timm
class TestEveryArch:
    """What timm asks of each of its models."""

    def test_names_and_shapes_are_those_of_our_classifier(self, arch, model):
        expected = expected_classifier(to_own_names(model.state_dict()))
        assert {key: value.shape for key, value in model.state_dict().items()} == {
            key: value.shape for key, value in expected.items()
        }

    def test_features_are_the_maps_of_the_backbone_to_the_last_bit(self, arch, x):
        features = randomised(timm.create_model(f'casvit_{arch}', features_only=True))
        with torch.device('meta'):
            backbone = CASViT(arch).eval()
        state = {key.removeprefix('model.backbone.'): value for key, value in features.state_dict().items()}
        backbone.load_state_dict(state, assign=True)
        channels = CASViT.arch_settings[arch]['channels']
        assert tuple(features.feature_info.channels()) == channels
        assert tuple(features.feature_info.reduction()) == CASViT.strides
        with torch.no_grad():
            maps, expected = features(x), backbone(x)
        for found, wanted, width, stride in zip(maps, expected, channels, CASViT.strides, strict=True):
            assert torch.equal(found, wanted)
            assert found.shape == (2, width, 64 // stride, 96 // stride)

    def test_intermediates_are_what_the_backbone_goes_through(self, arch, model, x):
        seen = []
        handles = [
            model.get_submodule(info['module']).register_forward_hook(lambda *args: seen.append(args[2]))
            for info in model.feature_info
        ]
        with torch.no_grad():
            last, maps = model.forward_intermediates(x)
            for handle in handles:
                handle.remove()
            assert torch.equal(last, model.forward_features(x))
            behind_norm = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
        assert len(maps) == len(seen) == 4
        assert all(map(torch.equal, maps, seen))
        [behind_norm] = behind_norm
        assert torch.equal(behind_norm, last)
        assert [m.shape[1] for m in maps] == [info['num_chs'] for info in model.feature_info]
        assert [x.shape[2] // m.shape[2] for m in maps] == [info['reduction'] for info in model.feature_info]

    def test_the_head_pools_and_classifies(self, arch, model, x):
        width = CASViT.arch_settings[arch]['channels'][-1]
        assert model.num_features == model.head_hidden_size == width
        head, dist_head = model.get_classifier()
        with torch.no_grad():
            features = model.forward_features(x)
            pooled = model.forward_head(features, pre_logits=True)
            logits = model(x)
        assert_close(pooled, features.mean((2, 3)))
        assert torch.equal(logits, model.forward_head(features))
        assert_close(logits, (head(pooled) + dist_head(pooled)) / 2)
        assert (pooled.shape, logits.shape) == ((2, width), (2, 1000))

    def test_the_config_names_layers_that_are_there(self, arch, model):
        cfg = model.pretrained_cfg
        assert isinstance(model.get_submodule(cfg['first_conv']), nn.Conv2d)
        assert tuple(map(model.get_submodule, cfg['classifier'])) == model.get_classifier()
        assert cfg['num_classes'] == model.get_classifier()[0].out_features == 1000
        assert (cfg['input_size'], cfg['crop_pct'], cfg['interpolation']) == ((3, 224, 224), 0.875, 'bicubic')
        assert cfg['mean'] == pytest.approx([v / 255 for v in (123.675, 116.28, 103.53)])
        assert cfg['std'] == pytest.approx([v / 255 for v in (58.395, 57.12, 57.375)])

    def test_every_parameter_has_a_depth(self, arch, model):
        from timm.models import group_parameters

        stages, blocks = 4, sum(CASViT.arch_settings[arch]['depths'])
        # Besides: the stem, three times downsampling, and the heads.
        for coarse, count in [(True, stages + 5), (False, blocks + 5)]:
            groups = list(group_parameters(model, model.group_matcher(coarse)).values())
            names = [name for name, _ in model.named_parameters()]
            assert sorted(name for group in groups for name in group) == sorted(names)
            assert all(name.startswith('backbone.patch_embed') for name in groups[0])
            assert {name.split('.')[0] for name in groups[-1]} - {'backbone'} == {'head'}
            assert len(groups) == count


@needs_timm
def test_the_fine_tuned_config_sees_the_whole_image():
    cfg = timm.data.resolve_model_data_config(timm.create_model('casvit_m.ft_in1k_384', num_classes=0))
    assert (cfg['input_size'], cfg['crop_pct'], cfg['crop_mode']) == ((3, 384, 384), 1.0, 'squash')
    assert timm.list_models('casvit*') == [f'casvit_{arch}' for arch in sorted(ARCHS)]
    assert not timm.list_models('casvit*', pretrained=True)


@needs_timm
@pytest.mark.parametrize(
    'asked, stages',
    [((0, 1, 2, 3), (0, 1, 2, 3)), ((1, 3), (1, 3)), ((-3, -1), (1, 3)), ((0,), (0,)), ((1, 2), (1, 2)), (2, (2, 3))],
)
def test_out_indices_choose_stages_and_leave_out_the_rest(asked, stages, x, tiny):
    whole = randomised(timm.create_model('casvit_xs', features_only=True))
    some = timm.create_model('casvit_xs', features_only=True, out_indices=asked).eval()
    some.load_state_dict({key: whole.state_dict()[key] for key in some.state_dict()})
    with torch.no_grad():
        expected, maps = whole(x), some(x)
    assert len(maps) == len(stages)
    assert all(torch.equal(found, expected[stage]) for found, stage in zip(maps, stages))
    assert [m.shape[1] for m in maps] == some.feature_info.channels()
    assert [x.shape[2] // m.shape[2] for m in maps] == some.feature_info.reduction()
    some.train()
    sum(out.mean() for out in some(x)).backward()
    assert [name for name, p in some.named_parameters() if p.grad is None] == []


@needs_timm
@pytest.mark.parametrize('feature_cls', ['hook', 'fx'])
def test_other_ways_to_features_give_the_maps_in_front_of_the_norms(feature_cls, x, published, classifier):
    features = timm.create_model(
        'casvit_xs',
        features_only=True,
        feature_cls=feature_cls,
        pretrained=True,
        pretrained_cfg_overlay=dict(file=published),
    ).eval()
    with torch.no_grad():
        assert all(map(torch.equal, features(x), classifier.forward_intermediates(x)[1]))


def test_a_pruned_model_runs_up_to_its_last_stage(x, classifier):
    model = classifier
    with torch.no_grad():
        maps = model.forward_intermediates(x)[1]
        last, [early] = model.forward_intermediates(x, [1], stop_early=True)
        assert torch.equal(last, maps[1])
        assert torch.equal(early, maps[1])
        assert model.prune_intermediate_layers([-3, 0]) == [1, 0]
        assert torch.equal(model(x), maps[1])
    assert (model.num_classes, model.num_features, model.get_classifier()[0]) == (0, 12, model.head.head)
    assert isinstance(model.head.head, nn.Identity)
    with pytest.raises(ValueError, match='0 to 1'):
        model.forward_intermediates(x, [2])


@needs_timm
def test_without_heads_and_pooling(x, published, classifier):
    model = classifier
    with torch.no_grad():
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        for pooling, expected in [('avg', pooled), ('', features)]:
            headless = timm.create_model('casvit_xs', num_classes=0, global_pool=pooling, checkpoint_path='')
            headless.load_pretrained(published)
            assert torch.equal(headless.eval()(x), expected)
        model.reset_classifier(0, '')
        assert torch.equal(model(x), features)
        model.reset_classifier(0, 'avg')
        assert torch.equal(model(x), pooled)
        model.double().train().reset_classifier(5)
        assert model(x.double()).shape == (2, 5)
        assert (model.num_classes, model.head.training) == (5, True)
    for wrong in (dict(global_pool=''), dict(global_pool='max')):
        with pytest.raises(ValueError, match='global_pool'):
            timm.create_model('casvit_xs', **wrong)
    with pytest.raises(TypeError, match="no argument 'drop_pathrate'"):
        timm.create_model('casvit_xs', drop_pathrate=0.1)


@needs_timm
def test_rates_channels_and_decay_reach_their_places(tiny):
    model = timm.create_model('casvit_xs', in_chans=4, drop_path_rate=0.3, drop_rate=0.2, num_classes=3)
    assert model.backbone.patch_embed[0].in_channels == model.in_chans == 4
    assert model.backbone.network[6][-1].drop_path.drop_prob == pytest.approx(0.3)
    assert model.head_drop.p == 0.2
    from timm.optim import param_groups_layer_decay

    groups = param_groups_layer_decay(model, 0.05, layer_decay=0.5, no_weight_decay_list=model.no_weight_decay())
    assert model.no_weight_decay() == set()
    assert all((p.ndim <= 1) == (group['weight_decay'] == 0) for group in groups for p in group['params'])
    scales = {id(p): group['lr_scale'] for group in groups for p in group['params']}
    assert scales[id(model.head.head.weight)] == 1
    assert scales[id(model.backbone.patch_embed[0].weight)] == 0.5**9


def test_training_reaches_every_parameter_and_both_heads(x):
    model = randomised(CASViTClassifier(TINY, 5, drop_path_rate=0.1)).train()
    model(x).square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    model.set_distilled_training()
    logits = model(x)
    assert [out.shape for out in logits] == [(2, 5), (2, 5)]
    assert not torch.equal(*logits)
    assert model.eval()(x).shape == (2, 5)


@pytest.mark.parametrize('enable', [True, 'selective'])
def test_grad_checkpointing_keeps_gradients_and_saves_memory(enable, x):
    grads, saved = [], []
    original = randomised(CASViTClassifier(TINY, 5))
    for recompute in (False, enable):
        model = copy.deepcopy(original).train()
        model.set_grad_checkpointing(recompute)
        saved.append(0)

        def count(tensor):
            saved[-1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = model(x).square().mean()
        loss.backward()
        grads.append([p.grad for p in model.parameters()])
    assert_close(grads[1], grads[0])
    assert saved[1] < 0.7 * saved[0]
    model.set_grad_checkpointing(False)
    assert not any(getattr(module, 'with_cp', False) for module in model.modules())


@needs_timm
def test_published_files_load_in_every_way(published, classifier, x):
    ways = [
        dict(checkpoint_path=published),
        dict(pretrained=True, pretrained_cfg_overlay=dict(file=published)),
        dict(pretrained=True, pretrained_cfg=dict(file=published)),
    ]
    with torch.no_grad():
        logits, maps = classifier(x), classifier.forward_intermediates(x)[1]
        for way in ways:
            assert torch.equal(timm.create_model('casvit_xs', **way).eval()(x), logits)
            features = timm.create_model('casvit_xs', features_only=True, out_indices=(1, 3), **way).eval()
            norms = [features.model.backbone.norm2, features.model.backbone.norm6]
            assert all(torch.equal(found, norm(maps[stage])) for found, norm, stage in zip(features(x), norms, (1, 3)))
            assert all(norm.running_mean.abs().sum() == 0 for norm in norms)  # not the norm in front of the heads


@needs_timm
def test_pretrained_weights_adapt_to_classes_and_channels(published, classifier, x):
    overlay = dict(pretrained=True, pretrained_cfg_overlay=dict(file=published))
    few = timm.create_model('casvit_xs', num_classes=7, **overlay).eval()
    with torch.no_grad():
        assert torch.equal(few.forward_features(x), classifier.forward_features(x))
        assert few(x).shape == (2, 7)
        grey = timm.create_model('casvit_xs', in_chans=1, **overlay).eval()
        assert_close(grey(x[:, :1]), classifier(x[:, :1].expand(-1, 3, -1, -1)))
        six = timm.create_model('casvit_xs', features_only=True, in_chans=6, **overlay).eval()
        three = timm.create_model('casvit_xs', features_only=True, **overlay).eval()
        assert_close(six(torch.cat([x, x], 1)), three(x))
    # Weights of another number of classes than the file is said to have are no matter of adaptation.
    with pytest.raises(WeightsError, match=r'head\.head\.weight: file'):
        timm.create_model(
            'casvit_xs', num_classes=7, pretrained=True, pretrained_cfg_overlay=dict(file=published, num_classes=7)
        )
    from timm.models._manipulate import adapt_input_conv

    rgb = torch.rand(4, 3, 3, 3)
    for channels in (1, 2, 4, 5):
        assert_close(adapt_channels(rgb, channels), adapt_input_conv(channels, rgb))


class _Harm:
    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return os.mkdir, (self.file,)


@needs_timm
def test_what_cannot_be_loaded_is_refused(published, tmp_path):
    with pytest.raises(WeightsError, match=r'no weights of casvit_s are hosted.*pretrained_cfg_overlay=dict\(file='):
        timm.create_model('casvit_s', pretrained=True)
    with pytest.raises(WeightsError, match="expected: arch 's', found: arch 'xs'"):
        timm.create_model('casvit_s', pretrained=True, pretrained_cfg_overlay=dict(file=published))
    backbone_only = tmp_path / 'backbone.pth'
    torch.save(CASViT('xs').state_dict(), backbone_only)
    with pytest.raises(WeightsError, match=r'4 tensors missing in the file: head\.head\.weight'):
        timm.create_model('casvit_xs', pretrained=True, pretrained_cfg_overlay=dict(file=str(backbone_only)))
    evil = tmp_path / 'evil.pth'
    torch.save(dict(torch.load(published, weights_only=True), extra=_Harm(tmp_path / 'harmed')), evil)
    for way, kind in [
        (dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(evil))), WeightsError),
        (dict(checkpoint_path=str(evil)), (RuntimeError, pickle.UnpicklingError)),
    ]:
        with pytest.raises(kind, match='mkdir'):
            timm.create_model('casvit_xs', **way)
    assert not (tmp_path / 'harmed').exists()


@needs_timm
def test_features_load_detectors_whole(tmp_path, x, tiny):
    source = randomised(CASViT('xs'))
    file = tmp_path / 'detector.pth'
    torch.save(
        dict(
            state_dict={f'backbone.{key}': value for key, value in source.state_dict().items()}
            | {'neck.weight': torch.ones(2)}
        ),
        file,
    )
    for way in (dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(file))), dict(checkpoint_path=str(file))):
        features = timm.create_model('casvit_xs', features_only=True, **way).eval()
        with torch.no_grad():
            assert all(map(torch.equal, features(x), source(x)))


def test_a_state_dict_survives_the_way_through_a_model_of_somebody():
    inner = randomised(CASViTClassifier(TINY, 5))
    outer = nn.Sequential(nn.Identity(), CASViTClassifier(TINY, 5))
    outer.load_state_dict({f'1.{key}': value for key, value in to_authors_names(inner.state_dict()).items()})
    assert_close(dict(outer[1].state_dict()), dict(inner.state_dict()))


def test_without_timm_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm.data', None)
    monkeypatch.setitem(sys.modules, 'timm', None)
    monkeypatch.delitem(sys.modules, 'mmcasvit.models.timm_models', raising=False)
    with pytest.raises(ImportError, match=r'needs timm, pip install "mmcasvit\[timm\]", and the torchvision'):
        importlib.import_module('mmcasvit.models.timm_models')
