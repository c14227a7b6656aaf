"""Reports of the problems found, as text and as JSON."""

from dataclasses import asdict

from .problems import KINDS, CheckedDataset


def as_text(datasets: list[CheckedDataset], examples: int) -> str:
    """Return the number of problems of each kind by dataset, with up to ``examples`` examples of each kind."""
    lines = []
    for data in datasets:
        note = ' (only images are checked for this type of dataset)' if data.reads == 'images' else ''
        lines.append(f'{data.split}: {len(data.samples)} images, {data.source}{note}')
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
            problems=[asdict(problem) for problem in data.problems],
        )
        for data in datasets
    }
