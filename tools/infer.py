"""Predict on images, videos and cameras, draw the predictions (OUT/vis) and save them.

INPUT is an image, a folder of images and videos, a pattern in quotes such as 'photos/*.jpg', a video, or the index of a
camera, such as 0; several may be given. For images, detectors and classifiers write one JSON file each (OUT/preds),
segmentors one PNG index mask each (OUT/pred). For a video or camera, all write an annotated mp4 (OUT/vis) and one JSON
line per frame (OUT/preds). Files are named after their images, and subfolders of a folder are kept.

With --lines, or a --launcher, nothing is drawn, and the images share JSON lines (OUT/lines/part-*.jsonl).
"""

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image

from mmcasvit.apis.config import load_config
from mmcasvit.apis.inference import check_options, get_inferencer
from mmcasvit.apis.preflight import check_deployable, check_drawable, check_launcher, check_writable
from mmcasvit.cli import add_launcher_argument, add_trust_argument, exits_cleanly
from mmcasvit.engine.hooks.speed import keep_freed_memory
from mmcasvit.models.deploy import deploy
from mmcasvit.predict.images import predict, predict_tiled
from mmcasvit.predict.outputs import plan_outputs
from mmcasvit.predict.predictor import Predictor, get_exported_inferencer
from mmcasvit.predict.shares import Parts, Share, fingerprint, predict_share
from mmcasvit.predict.sources import find_sources, stream_sources
from mmcasvit.predict.tiles import TiledPredictor, check_tiles
from mmcasvit.predict.videos import check_videos, predict_video
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.images import check_images


def parse_args():
    parser = argparse.ArgumentParser(
        usage='%(prog)s [options] INPUT... CONFIG CHECKPOINT',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'arguments',
        nargs='+',
        metavar='INPUT... CONFIG CHECKPOINT',
        help='what to predict on; the config file, which also names the framework; checkpoint file, address, or name '
        'of published weights, not needed with --exported and a whole model',
    )
    parser.add_argument('--out-dir', type=Path, default=Path('outputs'), help='output folder (default: %(default)s)')
    parser.add_argument('--force', action='store_true', help='overwrite existing files')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='lowest score of a drawn box (default: %(default)s)'
    )
    parser.add_argument('--device', help='such as cpu or cuda:0 (default: a GPU if there is one)')
    parser.add_argument('--batch-size', type=int, default=1, help='images per pass (default: %(default)s)')
    parser.add_argument(
        '--deploy', action='store_true', help='predict with the deploy form of the model, with its norms folded away'
    )
    parser.add_argument(
        '--exported', metavar='FILE', help='predict with a file of tools/export.py, the backbone or the whole model'
    )
    parser.add_argument(
        '--tile',
        type=int,
        metavar='PIXELS',
        help='predict on large images tile by tile, in tiles of this side, and merge what the tiles have in common',
    )
    parser.add_argument(
        '--overlap',
        type=float,
        default=0.2,
        help='share of a tile that it has in common with the next; objects up to this length are complete in one tile '
        '(default: %(default)s)',
    )
    parser.add_argument('--max-frames', type=int, metavar='N', help='stop after N frames of a video or camera')
    parser.add_argument(
        '--lines', action='store_true', help='for many images: write JSON lines in parts, and draw nothing'
    )
    parser.add_argument(
        '--part-size', type=int, default=1000, metavar='N', help='images in a part (default: %(default)s)'
    )
    parser.add_argument('--resume', action='store_true', help='keep the parts that are there, and do what is missing')
    parser.add_argument(
        '--merge',
        action='store_true',
        help='at the end, write the lines of all parts to OUT/predictions.jsonl; for one process, with --lines',
    )
    add_launcher_argument(parser)
    add_trust_argument(parser)
    args = parser.parse_intermixed_args()
    *args.inputs, args.config, args.checkpoint = split(args.arguments, args.exported is not None, parser)
    return args


def split(words, whole, parser):
    """Add None for the checkpoint if there is none, which an exported model does not need."""
    if whole and (len(words) == 2 or words[-1].endswith(('.py', '.json', '.yaml', '.yml'))):
        words = [*words, None]
    if len(words) < 3:
        parser.error(f'expected INPUT... CONFIG {"[CHECKPOINT]" if whole else "CHECKPOINT"}, got {" ".join(words)}')
    return words


def build(args, cfg):
    if args.deploy or args.exported:
        keep_freed_memory()
    if args.exported:
        if args.deploy or args.device not in (None, 'cpu'):
            raise UsageError('--exported runs on the CPU, and cannot be combined with --deploy or another --device.')
        return get_exported_inferencer(cfg, args.exported, args.checkpoint, args.trust_checkpoint)
    inferencer = get_inferencer(cfg, args.checkpoint, args.device, args.trust_checkpoint)
    if args.deploy:
        check_deployable(inferencer.model)
        inferencer.model = deploy(inferencer.model)
    return inferencer


def predict_lines(args):
    """Predict on any number of images, those of this process if there are several."""
    for value, flag in ((args.part_size, '--part-size'), (args.batch_size, '--batch-size')):
        if value < 1:
            raise UsageError(f'{flag} must be at least 1, got {value}.')
    check_launcher(args.launcher)
    check_writable(args.out_dir)
    share, merged = Share.of_launcher(args.launcher), args.out_dir / 'predictions.jsonl'
    if args.merge and share.processes > 1:
        raise UsageError('--merge is for one process: when all are done, run once more with --lines --resume --merge.')
    if args.merge and merged.exists() and not args.force:
        raise UsageError(f'{merged} exists already. Use --force to overwrite it, or another --out-dir.')
    if args.device is None and not args.exported and torch.cuda.is_available():
        args.device = f'cuda:{share.local_rank % torch.cuda.device_count()}'
    cfg = load_config(args.config)
    check_options(cfg, args.device, args.batch_size, args.score_thr, args.config)
    settings = dict(
        config=fingerprint(cfg.to_dict(), None),
        weights=fingerprint(None, args.checkpoint),
        exported=fingerprint(None, args.exported),
        tiles=[args.tile, args.overlap] if args.tile is not None else None,
        deploy=args.deploy,
    )
    parts = Parts(args.out_dir / 'lines', share, args.part_size, settings, args.resume)
    sources = stream_sources(args.inputs, leave_out=args.out_dir)
    if len(args.inputs) > 1:  # two folders may have images of one name
        sources = (source._replace(name=Path(source.path)) for source in sources)
    print(f'{predict_share(lambda: build_predictor(args, cfg), parts, sources, args.batch_size)}: {parts.folder}')
    if args.merge:
        print(f'{parts.merge(merged)} images: {merged}')


def build_predictor(args, cfg):
    predictor = Predictor(build(args, cfg), cfg.default_scope, args.score_thr)
    return predictor if args.tile is None else TiledPredictor(predictor, args.tile, args.overlap, args.batch_size)


def predict_files(args):
    """Predict on images, videos and cameras, with files and drawings for each."""
    sources = find_sources(args.inputs, leave_out=args.out_dir)
    images = [str(source.path) for source in sources if not source.is_video]
    cfg = load_config(args.config)
    check_options(cfg, args.device, args.batch_size, args.score_thr, args.config)
    if args.max_frames is not None and not 1 <= args.max_frames <= sys.maxsize:
        raise UsageError(f'--max-frames must be at least 1 and at most {sys.maxsize}, got {args.max_frames}.')
    check_images(images)
    check_videos(sources)
    if cfg.default_scope == 'mmseg':
        check_drawable(images)
    outputs = plan_outputs(cfg.default_scope, sources, args.out_dir, args.force)
    predictor = build_predictor(args, cfg)
    videos = [output for source, output in zip(sources, outputs) if source.is_video]
    if images:
        of_images = [output for source, output in zip(sources, outputs) if not source.is_video]
        if args.tile is not None:
            predict_tiled(predictor, of_images)
        else:
            predict(predictor, of_images, args.batch_size)
        folder = 'pred' if cfg.default_scope == 'mmseg' else 'preds'
        empty = predictor.describe_drawings() if isinstance(predictor, Predictor) else ''
        print(
            f'{len(images)} images: drawings in {args.out_dir / "vis"}{empty}; predictions in {args.out_dir / folder}'
        )
    for output in videos:
        said = predict_video(predictor, output, args.batch_size, args.max_frames)
        print(f'{said}: {output.drawing}, {output.prediction}', flush=True)


@exits_cleanly
def main():
    args = parse_args()
    args.batch_size = min(args.batch_size, sys.maxsize)  # the most that itertools takes
    if args.tile is not None:
        check_tiles(args.tile, args.overlap)
        Image.MAX_IMAGE_PIXELS = 2**30  # what OpenCV reads
    if args.lines or args.launcher != 'none':
        predict_lines(args)
    elif args.resume or args.merge:
        raise UsageError('--resume and --merge are for --lines, or a --launcher.')
    else:
        predict_files(args)


if __name__ == '__main__':
    main()
