"""Export the backbone or the whole model of a checkpoint, run the file, and compare it with PyTorch.

The exit status is 1 if the outputs differ from PyTorch's by more than the tolerance.
"""

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

import torch

from mmcasvit.apis.config import config_path, load_config
from mmcasvit.apis.model import get_model
from mmcasvit.apis.preflight import check_deployable
from mmcasvit.cli import add_config_options, exits_cleanly
from mmcasvit.export.comparison import TOLERANCES, graph_input, report, synthetic_images
from mmcasvit.export.evaluation import load_images, size_in_tests
from mmcasvit.export.formats import (
    FORMATS,
    LARGEST_INPUT,
    check_format,
    check_signature,
    check_target,
    check_threads,
    export,
    load_exported,
)
from mmcasvit.export.graphs import kind_of
from mmcasvit.export.quantization import check_quantizer, export_quantized
from mmcasvit.export.signature import DTYPES, Signature
from mmcasvit.export.summary import summarize
from mmcasvit.export.web.folder import MODEL, check_folder, check_page, find_runtime, write_page
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.images import check_images, find_images
from mmcasvit.utils.tables import markdown

# Images are held in memory.
LARGEST_COUNT = 10_000


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or name of a config of this project')
    parser.add_argument('checkpoint', help='checkpoint file, address, or name of published weights')
    parser.add_argument(
        '--format',
        required=True,
        choices=[*FORMATS, 'web'],
        help='format of the file; web makes a folder with a page that runs the model in the browser',
    )
    parser.add_argument(
        '--what',
        choices=['backbone', 'model'],
        default='model',
        help='only the backbone, or the whole detector or segmentor (default: %(default)s)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        metavar='FILE',
        help='file to write, or folder for web (default: CONFIG_NAME with the suffix of the format, and -PRECISION '
        'before it unless that is fp32, in the current folder)',
    )
    parser.add_argument('--force', action='store_true', help='overwrite the file or page if it exists')
    parser.add_argument(
        '--ort-dist',
        type=Path,
        metavar='FOLDER',
        help='for web: dist folder of the npm package onnxruntime-web (default: that in node_modules of the current '
        'folder)',
    )
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        help='input size in pixels (default: that of the first of --images after the test pipeline of the config, or '
        'of an image of 480x640 pixels, rounded up to multiples of 32)',
    )
    parser.add_argument(
        '--dynamic',
        nargs='+',
        choices=['batch', 'size'],
        default=[],
        help='dimensions to leave open (default: none, so that the batch is 1 and the size is --size)',
    )
    parser.add_argument(
        '--precision',
        choices=[*DTYPES, 'int8'],
        default='fp32',
        help='precision of the file; int8 is calibrated on --images (default: %(default)s)',
    )
    parser.add_argument(
        '--argmax', action='store_true', help='return the class of each pixel instead of logits (segmentors only)'
    )
    parser.add_argument(
        '--preprocess',
        choices=['rgb', 'bgr'],
        help='take raw pixels (N, H, W, 3) in uint8 with this channel order and normalize them in the graph',
    )
    parser.add_argument(
        '--resize', action='store_true', help='with --preprocess: resize images of any size to --size in the graph'
    )
    parser.add_argument(
        '--form',
        choices=['deploy', 'plain'],
        help='export the deploy form or the model as built (default: deploy for models with a CAS-ViT)',
    )
    parser.add_argument(
        '--images',
        type=Path,
        metavar='IMAGE_OR_FOLDER',
        help='images to compare on, loaded by the test pipeline of the config (default: synthetic images)',
    )
    parser.add_argument(
        '--count', type=int, default=8, help='maximum number of images to compare on (default: %(default)s)'
    )
    parser.add_argument(
        '--calibration',
        type=int,
        default=64,
        help='maximum number of --images to calibrate int8 on, and to look for overflow in fp16 (default: %(default)s)',
    )
    tolerances = ', '.join(f'{value:g} for {name}' for name, value in TOLERANCES.items())
    parser.add_argument(
        '--tolerance', type=float, help=f"largest accepted difference from PyTorch's outputs (default: {tolerances})"
    )
    parser.add_argument(
        '--threads',
        type=int,
        default=torch.get_num_threads(),
        help='number of threads of PyTorch and of the runtime (default: %(default)s)',
    )
    add_config_options(parser, 'override entries of the config, such as model.test_cfg.rcnn.max_per_img=20')
    return parser.parse_args()


def graph_format(args):
    """Return the format of the graph: that of a page is ONNX."""
    return 'onnx' if args.format == 'web' else args.format


def check_arguments(args, kind):
    """Return the signature that the arguments ask for, for a model of a kind, if it can be exported."""
    web = args.format == 'web'
    signature = Signature(
        graph_format(args),
        'backbone' if args.what == 'backbone' else kind,
        tuple(args.size),
        'batch' in args.dynamic,
        'size' in args.dynamic,
        args.precision,
        args.preprocess or ('rgb' if args.format == 'coreml' else None),
        args.resize,
        args.argmax,
    )
    check_signature(signature)
    if web:
        check_page(signature)
    if args.precision == 'int8':
        check_quantizer(args.format)
        if args.images is None or args.calibration < 1:
            raise UsageError('--precision int8 needs --images to calibrate on, and --calibration of at least 1.')
    check_threads(args.threads)
    if not 1 <= args.count <= LARGEST_COUNT or not 1 <= args.calibration <= LARGEST_COUNT:
        raise UsageError(f'--count and --calibration must be at least 1 and at most {LARGEST_COUNT}.')
    if args.images is None and args.count * signature.size[0] * signature.size[1] > 8 * LARGEST_INPUT:
        raise UsageError(
            f'{args.count} synthetic images of --size {args.size[0]} {args.size[1]} have more than '
            f'{8 * LARGEST_INPUT} pixels: choose a smaller --count.'
        )
    if args.tolerance is not None and not 0 <= args.tolerance < math.inf:
        raise UsageError(f'--tolerance must be a number of at least 0, got {args.tolerance:g}.')
    return signature


def check_out(args):
    """Choose where to write, and check that it can be written, before the model is loaded."""
    web = args.format == 'web'
    precision = '' if web or args.precision == 'fp32' else f'-{args.precision}'
    args.out = args.out or Path(Path(args.config).stem + precision + ('' if web else FORMATS[args.format].suffix))
    if web:
        check_folder(args.out, args.force)
    else:
        check_target(args.format, args.out, args.force)


@exits_cleanly
def main():
    args = parse_args()
    cfg = load_config(config_path(args.config), args.cfg_options)
    known = check_format(graph_format(args))
    if args.ort_dist is not None and args.format != 'web':
        raise UsageError('--ort-dist is for --format web.')
    runtime = find_runtime(args.ort_dist) if args.format == 'web' else None
    paths = find_images(args.images) if args.images else []
    check_images(paths)
    check_out(args)
    cfg.model.get('backbone', {}).pop('init_cfg', None)
    model = get_model(cfg, args.checkpoint)
    fold = None if args.form is None else args.form == 'deploy'
    if fold:
        check_deployable(model)
    args.size = args.size or size_in_tests(cfg.test_dataloader.dataset.pipeline, paths[0] if paths else None)
    signature = check_arguments(args, None if args.what == 'backbone' else kind_of(model))
    torch.set_num_threads(args.threads)

    calibrated = args.calibration if args.precision in ('int8', 'fp16') else 0
    images = load_images(paths[: max(calibrated, args.count)], cfg, signature)
    measured = images[:calibrated]
    if args.precision == 'int8':
        inputs = [graph_input(image, model.data_preprocessor, signature) for image in measured]
        export_quantized(model, signature, args.out, inputs, fold)
    elif args.format == 'web':
        write_page(model, signature, args.out, runtime, fold)
    else:
        normalized = replace(signature, pixels=None, resize=False)
        inputs = [graph_input(image, model.data_preprocessor, normalized) for image in measured]
        export(model, signature, args.out, fold, inputs)
    file = args.out / MODEL if args.format == 'web' else args.out
    if known.count is not None:
        print(summarize(graph_format(args), file))
    if not known.runs_here():
        print(f'not compared with PyTorch: {args.format} files cannot be run on this machine')
        return

    exported = load_exported(file, args.threads)
    images = images[: args.count] if paths else synthetic_images(args.count, signature.size)
    row, fault = report(exported, model, images, args.tolerance, args.threads)
    print(markdown([row]))
    if args.format == 'web':
        print(f'To open the page: python {args.out / "serve.py"}')
    if fault:
        sys.exit(f'error: {fault}')


if __name__ == '__main__':
    main()
