"""Write an HTML report of a work directory of tools/train.py or tools/test.py.

The report shows curves, metrics, results per class, a confusion matrix, the best and worst images, times, the config
and the environment.
"""

import argparse
from pathlib import Path

from mmcasvit.apis.preflight import check_writable
from mmcasvit.cli import exits_cleanly
from mmcasvit.report.page import write_report
from mmcasvit.utils.errors import UsageError


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', type=Path, metavar='WORK_DIR', help='folder with logs of mmengine')
    parser.add_argument('--out', type=Path, metavar='FILE', help='file to write (default: report.html in WORK_DIR)')
    return parser.parse_args()


@exits_cleanly
def main():
    args = parse_args()
    out = args.out or args.work_dir / 'report.html'
    if out.suffix not in ('.html', '.htm') or out.is_dir():
        raise UsageError(f'--out must be a file that ends in .html, got {out}')
    if args.out:
        check_writable(out.absolute().parent)
    write_report(args.work_dir, out)
    print(out.absolute())


if __name__ == '__main__':
    main()
