"""Writes a config of mmdet or mmseg anew with CAS-ViT as its backbone, or shows for which configs that works."""

import argparse
import os
import sys
import tempfile
import textwrap
import traceback
import warnings
from pathlib import Path

from mmengine.config import Config

from mmcasvit.archs import ARCHS, STRIDES
from mmcasvit.cli import exits_cleanly
from mmcasvit.plugin.core import plug_with_notes
from mmcasvit.plugin.source import config_file, package_configs, read_config
from mmcasvit.plugin.trial import try_out
from mmcasvit.utils.errors import PlugError, UsageError
from mmcasvit.weights.checkpoint import read_ahead

# Configs of the frameworks themselves: one of each kind of detector and segmentor that reads a backbone in a way of its
# own.
MATRIX = [
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    'mmdet::atss/atss_r50_fpn_1x_coco.py',
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py',
    'mmdet::tood/tood_r50_fpn_1x_coco.py',
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py',
    'mmdet::solov2/solov2_r50_fpn_1x_coco.py',
    'mmdet::htc/htc_r50_fpn_1x_coco.py',
    'mmseg::pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512.py',
    'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py',
    'mmseg::ocrnet/ocrnet_hr18_4xb4-80k_ade20k-512x512.py',
    'mmseg::ocrnet/ocrnet_r101-d8_8xb2-40k_cityscapes-512x1024.py',
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    'mmseg::point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py',
    'mmseg::fastfcn/fastfcn_r50-d32_jpu_psp_4xb4-80k_ade20k-512x512.py',
]


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config',
        nargs='*',
        help='a config file, or a name such as mmdet::atss/atss_r50_fpn_1x_coco.py; with --table any '
        'number of them, none for a selection of configs of mmdet and mmseg',
    )
    parser.add_argument('--out', metavar='FILE.py', help='the config to write')
    parser.add_argument('--force', action='store_true', help='write over a file that exists')
    parser.add_argument('--arch', choices=ARCHS, default='m', help='default: %(default)s')
    parser.add_argument('--pretrained', metavar='FILE', help='ImageNet weights for the backbone, file or address')
    parser.add_argument('--drop-path-rate', type=float, help='default: that of the published recipes')
    parser.add_argument('--frozen-stages', type=int, default=-1, help='default: -1, none')
    parser.add_argument(
        '--train-norms',
        action='store_true',
        help='let BatchNorms of the backbone learn their statistics, to train from random weights',
    )
    parser.add_argument('--no-verify', action='store_true', help='do not try the new model on random data')
    parser.add_argument(
        '--table',
        action='store_true',
        help='plug CAS-ViT into each config, build, train a step, predict, and print what works; the '
        'exit status is 1 if anything fails',
    )
    parser.add_argument(
        '--framework', choices=['mmdet', 'mmseg'], help='with --table and no config: those of one framework'
    )
    return parser.parse_args()


def base_candidates(source, out):
    """What the new config could name as its base, the more portable first."""
    file = config_file(source).resolve()
    for package in ('mmdet', 'mmseg'):
        try:
            configs = package_configs(package).resolve()
        except PlugError:
            continue
        if file.is_relative_to(configs):
            # Not by path: where a package lies differs from machine to machine.
            return [f'{package}::{file.relative_to(configs).as_posix()}']
    return [Path(os.path.relpath(file, out.parent.resolve())).as_posix()]


def overrides(old, new):
    """What a config that inherits the old one has to state to become the new one."""
    changed = {}
    for key, value in new.items():
        before = old.get(key)
        if key in old and value == before and type(value) is type(before):
            continue
        if isinstance(value, dict) and isinstance(before, dict):
            # Merging takes no key away, and another type has other keys.
            replaced = before.keys() - value.keys() or before.get('type') != value.get('type')
            changed[key] = {'_delete_': True, **value} if replaced else overrides(before, value)
        else:
            changed[key] = value
    return changed


def without_scopes(node):
    """A config without the notes on its origin that ``_base_ = 'package::...'`` leaves in it."""
    if isinstance(node, dict):
        return {key: without_scopes(value) for key, value in node.items() if key != '_scope_'}
    return type(node)(map(without_scopes, node)) if isinstance(node, (list, tuple)) else node


def config_text(source, new, out, notes):
    """The text of the new config: what differs from the old one where that can be inherited, or all of it.

    Every form is read back as any user of mmengine would, before it is believed.
    """
    old, wanted = read_config(source).to_dict(), new.to_dict()
    comment = ''.join(
        f'{line}\n'
        for note in [f'CAS-ViT in {source}, by tools/plug.py.', *notes]
        for line in textwrap.wrap(
            note, 120, initial_indent='# ', subsequent_indent='#   ', break_long_words=False, break_on_hyphens=False
        )
    )
    short = Config(overrides(old, wanted)).pretty_text
    forms = [f'{comment}_base_ = {base!r}\n\n{short}' for base in base_candidates(source, out)]
    for text in [*forms, comment + new.pretty_text]:
        with tempfile.NamedTemporaryFile('w', suffix='.py', prefix='_plug_', dir=out.parent, encoding='utf-8') as file:
            file.write(text)
            file.flush()
            try:
                found = Config.fromfile(file.name)
            except Exception as error:  # such as a package that mmengine does not find under the name it looks for
                failure = error
                continue
        if without_scopes(found.to_dict()) == without_scopes(wanted):
            return text
        failure = 'it reads back as another config'
    raise UsageError(f'the new config cannot be written as a file: {failure}')


def write(args):
    if len(args.config) != 1 or args.out is None:
        raise UsageError('give one config and --out FILE.py, or --table')
    out = Path(args.out)
    if out.suffix != '.py':
        raise UsageError(f'--out must be a .py file, got {out}')
    if out.exists() and not args.force:
        raise UsageError(f'{out} exists; --force writes over it')
    if not out.parent.is_dir():
        raise UsageError(f'--out: there is no folder {out.parent.absolute()}')
    if args.pretrained is not None:
        read_ahead(args.pretrained)
    new, notes = plug_with_notes(
        args.config[0],
        args.arch,
        pretrained=args.pretrained,
        drop_path_rate=args.drop_path_rate,
        norm_eval=not args.train_norms,
        frozen_stages=args.frozen_stages,
        verify=not args.no_verify,
    )
    out.write_text(config_text(args.config[0], new, out, notes), encoding='utf-8')
    print('\n  '.join([f'{out} written:', *notes]))


def try_config(name, arch):
    """A row of the table, and whether everything worked."""
    row = dict.fromkeys(('build', 'training step', 'prediction'), '-')
    cells = [f'`{name}`', '-', '-']
    steps = dict(build='build', train='training step', predict='prediction')
    try:
        new, _ = plug_with_notes(name, arch, verify=False)
        backbone = new.model.backbone
        cells[1] = ' '.join(str(STRIDES[i]) for i in backbone.out_indices)
        trial = try_out(new)
        if trial.unused:
            raise PlugError(
                f'no gradient for {len(trial.unused)} parameters of the backbone, such as {trial.unused[0]}'
            )
        cells[2] = f'{trial.parameters / 1e6:.1f}'
        row.update(dict.fromkeys(row, 'ok'))
        worked = True
    except Exception as error:
        print(f'{name}: {error if isinstance(error, PlugError) else traceback.format_exc()}', file=sys.stderr)
        failed = steps[getattr(error, 'stage', 'build')]
        for step in row:
            if step == failed:
                row[step] = f'{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}'
                break
            row[step] = 'ok'
        worked = False
    return [*cells, *row.values()], worked


def table(args):
    names = args.config or [name for name in MATRIX if args.framework in (None, name.partition('::')[0])]
    header = ['config', 'strides read', f'parameters with {args.arch}, M', 'build', 'training step', 'prediction']
    for cells in [header, ['---'] * len(header)]:
        print(f'| {" | ".join(cells)} |')
    failures = 0
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            cells, worked = try_config(name, args.arch)
        failures += not worked
        print(f'| {" | ".join(cell.replace("|", "/") for cell in cells)} |', flush=True)
    if failures:
        print(f'{failures} of {len(names)} configs failed', file=sys.stderr)
        sys.exit(1)


@exits_cleanly
def main():
    args = parse_args()
    try:
        table(args) if args.table else write(args)
    except PlugError as error:
        raise UsageError(error) from error


if __name__ == '__main__':
    main()
