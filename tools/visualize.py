"""Draw the feature maps of a detector or segmentor for an image, stage by stage: strongest channels, gates of query and
key, additive context map, effective receptive field and class activation maps.

With --ranges: the range of activations in every layer over images, what overflows in fp16, and what int8 clips."""

import argparse
from pathlib import Path

from mmengine.device import get_device

from mmcasvit.apis.config import load_config
from mmcasvit.apis.model import get_model
from mmcasvit.apis.preflight import check_writable
from mmcasvit.cli import at_least_one, exits_cleanly
from mmcasvit.models.deploy import deploy, is_deployable
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.images import check_images, find_images
from mmcasvit.utils.tables import count_of, write_json
from mmcasvit.visualization.feature_maps import look_at
from mmcasvit.visualization.figure import draw
from mmcasvit.visualization.ranges import draw_ranges, measure_ranges, summarize

SUFFIXES = ('.png', '.jpg', '.pdf', '.svg')
NO_MAPS = 'no activation maps: nothing was found, or the scores of the head have no gradient'


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('image', type=Path, help='image file, with --ranges also a folder')
    parser.add_argument('config', help='config file of a detector or segmentor')
    parser.add_argument('checkpoint', help='checkpoint file, address, or name of published weights')
    parser.add_argument(
        '--out',
        type=Path,
        metavar='FILE',
        help=f'figure to write, as {", ".join(SUFFIXES)} (default: seen.png, or ranges.png with a ranges.json)',
    )
    parser.add_argument(
        '--ranges',
        action='store_true',
        help='show the ranges of activations in the deploy form instead, and write them to a JSON file next to the '
        'figure',
    )
    parser.add_argument(
        '--count', type=at_least_one, default=64, help='maximum number of images for --ranges (default: 64)'
    )
    parser.add_argument(
        '--category',
        metavar='NAME',
        help='class of the activation maps (default: the class of the best box, or of the largest area)',
    )
    parser.add_argument(
        '--cam',
        choices=['HiResCAM', 'Grad-CAM'],
        default='HiResCAM',
        help='method of the activation maps (default: HiResCAM)',
    )
    parser.add_argument('--score-thr', type=float, default=0.3, help='minimum score of boxes (default: 0.3)')
    parser.add_argument('--device', help='device, such as cpu or cuda:0 (default: a GPU if there is one)')
    return parser.parse_args()


def show_ranges(model, images, out):
    if is_deployable(model):
        model = deploy(model)
    rows = measure_ranges(model, images)
    out.parent.mkdir(parents=True, exist_ok=True)
    draw_ranges(rows, out)
    write_json(out.with_suffix('.json'), rows, images=len(images))
    print(summarize(rows))
    print(f'{out} and {out.with_suffix(".json")}: {len(rows)} operators, {count_of(len(images), "image")}')


@exits_cleanly
def main():
    args = parse_args()
    if args.image.is_dir() and not args.ranges:
        raise UsageError(f'{args.image} is a folder: name one image.')
    images = find_images(args.image)[: args.count]
    check_images(images)
    args.out = args.out or Path('ranges.png' if args.ranges else 'seen.png')
    if args.out.suffix not in SUFFIXES:
        raise UsageError(f'--out: {args.out} must end in {", ".join(SUFFIXES)}.')
    if not 0 < args.score_thr < 1:
        raise UsageError(f'--score-thr must lie between 0 and 1, got {args.score_thr}.')
    check_writable(args.out.absolute().parent)
    cfg = load_config(args.config)
    model = get_model(cfg, args.checkpoint, args.device or get_device())
    if args.ranges:
        show_ranges(model, images, args.out)
        return
    sight = look_at(model, args.image, args.category, args.score_thr, args.cam)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw(sight, args.out)
    maps = f'activation maps of {sight.category}' if sight.category else NO_MAPS
    print(f'{args.out}: {len(sight.stages)} stages, {maps}')


if __name__ == '__main__':
    main()
