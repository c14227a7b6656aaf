"""Exports the backbone or the whole model of a checkpoint, runs the file, and compares it with PyTorch.

The exit status is 1 where the outputs are further from PyTorch's than they may be.
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch
from mmengine.config import DictAction

from mmcasvit.apis.config import config_path, load_config
from mmcasvit.apis.model import get_model
from mmcasvit.apis.preflight import check_deployable
from mmcasvit.cli import exits_cleanly
from mmcasvit.export import comparison as checking
from mmcasvit.export.coreml import operators_of, outside_neural_engine
from mmcasvit.export.evaluation import load_pictures
from mmcasvit.export.formats import FORMATS, check_format, export, load_exported, size_of
from mmcasvit.export.graphs import kind_of
from mmcasvit.export.quantization import check_quantiser, export_quantised
from mmcasvit.export.signature import DTYPES, Signature
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.images import check_images, find_images
from mmcasvit.utils.tables import markdown
from mmcasvit.utils.timing import Timer, interleave


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or the name of one of ours')
    parser.add_argument('checkpoint', help='checkpoint file or address')
    parser.add_argument('--format', required=True, choices=FORMATS)
    parser.add_argument(
        '--what',
        choices=['backbone', 'model'],
        default='model',
        help='the backbone alone, or the whole detector or segmentor (default: model)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        metavar='FILE',
        help='where it goes (default: CONFIG_NAME with the suffix of the format, in this folder)',
    )
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=(512, 512),
        metavar=('HEIGHT', 'WIDTH'),
        help='of the input, in pixels (default: 512 512)',
    )
    parser.add_argument(
        '--dynamic',
        nargs='+',
        choices=['batch', 'size'],
        default=[],
        help='what is left open; otherwise the batch is 1 and the size that of --size',
    )
    parser.add_argument(
        '--precision',
        choices=[*DTYPES, 'int8'],
        default='fp32',
        help='int8 is calibrated on the --images (default: fp32)',
    )
    parser.add_argument('--argmax', action='store_true', help='a segmentor gives the class of each pixel, not logits')
    parser.add_argument(
        '--preprocess',
        choices=['rgb', 'bgr'],
        help='the graph takes pixels of this order, (N, H, W, 3) in uint8, and normalises them',
    )
    parser.add_argument(
        '--resize',
        action='store_true',
        help='with --preprocess: pixels of any size are stretched to --size within the graph',
    )
    parser.add_argument(
        '--form',
        choices=['deploy', 'plain'],
        help='the deploy form, or the model as built (default: plain for openvino and executorch, '
        'which fold norms themselves, else deploy)',
    )
    parser.add_argument(
        '--images',
        type=Path,
        metavar='IMAGE_OR_FOLDER',
        help='pictures to compare on, read by the test pipeline of the config (default: made-up ones)',
    )
    parser.add_argument('--count', type=int, default=8, help='how many pictures at most (default: 8)')
    parser.add_argument(
        '--calibration',
        type=int,
        default=64,
        help='on how many of the --images int8 is calibrated at most (default: 64)',
    )
    parser.add_argument(
        '--tolerance',
        type=float,
        help="how far the outputs may be from PyTorch's (default: "
        + ', '.join(f'{value:g} for {name}' for name, value in checking.TOLERANCES.items())
        + ')',
    )
    parser.add_argument(
        '--threads',
        type=int,
        default=torch.get_num_threads(),
        help='of PyTorch and of the runtime (default: %(default)s)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override entries of the config, such as model.test_cfg.rcnn.max_per_img=20',
    )
    return parser.parse_args()


def check_arguments(args, kind):
    """The signature to export with, or an error that says what cannot be had."""
    known = check_format(args.format)
    what = 'backbone' if args.what == 'backbone' else kind
    if what not in known.what:
        raise UsageError(f'{args.format} holds {" and ".join(known.what)} here, no {what}.')
    if args.precision not in known.precisions:
        raise UsageError(f'{args.format} is written in {" or ".join(known.precisions)}, not in {args.precision}.')
    if args.precision == 'int8':
        check_quantiser()
        if args.images is None or args.calibration < 1:
            raise UsageError('--precision int8 needs --images to calibrate on, and --calibration of at least 1.')
    if args.dynamic and not known.dynamic:
        raise UsageError(f'--dynamic: {args.format} has a fixed batch and size here.')
    if args.argmax and what != 'segmentor':
        raise UsageError(f'--argmax is for segmentors, and this is a {what}.')
    if args.resize and (args.preprocess is None or 'size' in args.dynamic or not known.dynamic):
        raise UsageError('--resize needs --preprocess, a fixed --size, and a format whose input can have any size.')
    if min(args.size) < 32 or args.count < 1 or args.threads < 1:
        raise UsageError('--size must be at least 32 each, --count and --threads at least 1.')
    if args.out is None:
        args.out = Path(Path(args.config).stem).with_suffix(known.suffix)
    if args.out.suffix != known.suffix:
        raise UsageError(f'--out: a file of {args.format} ends in {known.suffix}, got {args.out}')
    if not args.out.absolute().parent.is_dir():
        raise UsageError(f'--out: no folder {args.out.absolute().parent}')
    pixels = args.preprocess or ('rgb' if args.format == 'coreml' else None)
    return Signature(
        args.format,
        what,
        tuple(args.size),
        'batch' in args.dynamic,
        'size' in args.dynamic,
        args.precision,
        pixels,
        args.resize,
        args.argmax,
    )


def latencies(exported, model, picture, threads):
    """Median milliseconds of the exported model and of PyTorch on one picture, in turns."""
    picture = checking.fit(picture, model.data_preprocessor, exported.signature)
    image = checking.feed(picture, model.data_preprocessor, exported.signature)
    reference = checking.Reference(model, exported.signature)
    samples = interleave(
        {
            name: Timer(run, 'cpu', threads)
            for name, run in dict(exported=lambda: exported(image), pytorch=lambda: reference(picture)).items()
        },
        rounds=5,
    )
    return [1000 * statistics.median(samples[name]) for name in ('exported', 'pytorch')]


def report_coreml(path):
    operators, outside = operators_of(path), outside_neural_engine(path)
    print(
        f'{path}: {size_of(path) / 2**20:.2f} MiB, {sum(operators.values())} operators: '
        + ', '.join(f'{count} {name}' for name, count in operators.most_common())
    )
    print(
        f'{sum(outside.values())} of them are known to stay off the Neural Engine'
        + (': ' + ', '.join(f'{count} {name}' for name, count in outside.most_common()) if outside else '')
    )


@exits_cleanly
def main():
    args = parse_args()
    cfg = load_config(config_path(args.config), args.cfg_options)
    check_format(args.format)
    images = find_images(args.images) if args.images else []
    check_images(images)
    cfg.model.backbone.pop('init_cfg', None)
    torch.set_num_threads(args.threads)
    model = get_model(cfg, args.checkpoint)
    fold = not FORMATS[args.format].folds if args.form is None else args.form == 'deploy'
    if fold:
        check_deployable(model)
    signature = check_arguments(args, None if args.what == 'backbone' else kind_of(model))
    if args.precision == 'int8':
        calibration = [
            checking.feed(checking.fit(picture, model.data_preprocessor, signature), model.data_preprocessor, signature)
            for picture in load_pictures(images[: args.calibration], cfg, signature)
        ]
        export_quantised(model, signature, args.out, calibration, fold)
    else:
        export(model, signature, args.out, fold)
    if args.format == 'coreml':
        report_coreml(args.out)
        if not FORMATS[args.format].here():
            print('not compared with PyTorch: Core ML runs on macOS alone')
            return

    exported = load_exported(args.out, args.threads)
    pictures = (
        load_pictures(images[: args.count], cfg, signature)
        if images
        else checking.drawn_pictures(args.count, signature.size)
    )
    difference = checking.compare(exported, model, pictures)
    tolerance = checking.TOLERANCES[args.precision] if args.tolerance is None else args.tolerance
    milliseconds, pytorch = latencies(exported, model, pictures[0], args.threads)
    print(
        markdown(
            [
                dict(
                    file=args.out.name,
                    precision=args.precision,
                    MiB=f'{exported.bytes / 2**20:.2f}',
                    pictures=len(pictures),
                    **{f'difference of {name}': f'{value:.1e}' for name, value in difference.by_output.items()},
                    tolerance=f'{tolerance:g}',
                    ms=milliseconds,
                    **{'PyTorch, ms': pytorch},
                )
            ]
        )
    )
    if not difference.largest <= tolerance:
        name = max(difference.by_output, key=difference.by_output.get)
        print(
            f'error: {args.out} differs from PyTorch by {difference.largest:.2g} in {name}, and the tolerance is '
            f'{tolerance:g}',
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == '__main__':
    main()
