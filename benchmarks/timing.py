"""Timings on a machine that others use too: things in turn, and medians of their ratios."""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

__all__ = ["Goal", "interleaved", "median_ratio", "print_figures", "seconds"]


class Goal(NamedTuple):
    """A figure and what it should be.

    Attributes:
        figure: As measured.
        goal: To be held against it.
        at_most: Whether the goal is an upper limit; else a lower one.
    """

    figure: float
    goal: float
    at_most: bool = True


def _wait_for_gpu() -> None:
    """Until a GPU has done what it was given; at once where there is none."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that some work takes, on a GPU too; a clock other than the wall's may be given."""
    _wait_for_gpu()
    began = clock()
    work()
    _wait_for_gpu()
    return clock() - began


def interleaved(
    works: Mapping[str, Callable[[], Any]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each of several works in each round, after one round that does not count."""
    timings: dict[str, list[float]] = {name: [] for name in works}
    for count in range(rounds + 1):
        for name, work in works.items():
            taken = seconds(work, clock)
            if count:
                timings[name].append(taken)
    return timings


def median_ratio(timings: Mapping[str, list[float]], over: str, under: str) -> float:
    """Median over rounds of one work's time over another's in the same round."""
    pairs = zip(timings[over], timings[under], strict=True)
    return statistics.median(a / b for a, b in pairs)


def print_figures(figures: Mapping[str, float | Goal]) -> None:
    """One line of JSON: each figure, with its goal and whether it is met where it has one."""
    line: dict[str, Any] = {}
    for name, value in figures.items():
        if isinstance(value, Goal):
            met = value.figure <= value.goal if value.at_most else value.figure >= value.goal
            limit = "at_most" if value.at_most else "at_least"
            line[name] = {"is": round(value.figure, 4), limit: value.goal, "met": met}
        else:
            line[name] = round(value, 4)
    print(json.dumps(line))
