"""Growth of the cost of models with the number of pixels of a square image."""

from collections.abc import Mapping, Sequence

from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.timing import fit_exponent, matmul_limit

from .comparison import Plan, model_label
from .counts import Cost
from .variants import Variant

Curves = dict[str, dict[str, list[tuple[float, float]]]]
_COUNTED = 'multiply-adds, G'
_MEASURED = {
    'time, ms': lambda row: row['seconds'].median * 1000,
    'memory without the weights, MiB': lambda row: row['pass_bytes'] and row['pass_bytes'] / 2**20,
}


def split_feasible(
    variants: Sequence[Variant], costs: Mapping[Variant, Cost], plan: Plan, limit_s: float
) -> tuple[list[Variant], list[str]]:
    """Leave out variants whose arithmetic takes too long even at the full rate of the machine.

    Args:
        variants: Variants that differ in model and size.
        costs: Cost of each variant.
        plan: How they will be measured.
        limit_s: Limit in seconds.

    Returns:
        The other variants, and one line for each that was left out.

    Raises:
        UsageError: If fewer than two sizes of a model are left.
    """
    limit = matmul_limit(variants[0].device, variants[0].precision)
    rate = limit.amount / Plan(clock=plan.clock).timer(limit.run, variants[0])()
    seconds = {variant: costs[variant].macs / rate for variant in variants}
    feasible = [variant for variant in variants if seconds[variant] <= limit_s]
    for model in dict.fromkeys(variant.model for variant in variants):
        if sum(variant.model == model for variant in feasible) < 2:
            raise UsageError(f'{model}: fewer than two sizes fit in --limit-s {limit_s:g}.')
    return feasible, [
        f'{variant}: its arithmetic would take {seconds[variant]:.0f} s'
        for variant in variants
        if seconds[variant] > limit_s
    ]


def curves_of(rows: Sequence[dict], costs: Mapping[Variant, Cost]) -> Curves:
    """Return the points of each quantity and model: the number of pixels, and the value.

    Args:
        rows: Rows of :func:`.comparison.measure`.
        costs: Cost of each variant, including those that were not measured.

    Returns:
        Multiply-adds of all sizes. Time and memory, where all models have at least two points.
    """
    curves: Curves = {_COUNTED: {}}
    for variant, cost in costs.items():
        points = curves[_COUNTED].setdefault(model_label(variant.model), [])
        points.append((variant.size[0] ** 2, cost.macs / 1e9))
    for quantity, value in _MEASURED.items():
        found: dict[str, list[tuple[float, float]]] = {
            model: [
                (int(row['size'].split('x')[0]) ** 2, value(row))
                for row in rows
                if row['model'] == model and value(row)
            ]
            for model in curves[_COUNTED]
        }
        if all(len(points) > 1 for points in found.values()):
            curves[quantity] = found
    return curves


def fit_exponents(curves: Curves) -> dict[str, dict[str, float]]:
    """Fit the exponent of the number of pixels to each curve."""
    return {
        quantity: {model: fit_exponent(*zip(*points)) for model, points in models.items()}
        for quantity, models in curves.items()
    }


def scaling_table(curves: Curves, exponents: Mapping[str, Mapping[str, float]]) -> list[dict[str, object]]:
    """Return one row per side of the image with the values of all curves, and a last row with the exponents."""
    columns = {
        f'{model}, {quantity}': (dict(points), exponents[quantity][model])
        for quantity, models in curves.items()
        for model, points in models.items()
    }
    pixels = dict.fromkeys(count for points in curves[_COUNTED].values() for count, _ in points)
    return [
        {'side, pixels': round(count**0.5), **{name: points.get(count) for name, (points, _) in columns.items()}}
        for count in pixels
    ] + [
        {
            'side, pixels': 'exponent of the pixels',
            **{name: f'{exponent:.2f}' for name, (_, exponent) in columns.items()},
        }
    ]
