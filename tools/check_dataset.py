"""Check every image, mask, and annotation that a config uses, and report what is wrong.

COCO annotation files (of mmdet's CocoDataset and datasets that read them the same way), VOC's XML files (of its
XMLDataset) and mmseg's index masks are checked completely. For other datasets, only the images are checked, and the
report says what was not. Exit status: 0 if no problems were found, 1 if there are problems, 2 if the check could not
run.
"""

import argparse
import json
import sys
from pathlib import Path

from mmcasvit.apis.config import load_config
from mmcasvit.cli import add_config_options, exits_cleanly
from mmcasvit.datasets.checks.annotations import check_annotations
from mmcasvit.datasets.checks.files import check_files
from mmcasvit.datasets.checks.fixed_files import check_no_fixed_files, write_fixed
from mmcasvit.datasets.checks.listing import load_datasets
from mmcasvit.datasets.checks.report import as_json, as_text, conclusion
from mmcasvit.datasets.checks.sheet import draw_sheet
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.timing import cores

SHEET_SUFFIXES = ('.png', '.jpg', '.jpeg')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file of any of the frameworks')
    parser.add_argument(
        '--splits',
        nargs='+',
        choices=['train', 'val', 'test'],
        default=['train', 'val', 'test'],
        help='splits to check; one with the same data as an earlier one is skipped (default: all)',
    )
    parser.add_argument(
        '--workers',
        type=int,
        default=min(8, cores()),
        help='number of processes that read images (default: %(default)s on this machine)',
    )
    parser.add_argument('--limit', type=int, metavar='N', help='check only the first N images of each dataset')
    parser.add_argument(
        '--examples',
        type=int,
        default=5,
        metavar='N',
        help='number of examples to print of each kind of problem (default: %(default)s)',
    )
    parser.add_argument(
        '--sheet', type=Path, metavar='FILE.png', help='draw examples of each kind of problem, with their boxes'
    )
    parser.add_argument('--json', type=Path, metavar='FILE.json', help='write all problems found to a JSON file')
    parser.add_argument(
        '--fix',
        action='store_true',
        help='write annotation files without the problems next to the originals (NAME.fixed.json, or a list of image '
        'names for masks)',
    )
    add_config_options(parser, 'override entries of the config, such as data_root=DIR')
    return parser.parse_args()


def check_arguments(args):
    if args.workers < 1 or args.examples < 0 or (args.limit is not None and args.limit < 1):
        raise UsageError('--workers and --limit must be at least 1, and --examples at least 0.')
    if args.fix and args.limit:
        raise UsageError('--fix needs every image. Omit --limit.')
    if args.sheet and args.sheet.suffix.lower() not in SHEET_SUFFIXES:
        raise UsageError(f'--sheet must end in {", ".join(SHEET_SUFFIXES)}, got {args.sheet}.')
    for path in (args.sheet, args.json):
        if path and path.exists():
            raise UsageError(f'{path.absolute()} already exists. Give another name.')
        if path and not path.parent.is_dir():
            raise UsageError(f'folder not found: {path.parent.absolute()}')


@exits_cleanly
def main():
    args = parse_args()
    check_arguments(args)
    cfg = load_config(args.config, args.cfg_options)
    datasets = load_datasets(cfg, args.splits, args.limit)
    if args.fix:
        check_no_fixed_files(datasets)
    for data in datasets:
        check_annotations(data)
    check_files(datasets, args.workers)
    print(as_text(datasets, args.examples))
    if args.json:
        args.json.write_text(json.dumps(as_json(datasets), indent=1) + '\n')
    if args.sheet and (sheet := draw_sheet(datasets)):
        sheet.save(args.sheet)
        print(f'examples: {args.sheet}')
    for data in datasets if args.fix else ():
        if data.problems:
            print(write_fixed(data))
    problems = sum(len(data.problems) for data in datasets)
    print(conclusion(datasets, args.limit))
    sys.exit(1 if problems else 0)


if __name__ == '__main__':
    main()
