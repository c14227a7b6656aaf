"""HTML page of a work directory, with its images embedded; ``page.html.jinja`` is its template."""

import base64
import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from mmcasvit.utils.tables import count_of
from mmcasvit.version import __version__

from . import figures
from .logs import History, Run, at, is_defined, join, last_config, plain_values, read_runs
from .record import FOLDER, read_record

# Names of classes and files and the text of configs and logs are untrusted, so everything is escaped.
ENVIRONMENT = Environment(
    loader=PackageLoader('mmcasvit.report', '.'),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_MAX_PAIRS = 20  # of confused classes that are listed


def write_report(work_dir: Path, out: Path) -> None:
    """Write the report of a work directory. The page names what the directory lacks.

    Args:
        work_dir: Work directory of ``tools/train.py``, ``tools/test.py`` or any other program that runs mmengine.
        out: File to write. An existing file is replaced atomically.

    Raises:
        UsageError: There is no log of mmengine.
    """
    text = render_report(work_dir)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f'.{out.name}.part')
    try:
        part.write_text(text, encoding='utf-8', errors='replace')
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def render_report(work_dir: Path) -> str:
    """Return the page that :func:`write_report` writes."""
    runs = read_runs(work_dir)
    history = join(runs)
    config = last_config(runs)
    values = plain_values(config)
    return ENVIRONMENT.get_template('page.html.jinja').render(
        title=work_dir.resolve().name,
        work_dir=str(work_dir),
        version=__version__,
        written=datetime.now().strftime('%Y-%m-%d %H:%M'),
        facts=_facts(work_dir, runs, history, values),
        runs=[_describe(run, values) for run in runs],
        dropped=history.dropped,
        config=config,
        **_curves(history),
        **_latest_evaluation(runs, history),
        **_times(runs, history),
        **_machine(runs),
        advice=_advice(runs),
    )


def embedded(data: bytes | None) -> str:
    """Return data as a page embeds it, in base 64."""
    return base64.b64encode(data).decode() if data else ''


def _text(value: Any) -> str:
    if value is None:
        return '\u2013'
    if isinstance(value, float):
        return f'{value:.3f}' if abs(value) <= 1 else f'{value:.2f}'
    return str(value)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}'


def _facts(work_dir: Path, runs: list[Run], history: History, config: dict[str, Any]) -> dict[str, str]:
    """Return the available facts for the summary."""

    def joined(*parts: Any) -> str:
        return ', '.join(str(part) for part in parts if part not in (None, ''))

    model, optimizer = at(config, 'model'), at(config, 'optim_wrapper', 'optimizer')
    schedule = at(config, 'param_scheduler')
    heads = at(model, 'bbox_head') or at(model, 'decode_head') or at(model, 'roi_head', 'bbox_head')
    heads = heads[0] if isinstance(heads, list) and heads else heads
    batch = at(config, 'train_dataloader', 'batch_size')
    data = at(config, 'train_dataloader', 'dataset', 'dataset') or at(config, 'train_dataloader', 'dataset')
    base = at(config, 'auto_scale_lr', 'base_batch_size')
    arch = at(model, 'backbone', 'arch')
    facts = {
        'model': joined(at(model, 'type'), at(heads, 'num_classes') and f'{at(heads, "num_classes")} classes'),
        'backbone': joined(
            at(model, 'backbone', 'type'),
            arch if isinstance(arch, str) else None,
            'norms in eval mode' if at(model, 'backbone', 'norm_eval') else '',
        ),
        'initial weights': at(model, 'backbone', 'init_cfg', 'checkpoint') or at(config, 'load_from'),
        'training data': joined(at(data, 'type'), at(data, 'data_root')),
        'batch': joined(batch and f'{batch} images per process', base and f'{base} in total in the recipe'),
        'optimizer': joined(
            at(optimizer, 'type'),
            *(f'{name} {value}' for name, value in (optimizer or {}).items() if name in ('lr', 'weight_decay')),
        )
        if isinstance(optimizer, dict)
        else '',
        'schedule': joined(*(at(part, 'type') for part in (schedule if isinstance(schedule, list) else [schedule]))),
        'length': joined(
            *(f'{value} {name[4:]}' for name in ('max_epochs', 'max_iters') if (value := at(config, 'train_cfg', name)))
        ),
        'checkpoints': joined(*sorted(path.name for path in work_dir.glob('*.pth'))),
    }
    if history.training.get('loss'):
        steps, losses = history.training['loss']
        facts['last loss'] = f'{losses[-1]:.4g} at iteration {steps[-1]}'
    return {name: value for name, value in facts.items() if value}


def _describe(run: Run, config: dict[str, Any]) -> dict[str, str]:
    reached = ''
    if run.reached is not None:
        epoch, number, total = run.reached
        most = at(config, 'train_cfg', 'max_epochs')
        reached = (
            f'iteration {number} of {total}'
            if epoch is None
            else f'epoch {epoch}{f" of {most}" if most else ""}, batch {number} of {total}'
        )
    return dict(
        start=run.start.strftime('%Y-%m-%d %H:%M:%S'),
        reached=reached,
        kind='training' if run.training else 'test' if run.test is not None else 'neither trained nor tested',
        resumed=f'epoch {run.resumed[0]}, iteration {run.resumed[1]}' if run.resumed else '',
        duration=_duration(sum(run.seconds.values())) if run.seconds else '',
    )


def _curves(history: History) -> dict[str, Any]:
    rows = []
    for name, (steps, values) in history.validation.items():
        pairs = [(value, step) for step, value in zip(steps, values) if math.isfinite(value)]
        high, low = (
            (max(pairs, key=lambda pair: pair[0]), min(pairs, key=lambda pair: pair[0]))
            if pairs
            else ((None, None), (None, None))
        )
        rows.append([name, _text(values[-1]), *map(_text, high), *map(_text, low)])
    return dict(
        training=embedded(figures.plot_training(history.training, history.resumed)) if history.training else '',
        stages=embedded(figures.plot_stages(history.stages, history.resumed)) if history.stages else '',
        validation=embedded(figures.plot_validation(history.validation, history.resumed, history.by_epoch))
        if history.validation
        else '',
        resumed=history.resumed,
        history=rows,
        unit_of_steps='epoch' if history.by_epoch else 'iteration',
    )


def _latest_evaluation(runs: list[Run], history: History) -> dict[str, Any]:
    """Return the sections on the latest readable record, or on the logs if there is none."""
    for run in reversed(runs):
        folder = run.folder / FOLDER
        try:
            record = read_record(folder)
            return _evaluation(runs, history, record) | _confusion(record) | _images(record, folder)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # no record, or an incomplete one
    return _evaluation(runs, history, {}) | _confusion({}) | _images({}, None)


def _evaluation(runs: list[Run], history: History, record: dict[str, Any]) -> dict[str, Any]:
    """Return metrics and results per class, from the record or else from the logs."""
    if record:
        source, metrics = f'From the {record["source"]} ({count_of(record["images"], "image")}).', record['metrics']
        header = list(record['per_class'])
        rows = [(name, list(cells)) for name, *cells in zip(record['classes'], *record['per_class'].values())]
    else:
        tested = next((run for run in reversed(runs) if run.test is not None), None)
        table = next((run.table for run in reversed(runs) if run.table), None)
        if tested is not None:
            source, metrics = f'From the test of {tested.start:%Y-%m-%d %H:%M:%S}.', tested.test
        else:
            source = 'From the last validation of the training.' if history.validation else ''
            metrics = {name: values[-1] for name, (_, values) in history.validation.items()}
        header = table[0][1:] if table else []
        rows = [(row[0], [_number(cell) for cell in row[1:]]) for row in table[1]] if table else []
    metrics = {
        name: value if value is None or is_defined(name, value) else None
        for name, value in metrics.items()
        if name not in ('time', 'data_time')
    }
    # AP is a fraction, IoU a percentage.
    whole = 1.0 if header and header[0] not in ('IoU', 'Dice', 'Fscore') else 100.0
    shown = [
        dict(
            name=name,
            cells=[_text(cell) for cell in cells],
            first=cells[0] if cells else None,
            width=round(100 * min(1, max(0, cells[0] / whole)), 1) if cells and cells[0] else 0,
        )
        for name, cells in rows
        if header
    ]
    shown.sort(key=lambda row: -1 if row['first'] is None else row['first'], reverse=True)
    note = ''
    if header:
        unit = ' in percent' if whole == 100 else ''
        note = f'Sorted by {header[0]}{unit}. A dash means that there is no object or pixel of the class.'
    if header and not record:
        note += ' From the table in the log of the latest evaluation.'
    return dict(
        source=source,
        metrics={name: _text(value) for name, value in metrics.items()},
        class_header=header,
        class_rows=shown,
        class_note=note,
        columns=2 if len(shown) > 12 and len(header) < 3 else 1,
    )


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _confusion(record: dict[str, Any]) -> dict[str, Any]:
    if not record or not record['matrix'].any():
        return dict(confusion='', confusion_note='', pairs=[], unit='')
    matrix = record['matrix']
    boxes = record['unit'] == 'objects'
    names = record['classes'] + (['background'] if boxes else [])
    part = figures.shares(matrix)
    wrong = matrix * ~np.eye(len(matrix), dtype=bool)
    if boxes:
        wrong[-1] = wrong[:, -1] = 0  # false positives and missed objects are not confused classes
    order = np.argsort(-wrong, axis=None, kind='stable')[:_MAX_PAIRS]
    places = [np.unravel_index(place, wrong.shape) for place in order]
    pairs = [
        (names[row], names[column], f'{wrong[row, column]:,}', f'{100 * part[row, column]:.1f} %')
        for row, column in places
        if wrong[row, column]
    ]
    note = 'Rows are true classes and add up to 100 %. The color shows the square root of the share.'
    if boxes:
        note += (
            ' Detections are matched to objects one to one, first those of the right class. The row background holds '
            'detections without an object, the column background holds missed objects.'
        )
    return dict(
        confusion=embedded(figures.plot_confusion(matrix, names)), confusion_note=note, pairs=pairs, unit=record['unit']
    )


def _images(record: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    if folder is None or not record or not record['scores']:
        return dict(scores='', score='', scored='', examples={})
    examples = {}
    for kind, entries in record['pictures'].items():
        examples[kind] = []
        for entry in entries:
            file = folder / Path(entry['file']).name  # a record must not refer to other folders
            errors = (
                f'{entry["errors"]:,} wrong pixels, {entry["objects"]} classes'
                if record['unit'] == 'pixels'
                else f'{entry["errors"]} errors, {entry["objects"]} objects'
            )
            examples[kind].append(
                dict(
                    data=embedded(file.read_bytes()) if file.is_file() else '',
                    caption=f'{Path(entry["path"]).name}: {entry["score"]:.3f} ({errors})',
                )
            )
    left_out = record['images'] - len(record['scores'])
    scored = count_of(len(record['scores']), 'image')
    scored += f', {left_out} without annotations left out.' if left_out else '.'
    return dict(
        scores=embedded(figures.plot_scores([score for _, score in record['scores']])),
        score=record['score'],
        scored=scored,
        examples=examples,
    )


def _times(runs: list[Run], history: History) -> dict[str, Any]:
    lasting = {f'{run.start:%m-%d %H:%M:%S}': run.seconds for run in runs if run.seconds}
    if not any(sum(seconds.values()) for seconds in lasting.values()):
        return dict(times=[], time_header=[], time_figure='', data_share='')
    phases = list(dict.fromkeys(phase for seconds in lasting.values() for phase in seconds))
    together = {phase: sum(seconds.get(phase, 0) for seconds in lasting.values()) for phase in phases}
    rows = [
        [
            name,
            *(_duration(seconds[phase]) if phase in seconds else '' for phase in phases),
            _duration(sum(seconds.values())),
        ]
        for name, seconds in (lasting | {'total': together}).items()
    ]
    return dict(
        times=rows,
        time_header=[*phases, 'total'],
        time_figure=embedded(figures.plot_phases(lasting)),
        data_share=f'{100 * history.data_share:.1f} %' if history.data_share is not None else '',
    )


def _machine(runs: list[Run]) -> dict[str, str]:
    text = next((run.environment for run in reversed(runs) if run.environment), '')
    lines: Mapping[str, str] = dict(line.strip().partition(': ')[::2] for line in text.splitlines() if ': ' in line)
    wanted = [
        name
        for name in lines
        if name in ('Python', 'PyTorch', 'GPU number', 'CUDA available') or name.startswith('GPU 0')
    ]
    return dict(
        environment=text,
        environment_summary=', '.join(f'{name} {lines[name]}' for name in wanted) or 'Description by mmengine',
    )


def _advice(runs: list[Run]) -> str:
    """Return why there is no record, and the command that makes one."""
    reason = (
        'evaluations in this work directory ran without --report or on data without annotations'
        if any(run.test is not None or run.validation for run in runs)
        else 'nothing has been evaluated'
    )
    return (
        f'{reason}. Run tools/test.py CONFIG CHECKPOINT --work-dir THIS_DIRECTORY --report on a detector or segmentor.'
    )
