"""Writes one HTML page on a work directory of tools/train.py and tools/test.py: configuration, environment, curves,
classes, confusion matrix, best and worst images, time."""

import argparse
from pathlib import Path

from mmcasvit.apis.preflight import check_writable
from mmcasvit.cli import exits_cleanly
from mmcasvit.report.page import write_report
from mmcasvit.utils.errors import UsageError


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', type=Path, metavar='WORK_DIR')
    parser.add_argument('--out', type=Path, metavar='FILE', help='the page (default: report.html in WORK_DIR)')
    return parser.parse_args()


@exits_cleanly
def main():
    args = parse_args()
    out = args.out or args.work_dir / 'report.html'
    if out.suffix not in ('.html', '.htm') or out.is_dir():
        raise UsageError(f'--out: {out} must be a file that ends in .html.')
    if args.out:
        check_writable(out.absolute().parent)
    write_report(args.work_dir, out)
    print(out.absolute())


if __name__ == '__main__':
    main()
