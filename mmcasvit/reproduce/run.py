"""Evaluations and trainings as processes of their own, several at a time if there are several GPUs."""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from mmcasvit.apis.config import root
from mmcasvit.apis.published import PublishedWeights
from mmcasvit.ops import operators_in_use
from mmcasvit.utils.timing import machine
from mmcasvit.version import __version__
from mmcasvit.weights.integrity import read_pointer, write_text
from mmcasvit.weights.published import checksum

from .plan import FIGURES, Job

_ROW = 'row.json'
# Next to a training: what it depends on.
_SETTINGS = 'settings.json'
_POLL_SECONDS = 0.1


def places(train: bool) -> list[dict[str, str]]:
    """Return the environment of each process that may run at a time.

    There is one for each GPU. A training uses all of them.
    """
    count = torch.cuda.device_count()
    if train or count < 2:
        return [{}]
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    names = visible.split(',') if visible else [str(number) for number in range(count)]
    return [dict(CUDA_VISIBLE_DEVICES=name) for name in names[:count]]


def read_row(out: Path, weights: PublishedWeights) -> dict | None:
    """Return the row that an earlier run wrote for some weights, or None if there is none with the same figures."""
    try:
        row = json.loads((out / weights.name / _ROW).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return row if set(row.get('figures', weights.results)) == set(weights.results) else None


def other_training(out: Path, job: Job) -> str:
    """Return why a training cannot be resumed: its folder has one with another config, data or start; or ''."""
    folder = out / job.weights.name
    try:
        same = not job.train or json.loads((folder / _SETTINGS).read_text()) == job.settings
    except FileNotFoundError:
        same = True
    return '' if same else f'{folder} has a training with another config, data folder or start. Move it away.'


def run_jobs(
    jobs: Sequence[Job], out: Path, environments: Sequence[Mapping[str, str]], done: Callable[[Job, dict], None]
) -> None:
    """Run jobs, as many at a time as there are environments, and write the row of each one when it has ended.

    Whatever a job's processes do, the others run. If this process is interrupted, it ends those that are running.

    Args:
        jobs: Jobs that lack nothing.
        out: Folder with a folder for each job.
        environments: Variables of the processes; see :func:`places`.
        done: Function called with each job that has ended, and its row.
    """
    waiting: list[Job] = list(jobs)
    running: dict[int, _Running] = {}
    try:
        while waiting or running:
            for place, environment in enumerate(environments):
                if waiting and place not in running:
                    running[place] = _Running(waiting.pop(0), out, environment)
            for place, each in list(running.items()):
                if (row := each.poll()) is not None:
                    del running[place]
                    done(each.job, row)
            time.sleep(_POLL_SECONDS)
    finally:
        for each in running.values():
            each.end()


class _Running:
    """Job whose commands run one after another."""

    def __init__(self, job: Job, out: Path, environment: Mapping[str, str]):
        self.job, self._folder = job, out / job.weights.name
        self._folder.mkdir(parents=True, exist_ok=True)
        self._environment = {**os.environ, **environment, 'PYTHONUNBUFFERED': '1'}
        self._began = time.monotonic()
        self._commands = self._plan()
        self._printed = self._folder / 'output.txt'
        self._printed.write_text('')
        self._process: subprocess.Popen | None = None
        self._start_next()

    def _plan(self) -> Iterator[list[object]]:
        if self.job.train:
            write_text(self._folder / _SETTINGS, json.dumps(self.job.settings))
            yield _training(self.job, self._folder / 'train')
        shutil.rmtree(self._folder / 'test', ignore_errors=True)
        yield _evaluation(self.job, self._evaluated(), self._folder / 'test')

    def _evaluated(self) -> Path:
        """Return the checkpoint whose figures are the result.

        Raises:
            FileNotFoundError: The training has left none.
        """
        file = read_pointer(self._folder / 'train') if self.job.train else self.job.file
        if file is None:
            raise FileNotFoundError(f'{self._folder / "train"} has no checkpoint')
        return file

    def _start_next(self) -> bool:
        command = next(self._commands, None)
        if command is None:
            return False
        with self._printed.open('a') as printed:
            self._process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        return True

    def poll(self) -> dict | None:
        """Return the row if the job has ended, and start its next command when one has ended well."""
        assert self._process is not None
        code = self._process.poll()
        if code is None:
            return None
        self.end()  # workers of data loaders that outlive their process
        text = self._printed.read_text(errors='replace')
        row: dict = dict(settings=self.job.settings, status='failed', reason=_reason(code, text) if code else '')
        if code == 0:
            try:
                if self._start_next():
                    return None
                row |= dict(status='measured', **self._result(text))
            except (OSError, StopIteration, KeyError, ValueError) as error:
                row['reason'] = f'there is no result: {type(error).__name__}: {error}'
        row |= dict(seconds=time.monotonic() - self._began, versions=_versions(self.job.scope))
        write_text(self._folder / _ROW, json.dumps(row, indent=1) + '\n')
        return row

    def _result(self, text: str) -> dict:
        found = json.loads(next((self._folder / 'test').glob('*/*.json')).read_text())
        images = re.search(r'^test data +(\d+) images', text, re.MULTILINE)
        return dict(
            figures={name: FIGURES[name].scale * found[FIGURES[name].metric] for name in self.job.weights.results},
            images=int(images[1]) if images else None,
            sha256=checksum(self._evaluated()),
        )

    def end(self) -> None:
        """Kill what is left of the processes."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _evaluation(job: Job, file: Path, work_dir: Path) -> list[object]:
    return [root() / 'tools/test.py', job.config, file, '--work-dir', work_dir, *_options(job)]


def _training(job: Job, work_dir: Path) -> list[object]:
    command: list[object] = [
        root() / 'tools/train.py',
        job.config,
        '--work-dir',
        work_dir,
        '--resume',
        'auto',
        '--auto-scale-lr',
    ]
    more: list[str] = []
    gpus = torch.cuda.device_count()
    if gpus > 1:
        command = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', gpus, *command]
        command += ['--launcher', 'pytorch']
    if job.scope == 'mmpretrain':
        command += ['--amp'] if gpus else []  # as the authors did
        more = [f'load_from={job.file}'] if job.file else []
    elif job.file:
        command += ['--pretrained', job.file]
    return [*command, *_options(job, *more)]


def _options(job: Job, *more: str) -> list[object]:
    options = [*([f'data_root={job.data_root}'] if job.data_root else []), *more]
    return [*(['--trust-checkpoint'] if job.trust else []), *(['--cfg-options', *options] if options else [])]


def _reason(code: int, text: str) -> str:
    """Return why a process failed: its error message, or else the last line that it printed."""
    if code < 0:
        return f'killed by {signal.Signals(-code).name}'
    errors = re.findall(r'^error: (.*(?:\n  .*)*)', text, re.MULTILINE)
    last = errors[-1:] or [line for line in text.splitlines() if line.strip()][-1:]
    return textwrap.shorten(last[0], 500, placeholder=' ...') if last else f'exit status {code}'


def _versions(scope: str) -> str:
    """Describe what a result was measured with."""
    names = ['mmengine', 'mmcv', *([scope] if scope else [])]
    packages = ', '.join(f'{name} {importlib.import_module(name).__version__}' for name in names)
    here = machine(['cuda'] if torch.cuda.is_available() else ['cpu'])
    return f'{here}, {packages}, mmcasvit {__version__}, operators of {operators_in_use()}'
