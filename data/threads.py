"""Work on many items in a few threads, with results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["map_in_threads"]

Item = TypeVar("Item")
Result = TypeVar("Result")

# So many items for each thread are begun or wait, and as many results at most are held.
WINDOW = 4


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], num_threads: int
) -> Iterator[Result]:
    """The results of a function, in the order of the items.

    A pool's own ``map`` submits every item at once, 2 kB each, which at a million images is 2 GB.
    What waits is cancelled when the iterator is closed, or when it raises what the function raised.

    Args:
        function: What is done with an item; it should release the interpreter lock.
        items: Taken a few at a time, as results are.
        num_threads: How many are worked on at a time; 0 counts as 1.
    """
    num_threads = max(1, num_threads)
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= WINDOW * num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
