"""Labels of every layout become datasets that mmdet and mmseg read, with the boxes and masks that were drawn."""

import json
import shutil

import numpy as np
import pytest
from helpers import own_data
from helpers.own_data import NAMES, draw
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from mmcasvit.start.config import write_config
from mmcasvit.start.machine import this_machine
from mmcasvit.start.prepare import Options, prepare
from mmcasvit.start.recipe import MODELS, Choices, choose_schedule, choose_shape
from mmcasvit.start.run import _load, check
from mmcasvit.utils.errors import UsageError

# Writer, task, classes, images of train, val, and test, and whether files are written.
BOXES = [
    (own_data.coco, 'instances', NAMES, (7, 3, 0), False),
    (own_data.coco_roboflow, 'detect', NAMES, (7, 3, 2), False),
    (own_data.coco_cvat, 'instances', NAMES, (8, 2, 0), True),
    (own_data.voc, 'detect', NAMES, (7, 3, 0), True),
    (own_data.voc_flat, 'detect', NAMES, (8, 2, 0), True),
    (own_data.voc_with_table, 'detect', NAMES, (8, 2, 0), True),
    (own_data.yolo, 'detect', NAMES, (7, 3, 0), True),
    (own_data.yolo_roboflow, 'instances', NAMES, (6, 2, 2), True),
    (own_data.yolo_lists, 'detect', NAMES, (7, 3, 0), True),
    (own_data.yolo_from_one, 'detect', NAMES, (8, 2, 0), True),
    (own_data.labelme, 'instances', NAMES, (8, 2, 0), True),
    (own_data.csv_file, 'detect', NAMES, (8, 2, 0), True),
    (own_data.csv_plain, 'detect', NAMES, (7, 3, 0), True),
]
MASKS = [
    (own_data.masks, ['class_0', 'class_1', 'class_2', 'class_3'], (8, 2, 0), True, 0),
    (own_data.masks_camvid, ['class_0', 'class_1', 'class_2', 'class_3'], (6, 2, 2), False, 0),
    (own_data.masks_ade, ['class_1', 'class_2', 'class_3'], (7, 3, 0), False, 1),
    (own_data.masks_roboflow, ['background', *NAMES], (7, 3, 0), False, 0),
    (own_data.masks_colored, ['background', *NAMES], (7, 3, 0), True, 0),
    (own_data.masks_palette, ['class_0', 'class_1', 'class_2', 'class_3'], (8, 2, 0), False, 0),
    (own_data.masks_binary, ['background', 'foreground'], (8, 2, 0), True, 0),
    (own_data.masks_gray, ['ground', *NAMES], (7, 3, 0), True, 0),
    (own_data.masks_levels, ['class_0', 'class_85', 'class_170', 'class_255'], (8, 2, 0), True, 0),
    (own_data.masks_jpeg, ['background', 'foreground'], (8, 2, 0), True, 0),
    (own_data.masks_cityscapes, ['class_0', 'class_1', 'class_2', 'class_3'], (7, 3, 0), False, 0),
]


def name_of(case):
    return case.__name__ if callable(case) else ''


def write(writer, tmp_path):
    root = tmp_path / 'my data'
    root.mkdir()
    writer(root)
    return root


def files_in(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def config_of(data, out):
    machine, choices = this_machine(), Choices(MODELS[data.task][0])
    recipe = choose_shape(data, choices, machine)
    choose_schedule(data, choices, machine, recipe)
    return _load(write_config(data, choices, recipe, out))


def build(cfg, split):
    init_default_scope(cfg.default_scope)
    dataset = cfg[f'{split}_dataloader'].dataset
    return DATASETS.build(dataset.dataset if dataset.type == 'RepeatDataset' else dataset)


@pytest.mark.parametrize('writer, task, classes, counts, written', BOXES, ids=name_of)
def test_boxes_are_read(tmp_path, writer, task, classes, counts, written):
    root, out = write(writer, tmp_path), tmp_path / 'out'
    before = files_in(root)
    data = prepare(root, out, Options())
    assert (data.task, sorted(data.classes), bool(data.written)) == (task, sorted(classes), written)
    assert tuple(data.counts.get(split, 0) for split in ('train', 'val', 'test')) == counts
    cfg = config_of(data, out)
    assert [d.problems for d in check(cfg, 1)] == [[] for count in counts if count]
    # What mmdet reads, by the number in the name of the image, is what was drawn.
    drawn = {d.number: d for d in draw(sum(counts))}
    seen = 0
    for split, count in zip(('train', 'val', 'test'), counts):
        dataset = build(cfg, split) if count else []
        assert len(dataset) == count
        for index in range(count):
            info = dataset.get_data_info(index)
            stem = info['img_path'].rsplit('/', 1)[-1].split('.')[0].replace('2007_', '')
            number = int(''.join(filter(str.isdigit, stem)))
            expected = sorted((NAMES[c], x, y, x + w, y + h) for c, x, y, w, h in drawn[number].boxes)
            seen += len(expected)
            found = sorted((data.classes[i['bbox_label']], *i['bbox']) for i in info['instances'])
            assert [entry[0] for entry in found] == [entry[0] for entry in expected]
            np.testing.assert_allclose(
                np.array([entry[1:] for entry in found]), np.array([entry[1:] for entry in expected]), atol=0.1
            )
            if task == 'instances':
                assert all(i['mask'] for i in info['instances'])
    assert seen == sum(len(d.boxes) for d in drawn.values())
    assert files_in(root) == before
    # Once more, in the same place, with the same result.
    results = files_in(out) if out.exists() else {}
    again = prepare(root, out, Options())
    assert again.splits == data.splits
    assert (files_in(out) if out.exists() else {}) == results


@pytest.mark.parametrize('writer, classes, counts, written, first', MASKS, ids=name_of)
def test_masks_are_read(tmp_path, writer, classes, counts, written, first):
    root, out = write(writer, tmp_path), tmp_path / 'out'
    before = files_in(root)
    data = prepare(root, out, Options())
    assert (data.task, data.classes, bool(data.written)) == ('semantic', classes, written)
    assert tuple(data.counts.get(split, 0) for split in ('train', 'val', 'test')) == counts
    cfg = config_of(data, out)
    assert [d.problems for d in check(cfg, 1)] == [[] for count in counts if count]
    drawn = {d.number: d for d in draw(sum(counts))}
    for split, count in zip(('train', 'val', 'test'), counts):
        if not count:
            continue
        cfg[f'{split}_dataloader'].dataset.pipeline = [cfg.test_pipeline[0], cfg.test_pipeline[3]]
        dataset = build(cfg, split)
        assert len(dataset) == count
        for sample in dataset:
            name = sample['img_path'].rsplit('/', 1)[-1].split('.')[0].split('_')[0]
            expected = own_data.labels_of(drawn[int(''.join(filter(str.isdigit, name)))]).astype(int)
            if writer is own_data.masks_palette:
                expected[:2] = 255
            if writer in (own_data.masks_binary, own_data.masks_jpeg):
                expected = (expected > 0).astype(int)
            if first:
                expected = np.where(expected == 0, 255, expected - first)
            np.testing.assert_array_equal(sample['gt_seg_map'], expected)
    assert files_in(root) == before


def test_outlines_become_masks(tmp_path):
    root, out = write(own_data.labelme, tmp_path), tmp_path / 'out'
    data = prepare(root, out, Options(task='semantic'))
    assert data.classes == ['background', *sorted(NAMES)]
    drawn = {d.number: d for d in draw()}
    for number, d in drawn.items():
        mask = np.asarray(Image.open(out / 'data' / 'masks' / f'{number}.jpg.png'))
        for label, x, y, w, h in d.boxes:
            assert mask[y + h // 2, x + w // 2] == data.classes.index(NAMES[label])
        assert (mask > 0).any() == bool(d.boxes)
    assert check(config_of(data, out), 1)[0].problems == []


def test_a_table_may_have_a_box_in_one_cell(tmp_path):
    root, out = write(own_data.csv_boxes, tmp_path), tmp_path / 'out'
    data = prepare(root, out, Options())
    assert (data.classes, sum(data.counts.values())) == (['object'], 10)
    found = []
    for split in ('train', 'val'):
        content = json.loads((out / 'data' / f'detect_{split}.json').read_text())
        names = {image['id']: image['file_name'] for image in content['images']}
        found += [(names[entry['image_id']], *entry['bbox']) for entry in content['annotations']]
    assert sorted(found) == sorted((f'train/{d.number}.jpg', *box) for d in draw() for _, *box in d.boxes)
    (root / 'train.csv').write_text('image_id,bbox\n0,"[1, 2, 3]"\n')
    with pytest.raises(UsageError, match='row 1: expected four numbers'):
        prepare(root, out, Options())


def test_a_test_split_without_labels_is_left_out(tmp_path):
    root = write(own_data.coco_roboflow, tmp_path)
    file = root / 'test' / '_annotations.coco.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(annotations=[])))
    data = prepare(root, tmp_path / 'out', Options())
    assert list(data.counts) == ['train', 'val']
    assert 'the test split has no labels, left out' in data.notes


def test_ids_of_classes_are_kept_or_numbered_anew(tmp_path):
    root = tmp_path / 'mine'
    drawn = draw()
    for split, part, classes in (('train', drawn[:7], NAMES), ('val', drawn[7:], NAMES[::-1])):
        names = [own_data.save(root / split, f'{d.number}.jpg', d.image).name for d in part]
        turned = [d._replace(boxes=[(classes.index(NAMES[c]), *box) for c, *box in d.boxes]) for d in part]
        own_data.write_coco(root / f'{split}.json', turned, names, classes=classes, first=5)
    data = prepare(root, tmp_path / 'out', Options())
    labels = {}
    for split in ('train', 'val'):
        content = json.loads((root / data.splits[split]['ann_file']).read_text())
        assert [c['name'] for c in content['categories'] if c['name'] in data.classes] == data.classes
        names = {c['id']: c['name'] for c in content['categories']}
        labels |= {(a['image_id'], *a['bbox']): names[a['category_id']] for a in content['annotations']}
    assert labels == {(d.number, *box): NAMES[c] for d in drawn for c, *box in d.boxes}


def test_a_choice_of_classes_leaves_out_the_others(tmp_path):
    root = write(own_data.coco, tmp_path)
    data = prepare(root, tmp_path / 'out', Options(classes=['dog']))
    assert data.classes == ['dog']
    dataset = build(config_of(data, tmp_path / 'out'), 'train')
    found = [i['bbox_label'] for index in range(len(dataset)) for i in dataset.get_data_info(index)['instances']]
    assert found == [0] * sum(c == 1 for d in draw()[:7] for c, *_ in d.boxes)


REFUSED = [
    (own_data.labelme_mixed, {}, '--task detect'),
    (own_data.voc, dict(task='instances'), 'no outlines'),
    (own_data.voc, dict(layout='coco'), '--layout coco'),
    (own_data.voc, dict(task='semantic'), 'no outlines'),
    (own_data.coco, dict(classes=['wolf']), "no object is named 'wolf'"),
    (own_data.masks_colored, dict(classes=['a', 'b']), '4 colors'),
    (own_data.masks_camvid, dict(classes=['a', 'b', 'c']), '--zero'),
    (own_data.masks_binary, dict(zero='ignore'), 'two classes'),
]


@pytest.mark.parametrize('writer, options, message', REFUSED, ids=name_of)
def test_what_is_ambiguous_is_refused(tmp_path, writer, options, message):
    root = write(writer, tmp_path)
    with pytest.raises(UsageError, match=message) as caught:
        prepare(root, tmp_path / 'out', Options(**options))
    assert '\n' not in str(caught.value)


def test_an_option_settles_what_is_ambiguous(tmp_path):
    root = write(own_data.labelme_mixed, tmp_path)
    assert prepare(root, tmp_path / 'out', Options(task='detect')).task == 'detect'
    data = prepare(root, tmp_path / 'out', Options(task='instances'))
    content = json.loads((tmp_path / 'out' / 'data' / 'instances_train.json').read_text())
    assert data.task == 'instances'
    assert all(entry['segmentation'] for entry in content['annotations'])
    shutil.rmtree(root)
    root.mkdir()
    own_data.masks_camvid(root)
    assert prepare(root, tmp_path / 'out', Options(classes=NAMES, zero='ignore')).classes == list(NAMES)
    assert prepare(root, tmp_path / 'out', Options(classes=NAMES, zero='background')).classes == ['background', *NAMES]


def test_several_layouts_are_named(tmp_path):
    own_data.voc(tmp_path / 'my data' / 'boxes')
    own_data.masks_camvid(tmp_path / 'my data' / 'masks')
    with pytest.raises(UsageError, match=r'voc in boxes.*; masks in masks.*--task semantic or --task detect'):
        prepare(tmp_path / 'my data', tmp_path / 'out', Options())
    assert prepare(tmp_path / 'my data', tmp_path / 'out', Options(task='detect')).layout == 'Pascal VOC'
    assert prepare(tmp_path / 'my data', tmp_path / 'out', Options(task='semantic')).layout == 'index masks'


def test_voc_has_boxes_and_masks(tmp_path):
    root = write(own_data.voc_with_masks, tmp_path)
    with pytest.raises(UsageError, match='--task semantic or --task detect'):
        prepare(root, tmp_path / 'out', Options())
    boxes = prepare(root, tmp_path / 'out', Options(task='detect'))
    assert (boxes.layout, boxes.counts) == ('Pascal VOC', dict(train=7, val=3))
    masks = prepare(root, tmp_path / 'out', Options(task='semantic'))
    assert masks.splits['train']['data_prefix'] == dict(img_path='JPEGImages', seg_map_path='SegmentationClass')


def test_a_majority_without_labels_is_a_question(tmp_path):
    root = write(own_data.yolo_from_one, tmp_path)
    for number in range(20, 35):
        own_data.save(root / 'obj_train_data', f'{number}.jpg', draw(1)[0].image + number)
    with pytest.raises(UsageError, match='--unlabeled background'):
        prepare(root, tmp_path / 'out', Options())
    counts = [
        sum(prepare(root, tmp_path / 'out', Options(unlabeled=choice)).counts.values())
        for choice in ('skip', 'background')
    ]
    assert counts == [9, 25]


@pytest.mark.parametrize(
    'file, text, message',
    [
        ('labels/train/0.txt', '0 0.5 0.5 0.1\n0 a b c d\n', 'expected a class number'),
        ('labels/train/0.txt', '7 0.5 0.5 0.1 0.1\n', 'class number 7'),
        ('labels/train/0.txt', '0 120 80 30 30\n', 'shares of the image'),
        ('mine.yaml', 'names: [\n', 'cannot be read as YAML'),
        ('mine.yaml', 'nothing: 1\n', '--classes NAME'),
    ],
)
def test_faults_of_yolo_files_are_named(tmp_path, file, text, message):
    root = write(own_data.yolo, tmp_path)
    (root / file).write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        prepare(root, tmp_path / 'out', Options())
    assert '\n' not in str(caught.value).replace('\n ', '')


def test_no_labels_and_no_images(tmp_path):
    with pytest.raises(UsageError, match='folder of data not found'):
        prepare(tmp_path / 'none', tmp_path / 'out', Options())
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UsageError, match='no image in'):
        prepare(tmp_path / 'empty', tmp_path / 'out', Options())
    own_data.save(tmp_path / 'images', 'a.jpg', draw(1)[0].image)
    with pytest.raises(UsageError, match='no labels that can be read'):
        prepare(tmp_path / 'images', tmp_path / 'out', Options())
