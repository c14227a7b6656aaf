"""Turns checkpoints of the authors' code into ones of this project, and back with --reverse.

ImageNet files need no config, detectors and segmentors need the one of this project that they are for. Without DST
nothing is written: the names and shapes are compared with those of the model, and the exit status is 2 if any is
missing or differs. Optimizer states are left behind.
"""

import argparse
from pathlib import Path

from mmengine.registry import MODELS, init_default_scope

from mmcasvit.apis.config import load_config
from mmcasvit.apis.convert import convert, convert_back
from mmcasvit.cli import add_trust_argument, exits_cleanly
from mmcasvit.utils.errors import UsageError, WeightsError
from mmcasvit.utils.text import shorten
from mmcasvit.weights.checkpoint import read_checkpoint, write_checkpoint

SUFFIXES = ('.pth', '.safetensors')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SRC', help='checkpoint file or address')
    parser.add_argument(
        'target',
        metavar='DST',
        nargs='?',
        type=Path,
        help='the new file, .pth or .safetensors; leave it out to check alone',
    )
    parser.add_argument('--config', help='the config that the detector, segmentor or classifier belongs to')
    parser.add_argument(
        '--reverse',
        action='store_true',
        help="from this project to the authors' code (their mmdet 2.24, mmsegmentation 0.24, main.py)",
    )
    parser.add_argument('--check', action='store_true', help='write nothing')
    parser.add_argument(
        '--ema',
        action='store_true',
        help='of an ImageNet file, take the moving average (model_ema) instead of the last weights',
    )
    parser.add_argument('--force', action='store_true', help='replace DST if it is there')
    add_trust_argument(parser)
    return parser.parse_args()


def check_arguments(args):
    if args.check and args.target:
        raise UsageError('--check writes nothing: leave out DST, or --check.')
    if args.reverse and args.ema:
        raise UsageError("--ema picks weights of the authors' files: it has no meaning with --reverse.")
    if args.target is None:
        return
    suffixes = SUFFIXES[:1] if args.reverse else SUFFIXES
    if args.target.suffix not in suffixes:
        raise UsageError(
            f'DST must end in {" or ".join(suffixes)}, got {args.target}'
            + (": the authors' code reads no other." if args.reverse else '')
        )
    if not args.target.parent.is_dir():
        raise UsageError(f'folder not found: {args.target.parent.absolute()}')
    if args.target.exists() and not args.force:
        raise UsageError(f'{args.target.absolute()} is there already; --force replaces it.')


def expected_weights(config):
    """The state dict of the model of a config."""
    cfg = load_config(config)
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.pop('init_cfg', None)
    return MODELS.build(cfg.model).state_dict()


def describe(conversion, args):
    """What matched, in lines."""
    found = conversion.fit
    yield f'{args.source}' + (f' (under {found.container!r})' if found.container else '')
    yield (
        f'  {found.found}: {found.matched} of {found.matched + len(found.fatal)} tensors of '
        f'{args.config or "the classifier"} match'
    )
    if found.leftover and not found.fatal:
        fate = 'lost in a .safetensors file' if args.target and args.target.suffix == '.safetensors' else 'kept aside'
        yield f'  no place in the model, {fate}: {shorten(found.leftover)}'
    if conversion.supplied:
        yield f'  not in the file, supplied without effect on the outputs: {shorten(conversion.supplied)}'


@exits_cleanly
def main():
    args = parse_args()
    check_arguments(args)
    content = read_checkpoint(args.source, trust=args.trust_checkpoint)
    expected = expected_weights(args.config) if args.config else None
    conversion = convert_back(content, expected) if args.reverse else convert(content, expected, ema=args.ema)
    print('\n'.join(describe(conversion, args)))
    if conversion.fit.fatal:
        raise WeightsError(f'the weights do not fit; nothing was written.\n{conversion.fit}\n  {conversion.fit.advice}')
    if args.target:
        write_checkpoint(conversion.content, args.target)
        print(f'  written: {args.target}')


if __name__ == '__main__':
    main()
