"""Blocks of the deploy form as they are written to files."""

import pytest
import torch
from helpers.reference import fill, image
from helpers.tiny_backbone import TINY, tiny
from torch import nn
from torch.testing import assert_close

from mmcasvit import CASViT, deploy
from mmcasvit.export.blocks import SeparateBlock, separate_blocks
from mmcasvit.export.graphs import build_graph
from mmcasvit.export.signature import Signature


def operators(graph):
    """Return the names of the operators of a graph."""
    return {str(node.target) for node in torch.export.export(graph, (graph.example(),)).graph.nodes}


@pytest.mark.parametrize('arch', CASViT.arch_settings)
def test_outputs_are_those_of_the_model(arch):
    model, x = fill(CASViT(arch)).eval().double(), image(0, (2, 3, 64, 96)).double()
    separate = deploy(model)
    separate_blocks(separate)
    with torch.no_grad():
        for found, wanted in zip(separate(x), model(x), strict=True):
            assert_close(found, wanted, rtol=0, atol=1e-10 * wanted.abs().max().item())


def test_nothing_is_split_or_joined():
    signature = Signature('pt2', 'backbone', (64, 96))
    graph, plain = (build_graph(tiny().eval(), signature, fold) for fold in (None, False))
    assert sum(isinstance(part, SeparateBlock) for part in graph.modules()) == sum(TINY['depths'])
    assert 'aten.chunk.default' in operators(plain)
    assert not {'aten.chunk.default', 'aten.cat.default'} & operators(graph)


@pytest.mark.parametrize('changes', [dict(token_mixer='pooling'), dict(norm_cfg=dict(type='GN', num_groups=4))])
def test_stages_that_stay_as_they_are(changes):
    deployed = deploy(tiny(**changes).eval())
    stages = list(deployed.stages)
    separate_blocks(deployed)
    assert list(deployed.stages) == stages


def test_a_model_without_a_casvit_is_exported_as_it_is():
    class Other(nn.Conv2d):
        out_indices = (0,)

        def forward(self, x):
            return (super().forward(x),)

    other, x = Other(3, 4, 3).eval(), torch.rand(1, 3, 8, 8)
    graph = build_graph(other, Signature('pt2', 'backbone', (8, 8)))
    assert_close(graph(x), other(x))
