"""Check and measure a GPU in one go: tests, training in mixed precision, speed, and memory.

Every part is a process of its own: one that fails, hangs or is killed becomes a row of the result. DIR gets
gpu-check.json, gpu-check.md and gpu-check.png, and what each part printed. docs/guides/gpu.md says what is measured.
"""

import argparse
import sys
from pathlib import Path

from mmcasvit.benchmark.gpu_check import check_gpu, plan_parts
from mmcasvit.cli import exits_cleanly
from mmcasvit.utils.errors import UsageError


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('work_dirs/gpu-check'), metavar='DIR', help='new folder')
    parser.add_argument('--minutes', type=float, default=8, help='time limit for all parts (default: %(default)s)')
    parser.add_argument('--only', nargs='+', metavar='PART', help='run only these parts, such as data peers')
    parser.add_argument('--dry-run', action='store_true', help='try everything on the CPU, with tiny sizes')
    return parser.parse_args()


@exits_cleanly
def main():
    args = parse_args()
    folder = args.out.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f'--out: {folder} is not empty. Give a new folder.')
    parts = plan_parts(folder, args.dry_run)
    names = [part.name for part in parts]
    if unknown := set(args.only or ()) - set(names):
        raise UsageError(f'--only: unknown part {", ".join(sorted(unknown))}. Valid: {", ".join(names)}.')
    parts = [part for part in parts if not args.only or part.name in args.only]
    results = check_gpu(folder, parts, 60 * args.minutes, args.dry_run, lambda line: print(line, flush=True))
    print(f'{folder}/gpu-check.md')
    if any(result['status'] in ('failed', 'stopped') for result in results):
        sys.exit(1)


if __name__ == '__main__':
    main()
