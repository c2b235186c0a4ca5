"""Apply a function to a stream of items in worker processes, keeping order and bounding memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], num_workers: int
) -> Iterator[Result]:
    """Yield `function(item)` in the order of `items`; at most `2 * num_workers` items are in flight.

    Args:
        function: picklable (a module function or a `functools.partial` of one) where `num_workers > 1`.
        items: read lazily.
        num_workers: processes; 1 runs in this process.
    """
    if num_workers <= 1:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(num_workers) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 2 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
