"""Predictions of tiles merge into what a look at the whole image gives."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from pycocotools import mask as coco_masks

from mmcasvit.apis.config import load_config
from mmcasvit.apis.inference import get_inferencer
from mmcasvit.datasets.shapes import draw_scene
from mmcasvit.predict.merging import Crop, Views
from mmcasvit.predict.predictor import Predictor
from mmcasvit.predict.tiles import Detections, TiledPredictor, accumulate, starts, steady_colors, tiles_of
from mmcasvit.utils.errors import UsageError

PLAIN = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]


@pytest.mark.parametrize('length, tile, overlap', itertools.product([5, 64, 65, 100, 333], [64], [0, 0.2, 0.5, 0.9]))
def test_tiles_cover_a_side_and_overlap_as_asked(length, tile, overlap):
    found = starts(length, tile, overlap)
    assert found[0] == 0
    assert found[-1] == max(0, length - tile)
    assert all(right - left <= max(1, tile * (1 - overlap)) for left, right in itertools.pairwise(found))
    assert len(found) == len(set(found))


# Labels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [(20, 30), (64, 64), (77, 150), (160, 91)])
@pytest.mark.parametrize('overlap', [0, 0.25, 0.7])
@pytest.mark.parametrize('classes', [1, 3, 300])
def test_labels_are_those_of_the_mean_over_all_tiles(size, overlap, classes):
    rng = torch.Generator().manual_seed(0)
    rows = tiles_of(size, 64, overlap)
    tiles = [tile for row in rows for tile in row]
    logits = [
        torch.rand(classes, t.bottom - t.top, t.right - t.left, generator=rng, dtype=torch.float64).float()
        for t in tiles
    ]
    total, count = torch.zeros(classes, *size), torch.zeros(size)
    for tile, part in zip(tiles, logits):
        total[:, tile.top : tile.bottom, tile.left : tile.right] += part
        count[tile.top : tile.bottom, tile.left : tile.right] += 1
    mean = total / count
    expected = mean[0] > 0.5 if classes == 1 else mean.argmax(0)
    before = [part.clone() for part in logits]
    found = accumulate(rows, logits, 0.5 if classes == 1 else None)
    assert found.dtype == (np.uint16 if classes > 256 else np.uint8)
    assert (found == expected.numpy()).mean() > 0.999  # sums in another order may differ in the last digit
    assert all(map(torch.equal, before, logits))


def segmentor(files, **test_cfg):
    cfg = load_config(str(files / 'seg.py'))
    cfg.test_dataloader.dataset.pipeline = PLAIN
    cfg.model.test_cfg = test_cfg
    return Predictor(get_inferencer(cfg, str(files / 'seg.pth'), 'cpu'), 'mmseg')


def test_a_segmentor_predicts_as_with_the_sliding_window_of_mmseg(files):
    image = draw_scene(np.random.default_rng(1), 160, 256).image
    sliding = segmentor(files, mode='slide', crop_size=(64, 64), stride=(48, 48))
    [sample] = sliding.predict([image])
    expected = sample.pred_sem_seg.data[0].numpy()
    tiled = TiledPredictor(segmentor(files, mode='whole'), 64, 0.25, batch_size=3)
    [labels] = tiled.predict([image])
    assert labels.dtype == np.uint8
    assert (labels == expected).mean() > 0.999
    assert len(np.unique(labels)) > 2
    assert tiled.values(labels)['pixels'] == [int((labels == label).sum()) for label in np.unique(labels)]
    drawing, whole = tiled.draw(image.copy(), labels), image.copy()
    sample.pred_sem_seg.data[0] = torch.from_numpy(labels)
    [whole] = sliding.inferencer.visualize([image[..., ::-1]], [sample], return_vis=True, with_labels=False)
    assert np.abs(drawing.astype(int) - whole[..., ::-1]).max() <= 1


# Detections -----------------------------------------------------------------------------------------------------------

LABELS = 2


def scene(rng, size, count, longest):
    """Return an image with the number of an object in each pixel and its class in the next channel, and the objects."""
    image, boxes = np.zeros((*size, 3), np.uint8), []
    for _ in range(1000):
        width, height = rng.integers(12, longest, 2)
        left, top = rng.integers(0, max(1, size[1] - width)), rng.integers(0, max(1, size[0] - height))
        place = image[top : top + height, left : left + width]
        if place[..., 0].any() or place.shape[:2] != (height, width):
            continue
        boxes.append((left, top, left + width, top + height))
        place[..., 0], place[..., 1] = len(boxes), len(boxes) % LABELS
        if len(boxes) == count:
            break
    return image, np.array(boxes)


class Exact:
    """Detector that finds every object in an image of :func:`scene`, as far as it is visible.

    Args:
        noise: How far the sides of boxes are off, in pixels.
        smallest: Shortest side of what is found.
    """

    scope, score_thr, classes = 'mmdet', 0.3, ('even', 'odd')
    model = SimpleNamespace(test_cfg=dict(nms=dict(iou_threshold=0.5)), dataset_meta=dict(classes=classes))
    inferencer = SimpleNamespace(model=model)

    def __init__(self, noise=0, smallest=1):
        self.noise, self.smallest, self.rng = noise, smallest, np.random.default_rng(0)

    def predict(self, images):
        samples = []
        for image in images:
            boxes, labels, masks = [], [], []
            for number in np.unique(image[..., 0])[1:] if (image[..., 0] == 0).any() else np.unique(image[..., 0]):
                mask = image[..., 0] == number
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
                if min(box[2:] - box[:2]) < self.smallest:
                    continue
                boxes.append(box + self.rng.uniform(-self.noise, self.noise, 4))
                labels.append(int(number) % LABELS)
                masks.append(mask)
            found = InstanceData(
                bboxes=torch.tensor(np.array(boxes), dtype=torch.float32).reshape(-1, 4),
                scores=torch.from_numpy(self.rng.uniform(0.5, 1, len(boxes))),
                labels=torch.tensor(labels, dtype=torch.long),
                masks=torch.from_numpy(np.array(masks, dtype=bool).reshape(len(masks), *image.shape[:2])),
            )
            samples.append(SimpleNamespace(pred_instances=found))
        return samples


@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize('longest', [30, 120, 300])
def test_each_object_is_found_once_and_whole(seed, longest):
    """Objects are shorter than the overlap (32), longer than it, or longer than a tile (128)."""
    size = (400, 500)
    image, boxes = scene(np.random.default_rng(seed), size, 25, longest)
    tiled = TiledPredictor(Exact(), 128, 0.25, batch_size=4)
    values = tiled.values(*tiled.predict([image]))
    order = np.lexsort(np.array(values['bboxes']).T)
    expected = np.lexsort(boxes.T)
    np.testing.assert_array_equal(np.array(values['bboxes'])[order], boxes[expected])
    assert [values['labels'][i] for i in order] == [(i + 1) % LABELS for i in expected]
    assert [values['label_names'][i] for i in order] == [Exact.classes[(i + 1) % LABELS] for i in expected]
    assert values['scores'] == sorted(values['scores'], reverse=True)
    for i, j in zip(order, expected):
        mask = coco_masks.decode(dict(values['masks'][i], counts=values['masks'][i]['counts'].encode()))
        np.testing.assert_array_equal(mask, image[..., 0] == j + 1)


@pytest.mark.parametrize('seed', range(4))
def test_boxes_that_are_a_little_off_make_no_second_detection(seed):
    image, boxes = scene(np.random.default_rng(seed), (400, 500), 25, 120)
    [(_, views)] = TiledPredictor(Exact(noise=1, smallest=6), 128, 0.25).predict([image])
    assert len(views) == len(boxes)
    assert all((np.abs(boxes - box).max(1) < 3).any() for box in views.boxes)


def test_an_image_without_objects_has_no_detection():
    tiled = TiledPredictor(Exact(), 64)
    assert tiled.values(*tiled.predict([np.zeros((150, 150, 3), np.uint8)])) == dict(
        labels=[], scores=[], bboxes=[], masks=[], label_names=[]
    )


def detector(files, score_thr=0.0):
    cfg = load_config(str(files / 'det.py'))
    return Predictor(get_inferencer(cfg, str(files / 'det.pth'), 'cpu'), 'mmdet', score_thr)


def test_an_image_of_one_tile_is_predicted_on_as_without_tiles(files):
    image = draw_scene(np.random.default_rng(1), 64, 96).image
    predictor = detector(files)
    tiled = TiledPredictor(predictor, 96)
    expected, found = predictor.values(*predictor.predict([image])), tiled.values(*tiled.predict([image]))
    assert len(expected['labels']) > 3
    order = np.argsort(-np.array(expected['scores']), kind='stable')
    for key in ('labels', 'label_names', 'masks'):
        assert found[key] == [expected[key][i] for i in order]
    for key in ('scores', 'bboxes'):
        np.testing.assert_allclose(found[key], np.array(expected[key])[order], rtol=1e-5)


@pytest.mark.slow
def test_detections_are_drawn_part_by_part_as_on_the_whole_image(files):
    from mmdet.structures import DetDataSample

    predictor, size = detector(files, 0.3), (1100, 1300)
    image = draw_scene(np.random.default_rng(1), *size).image
    boxes = np.array([[100, 100, 300, 280], [980, 960, 1200, 1090], [1010.5, 500, 1060, 560], [5, 1000, 60, 1060]])
    masks = [Crop(int(x), int(y), np.ones((int(b - y), int(r - x)), bool)) for x, y, r, b in boxes]
    views = Views(boxes, np.array([0.9, 0.8, 0.7, 0.1]), np.array([0, 1, 2, 3]), np.zeros((4, 4)), masks)
    whole = np.zeros((4, *size), bool)
    for mask, (left, top, pixels) in zip(whole, masks):
        mask[top : top + pixels.shape[0], left : left + pixels.shape[1]] = True
    instances = InstanceData(
        bboxes=torch.from_numpy(boxes).float(),
        scores=torch.from_numpy(views.scores),
        labels=torch.from_numpy(views.labels),
        masks=torch.from_numpy(whole),
    )
    with steady_colors():
        expected = predictor.draw(image, DetDataSample(pred_instances=instances))
    found = TiledPredictor(predictor, 512).draw(image.copy(), Detections(size, views))
    assert (expected != image).mean() > 0.02
    different = np.abs(found.astype(int) - expected).max(-1) > 8
    assert different.mean() < 1e-3


@pytest.mark.parametrize('tile, overlap, words', [(31, 0.2, '--tile'), (64, 1, '--overlap'), (64, -0.1, '--overlap')])
def test_numbers_out_of_range_are_refused(tile, overlap, words):
    with pytest.raises(UsageError, match=words):
        TiledPredictor(Exact(), tile, overlap)
