"""What the report says about the problems of several datasets."""

from mmengine.config import ConfigDict

from mmcasvit.datasets.checks.problems import KINDS, CheckedDataset, Sample
from mmcasvit.datasets.checks.report import as_json, as_text, conclusion


def dataset(split, problems=0, reads='coco', kind='Dataset'):
    config = ConfigDict(type=kind, data_root='root', data_prefix=dict(img_path=split))
    data = CheckedDataset(split, f'{split}_dataloader', config, reads, ('disc',), [], samples=[Sample('a.jpg')] * 3)
    for number in range(problems):
        data.add('empty_box', f'annotation {number}', 'too small', box=(1, 2, 3, 4), annotation_index=number)
    return data


def test_the_text_counts_each_kind_and_shows_some_examples():
    data = dataset('train', 3)
    data.add('overlap', 'a.jpg', 'in val: b.jpg')
    other = dataset('val', 2, 'images')
    assert as_text([data, other], 2).splitlines() == [
        'train: 3 images, root/train',
        f'  {KINDS["empty_box"]}: 3',
        '    annotation 0: too small',
        '    annotation 1: too small',
        '    and 1 more',
        f'  {KINDS["overlap"]}: 1',
        '    a.jpg: in val: b.jpg',
        'val: 3 images, root/val',
        '  not checked: boxes, masks and labels of Dataset',
        f'  {KINDS["empty_box"]}: 2',
        '    annotation 0: too small',
        '    annotation 1: too small',
    ]


def test_the_json_has_everything():
    found = as_json([dataset('train', 3), dataset('val', reads='images')])
    assert list(found) == ['train_dataloader', 'val_dataloader']
    train, val = found.values()
    assert (train['split'], train['images'], train['checked'], train['not_checked']) == ('train', 3, 'coco', '')
    assert (len(train['problems']), train['problems'][2]['box']) == (3, (1, 2, 3, 4))
    assert val['not_checked'] == 'boxes, masks and labels of Dataset'
    assert val['problems'] == []


def test_the_conclusion_never_says_more_than_was_checked():
    assert conclusion([dataset('train'), dataset('val')]) == 'no problems found'
    assert conclusion([dataset('train', 2), dataset('val', 1)], 5) == 'problems found: 3'
    unread = [dataset(split, reads='images') for split in ('train', 'val')]
    assert conclusion([*unread, dataset('test', reads='images', kind='B')], 5) == (
        'no problems found in what was checked; not checked: boxes, masks and labels of Dataset, boxes, masks and '
        'labels of B, images after the first 5 of each dataset'
    )
