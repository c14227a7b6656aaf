"""Logs of a work directory: runs, curves, tables and times. Nothing in them is executed."""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from mmcasvit.engine.hooks.stage_health import PREFIX
from mmcasvit.utils.errors import UsageError

_STAMP = re.compile(r'\d{8}_\d{6}')
_LINE = re.compile(r'(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) - \S+ - [A-Z]+ - (.*)', re.DOTALL)
_PROGRESS = re.compile(r'(?:Epoch|Iter)\((train|val|test)\) *(?:\[ *(\d+)\])?\[ *(\d+)/ *(\d+)\]')
_RESUMED = re.compile(r'resumed epoch: (\d+), iter: (\d+)')
_PHASES = dict(train='training', val='validation', test='test')
# Logged scalars that are not curves.
_CLOCKS = ('time', 'data_time', 'memory', 'epoch', 'iter', 'step')


@dataclass
class Run:
    """One run of a program in a work directory.

    Attributes:
        folder: Folder of its logs, named after its start time.
        environment: mmengine's description of the machine, or an empty string.
        config: Text of the config, or an empty string.
        resumed: Epoch and iteration that it was resumed from, or None.
        reached: Last logged training progress: epoch (None in iteration-based loops), number of the batch or
            iteration, and their total number.
        seconds: Wall-clock time of each phase, in whole seconds.
        table: Last table of classes, as header and rows of text.
        training: Scalars logged during training, by step.
        stages: Scalars of the stages of the backbone, by step.
        validation: Validation metrics, by step, or by epoch in epoch-based loops.
        test: Metrics of a test, or None.
    """

    folder: Path
    environment: str = ''
    config: str = ''
    resumed: tuple[int, int] | None = None
    reached: tuple[int | None, int, int] | None = None
    seconds: dict[str, int] = field(default_factory=dict)
    table: tuple[list[str], list[list[str]]] | None = None
    training: dict[int, dict[str, float]] = field(default_factory=dict)
    stages: dict[int, dict[str, float]] = field(default_factory=dict)
    validation: dict[int, dict[str, float]] = field(default_factory=dict)
    test: dict[str, float] | None = None

    @property
    def start(self) -> datetime:
        return datetime.strptime(self.folder.name, '%Y%m%d_%H%M%S')


def read_runs(work_dir: Path) -> list[Run]:
    """Read the logs of all runs in a work directory, oldest first.

    Raises:
        UsageError: It is not a folder, or has no logs of mmengine.
    """
    if not work_dir.is_dir():
        raise UsageError(f'work directory not found: {work_dir.absolute()}')
    folders = sorted(path for path in work_dir.iterdir() if _STAMP.fullmatch(path.name) and path.is_dir())
    if not folders:
        raise UsageError(
            f'{work_dir.absolute()} is not a work directory of a training or test: it has no folder of logs with a '
            'name such as 20260131_120000'
        )
    return [_read_run(folder) for folder in folders]


def _read_run(folder: Path) -> Run:
    run = Run(folder)
    log = folder / f'{folder.name}.log'
    if log.is_file():
        _read_log(run, log.read_text(errors='replace'))
    for entry in _json_lines(folder / 'vis_data' / 'scalars.json'):
        step, numbers = entry.get('step'), _numbers(entry)
        if not isinstance(step, int):
            continue
        if any(name.startswith(PREFIX) for name in numbers):
            run.stages[step] = numbers
        elif 'lr' in entry or 'loss' in entry:
            run.training[step] = numbers
        elif any(name not in _CLOCKS for name in numbers):
            run.validation.setdefault(step, {}).update(numbers)
    for entry in _json_lines(folder / f'{folder.name}.json'):
        run.test = {name: number for name, number in _numbers(entry).items() if name not in _CLOCKS}
    return run


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the object of each line of a file, except lines that were cut off when a run was killed."""
    for line in file.read_text(errors='replace').splitlines() if file.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def _numbers(entry: dict[str, Any]) -> dict[str, float]:
    return {
        name: value for name, value in entry.items() if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _read_log(run: Run, text: str) -> None:
    messages = []
    for line in text.splitlines():
        if match := _LINE.fullmatch(line):
            messages.append((datetime.strptime(match[1], '%Y/%m/%d %H:%M:%S'), match[2]))
        elif messages:
            messages[-1] = (messages[-1][0], f'{messages[-1][1]}\n{line}')
    run.seconds = _seconds_per_phase(run.start, messages)
    for _, message in messages:
        if 'System environment:' in message and not run.environment:
            run.environment = message.strip().strip('-').strip()
        elif message.startswith('Config:\n'):
            run.config = message.partition('\n')[2].strip()
        elif match := _RESUMED.match(message):
            run.resumed = int(match[1]), int(match[2])
        elif (match := _PROGRESS.match(message)) and match[1] == 'train':
            run.reached = int(match[2]) if match[2] else None, int(match[3]), int(match[4])
        elif table := class_table(message):
            run.table = table


def _seconds_per_phase(start: datetime, messages: list[tuple[datetime, str]]) -> dict[str, int]:
    """Return the whole seconds that a run spent in each phase, from the time and text of each line of its log.

    The time between two lines counts for the phase that the later line reports on. Writing a checkpoint is logged
    before it is done, so it counts for the phase after it. The sum is the time from the start to the last line.
    """
    seconds, waiting, phase, starting, before = Counter(), 0, 'start-up', True, start
    for time, message in messages:
        passed, before = max(0, int((time - before).total_seconds())), max(time, before)
        if match := _PROGRESS.match(message):
            phase = _PHASES[match[1]]
            seconds[phase] += waiting + passed
            waiting, starting = 0, False
        elif starting or message.startswith(('Exp name:', 'Saving checkpoint')):
            seconds[phase] += passed
            starting = starting and not message.startswith(('Load checkpoint from', 'Checkpoints will be saved'))
        elif message.startswith(('The best checkpoint', 'The previous best')):
            seconds['best checkpoint'] += passed
        else:  # such as the computation of metrics; a later line tells the phase
            waiting += passed
    seconds[phase] += waiting
    return dict(seconds)


def class_table(message: str) -> tuple[list[str], list[list[str]]] | None:
    """Return header and rows of a table of classes as mmdet and mmseg print it, or None if a message has none."""
    lines = [line.strip() for line in message.splitlines()]
    lines = [line[1:-1] for line in lines if line.startswith('|') and line.endswith('|')]
    if not lines:
        return None
    header = [cell.strip() for cell in lines[0].split('|')]
    if header[0] not in ('Class', 'category'):
        return None
    # Names may contain the column separator; numbers do not.
    rows = [[cell.strip() for cell in line.rsplit('|', len(header) - 1)] for line in lines[1:]]
    return header, [row for row in rows if len(row) == len(header)]


@dataclass
class History:
    """Curves of a training, joined from any number of runs.

    Attributes:
        training: Steps and values of each scalar.
        stages: Steps and values of each scalar of the stages of the backbone.
        validation: Steps and values of each metric; steps are iterations, or epochs if ``by_epoch``.
        by_epoch: Whether validations are counted in epochs.
        resumed: Iterations from which a run was resumed.
        dropped: Names of runs that are left out, since a later run started from scratch.
        data_share: Share of the training time that was spent waiting for data, or None.
    """

    training: dict[str, tuple[list[int], list[float]]]
    stages: dict[str, tuple[list[int], list[float]]]
    validation: dict[str, tuple[list[int], list[float]]]
    by_epoch: bool
    resumed: list[int]
    dropped: list[str]
    data_share: float | None


def join(runs: list[Run]) -> History:
    """Join the curves of runs that were resumed from each other.

    A resumed run replaces what earlier runs logged after the iteration that it was resumed from. A run that starts
    from scratch replaces everything before it.
    """
    training, stages, validation, resumed, dropped = {}, {}, {}, [], []
    trained = [run for run in runs if run.training]
    by_epoch = any(run.reached is not None and run.reached[0] is not None for run in trained)
    for number, run in enumerate(trained):
        epoch, iteration = run.resumed or (0, 0)
        if run.resumed is None:
            dropped = [earlier.folder.name for earlier in trained[:number]]
            resumed = []
        else:
            resumed = [step for step in resumed if step < iteration] + [iteration]
        training = {step: entry for step, entry in training.items() if step <= iteration} | run.training
        stages = {step: entry for step, entry in stages.items() if step <= iteration} | run.stages
        validation = {
            step: entry for step, entry in validation.items() if step <= (epoch if by_epoch else iteration)
        } | run.validation
    waited = sum(entry.get('data_time', 0) for entry in training.values())
    lasted = sum(entry.get('time', 0) for entry in training.values())
    return History(
        _columns(training),
        _columns(stages),
        _columns(validation),
        by_epoch,
        resumed,
        dropped,
        waited / lasted if lasted else None,
    )


def _columns(entries: dict[int, dict[str, float]]) -> dict[str, tuple[list[int], list[float]]]:
    columns = {}
    for step in sorted(entries):
        for name, value in entries[step].items():
            if name not in _CLOCKS and is_defined(name, value):
                steps, values = columns.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
    return columns


def last_config(runs: list[Run]) -> str:
    """Return the text of the config of the last run that trained, or of the last run with a config."""
    trained = [run.config for run in runs if run.config and run.training]
    return ([''] + [run.config for run in runs if run.config] + trained)[-1]


def plain_values(text: str) -> dict[str, Any]:
    """Return the values of a config as mmengine writes it, or an empty dict for any other text.

    The text is parsed, not executed: it consists of assignments of literals and ``dict(...)`` calls.
    """
    values = {}
    try:
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                values[node.targets[0].id] = _plain(node.value)
    except (SyntaxError, ValueError, RecursionError):
        return {}
    return values


def _plain(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args:
        return {part.arg: _plain(part.value) for part in node.keywords}
    if isinstance(node, ast.Dict):
        return {_plain(key): _plain(value) for key, value in zip(node.keys, node.values) if key is not None}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_plain(part) for part in node.elts]
    return ast.literal_eval(node)


def at(config: Any, *path: str | int) -> Any:
    """Return an entry of nested dicts and lists, or None if there is none."""
    for key in path:
        if isinstance(config, dict):
            config = config.get(key)
        elif isinstance(config, list) and isinstance(key, int) and key < len(config):
            config = config[key]
        else:
            return None
    return config


def is_defined(name: str, value: float) -> bool:
    """Return False for the -1 that COCO's evaluation reports if there is no object of a kind."""
    return not (value == -1 and re.search(r'(^|[/_])(m?AP|AR)([_@]|$)', name))
