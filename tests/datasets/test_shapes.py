import json
import xml.etree.ElementTree as ET

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mmcasvit.datasets.shapes import (
    COLORS,
    SEMANTIC_CLASSES,
    THINGS,
    draw_object,
    draw_scene,
    mask_to_polygons,
    write_dataset,
)


def rasterize(polygons, shape):
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *shape))).astype(bool)


@pytest.mark.parametrize('seed', range(60))
def test_polygons_of_random_masks_rasterize_to_the_masks(seed):
    rng = np.random.default_rng(seed)
    mask = cv2.GaussianBlur(rng.random((40, 53)), (0, 0), rng.uniform(0.1, 3)) > 0.5
    mask[0, 0] = True
    np.testing.assert_array_equal(rasterize(mask_to_polygons(mask), mask.shape), mask)


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'shapes'
    write_dataset(root, train=60, val=3, seed=5)
    return root


def test_coco_labels_are_exact(dataset):
    """pycocotools, which mmdet reads labels with, decodes the masks of the scenes that are drawn again."""
    coco = COCO(str(dataset / 'coco/annotations/instances_train2017.json'))
    seen = 0
    for image_id, image in coco.imgs.items():
        scene = draw_scene(np.random.default_rng([5, 0, image_id - 1]))
        annotations = coco.loadAnns(coco.getAnnIds(image_id))
        assert len(annotations) == len(scene.instances)
        for annotation, instance in zip(annotations, scene.instances):
            mask = coco.annToMask(annotation).astype(bool)
            np.testing.assert_array_equal(mask, instance.mask)
            assert coco.cats[annotation['category_id']]['name'] == instance.category
            assert annotation['area'] == instance.mask.sum()
            rows, columns = np.nonzero(mask)
            assert annotation['bbox'] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert isinstance(annotation['segmentation'], dict if annotation['iscrowd'] else list)
            seen += 1
        assert cv2.imread(str(dataset / 'coco/train2017' / image['file_name'])).shape[:2] == (128, 192)
    assert seen > 100


def test_index_masks_match_the_instances(dataset):
    coco = COCO(str(dataset / 'coco/annotations/instances_train2017.json'))
    for image_id, image in coco.imgs.items():
        semantic = cv2.imread(str(dataset / 'ade/annotations/training' / image['file_name']).replace('jpg', 'png'), -1)
        rest = semantic.copy()
        for annotation in coco.loadAnns(coco.getAnnIds(image_id)):
            mask = coco.annToMask(annotation).astype(bool)
            index = 1 + SEMANTIC_CLASSES.index(coco.cats[annotation['category_id']]['name'])
            assert (semantic[mask] == index).all()
            rest[mask] = 1
        assert rest.max() <= 2, 'an object in the index mask has no instance'


def test_voc_boxes_match_coco(dataset):
    """VOC counts pixels from 1 and includes the last one."""
    coco = COCO(str(dataset / 'coco/annotations/instances_train2017.json'))
    names = (dataset / 'voc/ImageSets/Main/train.txt').read_text().split()
    assert len(names) == len(coco.imgs)
    for name, image_id in zip(names, coco.imgs):
        objects = ET.parse(dataset / f'voc/Annotations/{name}.xml').findall('object')
        annotations = coco.loadAnns(coco.getAnnIds(image_id))
        assert [o.find('name').text for o in objects] == [coco.cats[a['category_id']]['name'] for a in annotations]
        for found, annotation in zip(objects, annotations):
            x, y, width, height = annotation['bbox']
            corners = [int(found.find(f'bndbox/{tag}').text) for tag in ('xmin', 'ymin', 'xmax', 'ymax')]
            assert corners == [x + 1, y + 1, x + width, y + height]
            assert found.find('difficult').text == str(annotation['iscrowd'])
        assert (dataset / f'voc/JPEGImages/{name}.jpg').is_file()


def test_scenes_are_varied_enough_for_the_recipes():
    scenes = [draw_scene(np.random.default_rng([0, 0, i])) for i in range(300)]
    sizes = np.array([instance.mask.sum() ** 0.5 for scene in scenes for instance in scene.instances])
    assert {i.category for scene in scenes for i in scene.instances} == set(THINGS)
    assert 10 < sum(not scene.instances for scene in scenes) < 80
    assert any(i.iscrowd for scene in scenes for i in scene.instances)
    assert (sizes < 15).mean() > 0.05
    assert (sizes > 40).mean() > 0.05
    assert any((scene.semantic == 0).any() for scene in scenes), 'no hidden object'


def test_same_seed_makes_the_same_files(dataset, tmp_path):
    write_dataset(tmp_path / 'again', train=2, val=3, seed=5)
    write_dataset(tmp_path / 'other', train=2, val=3, seed=6)
    for name in (
        'coco/val2017/000000000003.jpg',
        'ade/annotations/validation/000000000003.png',
        'coco/annotations/instances_val2017.json',
        'coco/train2017/000000000002.jpg',
    ):
        assert (tmp_path / 'again' / name).read_bytes() == (dataset / name).read_bytes(), name
        assert (tmp_path / 'other' / name).read_bytes() != (dataset / name).read_bytes(), name


def test_existing_folder_is_kept_and_an_aborted_run_leaves_nothing(dataset, tmp_path, monkeypatch):
    before = (dataset / 'dataset.json').read_text()
    with pytest.raises(FileExistsError):
        write_dataset(dataset, train=1, val=1, seed=0)
    assert (dataset / 'dataset.json').read_text() == before
    monkeypatch.setattr('mmcasvit.datasets.shapes.cv2.imwrite', lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_dataset(tmp_path / 'shapes', train=1, val=1, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_dataset_json_records_the_settings(dataset):
    made = json.loads((dataset / 'dataset.json').read_text())
    assert made['seed'] == 5
    assert made['train'] == 60


def test_classification_images_show_one_object_of_their_class(shapes):
    for split, count in (('train', 2), ('val', 1)):
        files = sorted((shapes / 'imagenet' / split).glob('*/*.jpg'))
        assert len(files) == count * len(THINGS)
        assert {file.parent.name for file in files} == set(THINGS)
        assert len({file.name for file in files}) == len(files)
    rng = np.random.default_rng(0)
    for category in THINGS:
        image = draw_object(rng, category, side=64)
        assert image.shape == (64, 64, 3)
        # in the color of its class somewhere near the middle
        color = np.array(COLORS[category]) / np.linalg.norm(COLORS[category])
        middle = image[24:40, 24:40].reshape(-1, 3).astype(float)
        likeness = middle @ color / np.linalg.norm(middle, axis=1)
        assert (likeness > 0.95).any(), category
