"""Replace the backbone of a config of mmdet or mmseg by CAS-ViT, or show for which configs that works."""

import argparse
import shlex
import sys
from pathlib import Path

from mmcasvit.archs import ARCHS
from mmcasvit.cli import exits_cleanly
from mmcasvit.plugin.compatibility import CONFIGS, print_table
from mmcasvit.plugin.core import plug_with_notes
from mmcasvit.plugin.dump import config_text
from mmcasvit.plugin.source import FRAMEWORKS
from mmcasvit.utils.errors import PlugError, UsageError
from mmcasvit.weights.checkpoint import read_ahead


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config',
        nargs='*',
        help='config file, or name in an installed package such as mmdet::atss/atss_r50_fpn_1x_coco.py; --table takes '
        'any number of them (default: a selection of configs of mmdet and mmseg)',
    )
    parser.add_argument('--out', type=Path, metavar='FILE.py', help='config to write')
    parser.add_argument('--force', action='store_true', help='overwrite an existing file')
    parser.add_argument('--arch', choices=ARCHS, default='m', help='arch of CAS-ViT (default: %(default)s)')
    parser.add_argument(
        '--pretrained',
        metavar='FILE|NAME',
        help='ImageNet weights for the backbone: a file, an address, or the name of published weights, such as m',
    )
    parser.add_argument('--drop-path-rate', type=float, help='default: that of the published recipes')
    parser.add_argument('--frozen-stages', type=int, default=-1, help='as of CASViT (default: -1, no stage)')
    parser.add_argument(
        '--train-norms',
        action='store_true',
        help='let the BatchNorms of the backbone update their statistics, to train from random weights',
    )
    parser.add_argument(
        '--safe',
        action='store_true',
        help='add what our recipes have: verified checkpoints, the best of them, exact resume, skipping of unreadable '
        'images, the stop at a NaN or infinite loss, and the report',
    )
    parser.add_argument('--no-verify', action='store_true', help='do not try the new model on random data')
    parser.add_argument(
        '--table',
        action='store_true',
        help='plug CAS-ViT into each config, build, train one step, predict, and print what works; exit with status 1 '
        'if anything fails',
    )
    parser.add_argument(
        '--framework', choices=FRAMEWORKS, help='with --table and no config: only the selected configs of one framework'
    )
    return parser.parse_args()


def write_config(args):
    if len(args.config) != 1 or args.out is None:
        raise UsageError('give one config and --out FILE.py, or --table')
    source, out = args.config[0], args.out
    if out.suffix != '.py':
        raise UsageError(f'--out must be a .py file, got {out}')
    if out.exists() and not args.force:
        raise UsageError(f'{out} exists; use --force to overwrite it')
    if not out.parent.is_dir():
        raise UsageError(f'--out: there is no folder {out.parent.absolute()}')
    if args.pretrained is not None:
        read_ahead(args.pretrained)
    new, notes = plug_with_notes(
        source,
        args.arch,
        pretrained=args.pretrained,
        drop_path_rate=args.drop_path_rate,
        norm_eval=not args.train_norms,
        frozen_stages=args.frozen_stages,
        safe=args.safe,
        verify=not args.no_verify,
    )
    out.write_text(config_text(source, new, out, notes), encoding='utf-8')
    print('\n  '.join([f'{out} written:', *notes]))
    weights = '' if args.pretrained or args.train_norms or args.arch == 'l' else f' --pretrained {args.arch}'
    print(f'next:\n  python tools/train.py {shlex.quote(str(out))}{weights}')


def print_compatibility(args):
    names = args.config or [name for name in CONFIGS if args.framework in (None, name.partition('::')[0])]
    failures = print_table(names, args.arch)
    if failures:
        print(f'{failures} of {len(names)} configs failed', file=sys.stderr)
        sys.exit(1)


@exits_cleanly
def main():
    args = parse_args()
    try:
        print_compatibility(args) if args.table else write_config(args)
    except PlugError as error:
        raise UsageError(error) from error


if __name__ == '__main__':
    main()
