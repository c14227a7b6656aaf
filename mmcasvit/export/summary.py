"""A line on the operators of an exported file, and on those that a phone does not accelerate."""

from collections import Counter
from pathlib import Path

from .formats import FORMATS, files_of
from .runtimes.program import size_of


def summarize(name: str, path: Path) -> str:
    """Describe a file: its size, its operators, and those known to stay off accelerators.

    Args:
        name: Name of a format that can count operators.
        path: The file.
    """
    count = FORMATS[name].count
    assert count is not None, f'{name} cannot count operators'
    operators, outside = count(path)
    size = sum(map(size_of, files_of(path))) / 2**20
    where = dict(coreml='the Neural Engine', ncnn='Vulkan').get(name, 'GPU delegates and NPUs')
    return (
        f'{path}: {size:.2f} MiB, {sum(operators.values())} operators: {_listed(operators)}\n'
        f'{sum(outside.values())} of them are known to stay off {where}' + (f': {_listed(outside)}' if outside else '')
    )


def _listed(counter: Counter) -> str:
    return ', '.join(f'{count} {name}' for name, count in counter.most_common())
