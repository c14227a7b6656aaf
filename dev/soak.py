"""Train and evaluate a config in a loop for a given time, and watch for leaks.

After every evaluation, the resources of the process and its workers are measured: memory (shared pages count once),
open file handles, threads, and the shared memory that tensors are passed through. The curves are written to soak.csv
and soak.png in the work dir. Exit status: 0 if nothing grew, 1 if something did, 2 if the run failed. Linux only.
"""

import argparse
import csv
import os
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmcasvit.apis.config import load_config
from mmcasvit.apis.preflight import check_data
from mmcasvit.apis.runner import build_runner, prepare
from mmcasvit.cli import add_common_arguments, exits_cleanly
from mmcasvit.utils.errors import UsageError

COLUMNS = dict(
    memory='memory, MiB',
    handles='open file handles',
    threads='threads',
    shm_files='shared memory segments',
    shm='shared memory, MiB',
)
# Relative growth allowed from the second quarter to the last. Allocators keep some of the memory that was freed.
TOLERANCE = dict(memory=0.03, handles=0.0, threads=0.0, shm_files=0.0, shm=0.03)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of any of the frameworks')
    parser.add_argument('--minutes', type=float, default=60.0, help='duration of the run (default: %(default)s)')
    parser.add_argument(
        '--every',
        type=int,
        default=1,
        metavar='N',
        help='evaluate and measure every N epochs or iterations (default: %(default)s)',
    )
    add_common_arguments(parser)
    return parser.parse_args()


def family(root):
    """Return the ids of a process and all of its descendants."""
    children = {}
    for entry in os.scandir('/proc'):
        if entry.name.isdigit():
            try:
                parent = int(Path(entry.path, 'stat').read_text().rsplit(')', 1)[1].split()[1])
            except OSError:
                continue  # the process has ended
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def measure(root):
    """Measure the resources in :data:`COLUMNS` over a process and its descendants."""
    numbers, shared = dict.fromkeys(COLUMNS, 0), {}
    for process in family(root):
        folder = Path('/proc', str(process))
        try:
            rollup = (folder / 'smaps_rollup').read_text()
            maps = (folder / 'maps').read_text().splitlines()
            handles, threads = len(os.listdir(folder / 'fd')), len(os.listdir(folder / 'task'))
        except OSError:
            continue
        numbers['memory'] += int(rollup.split('\nPss:')[1].split()[0]) / 1024
        numbers['handles'] += handles
        numbers['threads'] += threads
        for span, _, _, _, inode, name in (line.split(maxsplit=5) for line in maps if '/dev/shm/' in line):
            first, last = (int(address, 16) for address in span.split('-'))
            shared[inode, name] = (last - first) / 2**20  # once per segment, however many processes map it
    return dict(numbers, shm_files=len(shared), shm=sum(shared.values()))


@HOOKS.register_module()
class SoakHook(Hook):
    """Hook that writes a row of measurements after every evaluation, and ends the training when the time is up."""

    priority = 'LOWEST'

    def __init__(self, file, minutes):
        self.file, self.seconds, self.start = Path(file), 60 * minutes, time.monotonic()

    def after_val_epoch(self, runner, metrics=None):
        passed = time.monotonic() - self.start
        row = dict(minutes=passed / 60, iteration=runner.iter, **measure(os.getpid()))
        new = not self.file.exists()
        with self.file.open('a', newline='') as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)
        if passed > self.seconds:
            runner.train_loop.stop_training = True


def read(file):
    """Return the columns of a CSV file of numbers."""
    with file.open(newline='') as rows:
        rows = list(csv.DictReader(rows))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def growth(values):
    """Return the medians of the second and the last quarter. During the first, caches fill up."""
    quarter = len(values) // 4
    return float(np.median(values[quarter : 2 * quarter])), float(np.median(values[-quarter:]))


def draw(curves, path, title):
    figure, axes = plt.subplots(len(COLUMNS), 1, figsize=(8, 9), sharex=True)
    for axis, (name, label) in zip(axes, COLUMNS.items()):
        axis.plot(curves['minutes'], curves[name], linewidth=1)
        axis.set_ylabel(label, fontsize=8)
        axis.set_ylim(0, max(1, 1.15 * curves[name].max()))
        axis.grid(alpha=0.3)
    axes[0].set_title(title, fontsize=9)
    axes[-1].set_xlabel('minutes')
    figure.tight_layout()
    figure.savefig(path, dpi=110)


@exits_cleanly
def main():
    args = parse_args()
    if args.minutes <= 0 or args.every < 1:
        raise UsageError('--minutes must be more than 0 and --every at least 1.')
    if not Path('/proc/self/smaps_rollup').exists():
        raise UsageError('the soak test needs /proc and /dev/shm, which only Linux has.')
    cfg = load_config(args.config, args.cfg_options)
    check_data(cfg, 'train', 'val')
    prepare(cfg, args)
    folder = Path(cfg.work_dir)
    if (folder / 'soak.csv').exists():
        raise UsageError(f'{folder / "soak.csv"} already exists. Give another --work-dir.')
    endless = 10**9  # SoakHook ends the training
    cfg.train_cfg.update(
        {'max_epochs' if 'max_epochs' in cfg.train_cfg else 'max_iters': endless, 'val_interval': args.every}
    )
    cfg.param_scheduler = None
    cfg.default_hooks.checkpoint.interval = args.every
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='SoakHook', file=str(folder / 'soak.csv'), minutes=args.minutes)]
    build_runner(cfg).train()
    curves = read(folder / 'soak.csv')
    rounds = len(curves['minutes'])
    draw(curves, folder / 'soak.png', f'{Path(args.config).stem}: {rounds} rounds of training and evaluation')
    print(f'\n{rounds} rounds in {curves["minutes"][-1]:.1f} minutes, plot: {folder / "soak.png"}')
    if rounds < 8:
        raise UsageError(f'{rounds} rounds are too few to tell growth from warm-up. Give more --minutes.')
    print('| resource | second quarter | last quarter | |\n|---|---|---|---|')
    grown = []
    for name, label in COLUMNS.items():
        before, after = growth(curves[name])
        if after > before * (1 + TOLERANCE[name]):
            grown.append(label)
        print(f'| {label} | {before:.1f} | {after:.1f} | {"GREW" if label in grown else ""} |')
    sys.exit(1 if grown else 0)


if __name__ == '__main__':
    main()
