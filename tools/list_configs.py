"""Print a Markdown table of every config: arch, batch size, learning rate, schedule and precision."""

import argparse
from pathlib import Path

from mmengine.config import Config

from mmcasvit.cli import exits_cleanly

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
KINDS = sorted(folder.name for folder in CONFIGS.iterdir() if folder.is_dir())
HEADER = ['config', 'arch', 'batch', 'learning rate', 'schedule', 'precision']


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--kind', nargs='+', choices=KINDS, default=KINDS, help='list only these folders of configs/')
    return parser.parse_args()


def row(path):
    cfg = Config.fromfile(path, import_custom_modules=False)  # works without mmpretrain
    schedule, optim = cfg.train_cfg, cfg.optim_wrapper
    return [
        f'`{path.stem}`',
        cfg.model.backbone.arch,
        str(cfg.auto_scale_lr.base_batch_size * optim.get('accumulative_counts', 1)),
        f'{optim.optimizer.lr:g}',
        f'{schedule.max_epochs} epochs' if 'max_epochs' in schedule else f'{schedule.max_iters} iterations',
        'mixed' if optim.type == 'AmpOptimWrapper' else 'fp32',
    ]


@exits_cleanly
def main():
    for kind in parse_args().kind:
        print(f'\n## {kind}\n')
        for cells in [HEADER, ['---'] * len(HEADER), *map(row, sorted((CONFIGS / kind).glob('*.py')))]:
            print(f'| {" | ".join(cells)} |')


if __name__ == '__main__':
    main()
