"""Evaluates a checkpoint with its config, of mmdet, mmseg or mmpretrain."""

import argparse
import os

from mmengine.config import ConfigDict
from mmengine.evaluator import DumpResults

from mmcasvit.apis.config import load_config
from mmcasvit.apis.preflight import check_data, check_deployable
from mmcasvit.apis.runner import build_runner, prepare
from mmcasvit.cli import add_common_arguments, exits_cleanly
from mmcasvit.utils.errors import UsageError
from mmcasvit.weights.checkpoint import read_ahead


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file; it says which framework')
    parser.add_argument('checkpoint', help='checkpoint file or address')
    parser.add_argument(
        '--out',
        metavar='FILE.pkl|DIR',
        help='keep the predictions: a pickle file for detectors and classifiers, a folder of index '
        'masks for segmentors',
    )
    parser.add_argument('--show', action='store_true', help='show every prediction in a window')
    parser.add_argument('--show-dir', metavar='DIR', help='draw every prediction into a folder')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds between windows')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation, as the config has it')
    parser.add_argument(
        '--deploy', action='store_true', help='evaluate the deploy form of the model, with its norms folded away'
    )
    parser.add_argument(
        '--exported',
        metavar='FILE',
        help='let a file of tools/export.py compute: the backbone or the whole model; CHECKPOINT gives '
        'what was not exported',
    )
    parser.add_argument(
        '--report',
        action='store_true',
        help='leave report.html in the work dir, as tools/report.py makes it, with this test',
    )
    add_common_arguments(parser)
    return parser.parse_args()


def use_tta(cfg):
    if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
        raise UsageError('--tta: the config has no tta_model and tta_pipeline.')
    metrics = cfg.test_evaluator.get('metric', []) if isinstance(cfg.test_evaluator, dict) else []
    if cfg.default_scope == 'mmdet' and ('segm' in metrics or cfg.model.get('roi_head', {}).get('mask_head')):
        raise UsageError(
            '--tta: mmdet merges augmented boxes but no masks. Leave out the masks: --cfg-options '
            'test_evaluator.metric=bbox model.roi_head.mask_head=None'
        )
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def use_exported(cfg, args):
    if args.deploy or args.tta:
        raise UsageError('--exported: what was exported is neither deployed nor augmented again.')
    from mmcasvit.export.evaluation import fitted_pipeline
    from mmcasvit.export.hook import ExportedHook

    hook = ExportedHook(args.exported)
    dataset = cfg.test_dataloader.dataset
    dataset.pipeline = fitted_pipeline(dataset.pipeline, hook.exported.signature)
    cfg.custom_hooks.append(dict(type='mmcasvit.ExportedHook', file=args.exported))


def draw_predictions(cfg, args):
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise UsageError('--show and --show-dir: the config has no visualization among its default_hooks.')
    hook['enable' if cfg.default_scope == 'mmpretrain' else 'draw'] = True
    hook.show, hook.wait_time, hook.interval = args.show, args.wait_time, 1
    if args.show_dir:
        folder = os.path.abspath(args.show_dir)
        if cfg.default_scope == 'mmseg':
            cfg.visualizer.save_dir = folder
        else:
            hook[dict(mmdet='test_out_dir', mmpretrain='out_dir')[cfg.default_scope]] = folder


@exits_cleanly
def main():
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    if args.out and cfg.default_scope != 'mmseg' and not args.out.endswith(('.pkl', '.pickle')):
        raise UsageError(f'--out of a detector or classifier must be a .pkl file, got {args.out}')
    check_data(cfg, 'test')
    read_ahead(args.checkpoint, args.trust_checkpoint)
    prepare(cfg, args)
    cfg.load_from = args.checkpoint
    if args.show or args.show_dir:
        draw_predictions(cfg, args)
    else:
        cfg.default_hooks.get('visualization', {}).pop('draw', None)
    if args.tta:
        use_tta(cfg)
    if args.out and cfg.default_scope == 'mmseg':
        cfg.test_evaluator.update(output_dir=args.out, keep_results=True)
    # The file is read in full above: initial weights of the backbone would only be overwritten.
    cfg.model.get('module', cfg.model).get('backbone', {}).pop('init_cfg', None)
    if args.deploy:
        cfg.custom_hooks.append(dict(type='mmcasvit.DeployHook'))
    if args.exported:
        use_exported(cfg, args)
    if args.report:
        cfg.custom_hooks.append(dict(type='mmcasvit.ReportHook'))
    runner = build_runner(cfg)
    if args.deploy:
        check_deployable(runner.model)
    if args.out and cfg.default_scope == 'mmdet':
        from mmdet.evaluation import DumpDetResults

        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    elif args.out and cfg.default_scope == 'mmpretrain':
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
    runner.test()


if __name__ == '__main__':
    main()
