"""One HTML page on a work directory, with its pictures in it."""

import base64
import json
import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from mmcasvit.version import __version__

from . import figures
from .logs import History, Run, at, join, known, last_config, plain_values, read_runs

# Names of classes and files and the text of configs and logs are not to be trusted: all of it is escaped.
_ENVIRONMENT = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
_PAIRS = 20  # of confused classes that are listed
# Where, beside the log of a run, recording.py leaves what an evaluation was like.
FOLDER, FILE = 'evaluation', 'record.json'
_PAGE = _ENVIRONMENT.from_string("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}: report</title>
<style>
body { font: 15px/1.45 system-ui, "Helvetica Neue", Arial, sans-serif; color: #222; background: #fff;
       max-width: 1100px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2em; margin: 2em 0 .6em; padding-bottom: .2em; border-bottom: 1px solid #ccc; }
h3 { font-size: 1em; margin: 1.4em 0 .4em; }
p.about, p.note, figcaption { color: #555; font-size: .9em; }
p.missing { color: #555; border-left: 3px solid #bbb; padding-left: .8em; }
nav a { margin-right: 1em; color: #0072b2; }
table { border-collapse: collapse; font-size: .9em; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2em .9em .2em 0; border-bottom: 1px solid #eee; vertical-align: top;
         overflow-wrap: anywhere; }
th { font-weight: 600; }
td.number, th.number { text-align: right; white-space: nowrap; }
div.columns { columns: {{ columns }} 20em; column-gap: 2.5em; }
{% if columns > 1 %}
div.columns table { width: 100%; }
{% endif %}
tr { break-inside: avoid; }
span.bar { display: inline-block; height: .6em; background: #0072b2; print-color-adjust: exact;
           -webkit-print-color-adjust: exact; }
td.bar { width: 8em; }
img { max-width: 100%; height: auto; }
figure { margin: 0 0 1em; break-inside: avoid; }
div.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 500px), 1fr)); gap: 1em; }
div.pictures img { width: 100%; }
pre { font-size: .78em; background: #f6f6f6; padding: .8em; overflow-x: auto; white-space: pre-wrap;
      overflow-wrap: anywhere; }
summary { cursor: pointer; }
@media print {
  body { max-width: none; margin: 0; font-size: 11px; }
  nav { display: none; }
  h2, h3 { break-after: avoid; }
  div.pictures { grid-template-columns: 1fr 1fr; }
}
</style>
</head>
<body>
{% macro picture(data, text, kind='png') %}
<img src="data:image/{{ kind }};base64,{{ data }}" alt="{{ text }}">
{% endmacro %}
{% macro missing(text) %}<p class="missing">{{ text }}</p>{% endmacro %}
<h1>{{ title }}</h1>
<p class="about">{{ work_dir }} &middot; written {{ written }} by mmcasvit {{ version }}</p>
<nav>{% for name in ('Summary', 'Curves', 'Evaluation', 'Confusion', 'Images', 'Time', 'Configuration', 'Environment')
%}<a href="#{{ name }}">{{ name }}</a>
{% endfor %}</nav>

<h2 id="Summary">Summary</h2>
<table>
{% for name, value in facts.items() %}
<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}
</table>
<h3>Runs</h3>
<table>
<tr><th>started</th><th>what</th><th>went on from</th><th>last progress logged</th><th class="number">lasted</th></tr>
{% for run in runs %}
<tr><td>{{ run.start }}</td><td>{{ run.what }}</td><td>{{ run.resumed }}</td><td>{{ run.reached }}</td>
<td class="number">{{ run.lasted }}</td></tr>
{% endfor %}
</table>
{% if dropped %}
<p class="note">Begun anew by a later run, and left out of the curves: {{ dropped|join(', ') }}.</p>
{% endif %}

<h2 id="Curves">Curves</h2>
{% if training %}
<figure>{{ picture(training, 'losses, norm of the gradients and learning rate of the training') }}
<figcaption>As logged, each point a mean of the iterations before it{% if resumed %}; dotted lines: where a run went on
after a stop. What it replayed is drawn once{% endif %}.</figcaption></figure>
{% else %}
{{ missing('No training has logged anything in this work directory.') }}
{% endif %}
{% if validation %}
<figure>{{ picture(validation, 'metrics of the validations') }}</figure>
<table>
<tr><th>metric</th><th class="number">last</th>
<th class="number">highest</th><th class="number">{{ unit_of_steps }}</th>
<th class="number">lowest</th><th class="number">{{ unit_of_steps }}</th></tr>
{% for row in history %}
<tr><td>{{ row[0] }}</td>{% for cell in row[1:] %}<td class="number">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% elif training %}
{{ missing('No validation of this training has been logged.') }}
{% endif %}

<h2 id="Evaluation">Evaluation</h2>
{% if source %}<p>{{ source }}</p>{% endif %}
{% if metrics %}
<table>
{% for name, value in metrics.items() %}
<tr><th>{{ name }}</th><td class="number">{{ value }}</td></tr>
{% endfor %}
</table>
{% else %}
{{ missing('No test and no validation has left metrics in this work directory.') }}
{% endif %}
<h3>Classes</h3>
{% if class_rows %}
<div class="columns">
<table>
<tr><th>class</th>{% for name in class_header %}<th class="number">{{ name }}</th>{% endfor %}<th></th></tr>
{% for row in class_rows %}
<tr><td>{{ row.name }}</td>{% for cell in row.cells %}<td class="number">{{ cell }}</td>{% endfor %}
<td class="bar"><span class="bar" style="width: {{ row.width }}%"></span></td></tr>
{% endfor %}
</table>
</div>
<p class="note">{{ class_note }}</p>
{% else %}
{{ missing('No numbers of single classes: ' ~ advice) }}
{% endif %}

<h2 id="Confusion">Confusion</h2>
{% if confusion %}
<figure>{{ picture(confusion, 'confusion matrix, rows are true classes') }}
<figcaption>{{ confusion_note }}</figcaption></figure>
{% if pairs %}
<h3>Most confused</h3>
<table>
<tr><th>true</th><th>predicted</th><th class="number">{{ unit }}</th><th class="number">of the true class</th></tr>
{% for pair in pairs %}
<tr><td>{{ pair[0] }}</td><td>{{ pair[1] }}</td><td class="number">{{ pair[2] }}</td>
<td class="number">{{ pair[3] }}</td></tr>
{% endfor %}
</table>
{% endif %}
{% else %}
{{ missing('No confusion matrix: ' ~ advice) }}
{% endif %}

<h2 id="Images">Images</h2>
{% if scores %}
<p>Score of an image: {{ score }}. {{ judged }}</p>
<figure>{{ picture(scores, 'histogram of the scores of the images') }}</figure>
{% for kind, pictures in pictures.items() %}
<h3>The {{ kind }}</h3>
<p class="note">Ground truth at the left, prediction at the right.</p>
<div class="pictures">
{% for one in pictures %}
<figure>{% if one.data %}{{ picture(one.data, one.caption, 'jpeg') }}{% endif %}
<figcaption>{{ one.caption }}</figcaption></figure>
{% endfor %}
</div>
{% endfor %}
{% else %}
{{ missing('No scores and pictures of images: ' ~ advice) }}
{% endif %}

<h2 id="Time">Time</h2>
{% if times %}
<figure>{{ picture(time_figure, 'time of each run by phases') }}</figure>
<table>
<tr><th>run</th>{% for name in time_header %}<th class="number">{{ name }}</th>{% endfor %}</tr>
{% for row in times %}
<tr><th>{{ row[0] }}</th>{% for cell in row[1:] %}<td class="number">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
<p class="note">From the times of the lines of the log: what lies between two lines counts for the phase that the later
one reports on, so writing a checkpoint belongs to what follows it. A run ends with its last line.
{% if data_share %}Of the time of training {{ data_share }} was spent waiting for data (mean of what was
logged).{% endif %}</p>
{% else %}
{{ missing('No log of any run can be read.') }}
{% endif %}

<h2 id="Configuration">Configuration</h2>
{% if config %}
<details><summary>The whole config</summary>
<pre>{{ config }}</pre></details>
{% else %}
{{ missing('No config has been left in this work directory.') }}
{% endif %}

<h2 id="Environment">Environment</h2>
{% if environment %}
<details><summary>{{ environment_summary }}</summary>
<pre>{{ environment }}</pre></details>
{% else %}
{{ missing('No log says what machine it was.') }}
{% endif %}
</body>
</html>
""")


def write_report(work_dir: Path, out: Path) -> None:
    """Writes the report of a work directory; what the directory lacks is named in it.

    Args:
        work_dir: of ``tools/train.py`` or ``tools/test.py``, or of another program that runs mmengine.
        out: the page; one of that name is replaced when the new one is complete.

    Raises:
        UsageError: there is no log of mmengine.
    """
    text = report(work_dir)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f'.{out.name}.part')
    try:
        part.write_text(text, encoding='utf-8', errors='replace')
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def report(work_dir: Path) -> str:
    """The page of :func:`write_report`."""
    runs = read_runs(work_dir)
    history = join(runs)
    config = last_config(runs)
    values = plain_values(config)
    return _PAGE.render(
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


def _base64(data: bytes | None) -> str:
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
    """The little that a reader wants to know first, of what there is."""

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
        'weights at the start': at(model, 'backbone', 'init_cfg', 'checkpoint') or at(config, 'load_from'),
        'training data': joined(at(data, 'type'), at(data, 'data_root')),
        'batch': joined(batch and f'{batch} images a process', base and f'recipe for {base} in all'),
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
        what='training' if run.training else 'test' if run.test is not None else 'neither trained nor tested',
        resumed=f'epoch {run.resumed[0]}, iteration {run.resumed[1]}' if run.resumed else '',
        lasted=_duration(sum(run.seconds.values())) if run.seconds else '',
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
        training=_base64(figures.plot_training(history.training, history.resumed)) if history.training else '',
        validation=_base64(figures.plot_validation(history.validation, history.resumed, history.by_epoch))
        if history.validation
        else '',
        resumed=history.resumed,
        history=rows,
        unit_of_steps='epoch' if history.by_epoch else 'iteration',
    )


def _latest_evaluation(runs: list[Run], history: History) -> dict[str, Any]:
    """What the latest evaluation left that can be read, else what the logs say."""
    for run in reversed(runs):
        folder = run.folder / FOLDER
        try:
            record = json.loads((folder / FILE).read_text())
            size = len(record['classes']) + (record['unit'] == 'objects')
            record['matrix'] = np.zeros((size, size), np.int64)
            for row, column, number in record['confusion']:
                record['matrix'][row, column] = number
            return _evaluation(runs, history, record) | _confusion(record) | _images(record, folder)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # there is none, or it was cut off
    return _evaluation(runs, history, {}) | _confusion({}) | _images({}, None)


def _evaluation(runs: list[Run], history: History, record: dict[str, Any]) -> dict[str, Any]:
    """Metrics and numbers of classes: those of the latest record, else what the logs have."""
    if record:
        source, metrics = f'Of the {record["source"]}, {record["images"]} images.', record['metrics']
        header = list(record['per_class'])
        rows = [(name, list(cells)) for name, *cells in zip(record['classes'], *record['per_class'].values())]
    else:
        tested = next((run for run in reversed(runs) if run.test is not None), None)
        table = next((run.table for run in reversed(runs) if run.table), None)
        if tested is not None:
            source, metrics = f'Test of {tested.start:%Y-%m-%d %H:%M:%S}.', tested.test
        else:
            source = 'The last validation of the training.' if history.validation else ''
            metrics = {name: values[-1] for name, (_, values) in history.validation.items()}
        header = table[0][1:] if table else []
        rows = [(row[0], [_number(cell) for cell in row[1:]]) for row in table[1]] if table else []
    metrics = {
        name: value if value is None or known(name, value) else None
        for name, value in metrics.items()
        if name not in ('time', 'data_time')
    }
    # AP is a share, IoU in percent.
    whole = 1.0 if header and header[0] not in ('IoU', 'Dice', 'Fscore') else 100.0
    rows = [
        dict(
            name=name,
            cells=[_text(cell) for cell in cells],
            first=cells[0] if cells else None,
            width=round(100 * min(1, max(0, cells[0] / whole)), 1) if cells and cells[0] else 0,
        )
        for name, cells in rows
        if header
    ]
    rows.sort(key=lambda row: -1 if row['first'] is None else row['first'], reverse=True)
    note = ''
    if header:
        note = f'Sorted by {header[0]}{" in percent" if whole == 100 else ""}. A dash: no object or pixel of the class.'
    if header and not record:
        note += ' From the table that the latest evaluation wrote into its log.'
    return dict(
        source=source,
        metrics={name: _text(value) for name, value in metrics.items()},
        class_header=header,
        class_rows=rows,
        class_note=note,
        columns=2 if len(rows) > 12 and len(header) < 3 else 1,
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
        wrong[-1] = wrong[:, -1] = 0  # made up or missed, confused with no class
    order = np.argsort(-wrong, axis=None, kind='stable')[:_PAIRS]
    places = [np.unravel_index(place, wrong.shape) for place in order]
    pairs = [
        (names[row], names[column], f'{wrong[row, column]:,}', f'{100 * part[row, column]:.1f} %')
        for row, column in places
        if wrong[row, column]
    ]
    note = 'Rows are true classes and add up to 100 %; the shade is the square root of the share.'
    if boxes:
        note += (
            ' Detections are assigned to objects one to one, first those of the right class. Row background: '
            'detections that belong to no object; column background: objects that were missed.'
        )
    return dict(
        confusion=_base64(figures.plot_confusion(matrix, names)), confusion_note=note, pairs=pairs, unit=record['unit']
    )


def _images(record: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    if not record or not record['scores']:
        return dict(scores='', score='', judged='', pictures={})
    pictures = {}
    for kind, entries in record['pictures'].items():
        pictures[kind] = []
        for entry in entries:
            file = folder / Path(entry['file']).name  # not elsewhere, whatever the record says
            errors = (
                f'{entry["errors"]:,} wrong pixels, {entry["objects"]} classes'
                if record['unit'] == 'pixels'
                else f'{entry["errors"]} errors, {entry["objects"]} objects'
            )
            pictures[kind].append(
                dict(
                    data=_base64(file.read_bytes()) if file.is_file() else '',
                    caption=f'{Path(entry["path"]).name}: {entry["score"]:.3f} ({errors})',
                )
            )
    left_out = record['images'] - len(record['scores'])
    judged = f'{len(record["scores"])} images' + (f', {left_out} without annotations left out.' if left_out else '.')
    return dict(
        scores=_base64(figures.plot_scores([score for _, score in record['scores']])),
        score=record['score'],
        judged=judged,
        pictures=pictures,
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
        for name, seconds in (lasting | {'all': together}).items()
    ]
    return dict(
        times=rows,
        time_header=[*phases, 'all'],
        time_figure=_base64(figures.plot_phases(lasting)),
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
        environment_summary=', '.join(f'{name} {lines[name]}' for name in wanted) or 'What mmengine says about it',
    )


def _advice(runs: list[Run]) -> str:
    what = (
        'the evaluations here were made without --report, or of data without annotations'
        if any(run.test is not None or run.validation for run in runs)
        else 'nothing has been evaluated'
    )
    return (
        f'{what}. tools/test.py CONFIG CHECKPOINT --work-dir THIS_DIRECTORY --report leaves them behind, for '
        'detectors and segmentors.'
    )
