"""Kill a training run at random moments, resume it, and compare the result with that of an uninterrupted run.

Each run is a process with data loader workers, all killed by SIGKILL. When a run has finished, its weights, optimizer,
schedules, log buffers, and logged losses must be bitwise equal to those of the uninterrupted run, and the next run
begins. Without a config, a small Mask R-CNN (trained by epochs) and a small Semantic FPN (trained by iterations) take
turns on synthetic data.
"""

import argparse
import contextlib
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

from mmcasvit.apis.config import load_config
from mmcasvit.apis.runner import build_runner, prepare
from mmcasvit.cli import add_config_options, exits_cleanly
from mmcasvit.datasets.shapes import write_dataset
from mmcasvit.engine.compare_runs import differences, outcome
from mmcasvit.utils.errors import UsageError

# Runs are forked from this process. What mmengine would import in each of them is imported only once.
for lazy in ('matplotlib.pyplot', 'torch._inductor', 'torchvision', 'mmcv.ops'):
    with contextlib.suppress(ImportError, RuntimeError):
        importlib.import_module(lazy)

ROOT = Path(__file__).resolve().parent.parent
TINY = dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 24))
DETECTOR = ROOT / 'configs/detection/mask-rcnn_casvit-xs_fpn_6e_shapes.py'
SEGMENTOR = ROOT / 'configs/segmentation/semantic-fpn_casvit-xs_300i_shapes.py'
SMALL = {
    'model.backbone.arch': dict(_delete_=True, **TINY),
    'model.neck.in_channels': list(TINY['channels']),
    'default_hooks.checkpoint.by_epoch': False,
    'default_hooks.checkpoint.interval': 3,
    'train_dataloader.batch_size': 2,
    'train_dataloader.num_workers': 1,
    'val_dataloader.num_workers': 0,
    'val_dataloader.persistent_workers': False,
    'default_hooks.visualization.draw': False,
    'default_hooks.logger.interval': 1,
}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'config', nargs='?', help='config of a run that takes less than a minute (default: two small built-in runs)'
    )
    parser.add_argument('--kills', type=int, default=100, help='number of kills (default: %(default)s)')
    parser.add_argument('--minutes', type=float, help='stop killing after this time')
    parser.add_argument('--seed', type=int, default=0, help='seed of the moments to kill at (default: %(default)s)')
    parser.add_argument(
        '--work-dir', default='work_dirs/check_resume', help='new folder for the runs (default: %(default)s)'
    )
    add_config_options(parser, 'override entries of the given config')
    return parser.parse_args()


def small_configs(folder: Path) -> dict:
    """Return the configs of the two runs that are killed by default."""
    write_dataset(folder / 'data', train=8, val=2, seed=1, height=64, width=64)
    detector = load_config(
        str(DETECTOR),
        {**SMALL, 'data_root': f'{folder}/data/coco/', 'train_cfg.max_epochs': 3, 'train_cfg.val_interval': 1},
    )
    segmentor = load_config(
        str(SEGMENTOR),
        {
            **SMALL,
            'data_root': f'{folder}/data/ade',
            'train_cfg.max_iters': 12,
            'train_cfg.val_interval': 4,
            'model.data_preprocessor.size': (64, 64),
        },
    )
    for cfg in (detector, segmentor):
        cfg.custom_hooks.append(dict(type='EMAHook'))
    return dict(detector=detector, segmentor=segmentor)


def train(cfg, work_dir: Path, log: Path) -> None:
    """Train in this process and end it; this function does not return."""
    os.setsid()  # a process group with the workers, to kill them together
    status = 1
    try:
        with log.open('a') as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        torch.set_num_threads(1)
        args = argparse.Namespace(launcher='none', work_dir=str(work_dir), local_rank=0, trust_checkpoint=False)
        prepare(cfg, args)
        build_runner(cfg).train()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def start(cfg, work_dir: Path, log: Path) -> int:
    """Start or resume a run in a new process, and return the id of the process."""
    cfg = cfg.copy()
    cfg.randomness = dict(seed=0, deterministic=True)
    cfg.resume, cfg.load_from = True, None
    process = os.fork()
    if not process:
        train(cfg, work_dir, log)
    return process


def wait(process: int, seconds: float) -> int | None:
    """Return the exit status of a process, or None if it is still running after the given time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def logged(run: Path) -> int:
    """Return the number of lines of losses and metrics that the runs in a folder have written."""
    return sum(file.read_bytes().count(b'\n') for file in run.glob('*/vis_data/scalars.json'))


def kill(process: int) -> None:
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:  # its group does not exist yet
        os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


@exits_cleanly
def main():
    args = parse_args()
    work_dir = Path(args.work_dir)
    if work_dir.exists():
        raise UsageError(f'{work_dir} already exists. Give a new folder as --work-dir.')
    if args.kills < 1:
        raise UsageError('--kills must be at least 1.')
    work_dir.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        if args.config:
            configs = {Path(args.config).stem: load_config(args.config, args.cfg_options)}
        else:
            configs = small_configs(Path(folder))
        sys.exit(0 if check(configs, args, work_dir) else 1)


def check(configs: dict, args: argparse.Namespace, work_dir: Path) -> bool:
    """Run, kill, and compare, and print the results. Return whether every run was resumed exactly."""
    wanted, durations = {}, {}
    for name, cfg in configs.items():
        began = time.monotonic()
        status = wait(start(cfg, work_dir / f'{name}_whole', work_dir / 'log.txt'), float('inf'))
        if status:
            raise UsageError(f'the uninterrupted run ended with status {status}. See {work_dir}/log.txt.')
        durations[name] = time.monotonic() - began
        wanted[name] = outcome(work_dir / f'{name}_whole')
        print(f'{name}: uninterrupted run, {len(wanted[name])} values to compare, {durations[name]:.1f} s', flush=True)
    moments = random.Random(args.seed)
    counts = dict(kills=0, training=0, writing=0, runs=0, failed=0, different=0)
    began, number = time.monotonic(), 0

    def left():
        return counts['kills'] < args.kills and (args.minutes is None or time.monotonic() - began < 60 * args.minutes)

    while left():
        name = list(configs)[number % len(configs)]
        run = work_dir / f'{name}_{number}'
        number += 1
        status, killed, patience = None, 0, 1.0
        while status is None:
            seconds = moments.uniform(0, patience * durations[name]) if left() else float('inf')
            before = logged(run)
            process = start(configs[name], run, work_dir / 'log.txt')
            status = wait(process, seconds)
            if status is None:
                kill(process)
                killed += 1
                counts['kills'] += 1
                counts['writing'] += bool(list(run.glob('.*.unfinished')))
                trained = logged(run) > before
                counts['training'] += trained
                patience = 1.0 if trained else 1.2 * patience  # on a busy machine, a run takes longer to start
        if status:
            counts['failed'] += 1
            print(f'{run.name}: a resumed run ended with status {status}. See {work_dir}/log.txt.', flush=True)
            continue
        counts['runs'] += 1
        found = differences(outcome(run), wanted[name])
        counts['different'] += bool(found)
        print(
            f'{run.name}: killed {killed} times, '
            + (f'{len(found)} values differ, such as\n  ' + '\n  '.join(found[:5]) if found else 'same result'),
            flush=True,
        )
        if not found:
            shutil.rmtree(run)
    print(
        f'{counts["kills"]} kills in {(time.monotonic() - began) / 60:.1f} min, {counts["training"]} of them after a '
        f'step was logged and {counts["writing"]} while a checkpoint was being written; {counts["runs"]} finished '
        f'runs, {counts["different"]} of them different from the uninterrupted run; {counts["failed"]} runs that '
        'could not be resumed'
    )
    return not counts['different'] and not counts['failed']


if __name__ == '__main__':
    main()
