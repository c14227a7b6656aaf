"""Start with your own data: look at a folder of labeled images, check it, and write a config with reasons.

Boxes and outlines are read from COCO json, Pascal VOC xml, YOLO txt, LabelMe json and CSV, semantic labels from index
masks or masks in color. Nothing in the folder is changed. Prints the next commands, or runs them with --train.
"""

import argparse
import math
from pathlib import Path

from mmcasvit.apis.preflight import check_writable
from mmcasvit.archs import ARCHS
from mmcasvit.cli import exits_cleanly
from mmcasvit.start.prepare import LAYOUTS, TASKS, Options
from mmcasvit.start.recipe import MODELS, Choices
from mmcasvit.start.run import start, train
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.timing import cores


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', type=Path, metavar='DATA', help='folder with images and labels')
    parser.add_argument('--task', choices=TASKS, default='', help='what to learn (default: depends on the labels)')
    parser.add_argument(
        '--model',
        choices=list(dict.fromkeys(name for names in MODELS.values() for name in names)),
        default='',
        help='model to train (default: retinanet, mask-rcnn, or semantic-fpn, depending on the task)',
    )
    parser.add_argument(
        '--arch',
        choices=[name for name in ARCHS if name != 'l'],
        default='xs',
        help='arch of CAS-ViT (default: %(default)s)',
    )
    parser.add_argument('--size', type=int, help='longer side of the images in the model, in pixels')
    parser.add_argument('--batch', type=int, help='images in a training step')
    parser.add_argument('--epochs', type=float, help='how often training sees each image')
    parser.add_argument(
        '--minutes', type=float, help='time for training on this machine (default: 10 without a GPU, or no limit)'
    )
    parser.add_argument(
        '--pretrained', metavar='FILE|NAME', help='ImageNet weights for the backbone, as in tools/train.py, such as xs'
    )
    parser.add_argument('--out-dir', type=Path, help='folder for the results (default: work_dirs/start/DATA)')
    parser.add_argument(
        '--train', action='store_true', help='train, evaluate the best checkpoint, draw its predictions'
    )
    parser.add_argument(
        '--layout', choices=LAYOUTS, default='', help='which labels to read, if there are several kinds'
    )
    parser.add_argument('--classes', nargs='+', default=[], metavar='NAME', help='names of the classes, in order')
    parser.add_argument(
        '--zero',
        choices=['background', 'class', 'ignore'],
        default='',
        help='what 0 in masks means, if that is unclear',
    )
    parser.add_argument(
        '--unlabeled',
        choices=['background', 'skip'],
        default='',
        help='what images without a label file are (default: background, if they are the minority)',
    )
    parser.add_argument(
        '--val-share',
        type=float,
        default=0.2,
        metavar='SHARE',
        help='share of the images for validation where there is none (default: %(default)s)',
    )
    parser.add_argument('--seed', type=int, default=0, help='seed that chooses them (default: %(default)s)')
    parser.add_argument('--fix', action='store_true', help='leave out images and objects with faults')
    parser.add_argument('--force', action='store_true', help='overwrite a config that was edited')
    parser.add_argument('--workers', type=int, default=min(8, cores()), help=argparse.SUPPRESS)
    return parser.parse_args()


def check_arguments(args):
    for name in ('size', 'batch', 'epochs', 'minutes'):
        value = getattr(args, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UsageError(f'--{name} must be more than 0, got {value}.')
    if args.size is not None and args.size < 32:
        raise UsageError(f'--size must be at least 32 pixels, got {args.size}.')
    if not 0 < args.val_share < 1:
        raise UsageError(f'--val-share must lie between 0 and 1, got {args.val_share}.')
    if len(set(args.classes)) < len(args.classes):
        raise UsageError(f'--classes has a name twice: {" ".join(args.classes)}.')


@exits_cleanly
def main():
    args = parse_args()
    check_arguments(args)
    out = args.out_dir or Path('work_dirs/start', args.data.resolve().name)
    out = out.absolute()
    check_writable(out)
    options = Options(args.task, args.layout, args.classes, args.zero, args.unlabeled, args.val_share, args.seed)
    choices = Choices(args.model, args.arch, args.size, args.batch, args.epochs, args.minutes, args.pretrained)
    started = start(args.data, out, options, choices, args.fix, args.force, args.workers)
    print(started.text)
    if args.train:
        print(train(started))
    else:
        print(f'next:\n{started.describe_commands()}')


if __name__ == '__main__':
    main()
