"""The same few labeled images in the layouts that people have: one function writes each of them to a folder."""

import json
from collections import namedtuple

import cv2
import numpy as np
from PIL import Image

NAMES = ('cat', 'dog', 'red fox')
WIDTH, HEIGHT = 64, 48
Drawn = namedtuple('Drawn', 'number image boxes')  # boxes: class, x, y, w, h


def draw(count=10):
    """Return noisy images of one or two rectangles each; the last one is empty."""
    rng = np.random.default_rng(0)
    drawn = []
    for number in range(count):
        image = rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        boxes = []
        for place in range(1 + number % 2 if number < count - 1 else 0):
            x, y, w, h = 4 + 30 * place, int(rng.integers(2, 12)), int(rng.integers(14, 24)), int(rng.integers(14, 30))
            boxes.append(((number + place) % 3, x, y, w, h))
            image[y : y + h, x : x + w] = 40 + 80 * boxes[-1][0]
        drawn.append(Drawn(number, image, boxes))
    return drawn


def save(folder, name, image):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(image[..., ::-1])).save(folder / name)
    return folder / name


def polygon(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def write_coco(file, drawn, names, outlines=True, first=1, classes=NAMES, extra=()):
    images = [
        dict(id=d.number, file_name=name, width=WIDTH, height=HEIGHT) for d, name in zip(drawn, names, strict=True)
    ]
    annotations = [
        dict(
            id=10 * d.number + place,
            image_id=d.number,
            category_id=first + label,
            bbox=[x, y, w, h],
            area=w * h,
            iscrowd=0,
            segmentation=[polygon(x, y, w, h)] if outlines else [],
        )
        for d in drawn
        for place, (label, x, y, w, h) in enumerate(d.boxes)
    ]
    categories = [*extra, *(dict(id=first + label, name=name, supercategory='') for label, name in enumerate(classes))]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))


def coco(root):
    """COCO's own folders."""
    drawn = draw()
    for split, part in (('train2017', drawn[:7]), ('val2017', drawn[7:])):
        names = [save(root / split, f'{d.number:012}.jpg', d.image).name for d in part]
        write_coco(root / 'annotations' / f'instances_{split}.json', part, names)
    write_coco(root / 'annotations' / 'person_keypoints_train2017.json', drawn[:7], [f'{i:012}.jpg' for i in range(7)])


def coco_roboflow(root):
    """One file in the folder of each split, with a first category that has no objects, and no outlines."""
    drawn = draw(12)
    for split, part in (('train', drawn[:7]), ('valid', drawn[7:10]), ('test', drawn[10:])):
        names = [save(root / split, f'a {d.number}_jpg.rf.0123456789abcdef{d.number}.jpg', d.image).name for d in part]
        extra = [dict(id=0, name='animals', supercategory='none')]
        write_coco(root / split / '_annotations.coco.json', part, names, outlines=False, extra=extra)
    (root / 'README.roboflow.txt').write_text('https://example.org\n')


def coco_cvat(root):
    """One file without a split and sizes, images in a folder that it does not name, and a byte order mark."""
    drawn = draw()
    names = [save(root / 'images' / 'default', f'{d.number}.PNG', d.image).name for d in drawn]
    file = root / 'annotations' / 'instances_default.json'
    write_coco(file, drawn, [f'C:\\photos\\{name}' for name in names])
    content = json.loads(file.read_text())
    for image in content['images']:
        del image['width'], image['height']
    file.write_text('\ufeff' + json.dumps(content), encoding='utf-8')


VOC = """<annotation><folder>x</folder><filename>{file}</filename>
<size><width>{width}</width><height>{height}</height><depth>3</depth></size>{objects}</annotation>"""
OBJECT = """<object><name>{}</name><difficult>0</difficult>
<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


def write_xml(file, drawn, name):
    objects = ''.join(
        OBJECT.format(NAMES[label], x + 1, y + 1, x + w + 1, y + h + 1) for label, x, y, w, h in drawn.boxes
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(VOC.format(file=name, width=WIDTH, height=HEIGHT, objects=objects), encoding='utf-8')


def voc(root):
    """Pascal's own folders, with lists of names."""
    drawn = draw()
    lists = root / 'ImageSets' / 'Main'
    lists.mkdir(parents=True)
    for split, part in (('train', drawn[:7]), ('val', drawn[7:]), ('trainval', drawn)):
        (lists / f'{split}.txt').write_text(''.join(f'2007_{d.number}\n' for d in part))
    for d in drawn:
        save(root / 'JPEGImages', f'2007_{d.number}.jpg', d.image)
        write_xml(root / 'Annotations' / f'2007_{d.number}.xml', d, f'2007_{d.number}.jpg')


def voc_flat(root):
    """No splits, names with spaces and other letters, several suffixes, and a background image without a file."""
    for d in draw():
        name = f'Füchse im Wald {d.number}' + ('.JPG', '.jpeg', '.tif')[d.number % 3]
        save(root / 'my photos', name, d.image)
        if d.boxes:
            write_xml(root / 'labels (xml)' / f'Füchse im Wald {d.number}.xml', d, name)


def voc_with_table(root):
    """XML next to the images, and a table that was made of them."""
    voc_flat(root)
    (root / 'labels.csv').write_text('filename,cell_type,xmin,xmax,ymin,ymax\nFüchse im Wald 1.jpeg,cat,1,9,1,9\n')


def rows(boxes, first=0, outlines=False):
    lines = []
    for label, x, y, w, h in boxes:
        values = (
            [value / (WIDTH, HEIGHT)[place % 2] for place, value in enumerate(polygon(x, y, w, h))]
            if outlines
            else [(x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT]
        )
        lines.append(f'{label + first} ' + ' '.join(f'{value:.6f}' for value in values))
    return '\n'.join(lines) + '\n'


def write_yolo(root, drawn, images, labels, first=0, outlines=False):
    for d in drawn:
        save(root / images, f'{d.number}.jpg', d.image)
        (root / labels).mkdir(parents=True, exist_ok=True)
        if d.boxes:  # background images have no file
            (root / labels / f'{d.number}.txt').write_text(rows(d.boxes, first, outlines))


def yolo(root):
    """ultralytics' folders, with names by number."""
    drawn = draw()
    for split, part in (('train', drawn[:7]), ('val', drawn[7:])):
        write_yolo(root, part, f'images/{split}', f'labels/{split}')
    names = '\n'.join(f'  {number}: {name}' for number, name in enumerate(NAMES))
    (root / 'mine.yaml').write_text(f'path: ../datasets/mine\ntrain: images/train\nval: images/val\nnames:\n{names}\n')


def yolo_roboflow(root):
    """Roboflow's folders, whose paths lead out of the folder."""
    drawn = draw()
    for split, part in (('train', drawn[:6]), ('valid', drawn[6:8]), ('test', drawn[8:])):
        write_yolo(root, part, f'{split}/images', f'{split}/labels', outlines=True)
    (root / 'data.yaml').write_text(
        f'train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 3\nnames: {list(NAMES)}\n'
    )


def yolo_lists(root):
    """Parts that only the YAML file calls training and validation."""
    drawn = draw()
    write_yolo(root, drawn[:7], 'batch_a', 'batch_a')
    write_yolo(root, drawn[7:], 'batch_b', 'batch_b')
    (root / 'data.yaml').write_text(f'train: batch_a\nval: batch_b\nnames: {list(NAMES)}\n')


def yolo_from_one(root):
    """Darknet's folder of images and labels, with class numbers from 1 and a list of names."""
    write_yolo(root, draw(), 'obj_train_data', 'obj_train_data', first=1)
    (root / 'obj.names').write_text('\n'.join(NAMES) + '\n')


def write_labelme(folder, drawn, kind):
    shapes = [
        dict(
            label=NAMES[label],
            points=[[x, y], [x + w, y + h]]
            if kind(place) == 'rectangle'
            else np.reshape(polygon(x, y, w, h), (-1, 2)).tolist(),
            group_id=None,
            shape_type=kind(place),
            flags={},
        )
        for place, (label, x, y, w, h) in enumerate(drawn.boxes)
    ]
    shapes.append(dict(label='tip', points=[[1, 1]], group_id=None, shape_type='point', flags={}))
    content = dict(version='5.4.1', flags={}, shapes=shapes, imagePath=f'..\\x\\{drawn.number}.jpg', imageData=None)
    (folder / f'{drawn.number}.json').write_text(json.dumps(dict(content, imageHeight=HEIGHT, imageWidth=WIDTH)))


def labelme(root):
    """One JSON file next to each image, with polygons."""
    for d in draw():
        save(root, f'{d.number}.jpg', d.image)
        write_labelme(root, d, lambda place: 'polygon')


def labelme_mixed(root):
    """Polygons and rectangles."""
    for d in draw():
        save(root, f'{d.number}.jpg', d.image)
        write_labelme(root, d, lambda place: ('polygon', 'rectangle')[place % 2])


def csv_file(root):
    """Columns with a header, and Windows' line ends."""
    lines = ['filename,width,height,class,xmin,ymin,xmax,ymax']
    for d in draw():
        save(root / 'images', f'{d.number}.jpg', d.image)
        lines += [f'{d.number}.jpg,{WIDTH},{HEIGHT},{NAMES[c]},{x},{y},{x + w},{y + h}' for c, x, y, w, h in d.boxes]
    (root / 'labels.csv').write_text('\r\n'.join(lines) + '\r\n')


def csv_boxes(root):
    """Names without suffixes, boxes in one cell, and no class, as on Kaggle."""
    lines = ['image_id,width,height,bbox']
    for d in draw():
        save(root / 'train', f'{d.number}.jpg', d.image)
        lines += [f'{d.number},{WIDTH},{HEIGHT},"[{x}.0, {y}, {w}, {h}]"' for _, x, y, w, h in d.boxes]
    (root / 'train.csv').write_text('\n'.join(lines) + '\n')


def csv_plain(root):
    """The columns of keras-retinanet: no header, a file for each split, and empty cells for background."""
    drawn = draw()
    for split, part in (('train', drawn[:7]), ('val', drawn[7:])):
        lines = []
        for d in part:
            save(root / 'images', f'{d.number}.jpg', d.image)
            lines += [f'images/{d.number}.jpg,{x},{y},{x + w},{y + h},{NAMES[c]}' for c, x, y, w, h in d.boxes]
            lines += [] if d.boxes else [f'images/{d.number}.jpg,,,,,']
        (root / f'{split}.csv').write_text('\n'.join(lines) + '\n')


def labels_of(drawn, first=1):
    """Return the index mask of an image: 0, and the classes from ``first`` on."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for label, x, y, w, h in drawn.boxes:
        mask[y : y + h, x : x + w] = first + label
    return mask


def masks(root):
    """Folders with names of their own, masks with the suffix ``_mask``, and images with several suffixes."""
    for d in draw():
        save(root / 'Fotos', f'Bild {d.number}' + ('.JPG', '.jpeg')[d.number % 2], d.image)
        (root / 'Ziel').mkdir(exist_ok=True)
        Image.fromarray(labels_of(d)).save(root / 'Ziel' / f'Bild {d.number}_mask.png')


def masks_camvid(root):
    """Folders such as trainannot, with nothing to convert."""
    drawn = draw()
    for split, part in (('train', drawn[:6]), ('val', drawn[6:8]), ('test', drawn[8:])):
        for d in part:
            save(root / split, f'{d.number}.png', d.image)
            (root / f'{split}annot').mkdir(exist_ok=True)
            Image.fromarray(labels_of(d)).save(root / f'{split}annot' / f'{d.number}.png')


def masks_ade(root):
    """ADE20K's folders, where 0 is not labeled."""
    drawn = draw()
    for split, part in (('training', drawn[:7]), ('validation', drawn[7:])):
        for d in part:
            save(root / 'images' / split, f'{d.number}.jpg', d.image)
            folder = root / 'annotations' / split
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels_of(d)).save(folder / f'{d.number}.png')


def masks_roboflow(root):
    """Images and masks side by side, with a table of names."""
    drawn = draw()
    for split, part in (('train', drawn[:7]), ('valid', drawn[7:])):
        for d in part:
            save(root / split, f'{d.number}_jpg.rf.0123456789abcdef{d.number}.jpg', d.image)
            file = root / split / f'{d.number}_jpg.rf.0123456789abcdef{d.number}_mask.png'
            Image.fromarray(labels_of(d)).save(file)
        table = ['Pixel Value, Class', '0, background', *(f'{i}, {name}' for i, name in enumerate(NAMES, 1))]
        (root / split / '_classes.csv').write_text('\n'.join(table) + '\n')


COLORS = np.array([(0, 0, 0), (200, 30, 30), (30, 200, 30), (30, 30, 200)], np.uint8)


def masks_colored(root):
    """Masks in color, with CVAT's table, and VOC's lists."""
    drawn = draw()
    for d in drawn:
        save(root / 'JPEGImages', f'{d.number}.jpg', d.image)
        save(root / 'SegmentationClass', f'{d.number}.png', COLORS[labels_of(d)][..., ::-1])
    lists = root / 'ImageSets' / 'Segmentation'
    lists.mkdir(parents=True)
    (lists / 'train.txt').write_text(''.join(f'{i}\n' for i in range(7)))
    (lists / 'val.txt').write_text(''.join(f'{i}\n' for i in range(7, 10)))
    table = [f'{name}:{r},{g},{b}::' for name, (r, g, b) in zip(('background', *NAMES), COLORS.tolist())]
    (root / 'labelmap.txt').write_text('# label:color_rgb:parts:actions\n' + '\n'.join(table) + '\n')


def masks_palette(root):
    """Palette images, as VOC has them, with 255 around the objects."""
    for d in draw():
        save(root / 'img', f'{d.number}.jpg', d.image)
        mask = labels_of(d)
        mask[:2] = 255
        image = Image.fromarray(mask, 'P')
        image.putpalette([value for color in COLORS.tolist() for value in color] + [128] * 756)
        (root / 'seg').mkdir(exist_ok=True)
        image.save(root / 'seg' / f'{d.number}.png')


def masks_binary(root):
    """Black and white masks as TIFF files."""
    for d in draw():
        save(root / 'image', f'{d.number}.tif', d.image)
        (root / 'label').mkdir(exist_ok=True)
        cv2.imwrite(str(root / 'label' / f'{d.number}.tif'), np.where(labels_of(d) > 0, 255, 0).astype(np.uint8))


def masks_gray(root):
    """Gray masks saved in three channels, a list of names, and a list of the validation images only."""
    drawn = draw()
    for d in drawn:
        save(root / 'images', f'{d.number}.jpg', d.image)
        save(root / 'labels', f'{d.number}_P.png', np.repeat(labels_of(d)[..., None], 3, 2))
    (root / 'codes.txt').write_text('\n'.join(('ground', *NAMES)) + '\n')
    (root / 'valid.txt').write_text(''.join(f'{d.number}.jpg\n' for d in drawn[7:]))


def masks_levels(root):
    """Classes as gray levels from black to white, in a folder that is a link."""
    for d in draw():
        save(root / '.kept', f'{d.number}.jpg', d.image)
        (root / 'masks').mkdir(exist_ok=True)
        Image.fromarray(labels_of(d) * 85).save(root / 'masks' / f'{d.number}.png')
    (root / 'images').symlink_to(root / '.kept')
    (root / 'masks' / 'back').symlink_to(root)


def masks_jpeg(root):
    """Black and white masks as JPEG, as Kvasir-SEG has them, whose values are blurred."""
    for d in draw():
        save(root / 'images', f'{d.number}.jpg', d.image)
        save(
            root / 'masks',
            f'{d.number}.jpg',
            np.repeat(np.where(labels_of(d) > 0, 255, 0)[..., None], 3, 2).astype('u1'),
        )


def masks_cityscapes(root):
    """Images and masks that each add something to the name, next to colors and instances."""
    drawn = draw()
    for split, part in (('train', drawn[:7]), ('val', drawn[7:])):
        for d in part:
            save(root / 'leftImg8bit' / split / 'ulm', f'{d.number}_leftImg8bit.png', d.image)
            save(root / 'gtFine' / split / 'ulm', f'{d.number}_gtFine_color.png', COLORS[labels_of(d)])
            for kind in ('instanceIds', 'labelIds'):
                name = f'{d.number}_gtFine_{kind}.png'
                Image.fromarray(labels_of(d)).save(root / 'gtFine' / split / 'ulm' / name)


def voc_with_masks(root):
    """Pascal VOC 2012, whose masks of classes and objects have the names of the images."""
    voc(root)
    for d in draw():
        for folder in ('SegmentationClass', 'SegmentationObject'):
            (root / folder).mkdir(exist_ok=True)
            Image.fromarray(labels_of(d)).save(root / folder / f'2007_{d.number}.png')
