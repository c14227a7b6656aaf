"""The comparison with PyTorch sees what differs."""

import copy

import numpy as np
import pytest
import torch
from helpers.tiny_models import check_export, export, tiny

from mmcasvit.export.comparison import Difference, pad_to_size
from mmcasvit.export.signature import Signature
from mmcasvit.utils.errors import UsageError


@pytest.mark.parametrize('twin, what', [('retinanet', 'detector'), ('semantic_fpn', 'segmentor')])
def test_the_comparison_sees_another_model(twin, what, tmp_path):
    other = copy.deepcopy(tiny(twin))
    for parameter in other.parameters():
        parameter.data *= 1.02
    path = export(other, tmp_path / 'model.pt', what=what)
    with pytest.raises(AssertionError):
        check_export(tiny(twin), path, [(64, 96)], tolerance=1e-3)


def test_differences_of_detections():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    wanted = dict(boxes=boxes, scores=torch.tensor([0.9, 0.5]), labels=torch.tensor([0, 1]))
    difference = Difference()
    difference.add({**wanted, 'boxes': boxes + torch.tensor([0.5, 0, 0, 0])}, wanted, diagonal=50)
    assert difference.by_output == dict(detections=0, boxes=pytest.approx(0.01), scores=0)
    difference.add({**wanted, 'labels': torch.tensor([0, 2])}, wanted, diagonal=50)
    assert difference.by_output['detections'] == pytest.approx(0.5 / 1.4)
    difference.add({name: value[:0] for name, value in wanted.items()}, wanted, diagonal=50)
    assert difference.by_output['detections'] == 1


def test_images_are_padded_with_their_mean():
    preprocessor = tiny('retinanet').data_preprocessor
    image = np.zeros((40, 50, 3), np.uint8)
    fitted = pad_to_size(image, preprocessor, Signature('pt2', 'detector', (64, 96)))
    assert fitted.shape == (64, 96, 3)
    assert fitted[-1, -1].tolist() == [104, 116, 124]
    with pytest.raises(UsageError, match='does not fit'):
        pad_to_size(image, preprocessor, Signature('pt2', 'detector', (32, 96)))
