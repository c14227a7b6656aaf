"""Convert checkpoints of the authors' code into ones of this project, and back with --reverse.

ImageNet files need no config. Detectors and segmentors need the config that they belong to. Without DST
nothing is written: names and shapes are compared with those of the model, and the exit status is 2 if any is missing
or differs. Optimizer states are dropped.
"""

import argparse
from pathlib import Path

from mmcasvit.apis.convert import convert, convert_back, expected_by_config
from mmcasvit.cli import add_trust_argument, exits_cleanly
from mmcasvit.utils.errors import UsageError, WeightsError
from mmcasvit.weights.checkpoint import read_checkpoint, write_checkpoint

SUFFIXES = ('.pth', '.safetensors')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SRC', help='checkpoint file, address, or name of published weights')
    parser.add_argument(
        'target', metavar='DST', nargs='?', type=Path, help='new file, .pth or .safetensors; leave it out to only check'
    )
    parser.add_argument('--config', help='config of the detector, segmentor or classifier')
    parser.add_argument(
        '--reverse',
        action='store_true',
        help="convert from this project to the authors' code (their mmdet 2.24, mmsegmentation 0.24, main.py)",
    )
    parser.add_argument('--check', action='store_true', help='write nothing')
    parser.add_argument(
        '--ema',
        action='store_true',
        help='take the moving average (model_ema) of an ImageNet file instead of the last weights',
    )
    parser.add_argument('--force', action='store_true', help='replace DST if it exists')
    add_trust_argument(parser)
    return parser.parse_args()


def check_arguments(args):
    if args.check and args.target:
        raise UsageError('--check writes nothing: leave out DST or --check.')
    if args.reverse and args.ema:
        raise UsageError("--ema selects weights in the authors' files and cannot be combined with --reverse.")
    if args.target is None:
        return
    suffixes = SUFFIXES[:1] if args.reverse else SUFFIXES
    if args.target.suffix not in suffixes:
        raise UsageError(
            f'DST must end in {" or ".join(suffixes)}, got {args.target}'
            + (": the authors' code reads no other files." if args.reverse else '')
        )
    if not args.target.parent.is_dir():
        raise UsageError(f'folder not found: {args.target.parent.absolute()}')
    if args.target.exists() and not args.force:
        raise UsageError(f'{args.target.absolute()} already exists; --force replaces it.')


@exits_cleanly
def main():
    args = parse_args()
    check_arguments(args)
    content = read_checkpoint(args.source, trust=args.trust_checkpoint)
    expected = expected_by_config(args.config) if args.config else None
    conversion = convert_back(content, expected) if args.reverse else convert(content, expected, ema=args.ema)
    print(conversion.describe(args.source, args.config or 'the classifier', args.target))
    if conversion.fit.fatal:
        raise WeightsError(f'the weights do not fit; nothing was written.\n{conversion.fit}\n  {conversion.fit.advice}')
    if args.target:
        write_checkpoint(conversion.content, args.target)
        print(f'  written to {args.target}')


if __name__ == '__main__':
    main()
