"""Train the four small models on synthetic scenes, evaluate them, and write a table and a sheet of predictions.

Finished models are not trained again, and interrupted ones are resumed. A model starts over if its config, the model
file or the dataset has changed. Everything is written to the current folder, the data to data/shapes.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import cv2

from mmcasvit.apis.quickstart import Result, Task, draw_sheet, result_table, run_tool, train_and_test
from mmcasvit.cli import exits_cleanly
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.timing import cores

DATA_ROOT = Path('data/shapes')  # where the configs look for it
# The quickest first, then the one that takes longest.
TASKS = [
    Task('Semantic FPN', 'segmentation/semantic-fpn_casvit-xs_300i_shapes.py', {'mIoU': 70.0}),
    Task('UperNet', 'segmentation/upernet_casvit-xs_600i_shapes.py', {'mIoU': 70.0}),
    Task(
        'Mask R-CNN',
        'detection/mask-rcnn_casvit-xs_fpn_6e_shapes.py',
        {'coco/bbox_mAP_50': 0.8, 'coco/segm_mAP_50': 0.8},
    ),
    Task('RetinaNet', 'detection/retinanet_casvit-xs_fpn_6e_shapes.py', {'coco/bbox_mAP_50': 0.8}),
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
    images = sorted((DATA_ROOT / 'coco' / 'val2017').iterdir())[2 : 2 + IMAGES]  # the two before show little
    sheet, table = work_dir / 'sheet.png', work_dir / 'results.md'
    results: dict[str, Result] = {}

    def show(result: Result) -> None:
        results[result.task.name] = result
        done = [results[task.name] for task in tasks if task.name in results]
        cv2.imwrite(str(sheet), draw_sheet(done, images))
        text = result_table(done)
        table.write_text(text + '\n')
        print(f'\n{text}\n\npredictions: {sheet}, table: {table}\n', flush=True)

    show(train_and_test(tasks[0], work_dir, DATA_ROOT))
    # Models as small as these gain little from a second thread, so two at a time are done sooner than one by one.
    together = min(2, cores())
    pool = ThreadPoolExecutor(together)
    try:
        running = [
            pool.submit(train_and_test, task, work_dir, DATA_ROOT, label=task.name, threads=cores() // together)
            for task in tasks[1:]
        ]
        for future in as_completed(running):
            show(future.result())
    finally:
        pool.shutdown(cancel_futures=True)
    if missed := [metric for result in results.values() for metric in result.missed]:
        raise UsageError(f'below the required value: {", ".join(missed)}')


if __name__ == '__main__':
    main()
