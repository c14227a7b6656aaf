"""Masks and labels that are computed piece by piece are those that mmdet and mmseg compute at once."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.tiny_models import tiny
from mmengine.structures import InstanceData
from pycocotools import mask as coco_masks

from mmcasvit.export.comparison import paste_masks
from mmcasvit.serve import answers
from mmcasvit.serve.answers import encode_masks, keep_logits, labels_of
from mmcasvit.utils.errors import Refused
from mmcasvit.utils.masks import encode_mask

SIZE = (50, 70)


def instances():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(6, 2, 2, generator=generator).sort(1)[0] * torch.tensor(SIZE[::-1])
    return InstanceData(bboxes=corners.flatten(1), masks=torch.rand(6, 28, 28, generator=generator))


def test_masks_are_encoded_one_by_one(monkeypatch):
    model, found, sizes = tiny('mask_rcnn'), instances(), []
    wanted = paste_masks(found.masks, found.bboxes, SIZE, model).numpy()

    def paste(masks, *args):
        sizes.append(len(masks))
        return paste_masks(masks, *args)

    monkeypatch.setattr(answers, 'paste_masks', paste)
    codes = list(encode_masks(found, SIZE, model, None))
    assert sizes == [1] * 6
    assert wanted.any()
    assert all((coco_masks.decode(code) == mask).all() for code, mask in zip(codes, wanted, strict=True))


def test_a_mask_is_encoded_as_by_pycocotools():
    draw = np.random.default_rng(0)
    masks = [draw.random((7, 9)) < share for share in (0, 0.02, 0.5, 0.98, 1) for _ in range(40)]
    for row, column in ((0, 0), (6, 8), (6, 0), (0, 8)):
        masks.append(np.zeros((7, 9), bool))
        masks[-1][row, column] = True
    for mask in masks:
        wanted = coco_masks.encode(np.asfortranarray(mask, dtype=np.uint8))
        assert encode_mask(mask) == dict(size=wanted['size'], counts=wanted['counts'].decode())


def segmentor_sample(**meta):
    from mmseg.structures import SegDataSample

    return SegDataSample(metainfo=dict(ori_shape=SIZE, img_padding_size=(0, 6, 0, 3), **meta))


@pytest.mark.parametrize('at_once', [1, 4 * SIZE[0] * SIZE[1], 2**24], ids=['one class', 'four classes', 'all'])
@pytest.mark.parametrize('classes', [8, 300])
@pytest.mark.parametrize('kind', ['logits', 'classes'])
def test_labels_are_those_of_mmseg(kind, classes, at_once, monkeypatch):
    """Classes as logits of 0 and 1 have many ties where they are scaled."""
    monkeypatch.setattr(answers, 'LOGITS_AT_ONCE', at_once)
    model = tiny('semantic_fpn')
    logits = torch.randn(1, classes, 32, 48, generator=torch.Generator().manual_seed(0))
    if kind == 'classes':
        logits = torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1)
    for meta in (dict(), dict(flip=True, flip_direction='horizontal'), dict(flip=True, flip_direction='vertical')):
        [wanted] = type(model).postprocess_result(model, logits, [segmentor_sample(**meta)])
        [kept] = keep_logits(logits, [segmentor_sample(**meta)])
        assert kept.seg_logits.shape == (29, 42)
        found = labels_of(kept.seg_logits.data, SIZE, model)
        assert torch.equal(found.long(), wanted.pred_sem_seg.data[0])


def test_a_single_class_is_compared_with_the_threshold():
    model = SimpleNamespace(align_corners=False, decode_head=SimpleNamespace(threshold=0.3))
    logits = torch.linspace(-2, 2, 12).reshape(1, 3, 4)
    assert torch.equal(labels_of(logits, (3, 4), model), (logits[0].sigmoid() > 0.3).byte())


def test_work_for_which_nobody_waits_ends():
    gone, model = threading.Event(), tiny('mask_rcnn')
    codes = encode_masks(instances(), SIZE, model, gone)
    next(codes)
    gone.set()
    with pytest.raises(Refused, match='nobody waits'):
        next(codes)
    with pytest.raises(Refused, match='nobody waits'):
        labels_of(torch.zeros(8, 4, 4), SIZE, SimpleNamespace(align_corners=False), gone)


@pytest.mark.slow
def test_a_large_image_takes_little_memory():
    """The masks of 100 detections in 25 megapixels would take 2.5 GB as booleans."""
    import resource

    model, size = tiny('mask_rcnn'), (5000, 5000)
    boxes = torch.tensor([[100.0, 100, 1100, 600]]).repeat(100, 1)
    found = InstanceData(bboxes=boxes, masks=torch.rand(100, 28, 28, generator=torch.Generator().manual_seed(0)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    codes = list(encode_masks(found, size, model, None))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024
    assert len(codes) == 100
    assert np.isclose(coco_masks.area(codes[0]), 250_000, rtol=0.1)
