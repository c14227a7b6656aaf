"""Prints a Markdown table of every config: what it trains, on what, for how long and with which batch."""

import argparse
from pathlib import Path

from mmengine.config import Config

from mmcasvit.cli import exits_cleanly

ROOT = Path(__file__).resolve().parent.parent
HEADER = ['config', 'arch', 'batch', 'learning rate', 'schedule', 'precision']


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--kind', nargs='+', choices=KINDS, default=KINDS, help='some of the folders of configs/')
    return parser.parse_args()


KINDS = sorted(folder.name for folder in (ROOT / 'configs').iterdir() if folder.is_dir())


def row(path):
    cfg = Config.fromfile(path, import_custom_modules=False)  # mmpretrain need not be there
    schedule = cfg.train_cfg
    length = f'{schedule.max_epochs} epochs' if 'max_epochs' in schedule else f'{schedule.max_iters} iterations'
    arch = cfg.model.backbone.arch
    rate = cfg.optim_wrapper.optimizer.lr
    batch = cfg.auto_scale_lr.base_batch_size * cfg.optim_wrapper.get('accumulative_counts', 1)
    return [
        f'`{path.stem}`',
        arch,
        str(batch),
        f'{rate:g}',
        length,
        'mixed' if cfg.optim_wrapper.type == 'AmpOptimWrapper' else 'fp32',
    ]


@exits_cleanly
def main():
    for kind in parse_args().kind:
        print(f'\n## {kind}\n')
        for cells in [HEADER, ['---'] * len(HEADER), *map(row, sorted((ROOT / 'configs' / kind).glob('*.py')))]:
            print(f'| {" | ".join(cells)} |')


if __name__ == '__main__':
    main()
