"""Trains the model of a config, of mmdet, mmseg or mmpretrain."""

import argparse
import sys

from torch.distributed.elastic.multiprocessing.errors import record

from mmcasvit.apis.config import load_config
from mmcasvit.apis.preflight import check_data, warn_about_random_backbone
from mmcasvit.apis.runner import add_tensorboard, build_runner, has_accelerator, prepare
from mmcasvit.cli import add_common_arguments, exits_cleanly
from mmcasvit.engine.distributed import use_cpus
from mmcasvit.engine.stopping import full_disk_explained
from mmcasvit.utils.errors import RunStopped, UsageError
from mmcasvit.weights.checkpoint import read_ahead


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file; it says which framework')
    parser.add_argument('--pretrained', metavar='FILE', help='ImageNet weights for the backbone, file or address')
    parser.add_argument('--amp', action='store_true', help='train in mixed precision')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='auto|FILE',
        help='go on from FILE, or from the latest checkpoint of the work dir',
    )
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate to the batch size that is really used'
    )
    parser.add_argument(
        '--report',
        action='store_true',
        help='leave report.html in the work dir, as tools/report.py makes it, with the last validation',
    )
    add_common_arguments(parser)
    return parser.parse_args()


@exits_cleanly
@record  # torchrun then shows the error of the process that failed first
def main():
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    check_data(cfg, 'train', 'val')
    prepare(cfg, args)
    if args.launcher == 'pytorch' and not has_accelerator():
        use_cpus(cfg)
    if args.pretrained is not None:
        read_ahead(args.pretrained, args.trust_checkpoint)
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=args.pretrained, trust=args.trust_checkpoint)
    if args.amp:
        if not has_accelerator():
            raise UsageError(
                '--amp: mmengine trains in mixed precision on a GPU only, and none is visible here. Leave out --amp.'
            )
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UsageError(
                '--auto-scale-lr: the config does not say for which batch size its learning rate is '
                'meant. Add auto_scale_lr = dict(base_batch_size=N).'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume == 'auto':
        cfg.resume, cfg.load_from = True, None
    elif args.resume is not None:
        read_ahead(args.resume, args.trust_checkpoint)
        cfg.resume, cfg.load_from = True, args.resume
    elif cfg.get('load_from'):
        read_ahead(cfg.load_from, args.trust_checkpoint)
    add_tensorboard(cfg)
    if args.report:
        cfg.custom_hooks.append(dict(type='mmcasvit.ReportHook'))
    runner = build_runner(cfg)
    warn_about_random_backbone(cfg)
    try:
        with full_disk_explained(runner):
            runner.train()
    except RunStopped as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(1)


if __name__ == '__main__':
    main()
