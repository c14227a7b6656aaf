"""Train the model of a config for mmdet, mmseg or mmpretrain."""

import argparse
import sys

from torch.distributed.elastic.multiprocessing.errors import record

from mmcasvit.apis.config import load_config
from mmcasvit.apis.fast import log_choices, use_fast_training
from mmcasvit.apis.options import (
    add_tensorboard,
    has_accelerator,
    limit_images,
    scale_learning_rate,
    use_amp,
    use_fast_evaluation,
    use_pretrained,
    use_start,
)
from mmcasvit.apis.preflight import check_data, warn_about_random_backbone
from mmcasvit.apis.runner import build_runner, prepare
from mmcasvit.apis.trackers import TRACKERS, refusals_explained, use_trackers
from mmcasvit.cli import add_common_arguments, at_least_one, exits_cleanly
from mmcasvit.engine.distributed import use_cpus
from mmcasvit.engine.stopping import stops_explained
from mmcasvit.utils.errors import RunStopped


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, which also names the framework')
    parser.add_argument(
        '--pretrained',
        metavar='FILE|NAME',
        help='ImageNet weights for the backbone: a file, an address, or the name of published weights, such as xs or '
        'xs-384, which are downloaded once (python -m mmcasvit weights list)',
    )
    parser.add_argument('--amp', action='store_true', help='train in mixed precision')
    parser.add_argument(
        '--fast',
        action='store_true',
        help='switch on what makes steps faster on this device and computes the same up to rounding, and say what',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='latest',
        metavar='auto|FILE',
        help='resume from FILE, or from the latest checkpoint of the work dir; with auto, start if there is none',
    )
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate to the batch size in use')
    parser.add_argument(
        '--report',
        action='store_true',
        help='write report.html, the report of tools/report.py, to the work dir, with the last validation',
    )
    parser.add_argument(
        '--limit', type=at_least_one, metavar='N', help='train on N images, drawn at random and the same in every run'
    )
    parser.add_argument(
        '--limit-eval', type=at_least_one, metavar='N', help='validate on only N images, drawn in the same way'
    )
    parser.add_argument(
        '--track',
        action='append',
        default=[],
        choices=TRACKERS,
        help='send config, curves and drawn images to this tracker of experiments; may be given more than once. '
        'Where TensorBoard is installed, it is always written to',
    )
    parser.add_argument(
        '--fast-eval', action='store_true', help="use faster-coco-eval for COCO's metric, which gives the same numbers"
    )
    add_common_arguments(parser)
    return parser.parse_args()


@exits_cleanly
@record  # makes torchrun show the error of the process that failed first
def main():
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    check_data(cfg, 'train', 'val')
    prepare(cfg, args)
    if args.fast_eval:
        use_fast_evaluation(cfg)
    if args.launcher == 'pytorch' and not has_accelerator():
        use_cpus(cfg)
    if args.pretrained is not None:
        use_pretrained(cfg, args.pretrained, args.trust_checkpoint)
    if args.amp:
        use_amp(cfg)
    choices = [*use_fast_training(cfg)] if args.fast else []  # after --amp, which decides on some
    if args.auto_scale_lr:
        scale_learning_rate(cfg)
    if decision := use_start(cfg, args.resume, args.trust_checkpoint):
        choices.append(decision)
    limit_images(cfg, 'train', args.limit)
    limit_images(cfg, 'val', args.limit_eval)
    use_trackers(cfg, args.track)
    add_tensorboard(cfg)
    if args.report:
        cfg.custom_hooks.append(dict(type='mmcasvit.ReportHook'))
    with refusals_explained():
        runner = build_runner(cfg, quiet=not args.verbose)
    warn_about_random_backbone(cfg)
    log_choices(choices, runner.logger)
    try:
        with stops_explained(runner):
            runner.train()
    except RunStopped as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(1)


if __name__ == '__main__':
    main()
