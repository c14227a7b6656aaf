"""The way from a folder to a checked config, and to a trained model."""

import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from mmcasvit.apis.config import load_config, root
from mmcasvit.apis.quickstart import run_tool
from mmcasvit.datasets.checks.annotations import check_annotations
from mmcasvit.datasets.checks.files import check_files
from mmcasvit.datasets.checks.fixed_files import fix_coco, fix_names
from mmcasvit.datasets.checks.listing import load_datasets
from mmcasvit.datasets.checks.problems import CheckedDataset
from mmcasvit.datasets.checks.report import as_text
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.text import as_typed, shorten
from mmcasvit.weights.checkpoint import read_ahead

from .config import METRICS, NAMES, base_of, is_edited, write_config
from .machine import measure_memory, measure_time, this_machine
from .prepare import Data, Options, prepare, write_json, write_text
from .recipe import MODELS, Choices, affordable_size, choose_schedule, choose_shape

# Problems that cost nothing but the objects themselves: the frameworks leave these out, or clip them.
_HARMLESS = ('box_outside', 'empty_box', 'mask_without_image')


@dataclass
class Started:
    """Config that was written, and what it is for.

    Attributes:
        config: Path of the config.
        out: Folder of the results.
        data: Datasets that it uses.
        text: What was found and chosen, in lines.
    """

    config: Path
    out: Path
    data: Data
    text: str

    def commands(self) -> list[list[str]]:
        """Return the arguments of the next three commands: train, evaluate, and predict."""
        best = str(self.out / 'train' / 'best_*.pth')
        config = str(self.config)
        return [
            ['train.py', config, '--resume', 'auto'],
            [
                'test.py',
                config,
                best,
                '--work-dir',
                str(self.out / 'test'),
                '--show-dir',
                str(self.out / 'predictions'),
            ],
            ['infer.py', 'IMAGE_OR_FOLDER', config, best, '--out-dir', str(self.out / 'outputs')],
        ]

    def describe_commands(self) -> str:
        """Return the next three commands as one types them."""
        tools = as_typed(root() / 'tools')
        lines = (' '.join(map(_quote, (str(tools / tool), *rest))) for tool, *rest in self.commands())
        return '\n'.join(f'  python {line}' for line in lines)


def _quote(argument: str) -> str:
    folder, star, rest = argument.partition('best_*')  # which a shell expands outside of quotes only
    return shlex.quote(folder) + star + rest if star else shlex.quote(argument)


def check_model(model: str, task: str) -> None:
    """Check that a model fits the task.

    Raises:
        UsageError: If it does not.
    """
    if model not in MODELS[task]:
        tasks = ' and '.join(name for name, models in MODELS.items() if model in models)
        raise UsageError(
            f'--model {model} is for {tasks}, and these labels are for {task}. Models for {task}: '
            f'{", ".join(MODELS[task])}.'
        )


def start(folder: Path, out: Path, options: Options, choices: Choices, fix: bool, force: bool, workers: int) -> Started:
    """Look at a folder of data, check it, and write a config for it.

    Args:
        folder: Folder of the data, in which nothing is changed.
        out: Folder for the config, converted files, and results.
        options: What the user said about the data.
        choices: What the user chose. An empty model stands for the default one of the task.
        fix: Leave out images and objects with faults instead of stopping.
        force: Overwrite a config that was edited.
        workers: Number of processes that read images.

    Raises:
        UsageError: If the data cannot be used, or it is unclear how, or the config was edited.
    """
    if choices.pretrained:
        read_ahead(choices.pretrained)
        if Path(choices.pretrained).is_file():
            choices.pretrained = str(Path(choices.pretrained).absolute())
    data = prepare(folder, out, options)
    choices.model = choices.model or MODELS[data.task][0]
    check_model(choices.model, data.task)
    config = out / f'{choices.model}_casvit-{choices.arch}_{_plain(data.root.name)}.py'
    if config.exists() and not force and is_edited(config):
        raise UsageError(f'{config} was edited. Use --force to overwrite it, or another --out-dir.')
    others = [file.stem for file in sorted((out / 'train').glob('*.py')) if file.name != config.name]
    if others:
        raise UsageError(
            f'{out / "train"} is the run of {others[0]}. Give {config.stem} a folder of its own: --out-dir '
            f'{as_typed(out)}-{data.task}'
        )
    lines = [f'  {note}' for note in data.notes]
    machine = this_machine()
    recipe = choose_shape(data, choices, machine)
    choose_schedule(data, choices, machine, recipe)
    for attempt in range(2):
        cfg = _load(write_config(data, choices, recipe, out))
        datasets = check(cfg, workers)
        stopping = [d for d in datasets if any(problem.kind not in _HARMLESS for problem in d.problems)]
        if not stopping:
            break
        report = as_text(datasets, 5)
        if not fix or attempt:
            raise UsageError(
                f'the data have faults that would spoil the training.\n{report}\nFix them, or run the same command '
                'with --fix, which leaves them out. Nothing in the folder of the data is changed.'
            )
        lines.append(report)
        for found in stopping:
            lines.append(f'  {_leave_out(data, found, out)}')
    lines.insert(0, _found(data))
    harmless = sum(len(d.problems) for d in datasets)
    lines.append('checked: ' + (as_text(datasets, 2) if harmless else 'no problems found'))
    lines += [
        f'the {found.split} labels have none of {shorten(found.absent, 12)}, which the metric leaves out'
        for found in datasets
        if found.split == 'val' and found.absent
    ]
    step = measure_time(cfg, machine)
    if limit := affordable_size(data, choices, machine, recipe):
        recipe = choose_shape(data, choices, machine, limit)
        choose_schedule(data, choices, machine, recipe)
        step = measure_time(_load(write_config(data, choices, recipe, out)), machine)
    measure_memory(step, machine)
    choose_schedule(data, choices, machine, recipe)
    write_text(config, write_config(data, choices, recipe, out))
    load_config(str(config))
    why = recipe.why
    lines += [
        f'{NAMES[choices.model]} with CAS-ViT {choices.arch}, at {recipe.size} pixels: {why["size"]}',
        f'{why["batch"]}',
        f'{why["schedule"]}',
        *([why['small']] if 'small' in why else []),
    ]
    if choices.pretrained is None:
        lines.append(
            f'The backbone starts from random weights. With ImageNet weights it learns more from few images: '
            f'--pretrained {choices.arch}'
        )
    lines.append(f'config: {config}, on top of {base_of(choices)}')
    return Started(config, out, data, '\n'.join(lines))


def _plain(name: str) -> str:
    return ''.join(letter if letter.isalnum() or letter in '-_' else '-' for letter in name) or 'data'


def _found(data: Data) -> str:
    counts = ', '.join(f'{split} {count}' for split, count in data.counts.items())
    classes = f'{len(data.classes)} class{"es" * (len(data.classes) > 1)} ({shorten(data.classes, 12)})'
    text = f'{data.root}: {data.layout}, task {data.task}, {classes}, images: {counts}'
    if data.written:
        text += f'. Converted, and written to {data.written}'
    return text


def _load(text: str) -> Config:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'config.py')
        file.write_text(text, encoding='utf-8')
        return load_config(str(file))


def check(cfg: Config, workers: int) -> list[CheckedDataset]:
    """Check the datasets of a config, as ``tools/check_dataset.py`` does."""
    datasets = load_datasets(cfg, ['train', 'val', 'test'])
    for data in datasets:
        check_annotations(data)
    check_files(datasets, workers)
    return datasets


def _leave_out(data: Data, found: CheckedDataset, out: Path) -> str:
    """Write a list or an annotation file without the faults, and make the dataset use it."""
    settings = data.splits[found.split]
    if found.reads == 'coco':
        content, done = fix_coco(found)
        target = out / 'data' / f'{data.task}_{found.split}.fixed.json'
        write_json(target, content)
        count = len(content['images'])
    else:
        names, done = fix_names(found)
        target = out / 'data' / f'{found.split}.fixed.txt'
        write_text(target, ''.join(f'{name}\n' for name in names))
        count = len(names)
    if not count:
        raise UsageError(f'no image of the {found.split} split is left without faults.')
    settings['ann_file'], data.counts[found.split] = str(target.absolute()), count
    return f'{found.split}: {"; ".join(done)}'


def train(started: Started, arguments: Sequence[str] = ()) -> str:
    """Run the training, the evaluation of its best checkpoint, and draw predictions.

    Returns:
        Where the results are.

    Raises:
        UsageError: If a step fails.
    """
    (_, config, *resume), evaluation, _ = started.commands()
    run_tool('train.py', config, *(resume if (started.out / 'train').exists() else ()), *arguments)
    best = sorted((started.out / 'train').glob('best_*.pth'), key=lambda path: path.stat().st_mtime)
    if not best:
        raise UsageError(
            f'no evaluation found anything ({METRICS[started.data.task]}), so no checkpoint is best. Train longer: '
            '--epochs or --minutes.'
        )
    run_tool(evaluation[0], config, best[-1], *evaluation[3:])
    drawings = started.out / 'predictions' / ('vis_data/vis_image' if started.data.task == 'semantic' else '')
    return (
        f'best checkpoint: {best[-1]}\nreport: {started.out / "train" / "report.html"}\n'
        f'predictions, with the labels to their left: {drawings}'
    )
