import argparse

import pytest
import torch
from helpers.reference import fill
from helpers.tiny_backbone import TINY

from mmcasvit import CASViT
from mmcasvit.models.classifier import CASViTClassifier
from mmcasvit.weights.names import to_authors_names


@pytest.fixture
def tiny_xs(monkeypatch):
    """Make the arch xs small."""
    monkeypatch.setitem(CASViT.arch_settings, 'xs', TINY)


@pytest.fixture
def classifier(tiny_xs):
    return fill(CASViTClassifier()).eval()


@pytest.fixture
def classifier_file(classifier, tmp_path):
    """A file as the authors' code saves it."""
    file = tmp_path / 'cas-vit-xs.pth'
    torch.save(dict(model=to_authors_names(classifier.state_dict()), epoch=299, args=argparse.Namespace(lr=6e-3)), file)
    return str(file)


@pytest.fixture(scope='session')
def x():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
