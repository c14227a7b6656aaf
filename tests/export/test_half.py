"""Simulated fp16: which numbers are rounded, against PyTorch's own fp16, and how much predictions move."""

from types import SimpleNamespace

import pytest
import torch
from helpers.reference import image
from helpers.tiny_backbone import tiny as tiny_backbone
from helpers.tiny_models import tiny
from mmengine.structures import InstanceData
from torch import nn
from torch.testing import assert_close

from mmcasvit import deploy
from mmcasvit.export.comparison import synthetic_images
from mmcasvit.export.half import simulate_half
from mmcasvit.export.hook import SimulatedHalfHook


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def rounded(x):
    return x.half().float()


def test_weights_inputs_and_results_of_operators_are_rounded():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.GELU(), nn.Conv2d(5, 2, 1, bias=False))
    before = [x.clone() for x in model.parameters()]
    x = torch.randn(2, 3, 8, 8)
    first, second = model[0], model[2]
    y = rounded(nn.functional.conv2d(rounded(x), rounded(first.weight), rounded(first.bias)))
    y = rounded(nn.functional.conv2d(rounded(nn.functional.gelu(y)), rounded(second.weight)))
    assert_close(simulate_half(model)(x), y, rtol=0, atol=0)
    assert not torch.equal(y, model(x))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before)), 'the model is left as it is'


def test_what_is_too_large_is_infinite_and_what_is_too_small_is_zero():
    model = nn.Conv2d(1, 2, 1, bias=False)
    model.weight.copy_(torch.tensor([1e3, 1e-5])[:, None, None, None])
    assert simulate_half(model)(torch.full((1, 1, 1, 1), 100.0)).flatten().tolist()[0] == float('inf')
    assert simulate_half(model)(torch.full((1, 1, 1, 1), 1e-3)).flatten().tolist()[1] == 0


@pytest.mark.parametrize('deployed', [False, True])
def test_a_backbone_computes_as_in_pytorchs_own_fp16(deployed):
    model, x = tiny_backbone().eval(), image(0, (1, 3, 64, 96)).float()
    wanted = model(x)
    if deployed:
        model = deploy(model)
    simulated = simulate_half(model)(x.clone())
    true = model.half()(x.half())
    for found, half, exact in zip(simulated, true, wanted):
        far = (half.float() - exact).abs().mean()
        assert 0.5 < (found - exact).abs().mean() / far < 2, 'both are as far from fp32'
        assert (found - half.float()).abs().mean() < 2 * far
        assert_close(found, rounded(found), rtol=0, atol=0)


def data_of(model, count=6):
    images = [torch.from_numpy(x).permute(2, 0, 1) for x in synthetic_images(count, (64, 96))]
    if hasattr(model, 'decode_head'):
        from mmseg.structures import SegDataSample as Sample
    else:
        from mmdet.structures import DetDataSample as Sample
    meta = dict(img_shape=(64, 96), ori_shape=(64, 96), scale_factor=(1.0, 1.0))
    return dict(inputs=images, data_samples=[Sample(metainfo=meta) for _ in images])


def share_found(found: InstanceData, wanted: InstanceData) -> float:
    """Return the share of boxes that have one of the same label at an IoU of 0.9."""
    from mmdet.structures.bbox import bbox_overlaps

    same = found.labels[None] == wanted.labels[:, None]
    return float(((bbox_overlaps(wanted.bboxes, found.bboxes) > 0.9) & same).any(1).float().mean())


@pytest.mark.parametrize('twin', ['semantic_fpn', 'upernet', 'retinanet', 'mask_rcnn'])
def test_predictions_in_fp16_are_those_in_fp32(twin):
    model = deploy(tiny(twin))
    simulated = simulate_half(model)
    for name in ('mean', 'std'):
        assert torch.equal(getattr(simulated.data_preprocessor, name), getattr(model.data_preprocessor, name))
    pairs = [*zip(simulated.test_step(data_of(model)), model.test_step(data_of(model)))]
    if hasattr(model, 'decode_head'):
        same = torch.stack([found.pred_sem_seg.data == wanted.pred_sem_seg.data for found, wanted in pairs])
        assert 0.98 < same.float().mean()
        assert not torch.equal(pairs[0][0].seg_logits.data, pairs[0][1].seg_logits.data)
        return
    shares = [share_found(found.pred_instances, wanted.pred_instances) for found, wanted in pairs]
    assert sum(shares) / len(shares) > 0.9
    boxes = torch.cat([found.pred_instances.bboxes for found, _ in pairs])
    assert len(boxes) > 10
    assert not torch.equal(boxes, rounded(boxes)), 'boxes are decoded in fp32'


def test_the_hook_evaluates_the_deploy_form_in_fp16_and_gives_the_model_back():
    model = tiny('semantic_fpn')
    runner = SimpleNamespace(model=model)
    hook = SimulatedHalfHook()
    hook.before_test_epoch(runner)
    assert runner.model is not model
    assert_close(
        runner.model.test_step(data_of(model, 1))[0].seg_logits.data,
        simulate_half(deploy(model)).test_step(data_of(model, 1))[0].seg_logits.data,
        rtol=0,
        atol=0,
    )
    hook.after_test_epoch(runner)
    assert runner.model is model
