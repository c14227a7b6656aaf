"""Training and evaluation of small models with the project's own tools, as a table and a sheet of predictions."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config

from mmcasvit.models import casvit
from mmcasvit.utils.errors import UsageError

from .config import root


@dataclass
class Task:
    """Model to train, and what it must reach.

    Attributes:
        name: Name for the table and the sheet.
        config: Path of the config in ``configs/``.
        required: Least value of each metric.
    """

    name: str
    config: str
    required: dict[str, float]


@dataclass
class Result:
    """Outcome of a task.

    Attributes:
        task: The task.
        metrics: Metrics of the last checkpoint.
        seconds: Seconds of training.
        drawings: Folder with a drawing of each validation image, the ground truth to the left of the prediction.
    """

    task: Task
    metrics: dict[str, float]
    seconds: float
    drawings: Path

    @property
    def missed(self) -> list[str]:
        """Metrics below their required value."""
        return [
            f'{self.task.name} {metric} {self.metrics[metric]:.3f}'
            for metric, least in self.task.required.items()
            if self.metrics[metric] < least
        ]


def run_tool(name: str, *args: str | Path, label: str = '', threads: int | None = None) -> None:
    """Run a script of ``tools/``.

    Args:
        name: Name of the script.
        args: Its arguments.
        label: What each line on the console begins with, for scripts that run at the same time.
        threads: Threads that it computes with, or None for as many as it likes.

    Raises:
        UsageError: If it fails.
    """
    command = [str(part) for part in (root() / 'tools' / name, *args)]
    variables = dict(os.environ, OMP_NUM_THREADS=str(threads)) if threads else None
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace') if label else {}
    with subprocess.Popen([sys.executable, *command], env=variables, **pipes) as process:  # type: ignore[call-overload]
        for line in process.stdout or ():
            print(f'{label} | {line}', end='', flush=True)
    if process.returncode:
        raise UsageError(f'this command failed with exit status {process.returncode}: {" ".join(command)}')


def _fingerprint(config: Path, data_root: Path) -> str:
    parts = [
        repr(Config.fromfile(config).to_dict()),
        *(file.read_text() for file in sorted(Path(casvit.__file__).parent.glob('*.py'))),
        (data_root / 'dataset.json').read_text(),
    ]
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()


def train_and_test(task: Task, work_dir: Path, data_root: Path, label: str = '', threads: int | None = None) -> Result:
    """Train a model and evaluate its last checkpoint.

    A finished task is not repeated, and an interrupted one is resumed. A task starts over if its config, the code
    of the models or the dataset has changed.

    Args:
        task: What to train.
        work_dir: Folder for the tasks, each of which gets a folder in it.
        data_root: Folder that ``tools/make_dataset.py`` wrote.
        label, threads: As of :func:`run_tool`.

    Raises:
        UsageError: If training or testing fails.
    """
    config = root() / 'configs' / task.config
    folder = work_dir / config.stem
    mark, note, drawings = folder / 'fingerprint', folder / 'result.json', folder / 'predictions'
    wanted = _fingerprint(config, data_root)
    if mark.is_file() and mark.read_text() == wanted:
        if note.is_file():
            print(f'{folder} is finished; remove it to train again')
            found = json.loads(note.read_text())
            return Result(task, found['metrics'], found['seconds'], drawings)
    elif folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(wanted)
    start = time.perf_counter()
    run_tool('train.py', config, '--work-dir', folder, '--resume', 'auto', label=label, threads=threads)
    seconds = time.perf_counter() - start
    checkpoint = (folder / 'last_checkpoint').read_text().strip()
    shutil.rmtree(folder / 'test', ignore_errors=True)
    options = ('--work-dir', folder / 'test', '--show-dir', drawings)
    run_tool('test.py', config, checkpoint, *options, label=label, threads=threads)
    metrics = json.loads(next((folder / 'test').glob('*/*.json')).read_text())
    note.write_text(json.dumps(dict(metrics=metrics, seconds=seconds, checkpoint=checkpoint), indent=1))
    return Result(task, metrics, seconds, drawings)


def _titled(image: np.ndarray, text: str) -> np.ndarray:
    strip = np.full((22, image.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, text, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([strip, image])


def _draw_columns(result: Result, images: Sequence[Path]) -> np.ndarray:
    """Draw one column per image: from top to bottom input, ground truth and prediction."""
    drawn = {
        file.stem.removeprefix('test_').split('_')[0].removesuffix('.jpg'): file
        for file in sorted(result.drawings.rglob('*'))
        if file.suffix in ('.jpg', '.png')
    }
    columns = []
    for image in images:
        photo = cv2.imread(str(image))
        halves = np.hsplit(cv2.imread(str(drawn[image.stem])), 2)
        truth, prediction = (cv2.resize(half, photo.shape[1::-1], interpolation=cv2.INTER_AREA) for half in halves)
        parts = [(photo, f'{result.task.name}: input'), (truth, 'ground truth'), (prediction, 'prediction')]
        columns.append(np.vstack([_titled(part, title) for part, title in parts]))
    return np.hstack(columns)


def draw_sheet(results: Sequence[Result], images: Sequence[Path]) -> np.ndarray:
    """Return a BGR image of the predictions of all models: two models in a row if their number is even."""
    blocks = [_draw_columns(result, images) for result in results]
    if len(blocks) % 2 == 0:
        blocks = [np.hstack(blocks[i : i + 2]) for i in range(0, len(blocks), 2)]
    return np.vstack(blocks)


def result_table(results: Sequence[Result]) -> str:
    """Return a Markdown table of the metrics with their required values and the time of training."""
    lines = ['| task | metric | reached | required | training, s |', '|---|---|---|---|---|']
    lines += [
        f'| {result.task.name} | {metric} | {result.metrics[metric]:.3f} | {least:g} | {result.seconds:.0f} |'
        for result in results
        for metric, least in result.task.required.items()
    ]
    return '\n'.join(lines)
