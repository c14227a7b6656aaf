"""Train the four small models on synthetic scenes, evaluate them, and write a table and a sheet of predictions.

Finished models are not trained again, and interrupted ones are resumed. A model starts over if its config, the model
file or the dataset has changed. Everything is written to the current folder, the data to data/shapes.
"""

import argparse
from pathlib import Path

import cv2

from mmcasvit.apis.quickstart import Task, draw_sheet, result_table, run_tool, train_and_test
from mmcasvit.cli import exits_cleanly
from mmcasvit.utils.errors import UsageError

DATA_ROOT = Path('data/shapes')  # where the configs look for it
# The quickest first.
TASKS = [
    Task('Semantic FPN', 'segmentation/semantic-fpn_casvit-xs_600i_shapes.py', {'mIoU': 80.0}),
    Task('RetinaNet', 'detection/retinanet_casvit-xs_fpn_6e_shapes.py', {'coco/bbox_mAP_50': 0.8}),
    Task(
        'Mask R-CNN',
        'detection/mask-rcnn_casvit-xs_fpn_6e_shapes.py',
        {'coco/bbox_mAP_50': 0.8, 'coco/segm_mAP_50': 0.8},
    ),
    Task('UperNet', 'segmentation/upernet_casvit-xs_600i_shapes.py', {'mIoU': 80.0}),
]
IMAGES = 4


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/quickstart'), metavar='DIR')
    parser.add_argument('--only', nargs='+', choices=[task.name for task in TASKS], help='train only these models')
    return parser.parse_args()


@exits_cleanly
def main():
    args = parse_args()
    run_tool('make_dataset.py', '--out-dir', DATA_ROOT)
    work_dir = args.work_dir.resolve()
    tasks = [task for task in TASKS if args.only is None or task.name in args.only]
    images = sorted((DATA_ROOT / 'coco' / 'val2017').iterdir())[1 : 1 + IMAGES]
    sheet, table = work_dir / 'sheet.png', work_dir / 'results.md'
    results = []
    for task in tasks:
        results.append(train_and_test(task, work_dir, DATA_ROOT))
        cv2.imwrite(str(sheet), draw_sheet(results, images))
        text = result_table(results)
        table.write_text(text + '\n')
        print(f'\n{text}\n\npredictions: {sheet}, table: {table}\n', flush=True)
    if missed := [metric for result in results for metric in result.missed]:
        raise UsageError(f'below the required value: {", ".join(missed)}')


if __name__ == '__main__':
    main()
