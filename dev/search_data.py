"""Search for data that tools/check_dataset.py passes and training cannot read, and for data that crashes either.

Each case is a small dataset with one or two random mutations of its annotations, images, masks and file names. The
check and a training of a few iterations, with its evaluation, run on it in processes of their own. Data that the check
passes must train without a skipped image; whatever the data is, neither may crash, print a traceback, take more than
20 s or more than 2 GB. Each distinct finding is shrunk by hypothesis and printed; with --keep, its dataset is kept.
Without findings, the exit status is 0.
"""

import argparse
import collections
import contextlib
import gc
import importlib
import importlib.util
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from pathlib import Path

import hypothesis
import torch
import yapf.yapflib.yapf_api
from forked import End, run_forked
from mmengine.config import Config
from mmengine.runner import runner
from mutated_data import HEIGHT, LAYOUTS, TRAIN, WIDTH, Dataset, cases

from mmcasvit.apis.config import load_config
from mmcasvit.cli import exits_cleanly
from mmcasvit.datasets.shapes import write_dataset
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.tables import markdown

ROOT = Path(__file__).resolve().parent.parent
CHANNELS = [8, 12, 16, 24]
SMALL = {
    'model.backbone.arch': dict(_delete_=True, depths=(1, 1, 1, 1), channels=CHANNELS),
    'model.neck.out_channels': 16,
    'train_dataloader.batch_size': 2,
    'default_hooks.checkpoint': dict(interval=100, save_best=None, save_last=False),
    'default_hooks.visualization.draw': False,
    'randomness': dict(seed=0),
}
SMALL |= {f'{split}_dataloader.num_workers': 0 for split in ('train', 'val')}
SMALL |= {f'{split}_dataloader.persistent_workers': False for split in ('train', 'val')}
ONE_EPOCH = {'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1}
HEAD = dict(in_channels=16, feat_channels=16, stacked_convs=1, norm_cfg=dict(type='GN', num_groups=4))
FEW = dict(nms_pre=50, max_per_img=20)
ROI = dict(bbox_roi_extractor=dict(out_channels=16), bbox_head=dict(in_channels=16, fc_out_channels=32))
ROI |= dict(mask_roi_extractor=dict(out_channels=16), mask_head=dict(in_channels=16, conv_out_channels=16, num_convs=1))
MODELS = {  # config and options for each layout
    'coco boxes': (
        'detection/retinanet_casvit-xs_fpn_6e_shapes.py',
        ONE_EPOCH
        | {'model.neck.in_channels': CHANNELS[1:], 'model.bbox_head': HEAD}
        | {'model.test_cfg': dict(score_thr=0, max_per_img=5)},
    ),
    'coco masks': (
        'detection/mask-rcnn_casvit-xs_fpn_6e_shapes.py',
        ONE_EPOCH
        | {'model.neck.in_channels': CHANNELS, 'model.rpn_head': dict(in_channels=16, feat_channels=16)}
        | {'model.roi_head': ROI, 'model.train_cfg': dict(rpn_proposal=FEW, rcnn=dict(sampler=dict(num=16)))}
        | {'model.test_cfg': dict(rpn=FEW, rcnn=dict(score_thr=0, max_per_img=5))},
    ),
    'index masks': (
        'segmentation/semantic-fpn_casvit-xs_300i_shapes.py',
        {'train_cfg.max_iters': 3, 'train_cfg.val_interval': 3, 'model.data_preprocessor.size': (HEIGHT, WIDTH)}
        | {'model.neck.in_channels': CHANNELS, 'model.decode_head': dict(in_channels=[16] * 4, channels=16)},
    ),
}
MODELS['voc'] = MODELS['coco boxes']
# What a case can end in. "named": the check found a problem that training can read all the same.
VERDICTS = ('trained', 'named', 'refused', 'known', 'disagreement', 'traceback', 'crash', 'hang', 'memory')
SHRINK_CALLS = 60  # cases that are tried to make a finding smaller

# Findings that are expected, by a part of their text, with the reason.
KNOWN: dict[str, str] = {}


def load_tool(name: str):
    spec = importlib.util.spec_from_file_location(f'{name}_tool', ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(tool, arguments: list) -> list[str]:
    """Run a tool in this process; return the modules that are loaded afterwards if it was a success."""
    torch.set_num_threads(1)
    sys.argv = [tool.__name__, *map(str, arguments)]
    try:
        tool.main()
    except SystemExit as end:
        if end.code:
            raise
    return sorted(sys.modules)


def small_config(layout: str, data: Path):
    """Return the config of a layout: a tiny CAS-ViT on the given dataset."""
    name, options = MODELS[layout]
    root = f'{data}/ade' if layout == 'index masks' else f'{data}/coco/'
    cfg = load_config(str(ROOT / 'configs' / name), {**SMALL, **options, 'data_root': root})
    if layout == 'index masks':  # images of any size in one batch
        cfg.train_dataloader.dataset.pipeline.insert(1, dict(type='Resize', scale=(WIDTH, HEIGHT)))
    if layout in ('coco boxes', 'voc'):
        for split in ('train', 'val'):
            pipeline = cfg[f'{split}_dataloader'].dataset.pipeline
            for step in (*pipeline, *pipeline[0].get('transforms', [])):
                if step.type == 'LoadAnnotations':
                    step.with_mask = False
    if layout == 'voc':
        cfg.data_root = f'{data}/voc/'
        for split in ('train', 'val'):
            dataset = cfg[f'{split}_dataloader'].dataset
            dataset.update(type='XMLDataset', data_root=cfg.data_root, ann_file=f'ImageSets/Main/{split}.txt')
            dataset.data_prefix = dict(sub_data_root='')
        cfg.test_dataloader = cfg.val_dataloader
        cfg.val_evaluator = cfg.test_evaluator = dict(type='VOCMetric', metric='mAP', eval_mode='11points')
    return cfg


def fast_runs() -> None:
    """Leave out what takes mmengine longer than the training itself: pretty configs and a report on the machine."""
    yapf.yapflib.yapf_api.FormatCode = lambda text, **kwargs: (text, True)
    runner.collect_env = dict


class Trial:
    """The parts that all cases share: the dataset before mutations, the configs, and the tools.

    Args:
        folder: Empty folder to work in.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.loaded: dict[str, Config] = {}  # read once
        self.configs: dict[str, Path] = {}
        write_dataset(folder / 'template', train=TRAIN, val=1, seed=3, height=HEIGHT, width=WIDTH)
        fast_runs()
        self.tools = {name: load_tool(name) for name in ('check_dataset', 'train')}
        for layout in LAYOUTS:
            self.configs[layout] = folder / f'{layout.replace(" ", "_")}.py'
            cfg = small_config(layout, folder / 'data').to_dict()
            self.configs[layout].write_text(''.join(f'{key} = {value!r}\n' for key, value in cfg.items()))
            self.loaded[str(self.configs[layout])] = load_config(str(self.configs[layout]))
        for tool in self.tools.values():
            tool.load_config = lambda path, options: self.loaded[path].copy()
        for layout in LAYOUTS:  # what the tools import is imported once, here
            for end in self.run(layout, [], seconds=300):
                if end.status:
                    raise UsageError(f'{layout}: the dataset without mutations fails:\n{end.output}')
                for module in end.result:
                    with contextlib.suppress(Exception):
                        importlib.import_module(module)
        gc.freeze()  # a collection in a forked process would copy all memory

    def run(self, layout: str, mutations: list, seconds: float = 20) -> tuple[End, End]:
        """Mutate the dataset, and return how the check and the training ended."""
        for name in ('data', 'work'):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        shutil.copytree(self.folder / 'template', self.folder / 'data')
        dataset = Dataset(self.folder / 'data', layout)
        for name, *arguments in mutations:
            with contextlib.suppress(Exception):  # one that does not apply, such as a mode that a format lacks
                getattr(dataset, name)(*arguments)
        config = self.configs[layout]
        return (
            run_forked(call, self.tools['check_dataset'], [config, '--workers', 1], seconds=seconds),
            run_forked(call, self.tools['train'], [config, '--work-dir', self.folder / 'work'], seconds=seconds),
        )


def fault(name: str, end: End) -> str:
    """Describe how a tool ended if it may not end so with any data, or return ``''``."""
    if end.exceeded or end.status < 0:
        kind = dict(time='hang', memory='memory').get(end.exceeded, 'crash')
        main = re.split(r'^(?:Current thread|Thread) ', end.output, flags=re.M)[-1]  # faulthandler prints it last
        places = re.findall(r'File "(?:.*/)?(\S+)", line \d+ in (\S+)', main)
        return f'{kind}: {name}: signal {-end.status} {places[:1]}'
    if 'Traceback (most recent call last)' in end.output:
        places = re.findall(r'File "(?:.*/)?([^"/]+)", line \d+, in (\S+)', end.output)
        errors = re.findall(r'^(?:\w+\.)*(\w+(?:Error|Exception|Warning|\w*Interrupt))\b', end.output, re.M)
        return f'traceback: {name}: {errors[-1:]} {places[-1:]}'
    return ''


def verdict(check: End, train: End) -> str:
    """Return ``'trained'``, ``'named'``, ``'refused'``, or what is wrong with the two results."""
    if found := fault('check', check) or fault('train', train):
        return found
    skipped = re.findall(r'skipped unreadable training image.*', train.output)
    refused = train.status or skipped
    if not check.status and refused:
        errors = re.findall(r'^error: .*', train.output, re.M)
        reason = (skipped or errors or ['?'])[0]
        return f'disagreement: {re.sub(r"/?[^ ]*/[^ ]*|[0-9.]+", "…", reason)[:110]}'
    return 'refused' if refused else 'named' if check.status else 'trained'


class Found(Exception):
    """A finding, which makes hypothesis look for a smaller case."""


class Search:
    """A count of verdicts by layout, and the findings.

    Args:
        trial: What runs a case.
        keep: Folder for the datasets of findings, or ``None``.
    """

    def __init__(self, trial: Trial, keep: Path | None):
        self.trial, self.keep = trial, keep
        self.counts = collections.defaultdict(collections.Counter)
        self.found: dict[str, tuple] = {}
        self.tried = 0
        self.memory: dict[str, str] = {}

    def judge(self, case) -> str:
        key = repr(case)
        if key not in self.memory:
            self.memory[key] = verdict(*self.trial.run(*case))
        return self.memory[key]

    def run(self, count: int, seed: int) -> None:
        """Try a number of cases; after each finding, shrink it and go on with cases of the next seed."""
        while self.tried < count:
            finding = self._round(count - self.tried, seed)
            if not finding:
                break
            self.report(finding)
            seed += 1

    def _round(self, count: int, seed: int) -> str:
        """Try cases up to the first new finding, shrink it, and return it, or ``''``."""
        finding, calls = '', 0

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=count,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
            suppress_health_check=list(hypothesis.HealthCheck),
            print_blob=False,
        )
        @hypothesis.given(cases)
        def attempt(case):
            nonlocal finding, calls
            if finding:  # a smaller case, which counts if it ends in the same way
                calls += repr(case) not in self.memory
                tried = calls <= SHRINK_CALLS or repr(case) in self.memory
                failed = tried and self.judge(case) == finding
            else:
                self.tried += 1
                found = self.judge(case)
                known = any(part in found for part in KNOWN)
                self.counts[case[0]]['known' if known else found.partition(':')[0]] += 1
                if self.tried % 100 == 0:
                    print(f'{self.tried} cases, {len(self.found)} findings', flush=True)
                failed = ':' in found and found not in self.found and not known
                finding = found if failed else ''
            if failed:
                self.found[finding] = case
                raise Found  # in one place, since hypothesis tells failures apart by their lines

        with contextlib.suppress(Found):
            attempt()
        return finding

    def report(self, finding: str) -> None:
        layout, mutations = self.found[finding]
        print(f'\n{finding}\n  {layout}: {mutations!a}', flush=True)
        check, train = self.trial.run(layout, mutations)
        for name, end in dict(check=check, train=train).items():
            last = ''.join(end.output.rstrip().splitlines()[-1:])
            print(f'  {name}: status {end.status}, {end.seconds:.1f} s, {end.megabytes:.0f} MB: {last}')
        if self.keep:
            kept = self.keep / f'{len(self.found):03d}'
            shutil.copytree(self.trial.folder / 'data', kept / 'data', symlinks=True, ignore=_special_files)
            shutil.copy(self.trial.configs[layout], kept / 'config.py')
            (kept / 'case.txt').write_text(f'{finding}\n{layout}: {mutations!a}\n\n{check.output}\n{train.output}')
            print(f'  kept: {kept}')

    def table(self) -> str:
        rows = [
            dict(layout=layout, cases=sum(self.counts[layout].values())) | self.counts[layout] for layout in LAYOUTS
        ]
        return markdown([dict.fromkeys(VERDICTS, 0) | row for row in rows], ['layout', 'cases', *VERDICTS])


def _special_files(folder: str, names: list[str]) -> list[str]:
    """Return the names of files that cannot be copied: pipes."""
    return [name for name in names if stat.S_ISFIFO(os.lstat(os.path.join(folder, name)).st_mode)]


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--cases', type=int, default=1000, help='number of cases (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the cases (default: %(default)s)')
    parser.add_argument('--keep', type=Path, metavar='FOLDER', help='new folder for the datasets of findings')
    return parser.parse_args()


@exits_cleanly
def main():
    args = parse_args()
    if args.keep and args.keep.exists():
        raise UsageError(f'{args.keep} already exists. Give a new folder as --keep.')
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        search = Search(Trial(Path(folder)), args.keep)
        search.run(args.cases, args.seed)
    minutes = (time.monotonic() - began) / 60
    print(f'\n{search.table()}\n\n{search.tried} cases in {minutes:.1f} min, {len(search.found)} findings')
    sys.exit(1 if search.found else 0)


if __name__ == '__main__':
    main()
