"""From the records of many runs to figures over seeds, and the goals that they are held against."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from robustness_grid import BEDS, METHODS, NOISES, Cell

from engine.metrics import METRIC_TITLES as METRICS
from engine.record import choose_lines, number
from engine.reports.seeds import UNDEFINED, Spread

__all__ = [
    "CLASS_METRICS", "METRICS", "OCCASIONS", "SEPARATION", "UNDEFINED", "Figures", "Goal",
    "Results", "Spread", "figures_of", "goals_of", "spreads_of", "to_json",
]  # fmt: skip

# Of each class, at the last epoch.
CLASS_METRICS = {"recall": "recall", "f1": "F1"}
# In the order of the table. Only validation may choose an epoch in use.
OCCASIONS = {
    "best_on_test": "best on test (optimistic)",
    "best_on_validation": "best on validation",
    "last": "last",
    "mean_of_last_5": "mean of last 5",
}
GROUPS = {"correct": "Correct", "mis_h": "Mis-H", "mis_l": "Mis-L"}
SEPARATION = {
    "separation/auc": "AUC",
    **{
        f"separation/{kind}/{group}": f"{kind} {title}"
        for group, title in GROUPS.items()
        for kind in ("precision", "recall")
    },
}
# The methods that are to end above cross-entropy, where labels alone are wrong.
TITLES = {"dividemix": "DivideMix", "sscl": "SSCL", "qmix": "QMix"}


Figures = dict[str, Spread]
# bed -> noise -> method -> figure -> its spread
Results = dict[str, dict[str, dict[str, Figures]]]


def figures_of(history: Sequence[Mapping[str, Any]], headline: str) -> dict[str, float]:
    """All figures of one run.

    Args:
        history: Lines of its ``metrics.jsonl``, at least one.
        headline: The metric that chooses the best epochs.

    Returns:
        ``<occasion>/<metric>`` for the test metrics at each occasion; ``last/recall/<c>`` and
        ``last/f1/<c>`` for each class c; ``separation/...`` at the last epoch where there is a
        separation; ``num_classes`` and ``num_classes_predicted``, those of which the last epoch
        predicts any test image rightly. NaN where undefined.
    """
    last = history[-1]
    chosen = choose_lines(history, headline)
    figures = {
        f"{occasion}/{metric}": float(np.mean([number(line, f"eval/{metric}") for line in lines]))
        for occasion, lines in chosen.items()
        for metric in METRICS
    }
    figures |= {
        f"last/{name.removeprefix('eval/')}": number(last, name)
        for name in last
        if name.startswith(tuple(f"eval/{metric}/" for metric in CLASS_METRICS))
    }
    figures |= {name: number(last, name) for name in SEPARATION if name in last}
    recalls = [number(last, name) for name in last if name.startswith("eval/recall/")]
    figures["num_classes"] = sum(not math.isnan(recall) for recall in recalls)
    figures["num_classes_predicted"] = sum(recall > 0 for recall in recalls)
    return figures


def spreads_of(runs: Iterable[tuple[Cell, Mapping[str, float]]]) -> Results:
    """Gather the figures of runs over seeds, in the order of the grid's tables."""
    values: dict[tuple[str, str, str], dict[str, dict[int, float]]] = {}
    for (bed, noise, method, seed), figures in runs:
        cell = values.setdefault((bed, noise, method), {})
        for name, value in figures.items():
            cell.setdefault(name, {})[seed] = value
    orders = [list(BEDS), list(NOISES), list(METHODS)]
    results: Results = {}
    for key in sorted(
        values, key=lambda key: [o.index(k) for o, k in zip(orders, key, strict=True)]
    ):
        bed, noise, method = key
        spreads = {name: Spread(by_seed) for name, by_seed in values[key].items()}
        results.setdefault(bed, {}).setdefault(noise, {})[method] = spreads
    return results


@dataclass(frozen=True)
class Goal:
    """A figure that is asked for.

    Attributes:
        bed: Where it is to be reached.
        noise: Under which noise.
        text: What is measured.
        bound: Least value that counts.
        measured: The value; NaN where runs are missing.
        exceed: Whether the bound itself is too little.
    """

    bed: str
    noise: str
    text: str
    bound: float
    measured: float
    exceed: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether it was; None where it was not measured."""
        if math.isnan(self.measured):
            return None
        return self.measured > self.bound if self.exceed else self.measured >= self.bound


def goals_of(results: Results) -> list[Goal]:
    """The goals with what was measured; means over seeds unless the text says otherwise."""

    def mean(bed: str, noise: str, method: str, name: str) -> float:
        spread = results.get(bed, {}).get(noise, {}).get(method, {}).get(name)
        return math.nan if spread is None else spread.mean

    def lead(
        bed: str, noise: str, name: str, over: str | None = None, method: str = "qmix"
    ) -> float:
        return mean(bed, noise, method, name) - mean(bed, noise, "cross_entropy", over or name)

    def separation(name: str) -> float:
        return mean("synthetic", "mixed", "qmix", f"separation/{name}")

    qmix = results.get("synthetic", {}).get("mixed", {}).get("qmix", {})
    goals = [
        Goal("synthetic", "mixed", "last kappa, QMix less cross-entropy", 0.04,
             lead("synthetic", "mixed", "last/kappa")),
        Goal("synthetic", "mixed", "last accuracy, QMix less cross-entropy", 0.15,
             lead("synthetic", "mixed", "last/accuracy")),
        Goal("synthetic", "mixed", "last kappa of QMix less cross-entropy's best on test", 0.0,
             lead("synthetic", "mixed", "last/kappa", over="best_on_test/kappa"), exceed=True),
        Goal("synthetic", "mixed", "separation AUC", 0.95, separation("auc")),
        Goal("synthetic", "mixed", "recall of Mis-L", 0.9, separation("recall/mis_l")),
        Goal("synthetic", "mixed", "precision of Mis-L", 0.6, separation("precision/mis_l")),
        Goal("synthetic", "mixed", "share of classes that QMix still predicts, in the worst seed",
             1.0, _worst_share_predicted(qmix)),
        Goal("digits", "sym40", "last accuracy, QMix less cross-entropy", 0.1,
             lead("digits", "sym40", "last/accuracy")),
    ]  # fmt: skip
    for bed in ("synthetic", "digits"):
        headline = BEDS[bed].headline
        for method, title in TITLES.items():
            text = f"last {METRICS[headline]}, {title} less cross-entropy"
            measured = lead(bed, "sym40", f"last/{headline}", method=method)
            goals.append(Goal(bed, "sym40", text, 0.0, measured, exceed=True))
    return goals


def _worst_share_predicted(figures: Mapping[str, Spread]) -> float:
    if "num_classes" not in figures:
        return math.nan
    wanted, found = figures["num_classes"].values, figures["num_classes_predicted"].values
    return min(found[seed] / wanted[seed] for seed in wanted)


def to_json(results: Results, goals: Sequence[Goal]) -> str:
    """All figures on one line; what is undefined is null."""

    def plain(value: float) -> float | None:
        return None if math.isnan(value) else value

    def of(spread: Spread) -> dict[str, Any]:
        by_seed = {str(seed): plain(value) for seed, value in spread.values.items()}
        return {
            "mean": plain(spread.mean),
            "deviation": plain(spread.deviation),
            "by_seed": by_seed,
        }

    figures = {
        bed: {
            noise: {
                method: {name: of(spread) for name, spread in spreads.items()}
                for method, spreads in methods.items()
            }
            for noise, methods in noises.items()
        }
        for bed, noises in results.items()
    }
    asked = [
        {
            "bed": goal.bed,
            "noise": goal.noise,
            "goal": goal.text,
            "bound": goal.bound,
            "measured": plain(goal.measured),
            "reached": goal.reached,
        }
        for goal in goals
    ]
    return json.dumps({"results": figures, "goals": asked}, allow_nan=False)
