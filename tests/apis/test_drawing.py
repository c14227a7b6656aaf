"""Drawings by OpenCV and Pillow next to those of matplotlib."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData, PixelData

from mmcasvit.apis.drawing import quicken
from mmcasvit.datasets.shapes import draw_scene

IMAGE = np.ascontiguousarray(draw_scene(np.random.default_rng(3), 120, 160).image[..., ::-1])
META = dict(classes=('house', 'tree', 'größer'), palette=[(220, 20, 60), (0, 0, 142), (0, 160, 90)])


def ellipses(count):
    """Return masks ``(count, 120, 160)`` and the boxes around them."""
    y, x = np.mgrid[:120, :160]
    centers = [(40 + 30 * i, 40 + 20 * i) for i in range(count)]
    masks = [((x - cx) / 25) ** 2 + ((y - cy) / 15) ** 2 < 1 for cx, cy in centers]
    boxes = [[cx - 25, cy - 15, cx + 25, cy + 15] for cx, cy in centers]
    return np.array(masks), torch.tensor(boxes, dtype=torch.float32)


def detections(with_masks):
    from mmdet.structures import DetDataSample

    masks, boxes = ellipses(3)
    found = InstanceData(bboxes=boxes, labels=torch.tensor([0, 1, 2]), scores=torch.tensor([0.9, 0.5, 0.1]))
    if with_masks:
        found.masks = torch.from_numpy(masks)
    return DetDataSample(pred_instances=found)


def pair(kind):
    """Return a visualizer that draws by matplotlib, and one that draws by OpenCV."""
    both = kind(name=f'{kind.__name__}-matplotlib'), quicken(kind(name=f'{kind.__name__}-opencv'))
    for visualizer in both:
        visualizer.dataset_meta = META
    return both


def det_pair():
    from mmdet.visualization import DetLocalVisualizer

    return pair(DetLocalVisualizer)


def drawn(visualizer, sample):
    np.random.seed(0)  # mmdet varies the colors of masks
    visualizer.add_datasample('', IMAGE, sample, draw_gt=False)
    return visualizer.get_image().astype(int)


@pytest.mark.parametrize('with_masks', [False, True])
def test_detections_look_as_those_of_matplotlib(with_masks):
    theirs, ours = (drawn(visualizer, detections(with_masks)) for visualizer in det_pair())
    changed = [np.abs(drawing - IMAGE).max(-1) > 20 for drawing in (theirs, ours)]
    assert changed[0].mean() > 0.1
    assert (changed[0] & changed[1]).sum() / (changed[0] | changed[1]).sum() > 0.8
    # Edges of lines and letters differ by a shade or a fraction of a pixel.
    blurred = [cv2.blur(drawing.astype(np.uint8), (7, 7)).astype(int) for drawing in (theirs, ours, IMAGE)]
    assert np.abs(blurred[0] - blurred[1]).mean() < 0.3 * np.abs(blurred[0] - blurred[2]).mean()


def test_scores_below_the_threshold_are_not_drawn():
    _, ours = det_pair()
    drawing = drawn(ours, detections(False))
    corner = drawing[66:68, 76:124]  # the upper edge of the third box, whose score is 0.1
    np.testing.assert_array_equal(corner[:, 40:], IMAGE[66:68, 116:124])


def test_masks_and_images_are_those_of_matplotlib():
    theirs, ours = det_pair()
    masks, _ = ellipses(2)
    for visualizer in (theirs, ours):
        visualizer.set_image(IMAGE)
    np.testing.assert_array_equal(theirs.get_image(), ours.get_image())
    for visualizer in (theirs, ours):
        visualizer.draw_binary_masks(masks, colors=[(200, 10, 90), 'r'], alphas=[0.8, 0.3])
    assert (ours.get_image() != IMAGE).any(-1).mean() > 0.05
    np.testing.assert_array_equal(theirs.get_image(), ours.get_image())


def test_segmentations_are_those_of_matplotlib():
    pytest.importorskip('mmseg')
    from mmseg.structures import SegDataSample
    from mmseg.visualization import SegLocalVisualizer

    masks, _ = ellipses(2)
    labels = torch.from_numpy(masks[0] + 2 * (masks[1] & ~masks[0]))  # the name of class 0 stands in its widest row
    sample = SegDataSample(pred_sem_seg=PixelData(data=labels[None]))
    theirs, ours = (drawn(visualizer, sample) for visualizer in pair(SegLocalVisualizer))
    assert np.abs(theirs - IMAGE).mean() > 20
    np.testing.assert_array_equal(theirs, ours)


@pytest.mark.parametrize('place', [(-500, 20), (-8, -5), (150, 110), (500, 500)])
def test_what_leaves_the_image_is_cut_off(place):
    _, ours = det_pair()
    ours.set_image(IMAGE)
    ours.draw_texts('a long name', np.array(place), font_sizes=13, colors=(255, 255, 255), bboxes=[dict(alpha=0.8)])
    ours.draw_polygons([np.array([(0, 0), (40, 0), (40, 30.5)]) + place], edge_colors='w')
    visible = (ours.get_image() != IMAGE).any()
    assert visible == (-100 < place[0] < 160)


def test_other_visualizers_keep_matplotlib():
    from mmdet.visualization import DetLocalVisualizer

    class Own(DetLocalVisualizer):
        pass

    assert type(quicken(Own(name='own'))) is Own
