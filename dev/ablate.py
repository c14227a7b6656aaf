"""Train variants of a model with several seeds, and compare their metrics and costs.

Finished runs are not trained again, and interrupted runs are resumed. A changed config needs another work dir. A table
(results.md, results.csv) and a plot (results.png) are written to the work dir.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from mmcasvit import CASViT
from mmcasvit.apis.config import load_config
from mmcasvit.apis.preflight import check_data, check_writable
from mmcasvit.benchmark.counts import on_meta
from mmcasvit.benchmark.memory import peak_memory
from mmcasvit.benchmark.plots import plot_seeds
from mmcasvit.benchmark.variants import Variant
from mmcasvit.cli import add_config_options, exits_cleanly
from mmcasvit.engine.hooks.stage_health import PREFIX
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.tables import markdown, write_csv
from mmcasvit.utils.timing import Timer, interleave, machine, spread

ROOT = Path(__file__).resolve().parent.parent
MIXERS = ['', '-self-attention', '-separable', '-efficient-additive', '-pooling', '-identity']
DEFAULT = [str(ROOT / f'configs/ablation/semantic-fpn_casvit-xs{mixer}_480i_half-shapes.py') for mixer in MIXERS]


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'configs',
        nargs='*',
        default=DEFAULT,
        metavar='CONFIG',
        help='configs to compare (default: the six token mixers on the synthetic scenes)',
    )
    parser.add_argument(
        '--seeds', nargs='+', type=int, default=[0, 1, 2], metavar='N', help='seeds to train with (default: 0 1 2)'
    )
    parser.add_argument(
        '--metric',
        default='mIoU',
        metavar='NAME',
        help='metric of the last validation, such as coco/bbox_mAP (default: mIoU)',
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs/ablation'),
        metavar='DIR',
        help='folder for the runs and the results (default: %(default)s)',
    )
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        default=(512, 512),
        metavar=('HEIGHT', 'WIDTH'),
        help='image size for which the costs of the backbone are measured (default: 512 512)',
    )
    parser.add_argument(
        '--rounds', type=int, default=5, help='rounds in which the backbones are timed in turns (default: 5)'
    )
    add_config_options(parser, 'override entries of every config; data_root=DIR sets the folder of every dataset')
    return parser.parse_args()


def check(args):
    """Check everything before the first run, and return the path and the content of each config by its label."""
    if len(set(args.seeds)) < len(args.seeds) or min(args.seeds) < 0:
        raise UsageError(f'--seeds must be different integers of at least 0, got {args.seeds}.')
    if args.rounds < 1 or min(args.size) < 32:
        raise UsageError('--rounds must be at least 1, and both numbers of --size at least 32.')
    cfgs = [load_config(config, args.cfg_options) for config in args.configs]
    for config, cfg in zip(args.configs, cfgs):
        if cfg.model.backbone.type != 'mmcasvit.CASViT':
            raise UsageError(f'the backbone of {config} must be mmcasvit.CASViT, got {cfg.model.backbone.type}.')
        check_data(cfg, 'train', 'val')
    check_writable(args.work_dir)
    stems = [Path(config).stem for config in args.configs]
    if len(set(stems)) < len(stems):
        raise UsageError('a config is given twice, or two configs have the same file name.')
    labels = [label(cfg.model.backbone) for cfg in cfgs]
    return dict(zip(labels if len(set(labels)) == len(labels) else stems, zip(args.configs, cfgs)))


def label(backbone):
    """Return the name of the token mixer in a backbone config, with its arguments."""
    mixer = backbone.get('token_mixer', 'additive')
    if isinstance(mixer, str):
        return mixer
    return ', '.join([mixer['type'], *(f'{key}={value}' for key, value in mixer.items() if key != 'type')])


def prepare(config, cfg, work_dir):
    """Write the complete config of a variant to its folder, and return the path.

    Raises:
        UsageError: If the folder contains runs of another config.
    """
    folder = work_dir / Path(config).stem
    file, text = folder / 'variant.py', cfg.pretty_text
    if file.is_file() and file.read_text() == text:
        return file
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f'{folder} contains runs of another config. Give another --work-dir, or delete it.')
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def train(config, seed):
    """Train a config with tools/train.py unless it is finished. Return its last validation, or None if it failed."""
    folder = config.parent / f'seed-{seed}'
    note = folder / 'result.json'
    if note.is_file():
        return json.loads(note.read_text())
    folder.mkdir(exist_ok=True)
    options = ['--work-dir', str(folder), '--resume', 'auto', '--cfg-options', f'randomness.seed={seed}']
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(config), *options]
    with open(folder / 'printed.txt', 'a') as printed:
        if subprocess.run(command, stdout=printed, stderr=subprocess.STDOUT).returncode:
            return None
    entries = [
        json.loads(line)
        for file in sorted(folder.glob('*/vis_data/scalars.json'))
        for line in file.read_text().splitlines()
    ]
    validations = [entry for entry in entries if not any(key == 'lr' or key.startswith(PREFIX) for key in entry)]
    if not validations:
        raise UsageError(f'{config} was trained but never evaluated: its train_cfg.val_interval is too long.')
    result = validations[-1]
    note.write_text(json.dumps(result, indent=1) + '\n')
    return result


def metric_of(result, metric):
    if metric not in result:
        raise UsageError(
            f'--metric: the validation has no {metric!r}; valid: '
            f'{", ".join(key for key in result if "time" not in key and key != "step")}'
        )
    return result[metric]


def text_of(values):
    """Format the mean with the standard deviation, and the range."""
    digits = '.2f' if max(values) > 1 else '.3f'  # percentages in mmseg, fractions in mmdet
    deviation = f' ± {statistics.stdev(values):{digits}}' if len(values) > 1 else ''
    return f'{statistics.mean(values):{digits}}{deviation}', f'{min(values):{digits}} to {max(values):{digits}}'


def costs(cfgs, size, rounds):
    """Measure parameters, multiply-adds, and time of each backbone, and the memory of a training step of its model."""
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    found, timers = {}, {}
    with torch.inference_mode():
        for name, (config, cfg) in cfgs.items():
            settings = {key: value for key, value in cfg.model.backbone.items() if key not in ('type', 'init_cfg')}
            cost = on_meta(CASViT(**settings).eval(), x, lambda module, x: module(x))
            memory = peak_memory(Variant(str(config), 'train', size=tuple(size)))
            found[name] = dict(params=cost.params, macs=cost.macs, memory=memory and memory.total)
            backbone = CASViT(**settings).eval()
            timers[name] = Timer(lambda backbone=backbone: backbone(x), 'cpu', 1, warmup=1, clock=time.process_time)
        samples = interleave(timers, rounds)
    return {name: dict(cost, seconds=spread(samples[name])) for name, cost in found.items()}


def table(rows, metric, size, rounds):
    cells = [
        {
            'variant': row['variant'],
            **dict(zip((f'{metric}, mean ± std', 'lowest to highest'), text_of(row['values']))),
            'seeds': len(row['values']),
            'params, M': f'{row["params"] / 1e6:.2f}',
            'GMACs': row['macs'] / 1e9,
            'ms': row['seconds'].median * 1000,
            'training, MiB': row['memory'] and round(row['memory'] / 2**20),
        }
        for row in rows
    ]
    height, width = size
    return (
        f'{markdown(cells)}\n\nParameters, multiply-adds, and time are those of the backbone for one image of '
        f'{height}x{width} pixels. Time is processor time of one thread, the median of {rounds} interleaved rounds on '
        f'{machine(["cpu"])}. Memory is the peak of a training step of the complete model with one such image.'
    )


@exits_cleanly
def main():
    args = parse_args()
    cfgs = check(args)
    files = {name: prepare(config, cfg, args.work_dir) for name, (config, cfg) in cfgs.items()}
    values, failed = {name: [] for name in cfgs}, []
    for seed in args.seeds:  # seeds in the outer loop: an aborted comparison has as many runs of each
        for name, file in files.items():
            result = train(file, seed)
            if result is None:
                failed.append(f'{file.parent}/seed-{seed}')
            else:
                values[name].append(metric_of(result, args.metric))
            print(f'{name}, seed {seed}: {"failed" if result is None else f"{values[name][-1]:.4g}"}', flush=True)
    trained = [name for name in cfgs if values[name]]
    if trained:
        cost = costs({name: (files[name], cfgs[name][1]) for name in trained}, args.size, args.rounds)
        rows = [
            dict(variant=name, values=values[name], mean=statistics.mean(values[name]), **cost[name])
            for name in trained
        ]
        text = table(rows, args.metric, args.size, args.rounds)
        (args.work_dir / 'results.md').write_text(text + '\n')
        write_csv(
            args.work_dir / 'results.csv',
            [{**row, **{f'seed_{i}': value for i, value in enumerate(row['values'])}} for row in rows],
        )
        plot_seeds(args.work_dir / 'results.png', rows, args.metric)
        print(f'\n{text}\n\nwritten: {args.work_dir}/results.md, results.csv, results.png')
    if failed:
        raise UsageError(f'{len(failed)} runs failed. See printed.txt in {", ".join(failed)}.')


if __name__ == '__main__':
    main()
