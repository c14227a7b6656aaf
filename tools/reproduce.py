"""Measure the published figures again: evaluate each published checkpoint that is there, or train its recipe.

The folder of results gets evaluated.md (with --train, trained.md), the table. What was measured is not measured again,
so an interrupted run can be repeated. Each GPU evaluates one checkpoint at a time; a training uses all GPUs. The exit
status is 1 if a figure differs or an evaluation fails, and 2 if nothing can be evaluated.
"""

import argparse
import functools
import signal
import sys
from pathlib import Path

from mmcasvit.apis.published import list_published
from mmcasvit.cli import add_trust_argument, exits_cleanly
from mmcasvit.reproduce.core import reproduce
from mmcasvit.reproduce.plan import TABLES, choose, plan


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--tables', nargs='+', choices=TABLES, default=TABLES, help='tables of the paper (default: all)'
    )
    parser.add_argument('--only', nargs='+', metavar='NAME', help='only these checkpoints, such as xs mask-rcnn-xs')
    parser.add_argument(
        '--data',
        type=Path,
        default=Path('data'),
        metavar='DIR',
        help='folder with coco, ade/ADEChallengeData2016, and imagenet (default: %(default)s)',
    )
    parser.add_argument(
        '--weights',
        type=Path,
        metavar='DIR',
        help='folder with checkpoints named after their configs or short names, such as mask-rcnn-xs.pth. Others are '
        'downloaded once (python -m mmcasvit weights list)',
    )
    parser.add_argument('--train', action='store_true', help='train the recipes, and evaluate what comes out')
    parser.add_argument(
        '--tolerance',
        type=float,
        metavar='POINTS',
        help='largest difference of figures that agree (default: 0.1, or 0.5 with --train)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/reproduce'),
        metavar='DIR',
        help='folder of results (default: %(default)s)',
    )
    parser.add_argument('--index', type=Path, metavar='FILE', help='another list of models than model-index.yml')
    add_trust_argument(parser)
    return parser.parse_args()


@exits_cleanly
def main():
    args = parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the processes that are running, as Ctrl-C does
    tolerance = args.tolerance if args.tolerance is not None else 0.5 if args.train else 0.1
    published = list_published(args.index)
    chosen = choose(published, args.tables, args.only)
    jobs = [plan(each, published, args.data, args.weights, args.train, args.trust_checkpoint) for each in chosen]
    if not reproduce(jobs, published, args.out, tolerance, functools.partial(print, flush=True)):
        sys.exit(1)


if __name__ == '__main__':
    main()
