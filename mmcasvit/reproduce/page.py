"""The table of results."""

from collections.abc import Iterable, Mapping, Sequence

from mmcasvit.apis.published import PublishedWeights
from mmcasvit.utils.tables import markdown

_HEAD = """# Published figures, measured again

Figures are in percent. A figure agrees if it differs from the published one by at most {tolerance:g}.
"""


def verdicts(weights: PublishedWeights, row: Mapping, tolerance: float) -> dict[str, str]:
    """Return ``'agrees'``, ``'differs'``, ``'failed'`` or ``'missing'`` for each published figure of a row.

    Args:
        weights: What is published.
        row: What :func:`~mmcasvit.reproduce.run.run_jobs` found.
        tolerance: Largest difference of figures that agree, in percent points.
    """
    if row['status'] != 'measured':
        return dict.fromkeys(weights.results, row['status'])
    return {
        # Published figures have one decimal: 37.5 - 37.4 is to be 0.1. NaN does not agree.
        name: 'agrees' if round(abs(row['figures'][name] - published), 6) <= tolerance else 'differs'
        for name, published in weights.results.items()
    }


def page_text(found: Sequence[tuple[PublishedWeights, Mapping]], tolerance: float) -> str:
    """Return the page: a line for each figure, what the figures were measured with, and the reasons of the others.

    Args:
        found: Published weights with their rows.
        tolerance: As in :func:`verdicts`.
    """
    versions = list(dict.fromkeys(row['versions'] for _, row in found if row['status'] == 'measured'))
    lines = []
    for weights, row in found:
        for name, verdict in verdicts(weights, row, tolerance).items():
            published = str(float(weights.results[name]))
            line: dict = dict(weights=weights.alias, figure=name, published=published, result=verdict)
            if row['status'] == 'measured':
                ours = row['figures'][name]
                line |= {
                    'measured': f'{ours:.2f}',
                    'difference': f'{round(ours - weights.results[name], 2) + 0:+.2f}',  # never -0.00
                    'images': row['images'],
                    'seconds': f'{row["seconds"]:.0f}',
                    'versions': versions.index(row['versions']) + 1,
                    'SHA-256': f'`{row["sha256"]}`',
                }
            lines.append(line)
    columns = ['weights', 'figure', 'published', 'measured', 'difference', 'result', 'images', 'seconds', 'versions']
    parts = [_HEAD.format(tolerance=tolerance), markdown(lines, [*columns, 'SHA-256'])]
    parts += ['', *(f'{number}. {text}' for number, text in enumerate(versions, 1))]
    parts += [
        f'\n{status.capitalize()}:\n\n{text}'.replace('<', '\\<')  # no HTML
        for status in ('failed', 'missing')
        if (text := reasons(found, status))
    ]
    return '\n'.join(parts) + '\n'


def reasons(found: Iterable[tuple[PublishedWeights, Mapping]], status: str) -> str:
    """Return a list of why rows with a status have no figures, in which each reason stands once."""
    aliases: dict[str, list[str]] = {}
    for weights, row in found:
        if row['status'] == status:
            for reason in row.get('parts', [row['reason']]):  # data is missing for many, weights for each by itself
                aliases.setdefault(reason, []).append(weights.alias)
    return '\n'.join(f'- {", ".join(names)}: {reason}' for reason, names in aliases.items())
