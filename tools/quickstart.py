"""Trains the four small models on the made-up scenes, evaluates them, and leaves a table and a sheet of pictures.

What is finished is not done again; what was interrupted goes on from its last checkpoint. A changed config, model file
or data set starts afresh. Everything is written below the current folder: the data to data/shapes.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import mmcasvit.casvit
import numpy as np
from mmengine.config import Config

from mmcasvit.cli import exits_cleanly
from mmcasvit.utils.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
DATA_ROOT = Path('data/shapes')  # where the configs look for it
# (name, config, metrics and the least each must reach)
TASKS = [
    ('RetinaNet', 'detection/retinanet_casvit-xs_fpn_6e_shapes.py', {'coco/bbox_mAP_50': 0.5}),
    (
        'Mask R-CNN',
        'detection/mask-rcnn_casvit-xs_fpn_6e_shapes.py',
        {'coco/bbox_mAP_50': 0.5, 'coco/segm_mAP_50': 0.4},
    ),
    ('Semantic FPN', 'segmentation/semantic-fpn_casvit-xs_600i_shapes.py', {'mIoU': 60.0}),
    ('UperNet', 'segmentation/upernet_casvit-xs_600i_shapes.py', {'mIoU': 60.0}),
]
PICTURES = 4


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/quickstart'), metavar='DIR')
    parser.add_argument('--only', nargs='+', choices=[name for name, *_ in TASKS], help='some of the models')
    return parser.parse_args()


def run(tool, *args):
    command = [str(part) for part in (ROOT / 'tools' / tool, *args)]
    done = subprocess.run([sys.executable, *command])
    if done.returncode:
        raise UsageError(f'this command failed with exit status {done.returncode}: {" ".join(command)}')


def fingerprint(config):
    parts = [
        Config.fromfile(config).pretty_text,
        Path(mmcasvit.models.casvit.__file__).read_text(),
        (DATA_ROOT / 'dataset.json').read_text(),
    ]
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()


def train_and_test(config, folder):
    """Returns the metrics of the last checkpoint and the seconds of training."""
    mark, note = folder / 'fingerprint', folder / 'result.json'
    wanted = fingerprint(config)
    if mark.is_file() and mark.read_text() == wanted:
        if note.is_file():
            print(f'{folder} is finished; remove it to train again')
            return json.loads(note.read_text())
    elif folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(wanted)
    start = time.perf_counter()
    run('train.py', config, '--work-dir', folder, '--resume')
    seconds = time.perf_counter() - start
    checkpoint = (folder / 'last_checkpoint').read_text().strip()
    shutil.rmtree(folder / 'test', ignore_errors=True)
    run('test.py', config, checkpoint, '--work-dir', folder / 'test', '--show-dir', folder / 'pictures')
    metrics = json.loads(next((folder / 'test').glob('*/*.json')).read_text())
    result = dict(metrics=metrics, seconds=seconds, checkpoint=checkpoint)
    note.write_text(json.dumps(result, indent=1))
    return result


def titled(image, text):
    strip = np.full((22, image.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, text, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([strip, image])


def picture_row(name, folder, inputs):
    """One model's pictures side by side, each as input, ground truth and prediction from top to bottom."""
    drawn = {
        file.stem.removeprefix('test_').split('_')[0].removesuffix('.jpg'): file
        for file in sorted((folder / 'pictures').rglob('*'))
        if file.suffix in ('.jpg', '.png')
    }
    columns = []
    for image in inputs:
        photo, pair = cv2.imread(str(image)), cv2.imread(str(drawn[image.stem]))
        truth, prediction = np.hsplit(pair, 2)
        size = photo.shape[1::-1]
        columns.append(
            np.vstack(
                [
                    titled(photo, f'{name}: input'),
                    titled(cv2.resize(truth, size, interpolation=cv2.INTER_AREA), 'ground truth'),
                    titled(cv2.resize(prediction, size, interpolation=cv2.INTER_AREA), 'prediction'),
                ]
            )
        )
    return np.hstack(columns)


def result_table(results):
    lines = ['| task | metric | reached | asked for | training, s |', '|---|---|---|---|---|']
    for (name, _, asked), result in results:
        for metric, least in asked.items():
            lines.append(
                f'| {name} | {metric} | {result["metrics"][metric]:.3f} | {least:g} | {result["seconds"]:.0f} |'
            )
    return '\n'.join(lines)


@exits_cleanly
def main():
    args = parse_args()
    run('make_dataset.py', '--out-dir', DATA_ROOT)
    tasks = [task for task in TASKS if args.only is None or task[0] in args.only]
    work_dir = args.work_dir.resolve()
    results, rows = [], []
    inputs = sorted((DATA_ROOT / 'coco' / 'val2017').iterdir())[1 : 1 + PICTURES]
    for task in tasks:
        name, config, _ = task
        config = ROOT / 'configs' / config
        folder = work_dir / config.stem
        results.append((task, train_and_test(config, folder)))
        rows.append(picture_row(name, folder, inputs))
    sheet = (
        np.vstack([np.hstack(rows[i : i + 2]) for i in range(0, len(rows), 2)])
        if len(rows) % 2 == 0
        else np.vstack(rows)
    )
    cv2.imwrite(str(work_dir / 'sheet.png'), sheet)
    table = result_table(results)
    (work_dir / 'results.md').write_text(table + '\n')
    print(f'\n{table}\n\npictures: {work_dir / "sheet.png"}, table: {work_dir / "results.md"}')
    short = [
        f'{task[0]} {metric} {result["metrics"][metric]:.3f}'
        for task, result in results
        for metric, least in task[2].items()
        if result['metrics'][metric] < least
    ]
    if short:
        raise UsageError(f'less than asked for: {", ".join(short)}')


if __name__ == '__main__':
    main()
