"""Work that threads do ahead of where its results are used."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

A = TypeVar('A')
B = TypeVar('B')


def map_ahead(pool: Executor, function: Callable[[A], B], items: Iterable[A], count: int) -> Iterator[B]:
    """Yield the results of a function in the order of the items, while up to ``count`` more are in work.

    Unlike :meth:`concurrent.futures.Executor.map`, this neither reads all items at once nor keeps results that are not
    used yet, so memory does not grow with the number of items.
    """
    waiting: deque[Future[B]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
