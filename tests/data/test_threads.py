"""Work in threads: results in order, and never more than a few items under way."""

import threading
import weakref
from concurrent.futures import Future
from functools import partial

import numpy as np
import pytest

from data.images import find_unreadable
from data.loader import hold_in_memory
from data.threads import WINDOW, map_in_threads


class BlackImages:
    """Many small images."""

    def __len__(self):
        return 500

    def read(self, index):
        return np.zeros((1, 1, 3), np.uint8)


@pytest.mark.parametrize("num_threads", [0, 1, 3])
@pytest.mark.parametrize("num_items", [0, 5, 100])
def test_results_are_in_the_order_of_the_items(num_items, num_threads):
    wait = threading.Event().wait

    def square(item):
        wait(0.001 * (item % 3))  # so that later ones are done earlier
        return item * item

    squares = map_in_threads(square, range(num_items), num_threads)
    assert list(squares) == [item * item for item in range(num_items)]


def test_items_are_taken_as_results_are():
    items = iter(range(1000))
    results = map_in_threads(str, items, 2)
    assert [next(results) for _ in range(10)] == [str(item) for item in range(10)]
    assert next(items) == 9 + 2 * WINDOW
    results.close()


@pytest.mark.parametrize("stop", ["closed", "raises"])
def test_what_waits_is_cancelled_when_it_is_stopped(stop, monkeypatch):
    begun, cancelled, all_cancelled = [], [], threading.Event()
    real = Future.cancel

    def cancel(future):
        cancelled.append(real(future))
        if len(cancelled) == WINDOW - 1:
            all_cancelled.set()

    def work(item):
        begun.append(item)
        if item == 0 and stop == "raises":
            raise KeyError(item)
        if item == 1:  # the only thread may be at it by then
            assert all_cancelled.wait(10)

    monkeypatch.setattr(Future, "cancel", cancel)
    results = map_in_threads(work, range(1000), 1)
    if stop == "raises":
        with pytest.raises(KeyError):
            next(results)
    else:
        next(results)
        results.close()
    assert begun in ([0], [0, 1])
    assert cancelled[1:] == [True] * (WINDOW - 2)


@pytest.mark.parametrize("use", [find_unreadable, partial(hold_in_memory, show_progress=False)])
def test_a_pass_over_all_images_holds_few_of_them_at_a_time(use, monkeypatch):
    alive, most = weakref.WeakSet(), 0
    real = Future.__init__

    def noting(future):
        nonlocal most
        real(future)
        alive.add(future)
        most = max(most, len(alive))

    monkeypatch.setattr(Future, "__init__", noting)
    use(BlackImages(), 2)
    assert 0 < most <= 2 * WINDOW + 3  # those that wait, and what the threads just did
