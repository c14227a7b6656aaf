"""Measurement of variants side by side, relative to a baseline and to the limits of the machine."""

import tempfile
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmcasvit.utils.errors import NotApplicable, UsageError
from mmcasvit.utils.text import first_line
from mmcasvit.utils.timing import Timer, copy_limit, interleave, matmul_limit, multiplies_fast, ratio, spread

from .counts import Cost
from .forms import parse_form
from .memory import Memory, peak_memory
from .preparation import count_variant, prepare
from .variants import FIELDS, Variant


@dataclass(frozen=True)
class Plan:
    """Plan of a measurement.

    Attributes:
        rounds: Number of rounds, in each of which every variant takes one turn.
        warmup: Number of passes of each variant before the first round.
        least_seconds: Minimum length of a sample in seconds.
        memory: Whether to measure peak memory too.
        clock: See :class:`mmcasvit.utils.timing.Timer`.
    """

    rounds: int = 7
    warmup: int = 2
    least_seconds: float = 0.02
    memory: bool = True
    clock: Callable[[], float] = time.perf_counter

    def __str__(self) -> str:
        return f'{clock_in_words(self.clock)}medians of {self.rounds} interleaved rounds'

    def timer(self, run: Callable[[], object], variant: Variant) -> Timer:
        return Timer(run, variant.device, variant.threads, self.warmup, self.least_seconds, self.clock)


def clock_in_words(clock: Callable[[], float]) -> str:
    """Return the beginning of a description of measured times."""
    return 'processor time, ' if clock is time.process_time else ''


def measure(
    variants: Sequence[Variant], plan: Plan, baseline: dict[str, Any], tell: Callable[[str], None] = lambda text: None
) -> tuple[list[dict], list[str]]:
    """Build, count and time variants, and measure their memory.

    Args:
        variants: Variants to measure.
        plan: How to measure them.
        baseline: Fields in which the baseline of a row differs from the row.
        tell: Function called with a line about each stage.

    Returns:
        One dict per measured variant (see :func:`rows_of`), and the models that were left out, because a form does not
        exist for them or failed, as for want of memory: one line for each form and reason.

    Raises:
        UsageError: If a name or form is wrong, or no variant can be measured.
    """
    left_out: dict[str, dict[str, None]] = {}  # the models for settings and a reason
    costs, memory, about = {}, {}, {}
    timers: dict[Hashable, Timer] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, variant in enumerate(variants, 1):
            tell(f'building {number} of {len(variants)}: {variant}')
            try:
                prepared = prepare(variant, folder=Path(folder))
                # The count is the same for all forms of a model.
                counted = replace(variant, form='eager', threads=1)
                if counted not in costs:
                    costs[counted] = count_variant(counted)
                costs[variant] = costs[counted]
                timer = plan.timer(prepared.run, variant)
                if plan.memory:
                    memory[variant] = peak_memory(variant, prepared if variant.device == 'cuda' else None, Path(folder))
            except Exception as error:  # one model in one form must not cost the measurements of all others
                # A wrong name or argument is found in the first form. An exported form may refuse a model.
                if isinstance(error, UsageError) and not any(step.exported for step in parse_form(variant.form)):
                    raise
                reason = first_line(error)
                settings = str(replace(variant, model='')).strip()
                if isinstance(error, NotApplicable):
                    settings = variant.form
                elif not isinstance(error, UsageError):
                    reason = f'{type(error).__name__}: {reason}'
                left_out.setdefault(f'{settings}: {reason}', {})[variant.model] = None
                continue
            timers[variant] = timer
            about[variant] = dict(
                library=prepared.library,
                outputs=prepared.outputs,
                deviation=prepared.deviation,
                published=prepared.published,
            )
    lines = [f'{", ".join(models)} {line}' for line, models in left_out.items()]
    if not timers:
        raise UsageError('nothing to measure: ' + '; '.join(lines))

    limits = {}
    for variant in about:
        bounds = [(copy_key(variant), lambda v=variant: copy_limit(v.device))]
        if multiplies_fast(variant.device, variant.precision):
            bounds.append((matmul_key(variant), lambda v=variant: matmul_limit(v.device, v.precision)))
        for key, limit in bounds:
            if key not in limits:
                limits[key] = limit()
                timers[key] = plan.timer(limits[key].run, variant)
    samples = interleave(timers, plan.rounds, lambda done: tell(f'round {done} of {plan.rounds}'))
    rates = {key: [limit.amount / seconds for seconds in samples[key]] for key, limit in limits.items()}
    times = {variant: samples[variant] for variant in about}
    return rows_of(times, rates, costs, memory, about, baseline), lines


def matmul_key(variant: Variant) -> tuple:
    """Return the key of the measured rate of multiply-adds that bounds a variant."""
    return 'matmul', variant.device, variant.precision, variant.threads


def copy_key(variant: Variant) -> tuple:
    """Return the key of the measured rate of bytes that bounds a variant."""
    return 'copy', variant.device, variant.threads


def model_label(model: str) -> str:
    """Return the name of a model in tables: of a config file, its name without folder and suffix."""
    return Path(model).stem if model.endswith('.py') else model


def rows_of(
    times: dict[Variant, list[float]],
    rates: dict[tuple, list[float]],
    costs: dict[Variant, Cost],
    memory: dict[Variant, Memory | None],
    about: dict[Variant, dict],
    baseline: dict[str, Any],
) -> list[dict]:
    """Turn samples into one flat dict per variant.

    Ratios are the medians of the ratios of each round, so that a slow round cancels out. Where no rate of multiply-adds
    is known, what depends on it is None.

    Args:
        times: Seconds of a pass, one sample per round.
        rates: Multiply-adds and bytes per second at the limits of the machine, one sample per round, by
            :func:`matmul_key` and :func:`copy_key`.
        costs: Multiply-adds and bytes of a pass.
        memory: Peak memory of a pass. Variants may be missing.
        about: Further fields of a row.
        baseline: Fields in which the baseline of a row differs from the row.
    """
    rows = []
    for variant, seconds in times.items():
        cost, peak = costs[variant], memory.get(variant)
        reference = times.get(replace(variant, **baseline))
        matmul = [cost.macs / rate for rate in rates.get(matmul_key(variant), ())]
        copy = [cost.traffic / rate for rate in rates[copy_key(variant)]]
        settings = {name: getattr(variant, name) for name in FIELDS}
        rows.append(
            dict(
                **settings | dict(model=model_label(variant.model), size='x'.join(map(str, variant.size))),
                **about.get(variant, {}),
                seconds=spread(seconds),
                images_per_second=variant.batch / spread(seconds).median,
                speedup=ratio(reference, seconds) if reference else None,
                matmul_ms=spread(matmul).median * 1000 if matmul else None,
                matmul_reached=ratio(matmul, seconds) if matmul else None,
                copy_ms=spread(copy).median * 1000,
                copy_reached=ratio(copy, seconds),
                bound_ms=max(spread(bound).median for bound in (matmul, copy) if bound) * 1000,
                params=cost.params,
                macs=cost.macs,
                traffic=cost.traffic,
                weights_bytes=peak and peak.weights,
                pass_bytes=peak and peak.above,
                peak_bytes=peak and peak.total,
                samples=seconds,
            )
        )
    return rows
