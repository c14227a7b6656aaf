"""Reads every image, mask and annotation that a config will use, and lists what is wrong with them.

COCO's annotation files (and data sets that read them as mmdet's CocoDataset does) and mmseg's index masks are checked
in full; of other data sets, the images. Exit status: 0 nothing is wrong, 1 something is, 2 the check could not be made.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from mmengine.config import DictAction

from mmcasvit.apis.config import load_config
from mmcasvit.cli import exits_cleanly
from mmcasvit.datasets.checks.annotations import check_annotations
from mmcasvit.datasets.checks.cleaning import cleaned_coco, cleaned_names, fixed_path
from mmcasvit.datasets.checks.files import check_files, check_overlap
from mmcasvit.datasets.checks.listing import load_splits
from mmcasvit.datasets.checks.problems import KINDS, as_json
from mmcasvit.datasets.checks.sheet import draw_sheet
from mmcasvit.utils.errors import UsageError

SHEET_SUFFIXES = ('.png', '.jpg', '.jpeg')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file; it says which framework')
    parser.add_argument(
        '--splits',
        nargs='+',
        choices=['train', 'val', 'test'],
        default=['train', 'val', 'test'],
        help='(default: all; a split with the data of an earlier one is left out)',
    )
    parser.add_argument(
        '--workers',
        type=int,
        default=min(8, len(os.sched_getaffinity(0))),
        help='processes that read images (default: %(default)s here)',
    )
    parser.add_argument('--limit', type=int, metavar='N', help='read only the first N images of each data set')
    parser.add_argument(
        '--examples', type=int, default=5, metavar='N', help='how many of each kind to print (default: %(default)s)'
    )
    parser.add_argument('--sheet', type=Path, metavar='FILE.png', help='draw examples of each kind, with their boxes')
    parser.add_argument('--json', type=Path, metavar='FILE.json', help='write everything that was found')
    parser.add_argument(
        '--fix',
        action='store_true',
        help='write annotation files without what is wrong (NAME.fixed.json, or a list of names for '
        'masks) beside the originals',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override entries of the config, such as data_root=DIR',
    )
    return parser.parse_args()


def check_arguments(args):
    if args.workers < 1 or args.examples < 0 or (args.limit is not None and args.limit < 1):
        raise UsageError('--workers and --limit must be at least 1, --examples at least 0.')
    if args.fix and args.limit:
        raise UsageError('--fix needs every image: leave out --limit.')
    if args.sheet and args.sheet.suffix.lower() not in SHEET_SUFFIXES:
        raise UsageError(f'--sheet must end in {", ".join(SHEET_SUFFIXES)}, got {args.sheet}')
    for path in (args.sheet, args.json):
        if path and path.exists():
            raise UsageError(f'{path.absolute()} is there already; give another name.')
        if path and not path.parent.is_dir():
            raise UsageError(f'folder not found: {path.parent.absolute()}')


def print_report(splits, examples):
    """Prints what was found and returns how much it is."""
    total = 0
    for split, group in splits.items():
        for data in group:
            note = ' (of this kind of data set only the images are checked)' if data.reads == 'images' else ''
            print(f'{split}: {len(data.samples)} images, {data.source}{note}')
            for kind, meaning in KINDS.items():
                problems = [problem for problem in data.problems if problem.kind == kind]
                if not problems:
                    continue
                total += len(problems)
                print(f'  {meaning}: {len(problems)}')
                for problem in problems[:examples]:
                    print(f'    {problem.where}: {problem.detail}')
                if len(problems) > examples:
                    print(f'    and {len(problems) - examples} more')
    return total


def write_fixed(splits):
    for split, group in splits.items():
        for data in group:
            path = fixed_path(data)
            kinds = {problem.kind for problem in data.problems}
            if not kinds:
                continue
            if path is None or 'bad_file' in kinds:
                print(f'{data.name}: cannot be cleaned by this tool')
                continue
            if data.reads == 'coco':
                content, done = cleaned_coco(data)
                text = json.dumps(content)
            else:
                names, done = cleaned_names(data)
                text = ''.join(f'{name}\n' for name in names)
            if not done:
                print(f'{data.name}: nothing that leaving something out would mend')
                continue
            with path.open('x') as file:
                try:
                    file.write(text)
                    file.flush()
                except OSError:
                    path.unlink()
                    raise
            print(f'{data.name}: {"; ".join(done)}\n  written: {path}')
            given = os.path.relpath(path, data.config.get('data_root') or '.')
            options = [f'{data.name}.ann_file={given}']
            if data.reads == 'coco' and split != 'train':
                options.append(f'{split}_evaluator.ann_file={path}')
            print(f'  to use it: --cfg-options {" ".join(options)}')


@exits_cleanly
def main():
    args = parse_args()
    check_arguments(args)
    cfg = load_config(args.config, args.cfg_options)
    splits = load_splits(cfg, args.splits, args.limit)
    if args.fix:
        for path in (fixed_path(data) for group in splits.values() for data in group):
            if path and path.exists():
                raise UsageError(f'{path} is there already: use it, move it or remove it.')
    for data in (data for group in splits.values() for data in group):
        check_annotations(data)
    check_overlap(splits, check_files(splits, args.workers))
    total = print_report(splits, args.examples)
    if args.json:
        args.json.write_text(json.dumps(as_json(splits), indent=1) + '\n')
    sheet = draw_sheet(splits) if args.sheet else None
    if sheet:
        sheet.save(args.sheet)
        print(f'examples drawn: {args.sheet}')
    if args.fix:
        write_fixed(splits)
    print(f'{total} problems' if total else 'nothing is wrong')
    sys.exit(1 if total else 0)


if __name__ == '__main__':
    main()
