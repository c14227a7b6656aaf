"""Draw the feature maps of a detector or segmentor for an image, stage by stage: strongest channels, gates of query and
key, additive context map, effective receptive field and class activation maps."""

import argparse
from pathlib import Path

from mmengine.device import get_device

from mmcasvit.apis.config import load_config
from mmcasvit.apis.model import get_model
from mmcasvit.apis.preflight import check_writable
from mmcasvit.cli import exits_cleanly
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.images import check_images, find_images
from mmcasvit.visualization.feature_maps import look_at
from mmcasvit.visualization.figure import draw

SUFFIXES = ('.png', '.jpg', '.pdf', '.svg')
NO_MAPS = 'no activation maps: nothing was found, or the scores of the head have no gradient'


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('image', type=Path, help='image file')
    parser.add_argument('config', help='config file of a detector or segmentor')
    parser.add_argument('checkpoint', help='checkpoint file, address, or name of published weights')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('seen.png'),
        metavar='FILE',
        help=f'figure to write, as {", ".join(SUFFIXES)} (default: seen.png)',
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


@exits_cleanly
def main():
    args = parse_args()
    if args.image.is_dir():
        raise UsageError(f'{args.image} is a folder: name one image.')
    check_images(find_images(args.image))
    if args.out.suffix not in SUFFIXES:
        raise UsageError(f'--out: {args.out} must end in {", ".join(SUFFIXES)}.')
    if not 0 < args.score_thr < 1:
        raise UsageError(f'--score-thr must lie between 0 and 1, got {args.score_thr}.')
    check_writable(args.out.absolute().parent)
    cfg = load_config(args.config)
    model = get_model(cfg, args.checkpoint, args.device or get_device())
    sight = look_at(model, args.image, args.category, args.score_thr, args.cam)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw(sight, args.out)
    maps = f'activation maps of {sight.category}' if sight.category else NO_MAPS
    print(f'{args.out}: {len(sight.stages)} stages, {maps}')


if __name__ == '__main__':
    main()
