"""The figures of the robustness benchmark as tables in Markdown."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from robustness_figures import (
    CLASS_METRICS,
    METRICS,
    OCCASIONS,
    SEPARATION,
    UNDEFINED,
    Figures,
    Goal,
    Results,
    Spread,
)
from robustness_grid import BEDS, SEEDS

from engine.reports.tables import Table

__all__ = ["report"]

# Of one bed: noise -> method -> figures.
Noises = Mapping[str, Mapping[str, Figures]]


def report(results: Results, goals: Sequence[Goal], *, long: bool = False) -> str:
    """Markdown: for each bed the main table and that of the separation; then the goals.

    Args:
        results: What was measured.
        goals: What was asked for.
        long: Whether to add, for each bed, every metric at every occasion and every class.
    """
    lines: list[str] = []
    for bed, noises in results.items():
        headline = BEDS[bed].headline
        lines += [f"### {bed}", "", _caption(headline), ""]
        lines += _main_table(noises, headline)
        lines += ["Separation and classes at the last epoch.", ""]
        lines += _separation_table(noises)
        if long:
            lines += ["All metrics, mean ± standard deviation over seeds.", ""]
            lines += _metric_table(noises)
            lines += ["Classes at the last epoch, mean over seeds: recall / F1.", ""]
            lines += _class_table(noises)
    return "\n".join([*lines, "### Goals", "", *_goal_table(goals)])


def _caption(headline: str) -> str:
    return (
        f"Test {METRICS[headline]} at the last epoch, mean ± standard deviation over {len(SEEDS)} "
        "seeds (n: over fewer); in brackets at each run's best epoch, which is chosen on the test "
        "set and therefore optimistic."
    )


def _main_table(noises: Noises, headline: str) -> list[str]:
    """A row for each method, a column for each noise."""
    methods = dict.fromkeys(itertools.chain.from_iterable(noises.values()))
    rows = [
        [method, *(_main_entry(of_methods.get(method), headline) for of_methods in noises.values())]
        for method in methods
    ]
    return Table(["method", *noises], rows).markdown()


def _main_entry(figures: Figures | None, headline: str) -> str:
    """``last ± deviation (best)``, with the number of seeds where some are missing."""
    if figures is None:
        return UNDEFINED
    last, best = figures[f"last/{headline}"], figures[f"best_on_test/{headline}"]
    num_seeds = len(last.values)
    few = f", n = {num_seeds}" if num_seeds < len(SEEDS) else ""
    return f"{last} ({_mean(best)}){few}"


def _rows(noises: Noises) -> Iterator[tuple[str, str, Figures]]:
    for noise, methods in noises.items():
        for method, figures in methods.items():
            yield noise, method, figures


def _separation_table(noises: Noises) -> list[str]:
    rows = []
    for noise, method, figures in _rows(noises):
        predicted = min(figures["num_classes_predicted"].values.values())
        wanted = max(figures["num_classes"].values.values())
        separation = [str(figures.get(name, UNDEFINED)) for name in SEPARATION]
        rows.append([noise, method, *separation, f"{predicted:.0f} of {wanted:.0f}"])
    return Table(
        ["noise", "method", *SEPARATION.values(), "fewest classes predicted"], rows
    ).markdown()


def _metric_table(noises: Noises) -> list[str]:
    rows = [
        [
            noise,
            f"{method} (n = {len(figures['num_classes'].values)})",
            title,
            *(str(figures[f"{occasion}/{metric}"]) for metric in METRICS),
        ]
        for noise, method, figures in _rows(noises)
        for occasion, title in OCCASIONS.items()
        if f"{occasion}/kappa" in figures
    ]
    return Table(["noise", "method", "epoch", *METRICS.values()], rows).markdown()


def _class_table(noises: Noises) -> list[str]:
    """A row for each noise and method, a column for each class by its number."""
    names = {name for *_, figures in _rows(noises) for name in figures}
    classes = sorted(
        int(name.removeprefix("last/recall/")) for name in names if name.startswith("last/recall/")
    )
    rows = [
        [
            noise,
            method,
            *(
                " / ".join(_mean(figures.get(f"last/{metric}/{c}")) for metric in CLASS_METRICS)
                for c in classes
            ),
        ]
        for noise, method, figures in _rows(noises)
    ]
    return Table(["noise", "method", *map(str, classes)], rows).markdown()


def _mean(spread: Spread | None) -> str:
    return UNDEFINED if spread is None or math.isnan(spread.mean) else f"{spread.mean:.3f}"


def _goal_table(goals: Sequence[Goal]) -> list[str]:
    verdicts = {True: "reached", False: "not reached", None: "not measured"}
    rows = [
        [
            goal.bed,
            goal.noise,
            goal.text,
            f"{'>' if goal.exceed else '>='} {goal.bound:g}",
            UNDEFINED if goal.reached is None else f"{goal.measured:.3f}",
            verdicts[goal.reached],
        ]
        for goal in goals
    ]
    return Table(["bed", "noise", "goal", "bound", "measured", "verdict"], rows).markdown()
