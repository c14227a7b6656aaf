"""Predicts on an image or a folder of images: draws over them (OUT/vis) and writes what was found.

Detectors and classifiers write one JSON per image (OUT/preds), segmentors one index mask per image as PNG (OUT/pred).
"""

import argparse
from pathlib import Path

from mmengine.device import get_device
from mmengine.fileio import dump
from PIL import Image

from mmcasvit.apis.config import load_config
from mmcasvit.apis.preflight import check_deployable
from mmcasvit.cli import add_trust_argument, exits_cleanly
from mmcasvit.models.deploy import deploy
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.images import check_images, find_images
from mmcasvit.weights.checkpoint import read_ahead, use_safe_checkpoint_reader
from mmcasvit.weights.match import fit


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('input', type=Path, metavar='IMAGE_OR_FOLDER')
    parser.add_argument('config', help='config file; it says which framework')
    parser.add_argument('checkpoint', help='checkpoint file or address')
    parser.add_argument('--out-dir', type=Path, default=Path('outputs'), help='(default: %(default)s)')
    parser.add_argument('--score-thr', type=float, default=0.3, help='draw boxes from this score on (default: 0.3)')
    parser.add_argument('--device', help='such as cpu or cuda:0 (default: a GPU if there is one)')
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument(
        '--deploy', action='store_true', help='predict with the deploy form of the model, with its norms folded away'
    )
    add_trust_argument(parser)
    return parser.parse_args()


def check_drawable(images):
    """mmseg's drawing takes the label of an image of one pixel for an index, and fails."""
    for image in images:
        with Image.open(image) as file:
            if file.size == (1, 1):
                raise UsageError(f'{image} is a single pixel, which mmseg cannot draw.')


@exits_cleanly
def main():
    args = parse_args()
    images = find_images(args.input)
    cfg = load_config(args.config)
    content = read_ahead(args.checkpoint, trust=args.trust_checkpoint)
    check_images(images)
    if cfg.default_scope == 'mmseg':
        check_drawable(images)
    use_safe_checkpoint_reader(args.trust_checkpoint)
    cfg.model.backbone.pop('init_cfg', None)
    out = dict(out_dir=str(args.out_dir), batch_size=args.batch_size)
    if cfg.default_scope == 'mmdet':
        from mmdet.apis import DetInferencer

        inferencer = DetInferencer(cfg, args.checkpoint, device=args.device)
        out |= dict(pred_score_thr=args.score_thr, no_save_pred=False)
        predictions = args.out_dir / 'preds'
    elif cfg.default_scope == 'mmpretrain':
        from mmpretrain import ImageClassificationInferencer

        inferencer = ImageClassificationInferencer(cfg, args.checkpoint, device=args.device or get_device())
        # Drawings get one size: the names of classes would not fit into a small picture.
        out = dict(show_dir=str(args.out_dir / 'vis'), resize=448, batch_size=args.batch_size)
        predictions = args.out_dir / 'preds'
        predictions.mkdir(parents=True, exist_ok=True)
    else:
        from mmseg.apis import MMSegInferencer

        inferencer = MMSegInferencer(cfg, args.checkpoint, device=args.device)
        # mmseg draws in the colours of Cityscapes unless it is told otherwise
        inferencer.visualizer.dataset_meta = inferencer.model.dataset_meta
        predictions = args.out_dir / 'pred'
    fit(content, inferencer.model.state_dict()).refuse(loaded=True)
    if args.deploy:
        check_deployable(inferencer.model)
        inferencer.model = deploy(inferencer.model)
    results = inferencer(images, **out)
    if cfg.default_scope == 'mmpretrain':
        for image, result in zip(images, results):
            dump(result, predictions / f'{Path(image).stem}.json', indent=1)
    print(f'{len(images)} images: drawn in {args.out_dir / "vis"}, predictions in {predictions}')


if __name__ == '__main__':
    main()
