"""Models of timm: they keep its contract, compute what CASViT computes, and load the authors' files safely."""

import importlib
import pickle
import sys

import pytest
import torch
from helpers.attack import Attack
from helpers.reference import fill
from torch import nn
from torch.testing import assert_close

from mmcasvit import CASViT, WeightsError
from mmcasvit.apis.convert import expected_classifier
from mmcasvit.models.classifier import adapt_channels
from mmcasvit.weights.names import to_own_names

try:
    import timm

    import mmcasvit.models.timm_models  # noqa: F401
except (ImportError, RuntimeError):
    timm = None

ARCHS = ('xs', 's', 'm', 't')
needs_timm = pytest.mark.skipif(timm is None, reason='needs timm and the torchvision of the installed PyTorch')


@pytest.fixture(scope='module', params=ARCHS)
def arch(request):
    return request.param


@pytest.fixture(scope='module')
def model(arch):
    return fill(timm.create_model(f'casvit_{arch}')).eval()


@needs_timm
class TestEveryArch:
    """Contract of timm that every arch keeps."""

    def test_names_and_shapes_equal_those_of_our_classifier(self, arch, model):
        expected = expected_classifier(to_own_names(model.state_dict()))
        assert {key: value.shape for key, value in model.state_dict().items()} == {
            key: value.shape for key, value in expected.items()
        }

    def test_features_are_bitwise_those_of_the_backbone(self, arch, x):
        features = fill(timm.create_model(f'casvit_{arch}', features_only=True)).eval()
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

    def test_intermediates_are_the_outputs_of_the_stages(self, arch, model, x):
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
            normalized = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
        assert len(maps) == len(seen) == 4
        assert all(map(torch.equal, maps, seen))
        [normalized] = normalized
        assert torch.equal(normalized, last)
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

    def test_the_config_names_existing_layers(self, arch, model):
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
        # The others are the stem, three downsampling layers, and the heads.
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
    assert timm.list_models('casvit_s*', pretrained=True) == ['casvit_s.ft_in1k_384', 'casvit_s.in1k']


@needs_timm
@pytest.mark.parametrize(
    'asked, stages',
    [((0, 1, 2, 3), (0, 1, 2, 3)), ((1, 3), (1, 3)), ((-3, -1), (1, 3)), ((0,), (0,)), ((1, 2), (1, 2)), (2, (2, 3))],
)
def test_out_indices_select_stages_and_remove_the_rest(asked, stages, x, tiny_xs):
    whole = fill(timm.create_model('casvit_xs', features_only=True)).eval()
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
def test_other_feature_extractors_return_the_maps_before_the_norms(feature_cls, x, classifier_file, classifier):
    features = timm.create_model(
        'casvit_xs',
        features_only=True,
        feature_cls=feature_cls,
        pretrained=True,
        pretrained_cfg_overlay=dict(file=classifier_file),
    ).eval()
    with torch.no_grad():
        assert all(map(torch.equal, features(x), classifier.forward_intermediates(x)[1]))


@needs_timm
def test_without_heads_and_pooling(x, classifier_file, classifier):
    model = classifier
    with torch.no_grad():
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        for pooling, expected in [('avg', pooled), ('', features)]:
            headless = timm.create_model('casvit_xs', num_classes=0, global_pool=pooling, checkpoint_path='')
            headless.load_pretrained(classifier_file)
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
    with pytest.raises(TypeError, match="unexpected keyword argument 'drop_pathrate'"):
        timm.create_model('casvit_xs', drop_pathrate=0.1)


@needs_timm
def test_rates_channels_and_decay_reach_their_places(tiny_xs):
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


@needs_timm
def test_published_files_load_in_every_way(classifier_file, classifier, x):
    ways = [
        dict(checkpoint_path=classifier_file),
        dict(pretrained=True, pretrained_cfg_overlay=dict(file=classifier_file)),
        dict(pretrained=True, pretrained_cfg=dict(file=classifier_file)),
    ]
    with torch.no_grad():
        logits, maps = classifier(x), classifier.forward_intermediates(x)[1]
        for way in ways:
            assert torch.equal(timm.create_model('casvit_xs', **way).eval()(x), logits)
            features = timm.create_model('casvit_xs', features_only=True, out_indices=(1, 3), **way).eval()
            norms = [features.model.backbone.norm2, features.model.backbone.norm6]
            assert all(torch.equal(found, norm(maps[stage])) for found, norm, stage in zip(features(x), norms, (1, 3)))
            assert all(norm.running_mean.abs().sum() == 0 for norm in norms)  # not the norm before the heads


@needs_timm
def test_pretrained_weights_adapt_to_classes_and_channels(classifier_file, classifier, x):
    overlay = dict(pretrained=True, pretrained_cfg_overlay=dict(file=classifier_file))
    few = timm.create_model('casvit_xs', num_classes=7, **overlay).eval()
    with torch.no_grad():
        assert torch.equal(few.forward_features(x), classifier.forward_features(x))
        assert few(x).shape == (2, 7)
        gray = timm.create_model('casvit_xs', in_chans=1, **overlay).eval()
        assert_close(gray(x[:, :1]), classifier(x[:, :1].expand(-1, 3, -1, -1)))
        six = timm.create_model('casvit_xs', features_only=True, in_chans=6, **overlay).eval()
        three = timm.create_model('casvit_xs', features_only=True, **overlay).eval()
        assert_close(six(torch.cat([x, x], 1)), three(x))
    # Heads are not adapted if the file has another number of classes than its config says.
    with pytest.raises(WeightsError, match=r'head\.head\.weight: file'):
        timm.create_model(
            'casvit_xs',
            num_classes=7,
            pretrained=True,
            pretrained_cfg_overlay=dict(file=classifier_file, num_classes=7),
        )
    from timm.models._manipulate import adapt_input_conv

    rgb = torch.rand(4, 3, 3, 3)
    for channels in (1, 2, 4, 5):
        assert_close(adapt_channels(rgb, channels), adapt_input_conv(channels, rgb))


@needs_timm
def test_published_weights_are_found_by_name(classifier_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a file comes before published weights of that name
    weights = torch.load(classifier_file, weights_only=True)['model']
    for name, value in (('xs', 1.0), ('xs-384', 2.0)):
        torch.save(weights | {'head.bias': torch.full((1000,), value)}, name)
    for name, value in (('casvit_xs', 1.0), ('casvit_xs.ft_in1k_384', 2.0)):
        bias = timm.create_model(name, pretrained=True).state_dict()['head.head.bias']
        assert_close(bias, torch.full((1000,), value))


@needs_timm
def test_files_that_cannot_be_loaded_are_refused(classifier_file, tmp_path):
    with pytest.raises(WeightsError, match=r"pretrained_cfg of casvit_s names no weights.*add file='cas-vit"):
        timm.create_model('casvit_s', pretrained=True, pretrained_cfg=dict(num_classes=1000))
    with pytest.raises(WeightsError, match="expected: arch 's', found: arch 'xs'"):
        timm.create_model('casvit_s', pretrained=True, pretrained_cfg_overlay=dict(file=classifier_file))
    backbone_only = tmp_path / 'backbone.pth'
    torch.save(CASViT('xs').state_dict(), backbone_only)
    with pytest.raises(WeightsError, match=r'4 tensors missing in the file: head\.head\.weight'):
        timm.create_model('casvit_xs', pretrained=True, pretrained_cfg_overlay=dict(file=str(backbone_only)))
    evil = tmp_path / 'evil.pth'
    torch.save(dict(torch.load(classifier_file, weights_only=True), extra=Attack(str(tmp_path / 'harmed'))), evil)
    for way, kind in [
        (dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(evil))), WeightsError),
        (dict(checkpoint_path=str(evil)), (RuntimeError, pickle.UnpicklingError)),
    ]:
        with pytest.raises(kind, match='mkdir'):
            timm.create_model('casvit_xs', **way)
    assert not (tmp_path / 'harmed').exists()


@needs_timm
def test_features_load_all_weights_of_a_detector(tmp_path, x, tiny_xs):
    source = fill(CASViT('xs')).eval()
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


def test_without_timm_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm.data', None)
    monkeypatch.setitem(sys.modules, 'timm', None)
    monkeypatch.delitem(sys.modules, 'mmcasvit.models.timm_models', raising=False)
    with pytest.raises(ImportError, match=r'needs timm, pip install "mmcasvit\[timm\]", and the torchvision'):
        importlib.import_module('mmcasvit.models.timm_models')
