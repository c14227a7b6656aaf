"""torch.hub finds the entry points, and they return the models of the package."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from helpers.repository import ROOT

from mmcasvit import CASViT, WeightsError
from mmcasvit.models.classifier import CASViTClassifier
from mmcasvit.utils.errors import UsageError
from mmcasvit.weights.names import to_authors_names

REPOSITORY = str(ROOT)
ENTRIES = [f'casvit_{arch}{kind}' for arch in ('xs', 's', 'm', 't') for kind in ('', '_backbone')] + ['model']


def load(entry, *args, **kwargs):
    return torch.hub.load(REPOSITORY, entry, *args, source='local', **kwargs)


@pytest.fixture
def tiny(monkeypatch):
    for arch, width in zip(('xs', 's', 'm', 't'), (8, 10, 12, 14)):
        monkeypatch.setitem(CASViT.arch_settings, arch, dict(depths=(1, 1, 1, 1), channels=(8, 8, 8, width)))


def test_entries_are_listed_and_explained_without_importing_the_package(tmp_path):
    # Both search only PyTorch's folder of downloaded repositories, and download what is not there.
    (tmp_path / 'hub').mkdir()
    (tmp_path / 'hub/someone_mmcasvit_main').symlink_to(ROOT)
    code = (
        'import sys, torch;'
        'repository = dict(github="someone/mmcasvit:main", skip_validation=True, trust_repo=True);'
        'print(*torch.hub.list(**repository)); print(torch.hub.help(model="casvit_xs", **repository));'
        'assert not {"mmcasvit", "mmengine", "mmcv", "timm"} & set(sys.modules)'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env={**os.environ, 'TORCH_HOME': str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    listed, *explained = done.stdout.splitlines()
    assert sorted(listed.split()) == sorted(ENTRIES)
    assert 'checkpoint: A file of the authors' in '\n'.join(explained)


@pytest.mark.parametrize('arch, width', [('xs', 8), ('s', 10), ('m', 12), ('t', 14)])
def test_every_arch_loads_as_classifier_and_as_backbone(arch, width, tiny, tmp_path):
    original = CASViTClassifier(arch, num_classes=7).eval()
    file = tmp_path / 'cas-vit.pth'
    torch.save(dict(model=to_authors_names(original.state_dict())), file)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        same = load(f'casvit_{arch}', checkpoint=str(file), num_classes=7).eval()
        assert torch.equal(same(x), original(x))
        other = load(f'casvit_{arch}', checkpoint=str(file), num_classes=3).eval()
        assert torch.equal(other.forward_features(x), original.forward_features(x))
        assert other(x).shape == (1, 3)
        backbone = load(f'casvit_{arch}_backbone', checkpoint=str(file), out_indices=(0, -1)).eval()
        assert torch.equal(backbone.network[0][0].mlp.fc1.weight, original.backbone.network[0][0].mlp.fc1.weight)
        assert [out.shape[1] for out in backbone(x)] == [8, width]


def test_a_segmentor_loads_by_the_name_of_its_config(tmp_path):
    name = 'semantic-fpn_casvit-xs_300i_shapes'
    segmentor = load('model', name)
    assert type(segmentor).__name__ == 'EncoderDecoder'
    assert not segmentor.training
    torch.save(dict(state_dict=segmentor.state_dict()), tmp_path / 'segmentor.pth')
    again = load('model', name, checkpoint=str(tmp_path / 'segmentor.pth'))
    assert torch.equal(again.decode_head.conv_seg.weight, segmentor.decode_head.conv_seg.weight)
    with pytest.raises(UsageError, match='Did you mean retinanet_casvit-xs'):
        load('model', 'retinanet_casvit-xs_fpn')


def test_wrong_arguments_and_missing_packages_are_reported(tiny, tmp_path, monkeypatch):
    for entry in ('casvit_xs', 'casvit_xs_backbone'):
        with pytest.raises(ValueError, match='either checkpoint or pretrained=True'):
            load(entry, checkpoint='cas-vit.pth', pretrained=True)
        with pytest.raises(TypeError, match="unexpected keyword argument 'drop_pathrate'"):
            load(entry, drop_pathrate=0.1)
        torch.save(dict(model=to_authors_names(CASViTClassifier('s').state_dict())), tmp_path / 's.pth')
        with pytest.raises(WeightsError, match="expected: arch 'xs', found: arch 's'"):
            load(entry, checkpoint=str(tmp_path / 's.pth'))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *rest: None if name == 'mmcv' else found(name, *rest))
    with pytest.raises(RuntimeError, match='Missing dependencies: mmcv'):
        load('casvit_xs')
