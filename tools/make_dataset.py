"""Make a dataset of synthetic scenes of textured shapes with exact labels.

It is written in the layouts of COCO (DIR/coco), ADE20K (DIR/ade), and VOC (DIR/voc). Images with one shape each, for
classification, are written in the layout of ImageNet (DIR/imagenet).
"""

import argparse
import json
import shutil
import time
from pathlib import Path

from mmcasvit.cli import exits_cleanly
from mmcasvit.datasets.shapes import write_dataset
from mmcasvit.utils.errors import UsageError

LAYOUTS = ('coco', 'ade', 'voc', 'imagenet')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--out-dir', type=Path, default=Path('data/shapes'), metavar='DIR', help='new folder (default: %(default)s)'
    )
    parser.add_argument('--train', type=int, default=600, help='number of training images (default: %(default)s)')
    parser.add_argument('--val', type=int, default=100, help='number of validation images (default: %(default)s)')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=(128, 192),
        metavar=('HEIGHT', 'WIDTH'),
        help='size of the scenes in pixels (default: 128 192)',
    )
    parser.add_argument('--seed', type=int, default=0, help='seed of the scenes (default: %(default)s)')
    parser.add_argument('--force', action='store_true', help='replace a dataset that this tool made in DIR')
    return parser.parse_args()


def is_present(folder, wanted, force):
    """Return whether a folder holds the wanted dataset, after checking that it may be written if not."""
    note = folder / 'dataset.json'
    if not note.is_file():
        if folder.exists():
            raise UsageError(f'{folder} exists but was not made by this tool. Give another --out-dir.')
        return False
    if force:
        return False
    present = {key: value for key, value in json.loads(note.read_text()).items() if key in wanted}
    if present != wanted:
        raise UsageError(
            f'{folder} was made with {present}, not {wanted}. Use --force to replace it, or give another --out-dir.'
        )
    if missing := [layout for layout in LAYOUTS if not (folder / layout).is_dir()]:
        raise UsageError(
            f'{folder} lacks {", ".join(missing)}: it is incomplete or from an earlier version. Use --force to '
            'make it again.'
        )
    return True


@exits_cleanly
def main():
    args = parse_args()
    height, width = args.size
    if min(args.train, args.val) < 1 or args.seed < 0 or min(args.size) < 32:
        raise UsageError('--train and --val must be at least 1, --seed at least 0, and --size at least 32 pixels.')
    wanted = dict(train=args.train, val=args.val, seed=args.seed, height=height, width=width)
    if is_present(args.out_dir, wanted, args.force):
        print(f'{args.out_dir} already exists with these settings')
        return
    if args.out_dir.exists():
        shutil.rmtree(args.out_dir)
    start = time.perf_counter()
    summary = write_dataset(args.out_dir, **wanted)
    print(
        f'{args.out_dir}: {args.train} + {args.val} images, {summary["train_instances"]} + '
        f'{summary["val_instances"]} instances, {time.perf_counter() - start:.1f} s'
    )


if __name__ == '__main__':
    main()
