"""Measures variants side by side and sets them in relation: to a baseline, and to what the machine can do at most."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from mmcasvit.utils.errors import MissingLibrary, NotApplicable, UsageError
from mmcasvit.utils.timing import Spread, Timer, copy_limit, interleave, matmul_limit, ratio, spread

from .counts import Cost
from .variants import Memory, Variant, check, count_variant, peak_memory, prepare

# The fields of a variant that a baseline can name, with how their values are read.
BASELINE_FIELDS: dict[str, Callable[[str], object]] = dict(
    model=str,
    mode=str,
    form=str,
    precision=str,
    device=str,
    threads=int,
    batch=int,
    size=lambda text: tuple(int(side) for side in text.split('x')),
)


@dataclass(frozen=True)
class Plan:
    """How to measure.

    Attributes:
        rounds: how often each variant takes its turn.
        warmup: passes of each before.
        least_seconds: of a sample.
        memory: whether peak memory is measured too.
        clock: see :class:`Timer`.
    """

    rounds: int = 7
    warmup: int = 2
    least_seconds: float = 0.02
    memory: bool = True
    clock: Callable[[], float] = time.perf_counter


def grid(**choices: Sequence) -> list[Variant]:
    """All combinations, the last-named field varying fastest, in the order of :class:`Variant`'s fields."""
    names = [field.name for field in fields(Variant)]
    return [Variant(**dict(zip(names, values))) for values in itertools.product(*(choices[name] for name in names))]


def parse_baseline(text: str, variants: Sequence[Variant]) -> dict[str, object]:
    """Reads ``form=eager,precision=fp32``: the fields in which the baseline of a row differs from it.

    Raises:
        UsageError: not of this form, or no variant of the run has these values.
    """
    wanted = {}
    for part in text.split(','):
        key, equals, value = part.partition('=')
        if not equals or key not in BASELINE_FIELDS:
            raise UsageError(
                f'--baseline: expected field=value with a field of {", ".join(BASELINE_FIELDS)}, got {part!r}.'
            )
        try:
            wanted[key] = BASELINE_FIELDS[key](value)
        except ValueError as error:
            raise UsageError(f'--baseline: {value!r} is no {key}.') from error
    if not any(replace(variant, **wanted) == variant for variant in variants):
        raise UsageError(f'--baseline {text}: no such variant is measured in this run.')
    return wanted


def default_baseline(variants: Sequence[Variant]) -> dict[str, object]:
    """The first form and precision; where there is but one of each, the first model."""
    first = variants[0]
    varying = [name for name in ('form', 'precision') if len({getattr(variant, name) for variant in variants}) > 1]
    return {name: getattr(first, name) for name in varying or ['model']}


def measure(
    variants: Sequence[Variant],
    plan: Plan,
    baseline: dict[str, object],
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[list[dict], list[str]]:
    """Builds, counts, times and weighs variants.

    Args:
        variants: what to measure.
        plan: how.
        baseline: fields in which a row's baseline differs from it.
        tell: is told what happens now.

    Returns:
        One dict a measured variant (see :func:`rows_of`), and a line for each that was left out, with the reason.

    Raises:
        UsageError: a wrong name or form; nothing is left to measure.
    """
    left_out, timers, costs, memory, about = [], {}, {}, {}, {}
    for number, variant in enumerate(variants, 1):
        tell(f'building {number} of {len(variants)}: {variant}')
        try:
            prepared = prepare(variant)
            # The least that a model can cost is the same for every form of it.
            key = replace(variant, form='eager', device='cpu', threads=1)
            costs[variant] = costs[key] if key in costs else costs.setdefault(key, count_variant(key))
        except NotApplicable as reason:
            left_out.append(f'{variant}: {reason}')
            continue
        timers[variant] = timer_of(prepared.run, variant, plan)
        about[variant] = dict(library=prepared.library, outputs=prepared.outputs, deviation=prepared.deviation)
        if plan.memory:
            memory[variant] = peak_memory(variant, prepared if variant.device == 'cuda' else None)
    if not timers:
        raise UsageError('nothing to measure.\n' + '\n'.join(left_out))

    limits = {}
    for variant in timers:
        for key, limit in (
            (matmul_key(variant), lambda v=variant: matmul_limit(v.device, v.precision)),
            (copy_key(variant), lambda v=variant: copy_limit(v.device)),
        ):
            if key not in limits:
                limits[key] = limit()
                timers = {**timers, key: timer_of(limits[key].run, variant, plan)}
    samples = interleave(timers, plan.rounds, lambda done: tell(f'round {done} of {plan.rounds}'))
    rates = {key: [limit.amount / seconds for seconds in samples[key]] for key, limit in limits.items()}
    times = {key: found for key, found in samples.items() if isinstance(key, Variant)}
    return rows_of(times, rates, costs, memory, about, baseline), left_out


def timer_of(run: Callable[[], object], variant: Variant, plan: Plan) -> Timer:
    return Timer(run, variant.device, variant.threads, plan.warmup, plan.least_seconds, plan.clock)


def matmul_key(variant: Variant) -> tuple:
    """Which measured rate of multiply-adds bounds a variant."""
    return 'matmul', variant.device, variant.precision, variant.threads


def copy_key(variant: Variant) -> tuple:
    """Which measured rate of bytes bounds a variant."""
    return 'copy', variant.device, variant.threads


def rows_of(
    times: dict[Variant, list[float]],
    rates: dict[tuple, list[float]],
    costs: dict[Variant, Cost],
    memory: dict[Variant, Memory | None],
    about: dict[Variant, dict],
    baseline: dict[str, object],
) -> list[dict]:
    """What follows from the samples: one flat dict a variant.

    Ratios are taken round by round and summed up by their median, so that a slow round cancels out.

    Args:
        times: seconds of a pass, one a round.
        rates: multiply-adds and bytes a second of the machine's limits, one a round, by :func:`matmul_key` and
            :func:`copy_key`.
        costs: multiply-adds and bytes of a pass.
        memory: of a pass; may lack variants.
        about: further fields of a row.
        baseline: fields in which a row's baseline differs from it.
    """
    rows = []
    for variant, seconds in times.items():
        cost, weighed = costs[variant], memory.get(variant)
        reference = times.get(replace(variant, **baseline))
        matmul = [cost.macs / rate for rate in rates[matmul_key(variant)]]
        copy = [cost.traffic / rate for rate in rates[copy_key(variant)]]
        rows.append(
            dict(
                **{field.name: getattr(variant, field.name) for field in fields(Variant)},
                **about.get(variant, {}),
                seconds=spread(seconds),
                images_per_second=variant.batch / spread(seconds).median,
                speedup=ratio(reference, seconds) if reference else None,
                matmul_ms=spread(matmul).median * 1000,
                matmul_reached=ratio(matmul, seconds),
                copy_ms=spread(copy).median * 1000,
                copy_reached=ratio(copy, seconds),
                bound_ms=max(spread(matmul).median, spread(copy).median) * 1000,
                params=cost.params,
                macs=cost.macs,
                traffic=cost.traffic,
                weights_bytes=weighed and weighed.weights,
                pass_bytes=weighed and weighed.above,
                peak_bytes=weighed and weighed.total,
                samples=seconds,
            )
        )
    for row in rows:
        row['size'] = 'x'.join(map(str, row['size']))
        if row['model'].endswith('.py'):
            row['model'] = Path(row['model']).stem
    return rows


def table_row(row: dict, varying: Sequence[str], baseline: str) -> dict[str, object]:
    """A row as people read it, with the fields that vary in front."""

    def limit(milliseconds: float, share: Spread) -> str:
        return f'{_short(milliseconds)} ({100 * share.median:.0f}%)'

    seconds = row['seconds']
    return {
        **{name: row[name] for name in varying},
        'params, M': f'{row["params"] / 1e6:.2f}',
        'GMACs': row['macs'] / 1e9,
        'ms': seconds.median * 1000,
        'quartiles': f'{_short(seconds.low * 1000)} to {_short(seconds.high * 1000)}',
        'images/s': row['images_per_second'],
        f'speed-up over {baseline}': None if row['speedup'] is None else f'{row["speedup"].median:.2f}',
        'matmul limit, ms (reached)': limit(row['matmul_ms'], row['matmul_reached']),
        'memory limit, ms (reached)': limit(row['copy_ms'], row['copy_reached']),
        'peak MiB': None if row['peak_bytes'] is None else round(row['peak_bytes'] / 2**20),
    }


def _short(value: float) -> str:
    return f'{value:.0f}' if value >= 100 else f'{value:.3g}'


def count_of(number: int, thing: str) -> str:
    return f'{number} {thing}' if number == 1 else f'{number} {thing}s'


def rates_in_words(rows: Sequence[dict]) -> str:
    """The machine's limits as measured, for the line above a table."""
    found = {}
    for row in rows:
        where = f'{row["precision"]}, {row["device"]}, {count_of(row["threads"], "thread")}'
        found[where] = (row['macs'] / row['matmul_ms'] / 1e6, row['traffic'] / row['copy_ms'] / 1e6)
    return '; '.join(f'{macs:.0f} GMAC/s and {rate:.1f} GB/s ({where})' for where, (macs, rate) in found.items())


def check_all(variants: Sequence[Variant], asked_for: set[str]) -> tuple[list[Variant], list[str]]:
    """Sorts out what cannot be measured before anything is built.

    Args:
        variants: all combinations.
        asked_for: the models that were named one by one: if the library of one is missing, that is an error.

    Raises:
        UsageError: a wrong name, a missing package, a device that is not there.
    """
    good, left_out, missing = [], {}, {}
    for variant in variants:
        if variant.device == 'cuda' and not torch.cuda.is_available():
            raise UsageError('--devices cuda: no GPU is visible to PyTorch here.')
        try:
            check(variant)
        except MissingLibrary as reason:
            if variant.model in asked_for:
                raise UsageError(str(reason)) from reason
            missing[reason.reason] = [*missing.get(reason.reason, []), reason.model]
        except NotApplicable as reason:
            left_out[str(reason)] = None
        else:
            good.append(variant)
    lines = [*left_out, *(f'{", ".join(dict.fromkeys(names))}: {reason}' for reason, names in missing.items())]
    if not good:
        raise UsageError('nothing to measure: ' + '; '.join(lines))
    return good, lines
