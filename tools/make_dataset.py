"""Makes scenes of textured shapes with exact labels: COCO's layout in DIR/coco, ADE20K's in DIR/ade, VOC's in DIR/voc,
and one shape per picture in ImageNet's layout in DIR/imagenet."""

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
    parser.add_argument('--out-dir', type=Path, default=Path('data/shapes'), metavar='DIR')
    parser.add_argument('--train', type=int, default=600, help='training images (default: %(default)s)')
    parser.add_argument('--val', type=int, default=100, help='validation images (default: %(default)s)')
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=(128, 192),
        metavar=('HEIGHT', 'WIDTH'),
        help='in pixels (default: 128 192)',
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--force', action='store_true', help='replace what an earlier run of this tool made there')
    return parser.parse_args()


@exits_cleanly
def main():
    args = parse_args()
    height, width = args.size
    if min(args.train, args.val) < 1 or args.seed < 0 or min(args.size) < 32:
        raise UsageError('--train and --val must be at least 1, --seed at least 0, and --size at least 32 pixels.')
    wanted = dict(train=args.train, val=args.val, seed=args.seed, height=height, width=width)
    note = args.out_dir / 'dataset.json'
    if note.is_file():
        present = {key: value for key, value in json.loads(note.read_text()).items() if key in wanted}
        if present == wanted and not args.force:
            lacking = [layout for layout in LAYOUTS if not (args.out_dir / layout).is_dir()]
            if lacking:
                raise UsageError(
                    f'{args.out_dir} lacks {", ".join(lacking)}: an earlier version made it. Use --force '
                    'to make it again.'
                )
            print(f'{args.out_dir} is there already, made in the same way')
            return
        if not args.force:
            raise UsageError(
                f'{args.out_dir} was made with {present}, not {wanted}. Use --force to replace it, or '
                'another --out-dir.'
            )
        shutil.rmtree(args.out_dir)
    elif args.out_dir.exists():
        raise UsageError(f'{args.out_dir} is there and was not made by this tool. Give another --out-dir.')
    start = time.perf_counter()
    summary = write_dataset(args.out_dir, **wanted)
    print(
        f'{args.out_dir}: {args.train} + {args.val} images, {summary["train_instances"]} + '
        f'{summary["val_instances"]} instances, {time.perf_counter() - start:.1f} s'
    )


if __name__ == '__main__':
    main()
