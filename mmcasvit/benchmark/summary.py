"""Text of a comparison: the settings in words and the table."""

from collections.abc import Mapping, Sequence

from mmcasvit.utils.tables import count_of, markdown, settings_in_words, three_digits
from mmcasvit.utils.timing import Spread

from .comparison import Plan

_NO_LIMIT = "none of arithmetic, since PyTorch's products are slower than in fp32"


def rates_in_words(rows: Sequence[dict]) -> str:
    """Describe the measured limits of the machine."""
    found = {}
    for row in rows:
        where = f'{row["precision"]}, {row["device"]}, {count_of(row["threads"], "thread")}'
        matmul, copy = row['matmul_ms'], f'{row["traffic"] / row["copy_ms"] / 1e6:.1f} GB/s'
        found[where] = f'{row["macs"] / matmul / 1e6:.0f} GMAC/s and {copy}' if matmul else f'{copy}, {_NO_LIMIT}'
    return '; '.join(f'{rates} ({where})' for where, rates in found.items())


def table_row(row: dict, varying: Sequence[str], baseline: str) -> dict[str, object]:
    """Format a row for people, beginning with the fields that vary."""

    def limit(milliseconds: float | None, share: Spread | None) -> str | None:
        if milliseconds is None or share is None:
            return None
        return f'{three_digits(milliseconds)} ({100 * share.median:.0f}%)'

    seconds = row['seconds']
    return {
        **{name: row[name] for name in varying},
        'params, M': f'{row["params"] / 1e6:.2f}',
        'GMACs': row['macs'] / 1e9,
        'ms': seconds.median * 1000,
        'quartiles': f'{three_digits(seconds.low * 1000)} to {three_digits(seconds.high * 1000)}',
        'images/s': row['images_per_second'],
        f'speed-up over {baseline}': None if row['speedup'] is None else f'{row["speedup"].median:.2f}',
        'matmul limit, ms (reached)': limit(row['matmul_ms'], row['matmul_reached']),
        'memory limit, ms (reached)': limit(row['copy_ms'], row['copy_reached']),
        'peak MiB': None if row['peak_bytes'] is None else round(row['peak_bytes'] / 2**20),
    }


def comparison_text(
    rows: Sequence[dict],
    constant: Mapping[str, object],
    varying: Sequence[str],
    baseline: Mapping[str, object],
    plan: Plan,
    machine: str,
    left_out: Sequence[str],
) -> str:
    """Return the table of a comparison, with the settings above it and remarks below it.

    Args:
        rows: Rows of :func:`.comparison.measure`.
        constant, varying: Fields that all rows share, and the other fields, which become the first columns.
        baseline: Fields in which the baseline of a row differs from the row.
        plan: How the rows were measured.
        machine: Description of the machine.
        left_out: Lines about variants that were not measured.
    """
    name = ', '.join('x'.join(map(str, x)) if isinstance(x, tuple) else str(x) for x in baseline.values())
    columns = [*varying, *(field for field in ('library', 'outputs') if len({row[field] for row in rows}) > 1)]
    if any(row.get('published') for row in rows):
        columns.append('published')
    lines = [
        f'{settings_in_words(constant)}; {plan} on {machine}. Limits in the same rounds: {rates_in_words(rows)}.',
        '',
        markdown([table_row(row, columns, name) for row in rows]),
    ]
    changed = [
        row for row in rows if row['deviation'] is not None and (row['form'], row['precision']) != ('eager', 'fp32')
    ]
    if changed:
        worst = max(changed, key=lambda row: row['deviation'])
        lines += [
            '',
            f'Outputs differ from those of the eager fp32 model by {worst["deviation"]:.1g} at most '
            f'(relative, {worst["model"]} {worst["form"]} {worst["precision"]}).',
        ]
    return '\n'.join([*lines, *(f'\nleft out: {line}' for line in left_out)])
