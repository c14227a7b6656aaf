"""Reports of the problems found, as text and as JSON."""

from dataclasses import asdict

from mmcasvit.utils.text import printable, shorten

from .problems import KINDS, CheckedDataset


def as_text(datasets: list[CheckedDataset], examples: int) -> str:
    """Return the number of problems of each kind by dataset, with up to ``examples`` examples of each kind."""
    lines = []
    for data in datasets:
        lines.append(f'{data.split}: {len(data.samples)} images, {printable(data.source)}')
        if data.not_checked:
            lines.append(f'  not checked: {data.not_checked}')
        if data.absent:
            lines.append(f'  without a label in these images: {printable(shorten(data.absent, 12))}')
        for kind, meaning in KINDS.items():
            problems = [problem for problem in data.problems if problem.kind == kind]
            if not problems:
                continue
            lines.append(f'  {meaning}: {len(problems)}')
            lines += [f'    {problem.where}: {problem.detail}' for problem in problems[:examples]]
            if len(problems) > examples:
                lines.append(f'    and {len(problems) - examples} more')
    return '\n'.join(lines)


def as_json(datasets: list[CheckedDataset]) -> dict:
    """Return every problem found, by the name of the dataset."""
    return {
        data.name: dict(
            split=data.split,
            images=len(data.samples),
            checked=data.reads,
            not_checked=data.not_checked,
            without_a_label=data.absent,
            problems=[asdict(problem) for problem in data.problems],
        )
        for data in datasets
    }


def conclusion(datasets: list[CheckedDataset], limit: int | None = None) -> str:
    """Return the last line of the report: the number of problems, and what was not checked."""
    problems = sum(len(data.problems) for data in datasets)
    left_out = list(dict.fromkeys(data.not_checked for data in datasets if data.not_checked))
    if limit is not None:
        left_out.append(f'images after the first {limit} of each dataset')
    if problems:
        return f'problems found: {problems}'
    return (
        f'no problems found in what was checked; not checked: {", ".join(left_out)}'
        if left_out
        else 'no problems found'
    )
