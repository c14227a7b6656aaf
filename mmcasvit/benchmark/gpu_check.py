"""Checks and measurements of a GPU: parts that run in processes of their own, and the files with their results."""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmcasvit.apis.config import root
from mmcasvit.ops import operators_in_use
from mmcasvit.report.logs import read_runs
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.tables import count_of, markdown
from mmcasvit.utils.timing import machine

from .losses import VARIANTS, loss_table
from .plots import plot_gpu_check

_TWINS = {
    'detection/retinanet_casvit-xs_fpn_6e_shapes.py': 'coco',
    'detection/mask-rcnn_casvit-xs_fpn_6e_shapes.py': 'coco',
    'segmentation/semantic-fpn_casvit-xs_300i_shapes.py': 'ade',
    'segmentation/upernet_casvit-xs_600i_shapes.py': 'ade',
}
_RECIPES = [
    'detection/mask-rcnn_casvit-xs_fpn_1x_coco.py',
    'segmentation/upernet_casvit-xs_8xb2-160k_ade20k-512x512.py',
]
_PACKAGES = ('torch', 'torchvision', 'onnxruntime', 'onnxruntime-gpu', 'timm', 'mmpretrain')
# A finished test in the output of pytest -v, and the reason of a failure in its summary.
_TEST = re.compile(r'^(\S+?::.+?) (PASSED|FAILED|SKIPPED|ERROR)(?: \((.*?)\))?(?: +\[|$)', re.MULTILINE)
_FAILURE = re.compile(r'^(?:FAILED|ERROR) (\S+?::.+?) - (.*)$', re.MULTILINE)


@dataclass(frozen=True)
class Part:
    """Commands that run one after another, and the reader of what they leave.

    Attributes:
        name: Name of the part, which is also that of its files.
        commands: Arguments of Python.
        seconds: Time limit.
        packages: Packages that the commands cannot do without.
        read: Function of the folder of the files and the printed text, which returns rows for the JSON file and text
            for the page. It is called after a failure as well.
    """

    name: str
    commands: Sequence[Sequence[object]]
    seconds: float
    packages: Sequence[str] = ()
    read: Callable[[Path, str], tuple[list[dict], str]] = lambda folder, printed: ([], '')


def _read_tests(folder: Path, printed: str) -> tuple[list[dict], str]:
    reasons = dict(_FAILURE.findall(printed))
    rows = [
        dict(test=name.rpartition('/')[2], outcome=outcome.lower(), reason=reason or reasons.get(name))
        for name, outcome, reason in _TEST.findall(printed)
    ]
    return rows, markdown(rows) if rows else ''


def _read_file(name: str) -> Callable[[Path, str], tuple[list[dict], str]]:
    """Return a reader of the JSON file of ``tools/benchmark.py``, whose table is the text."""

    def read(folder: Path, printed: str) -> tuple[list[dict], str]:
        file = folder / f'{name}.json'
        return json.loads(file.read_text())['rows'] if file.is_file() else [], printed

    return read


def _read_training(folder: Path, printed: str) -> tuple[list[dict], str]:
    runs = read_runs(folder / 'work_dir')
    curves = {
        f'run {number}': [numbers['loss'] for numbers in run.training.values()] for number, run in enumerate(runs, 1)
    }
    rows = [
        dict(recipe='AMP, resumed', variant=name, step=step, loss=numbers['loss'])
        for name, run in zip(curves, runs)
        for step, numbers in run.training.items()
    ]
    return rows, markdown(loss_table(curves))


def plan_parts(folder: Path, dry_run: bool) -> list[Part]:
    """Return the parts, the most important ones first.

    Args:
        folder: Folder for the results.
        dry_run: Whether to try everything on the CPU, with tiny sizes and without compiling.
    """
    device, height, width = ('cpu', 64, 96) if dry_run else ('cuda', 128, 192)
    sizes, batches = (['64x64', '64x96'], [1, 2]) if dry_run else (['512x512', '800x1216'], [1, 32])
    precisions = ['fp32', 'bf16'] if dry_run else ['fp32', 'bf16', 'fp16']
    rounds = '--rounds 1 --warmup 1 --least-ms 0 --threads 1 --no-memory' if dry_run else '--rounds 5'
    steps, images = (2, 32) if dry_run else (60, 160)
    tools, configs, data = root() / 'tools', root() / 'configs', folder / 'data'
    frameworks = ('mmdet', 'mmseg', 'mmcv')

    def benchmark(name: str, seconds: float, *words: object) -> Part:
        command = [tools / 'benchmark.py', *words, '--json', folder / f'{name}.json']
        return Part(name, [command], seconds, frameworks, _read_file(name))

    def compare(name: str, seconds: float, models: Sequence[object], *more: object) -> Part:
        return benchmark(name, seconds, 'compare', *models, '--devices', device, *rounds.split(), *more)

    def training(steps: int, *more: object) -> list[object]:
        config = configs / 'segmentation/semantic-fpn_casvit-xs_300i_shapes.py'
        amp = [] if dry_run else ['--amp']
        options = [f'data_root={data}/ade', f'train_cfg.max_iters={steps}', f'train_cfg.val_interval={steps}']
        options += [f'default_hooks.checkpoint.interval={steps}', 'default_hooks.logger.interval=1']
        return [tools / 'train.py', config, '--work-dir', folder / 'work_dir', *amp, *more, '--cfg-options', *options]

    tests = [
        Part(
            f'tests-{name}',
            [
                ['-m', 'pytest', '-v', '-m', 'gpu', '-p', 'no:cacheprovider', '-W', 'ignore', '--rootdir', root()]
                + ['-c', root() / 'pyproject.toml', root() / f'tests/gpu/test_{name}.py']
            ],
            seconds,
            ('pytest', *frameworks),
            _read_tests,
        )
        for name, seconds in (('models', 90), ('operators', 60), ('training', 90))
    ]
    make_data = [tools / 'make_dataset.py', '--out-dir', data, '--train', images, '--val', 4, '--size', height, width]
    losses = [
        benchmark(
            f'losses-{Path(config).stem.split("_")[0]}',
            60,
            *('losses', configs / config, '--steps', steps),
            *('--variants', *[name for name in VARIANTS if name in precisions]),
            *('--cfg-options', f'data_root={data}/{layout}'),
        )
        for config, layout in _TWINS.items()
    ]
    recipes = _RECIPES if not dry_run else [twin for twin in _TWINS if 'mask-rcnn' in twin or 'upernet' in twin]
    step = ['--modes', 'train', '--batches', 2, '--precisions', *precisions[: 1 if dry_run else None], '--sizes']
    compiled = ['--forms', 'eager', 'compiled', 'deploy+compiled', '--precisions', precisions[1], '--batches', *batches]
    grid = ['--forms', 'eager', 'deploy', 'channels_last', '--precisions', *precisions, '--batches', *batches]
    last = ['--precisions', precisions[-1], '--batches', batches[-1], '--sizes', sizes[0]]
    return [
        *tests,
        Part('data', [make_data], 30),
        Part('resume', [training(steps), training(2 * steps, '--resume')], 60, frameworks, _read_training),
        *(compare(f'backbones-{size}', 75, ['xs'], *grid, '--sizes', size) for size in sizes),
        compare('step-mask-rcnn', 60, [configs / recipes[0]], *step, sizes[1]),
        compare('step-upernet', 60, [configs / recipes[1]], *step, sizes[0]),
        compare('compiled', 120, ['xs'], *compiled, '--sizes', sizes[0]),
        *losses,
        compare('peers', 120, ['xs', 'resnet-18'] if dry_run else ['xs', 's', 'm', 't', 'peers'], *last),
    ]


def run_part(part: Part, folder: Path, limit: float, environment: Mapping[str, str]) -> dict:
    """Run a part, and return its status, the reason unless it is ``'ok'``, its seconds, rows and text.

    Whatever happens to its processes, the result is a dict.
    """
    result = dict(part=part.name, status='ok', reason='', seconds=0.0, rows=[], text='')
    if limit <= 0:
        return result | dict(status='not run', reason='the time is over')
    if missing := [name for name in part.packages if importlib.util.find_spec(name) is None]:
        return result | dict(status='not installed', reason=f'needs {", ".join(missing)}')
    start, files = time.monotonic(), [folder / f'{part.name}.{suffix}' for suffix in ('out', 'err')]
    with files[0].open('w') as stdout, files[1].open('w') as stderr:
        for command in part.commands:
            process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                stdout=stdout,
                stderr=stderr,
                env=environment,
                start_new_session=True,
            )
            try:
                code = process.wait(max(0.0, limit - (time.monotonic() - start)))
            except subprocess.TimeoutExpired:
                result |= dict(status='stopped', reason=f'not finished after {limit:.0f} s')
                break
            finally:
                with contextlib.suppress(ProcessLookupError):  # neither the process nor one of its workers is left
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if code:
                result |= dict(status='failed', reason=_reason(code, files))
                break
    result['seconds'] = time.monotonic() - start
    try:
        result['rows'], result['text'] = part.read(folder, files[0].read_text(errors='replace'))
    except Exception as error:  # the files of a part that was stopped may be missing or incomplete
        if result['status'] == 'ok':
            result |= dict(status='failed', reason=f'its results cannot be read: {type(error).__name__}: {error}')
    return result


def _reason(code: int, files: Sequence[Path]) -> str:
    if code < 0:
        return f'killed by {signal.Signals(-code).name}'
    for file in reversed(files):
        if lines := [line for line in file.read_text(errors='replace').splitlines() if line.strip(' =')]:
            return lines[-1].strip(' =')
    return f'exit status {code}'


def _environment(dry_run: bool) -> dict[str, str]:
    environment = {**os.environ, 'PYTHONUNBUFFERED': '1', 'COLUMNS': '500'}
    if path := environment.get('PYTHONPATH'):  # the tests start processes in other folders
        environment['PYTHONPATH'] = os.pathsep.join(map(os.path.abspath, path.split(os.pathsep)))
    if dry_run:
        environment |= dict(GPU_CHECK_DEVICE='cpu', CUDA_VISIBLE_DEVICES='', TORCH_COMPILE_DISABLE='1')
    return environment


def _versions() -> dict[str, str]:
    versions = {'python': platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = 'not installed'
    return versions | dict(operators=operators_in_use())


def page_text(about: Mapping[str, object], results: Sequence[Mapping]) -> str:
    """Return the page: the machine, one row per part, the plot, and the table of each part."""
    summary = [
        dict(
            part=result['part'],
            status=result['status'],
            seconds=f'{result["seconds"]:.0f}',
            note='; '.join(filter(None, [result['reason'], _count(result['rows'])])).replace('|', '\\|') or None,
        )
        for result in results
    ]
    lines = [f'# GPU check\n\n{about["machine"]}. {about["versions"]}\n', markdown(summary) if summary else '']
    lines += [f'\n## {result["part"]}\n\n{result["text"].strip()}' for result in results if result['text'].strip()]
    return '\n'.join(lines) + '\n'


def _count(rows: Sequence[Mapping]) -> str:
    if not any('outcome' in row for row in rows):
        return count_of(len(rows), 'row') if rows else ''
    return ', '.join(f'{number} {outcome}' for outcome, number in Counter(row['outcome'] for row in rows).items())


def _plot(path: Path, results: Sequence[Mapping], title: str) -> None:
    times, curves = {}, {}
    for row in (row for result in results for row in result['rows']):
        if 'seconds' in row:
            name = ' '.join(str(row[key]) for key in ('model', 'form', 'precision', 'mode', 'size'))
            times[f'{name} x{row["batch"]}'] = row['seconds'] / row['batch'] * 1000
        elif 'loss' in row:
            curves.setdefault(row['recipe'], {}).setdefault(row['variant'], []).append(row['loss'])
    plot_gpu_check(path, times, curves, title)


def check_gpu(
    folder: Path, parts: Sequence[Part], seconds: float, dry_run: bool, tell: Callable[[str], None]
) -> list[dict]:
    """Run parts one after another, and write ``gpu-check.json``, ``.md`` and ``.png`` to a folder.

    The first two are written again after each part, so that nothing is lost if this process ends early.

    Args:
        folder: Folder for the results, created if it does not exist.
        parts: See :func:`plan_parts`.
        seconds: Time limit of all parts together.
        dry_run: Whether the parts were planned for a dry run.
        tell: Function called with a line about each part.

    Returns:
        The results of :func:`run_part`, and one about the plot.

    Raises:
        UsageError: If there is no GPU for the measurements.
    """
    if not dry_run and not torch.cuda.is_available():
        raise UsageError('no GPU is visible to PyTorch here. --dry-run tries everything on the CPU.')
    end, environment, results = time.monotonic() + seconds, _environment(dry_run), []
    versions = '; '.join(f'{name} {version}' for name, version in _versions().items())
    here = machine(['cpu' if dry_run else 'cuda'])
    about = dict(machine=here, versions=versions, dry_run=dry_run)
    folder.mkdir(parents=True, exist_ok=True)

    def add(result: dict) -> None:
        results.append(result)
        (folder / 'gpu-check.json').write_text(json.dumps(dict(about, parts=results), indent=1) + '\n')
        (folder / 'gpu-check.md').write_text(page_text(about, results))
        tell(f'{result["part"]}: {result["status"]}, {result["seconds"]:.0f} s {result["reason"]}'.rstrip())

    for part in parts:
        limit = part.seconds * (10 if dry_run else 1)  # processors are slow
        add(run_part(part, folder, min(limit, end - time.monotonic()), environment))
    image = dict(part='plot', status='ok', reason='', seconds=0.0, rows=[], text='![times and losses](gpu-check.png)')
    try:
        _plot(folder / 'gpu-check.png', results, here)
    except Exception as error:
        image |= dict(status='failed', reason=f'{type(error).__name__}: {error}', text='')
    add(image)
    return results
