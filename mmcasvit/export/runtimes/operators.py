"""Operators that the accelerators of phones, GPU delegates and NPUs, are known not to take.

Every vendor's list differs, and some are not published. What they have in common: tensors have at most four dimensions
and no integers of 64 bits, and nothing gathers values from positions that are computed.
"""

from collections import Counter
from collections.abc import Iterable

# Parts of the names of operators, in lower case.
AWKWARD = (
    *('gather', 'scatter', 'non_zero', 'nonzero', 'where', 'topk', 'non_max', 'nonmax', 'roialign', 'roi_align'),
    *('lstm', 'gru', 'rnn', 'custom'),
)


def count_operators(operators: Iterable[tuple[str, int, bool]]) -> tuple[Counter, Counter]:
    """Count operators by type, and those that accelerators are known not to take by reason.

    Args:
        operators: Type, largest number of dimensions of an output, and whether an output has integers of 64 bits.
    """
    found, outside = Counter(), Counter()
    for kind, rank, long in operators:
        found[kind] += 1
        if any(word in kind.lower() for word in AWKWARD):
            outside[kind] += 1
        elif rank > 4:
            outside[f'{kind} of rank {rank}'] += 1
        elif long:
            outside[f'{kind} in int64'] += 1
    return found, outside
