"""Which checkpoints can be evaluated, with which files and data, and what is missing for the others."""

import hashlib
import importlib.util
import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config

from mmcasvit.apis.config import load_config, root
from mmcasvit.apis.preflight import check_data
from mmcasvit.apis.published import PublishedWeights, list_published
from mmcasvit.utils.errors import UsageError, WeightsError
from mmcasvit.weights.published import checksum

# The folder that the configs have their data in.
_DATA = 'data'
# Data that a script of mmdet downloads: its name there, by the folder that it is in.
_DOWNLOADS = dict(coco='coco2017', ade='ade20k_2016')


class Figure(NamedTuple):
    """Figure of the metafiles.

    Attributes:
        table: Table of the paper that it is in.
        metric: Its name in an evaluation.
        scale: Factor from the value of the evaluation to percent.
    """

    table: str
    metric: str
    scale: float


FIGURES = {
    'box AP': Figure('detection', 'coco/bbox_mAP', 100),
    'mask AP': Figure('detection', 'coco/segm_mAP', 100),
    'mIoU': Figure('segmentation', 'mIoU', 1),
    'Top 1 Accuracy': Figure('classification', 'accuracy/top1', 1),
}
TABLES = tuple(dict.fromkeys(figure.table for figure in FIGURES.values()))


@dataclass
class Job:
    """Checkpoint to evaluate, or recipe to train and evaluate.

    Attributes:
        weights: What is published.
        train: Whether the recipe is trained first.
        trust: As in :func:`~mmcasvit.weights.checkpoint.read_checkpoint`.
        config: Path of the config.
        scope: Framework of the config.
        data_root: Folder of its data.
        file: Checkpoint to evaluate or, with ``train``, to start from; None to start from random weights.
        missing: What has to be got first.
        damaged: Why the file cannot be used.
        settings: What the result depends on.
    """

    weights: PublishedWeights
    train: bool
    trust: bool
    config: Path
    scope: str = ''
    data_root: str = ''
    file: Path | None = None
    missing: list[str] = field(default_factory=list)
    damaged: str = ''
    settings: dict[str, str] = field(default_factory=dict)


def tables_of(weights: PublishedWeights) -> set[str]:
    """Return the tables that have figures of some weights.

    Raises:
        UsageError: If a figure is unknown.
    """
    if unknown := [name for name in weights.results if name not in FIGURES]:
        raise UsageError(f'{weights.name} has an unknown figure {unknown[0]!r}. Known: {", ".join(FIGURES)}.')
    return {FIGURES[name].table for name in weights.results}


def choose(
    published: Sequence[PublishedWeights], tables: Iterable[str], only: Iterable[str] | None
) -> list[PublishedWeights]:
    """Return the weights that have figures in some tables and, unless ``only`` is None, one of some names.

    Raises:
        UsageError: If there are none, or none with a name.
    """
    chosen = [weights for weights in published if tables_of(weights) & set(tables)]
    if not chosen:
        raise UsageError(f'no weights are published for: {", ".join(tables)}.')
    if only is None:
        return chosen
    known = {name for weights in chosen for name in (weights.alias, weights.name)}
    if unknown := [name for name in only if name not in known]:
        raise UsageError(
            f'no published weights are named {unknown[0]} in these tables. There are '
            f'{", ".join(weights.alias for weights in chosen)}.'
        )
    return [weights for weights in chosen if {weights.alias, weights.name} & set(only)]


def plan(
    weights: PublishedWeights,
    published: Sequence[PublishedWeights],
    data: Path,
    folder: Path | None = None,
    train: bool = False,
    trust: bool = False,
) -> Job:
    """Find the files and the data for one checkpoint. Weights that are not there are downloaded if the data is there.

    Args:
        weights: The checkpoint.
        published: All published weights, among which are those that a training starts from.
        data: Folder that the configs call ``data``.
        folder: Folder to look for weights in first.
        train: Whether to train the recipe instead of evaluating the checkpoint.
        trust: As in :func:`~mmcasvit.weights.checkpoint.read_checkpoint`.
    """
    job = Job(weights, train, trust, root() / weights.config)
    try:
        cfg = _load(job, data)
        check_data(cfg, *(('train', 'val', 'test') if train else ('test',)), move='--data DIR')
        job.settings['config'] = hashlib.sha256(
            json.dumps(cfg.to_dict(), sort_keys=True, default=repr).encode()
        ).hexdigest()
    except UsageError as error:
        job.missing.append(f'{error}{_download_command(job, data)}')
    needed = _named(published, weights) if train else weights
    if needed is not None:
        try:
            job.file = _find(needed, folder, trust, download=not job.missing)
            job.settings['sha256'] = checksum(job.file)
        except UsageError as error:
            job.missing.append(str(error))
        except (WeightsError, OSError) as error:
            job.damaged = ' '.join(str(error).split())
    return job


def _load(job: Job, data: Path) -> Config:
    """Load the config of a job with its data in another folder."""
    cfg = load_config(str(job.config))
    job.scope, job.data_root = cfg.default_scope, cfg.get('data_root') or ''
    if Path(job.data_root).parts[:1] != (_DATA,):
        return cfg
    job.data_root = str(data.joinpath(*Path(job.data_root).parts[1:]))
    return load_config(str(job.config), dict(data_root=job.data_root))


def _download_command(job: Job, data: Path) -> str:
    """Return the end of a message: a command for data that is not there at all, if there is one."""
    name = next((name for name in _DOWNLOADS if Path(job.data_root).is_relative_to(data / name)), '')
    found = importlib.util.find_spec('mmdet') if name and not Path(job.data_root).exists() else None
    if not found or not found.submodule_search_locations:
        return ''
    script = Path(found.submodule_search_locations[0], '.mim/tools/misc/download_dataset.py')
    where = f'--dataset-name {_DOWNLOADS[name]} --save-dir {shlex.quote(str(data.absolute() / name))}'
    return f'. By command: python {shlex.quote(str(script))} {where} --unzip --delete'


def _named(published: Sequence[PublishedWeights], weights: PublishedWeights) -> PublishedWeights | None:
    """Return the weights that the training of others starts from, if any."""
    if weights.start is None:
        return None
    for each in published:
        if weights.start in (each.alias, each.name):
            return each
    raise UsageError(f'{weights.name} starts from {weights.start}, which the index does not list.')


def _find(weights: PublishedWeights, folder: Path | None, trust: bool, download: bool) -> Path:
    """Return the file of some weights: from a folder, by name or alias, or else from the folder of published weights.

    Raises:
        UsageError: If it is not there. The message says how to get it.
        WeightsError: If the file in the folder of published weights is damaged or does not fit.
    """
    for name in (weights.name, weights.alias) if folder else ():
        for suffix in ('.pth', '.safetensors'):
            if folder and (file := folder / f'{name}{suffix}').is_file():
                return file
    if not download and not weights.file.is_file():
        command = f'python -m mmcasvit weights get {weights.alias}'
        by_hand = f'download {weights.address} with a browser, and save it as {weights.file}'
        raise UsageError(f'its file is not there: {command if weights in list_published() else by_hand}')
    return weights.get(trust)
