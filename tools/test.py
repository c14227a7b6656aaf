"""Evaluate a checkpoint with its config for mmdet, mmseg or mmpretrain."""

import argparse

from mmcasvit.apis.config import load_config
from mmcasvit.apis.options import (
    draw_predictions,
    dump_predictions,
    limit_images,
    use_fast_evaluation,
    use_output,
    use_tta,
)
from mmcasvit.apis.preflight import check_data, check_deployable
from mmcasvit.apis.runner import build_runner, prepare
from mmcasvit.cli import add_common_arguments, at_least_one, exits_cleanly
from mmcasvit.utils.errors import UsageError
from mmcasvit.weights.checkpoint import read_ahead


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, which also names the framework')
    parser.add_argument('checkpoint', help='checkpoint file, address, or name of published weights')
    parser.add_argument(
        '--out',
        metavar='FILE.pkl|DIR',
        help='save the predictions: a pickle for detectors and classifiers, a folder of index masks for segmentors',
    )
    parser.add_argument('--show', action='store_true', help='show every prediction in a window')
    parser.add_argument('--show-dir', metavar='DIR', help='save a drawing of every prediction to this folder')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds between windows')
    parser.add_argument('--tta', action='store_true', help='use the test-time augmentation of the config')
    parser.add_argument(
        '--deploy', action='store_true', help='evaluate the deploy form of the model, with its norms folded away'
    )
    parser.add_argument(
        '--simulate-fp16',
        action='store_true',
        help='evaluate the deploy form in fp16, by rounding the result of each operator, on any processor',
    )
    parser.add_argument(
        '--exported',
        metavar='FILE',
        help='evaluate a file of tools/export.py, the backbone or the whole model; CHECKPOINT provides the parts that '
        'were not exported',
    )
    parser.add_argument(
        '--limit-eval',
        type=at_least_one,
        metavar='N',
        help='evaluate only N images, drawn at random and the same in every run',
    )
    parser.add_argument(
        '--report',
        action='store_true',
        help='write report.html, the report of tools/report.py, to the work dir, with this test',
    )
    parser.add_argument(
        '--fast-eval', action='store_true', help="use faster-coco-eval for COCO's metric, which gives the same numbers"
    )
    add_common_arguments(parser)
    return parser.parse_args()


def use_exported(cfg, args):
    if args.deploy or args.tta or args.simulate_fp16:
        raise UsageError('--exported cannot be combined with --deploy, --tta or --simulate-fp16.')
    from mmcasvit.export.evaluation import fitted_pipeline
    from mmcasvit.export.hook import ExportedHook

    hook = ExportedHook(args.exported)
    dataset = cfg.test_dataloader.dataset
    cfg.custom_hooks.append(dict(type='mmcasvit.ExportedHook', file=args.exported, pipeline=dataset.pipeline))
    dataset.pipeline = fitted_pipeline(dataset.pipeline, hook.exported.signature)


@exits_cleanly
def main():
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    if args.out:
        use_output(cfg, args.out)
    check_data(cfg, 'test')
    read_ahead(args.checkpoint, args.trust_checkpoint)
    prepare(cfg, args)
    if args.fast_eval:
        use_fast_evaluation(cfg)
    cfg.load_from, cfg.resume = args.checkpoint, False  # the config of a resumed run says True
    if args.show or args.show_dir:
        draw_predictions(cfg, args.show_dir, args.show, args.wait_time)
    else:
        cfg.default_hooks.get('visualization', {}).pop('draw', None)
    if args.tta:
        use_tta(cfg)
    # The checkpoint has been read completely: initial weights of the backbone would only be overwritten.
    cfg.model.get('module', cfg.model).get('backbone', {}).pop('init_cfg', None)
    if args.simulate_fp16:
        if args.tta:
            raise UsageError('--simulate-fp16 cannot be combined with --tta.')
        cfg.custom_hooks.append(dict(type='mmcasvit.SimulatedHalfHook'))
    elif args.deploy:
        cfg.custom_hooks.append(dict(type='mmcasvit.DeployHook'))
    if args.exported:
        use_exported(cfg, args)
    if args.deploy or args.exported:
        cfg.custom_hooks.append(dict(type='mmcasvit.KeepMemoryHook'))
    if args.report:
        cfg.custom_hooks.append(dict(type='mmcasvit.ReportHook'))
    limit_images(cfg, 'test', args.limit_eval)
    runner = build_runner(cfg, quiet=not args.verbose)
    if args.deploy or args.simulate_fp16:
        check_deployable(runner.model)
    if args.out:
        dump_predictions(runner, cfg.default_scope, args.out)
    runner.test()


if __name__ == '__main__':
    main()
