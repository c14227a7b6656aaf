"""Say whether one run is better than another on the images that both were evaluated on, in an HTML page.

Every run needs an evaluation with --report, by tools/train.py or tools/test.py.
"""

import argparse
from pathlib import Path

from mmcasvit.apis.preflight import check_writable
from mmcasvit.cli import at_least_one, exits_cleanly
from mmcasvit.report.versus import write_comparison
from mmcasvit.utils.errors import UsageError


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'runs',
        nargs='+',
        type=Path,
        metavar='RUN',
        help='work dir, or folder of work dirs that differ by seed; the first is compared with each of the others',
    )
    parser.add_argument(
        '--out', type=Path, default=Path('comparison.html'), metavar='FILE', help='file to write (default: %(default)s)'
    )
    parser.add_argument('--force', action='store_true', help='overwrite an existing file')
    parser.add_argument(
        '--resamples', type=at_least_one, default=1000, help='how many resamples (default: %(default)s)'
    )
    parser.add_argument('--level', type=float, default=0.95, help='confidence level (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the resamples (default: %(default)s)')
    parser.add_argument(
        '--images', type=at_least_one, default=6, help='images to show for each side (default: %(default)s)'
    )
    return parser.parse_args()


@exits_cleanly
def main():
    args = parse_args()
    if len(args.runs) < 2:
        raise UsageError('give at least two runs.')
    if args.out.suffix not in ('.html', '.htm') or args.out.is_dir():
        raise UsageError(f'--out must be a file that ends in .html, got {args.out}')
    if args.out.exists() and not args.force:
        raise UsageError(f'{args.out} exists; use --force to overwrite it')
    if not 0 < args.level < 1 or args.seed < 0:
        raise UsageError('--level must be between 0 and 1, and --seed at least 0.')
    check_writable(args.out.absolute().parent)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    verdicts = write_comparison(args.runs, args.out, args.resamples, args.seed, args.level, args.images)
    print('\n'.join([*verdicts, str(args.out.absolute())]))


if __name__ == '__main__':
    main()
