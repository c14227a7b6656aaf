"""Whole detectors compute the same losses, gradients and predictions with the operators of mmcasvit as with mmcv's."""

import pytest
import torch
from helpers.repository import ROOT
from torch.testing import assert_close

from mmcasvit.benchmark.mmcv_ops import using
from mmcasvit.benchmark.models import build_subject
from mmcasvit.ops import extension


@pytest.fixture(scope='module', params=['mask-rcnn', 'retinanet'])
def subject(request):
    return build_subject(str(ROOT / f'configs/detection/{request.param}_casvit-xs_fpn_6e_shapes.py'))


@pytest.mark.slow
def test_losses_and_gradients(compiled, subject):
    model = subject.module.train()
    data = model.data_preprocessor(subject.example(2, (128, 160)), training=True)
    results = []
    for module in (compiled, extension):
        torch.manual_seed(0)  # of the samplers
        model.zero_grad()
        with using(module):
            loss = subject.loss(data)
            loss.backward()
        results.append((loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    (wanted_loss, wanted), (loss, found) = results
    assert_close(loss, wanted_loss)
    # Together: the gradient of a bias before a norm is nothing but rounding.
    assert (found - wanted).norm() < 1e-4 * wanted.norm()


@pytest.mark.slow
def test_predictions(compiled, subject):
    model = subject.module.eval()
    results = []
    for module in (compiled, extension):
        data = model.data_preprocessor(subject.example(2, (128, 160)))
        with using(module), torch.no_grad():
            results.append([sample.pred_instances for sample in model(**data, mode='predict')])
    for wanted, found in zip(*results):
        assert len(wanted) > 10
        assert found.labels.tolist() == wanted.labels.tolist()
        assert_close(found.scores, wanted.scores)
        assert_close(found.bboxes, wanted.bboxes, rtol=1e-5, atol=1e-3)
        if 'masks' in wanted:
            assert (found.masks != wanted.masks).float().mean() < 1e-3
