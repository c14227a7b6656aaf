"""Predict on an image or a folder of images, draw the predictions (OUT/vis) and save them.

Detectors and classifiers write one JSON file per image (OUT/preds), segmentors one PNG index mask per image (OUT/pred).
Files are named after their images, and subfolders of the folder are kept.
"""

import argparse
from pathlib import Path

from mmcasvit.apis.config import load_config
from mmcasvit.apis.inference import check_options, get_inferencer, plan_outputs, predict
from mmcasvit.apis.preflight import check_deployable, check_drawable
from mmcasvit.cli import add_trust_argument, exits_cleanly
from mmcasvit.models.deploy import deploy
from mmcasvit.utils.images import check_images, find_images


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('input', type=Path, metavar='IMAGE_OR_FOLDER')
    parser.add_argument('config', help='config file, which also names the framework')
    parser.add_argument('checkpoint', help='checkpoint file, address, or name of published weights')
    parser.add_argument('--out-dir', type=Path, default=Path('outputs'), help='(default: %(default)s)')
    parser.add_argument('--force', action='store_true', help='overwrite existing files')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='lowest score of a drawn box (default: %(default)s)'
    )
    parser.add_argument('--device', help='such as cpu or cuda:0 (default: a GPU if there is one)')
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument(
        '--deploy', action='store_true', help='predict with the deploy form of the model, with its norms folded away'
    )
    add_trust_argument(parser)
    return parser.parse_args()


@exits_cleanly
def main():
    args = parse_args()
    images = find_images(args.input, leave_out=args.out_dir)
    cfg = load_config(args.config)
    check_options(cfg, args.device, args.batch_size, args.score_thr, args.config)
    check_images(images)
    if cfg.default_scope == 'mmseg':
        check_drawable(images)
    outputs, predictions = plan_outputs(cfg.default_scope, images, args.input, args.out_dir, args.force)
    inferencer = get_inferencer(cfg, args.checkpoint, args.device, args.trust_checkpoint)
    if args.deploy:
        check_deployable(inferencer.model)
        inferencer.model = deploy(inferencer.model)
    predict(inferencer, cfg.default_scope, outputs, args.batch_size, args.score_thr)
    print(f'{len(images)} images: drawings in {args.out_dir / "vis"}, predictions in {predictions}')


if __name__ == '__main__':
    main()
