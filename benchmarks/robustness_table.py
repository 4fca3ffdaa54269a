"""From the records of many runs to a table of means over seeds, and the goals beside it."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Goal", "Results", "Spread", "figures_of", "goals_of", "report", "spreads_of", "to_json"]

NUM_LAST = 5
METRICS = {
    "kappa": "kappa",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
}
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
UNDEFINED = "-"


@dataclass(frozen=True)
class Spread:
    """A figure over seeds.

    Attributes:
        values: Seed -> value; NaN where it is undefined.
    """

    values: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN where any value is undefined."""
        return float(np.mean(list(self.values.values())))

    @property
    def deviation(self) -> float:
        """Sample standard deviation; NaN for a single seed."""
        if len(self.values) < 2:
            return math.nan
        return float(np.std(list(self.values.values()), ddof=1))

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return UNDEFINED
        spread = "" if math.isnan(self.deviation) else f" ± {self.deviation:.3f}"
        return f"{self.mean:.3f}{spread}"


# setting -> method -> figure -> its spread
Results = dict[str, dict[str, dict[str, Spread]]]


def figures_of(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """All figures of one run.

    Args:
        history: Lines of its ``metrics.jsonl``, at least one.

    Returns:
        ``<occasion>/<metric>`` for the test metrics at each occasion; ``separation/...`` at the
        last epoch where there is a separation; ``num_classes`` and ``num_classes_predicted``, those
        of which the last epoch predicts any test image rightly. NaN where undefined.
    """
    last = history[-1]
    chosen = {
        "best_on_test": [_best(history, "eval/kappa")],
        "last": [last],
        "mean_of_last_5": list(history[-NUM_LAST:]),
    }
    if last.get("validation/kappa") is not None:
        chosen["best_on_validation"] = [_best(history, "validation/kappa")]
    figures = {
        f"{occasion}/{metric}": float(np.mean([_number(line, f"eval/{metric}") for line in lines]))
        for occasion, lines in chosen.items()
        for metric in METRICS
    }
    figures |= {name: _number(last, name) for name in SEPARATION if name in last}
    recalls = [_number(last, name) for name in last if name.startswith("eval/recall/")]
    figures["num_classes"] = sum(not math.isnan(recall) for recall in recalls)
    figures["num_classes_predicted"] = sum(recall > 0 for recall in recalls)
    return figures


def _best(history: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """The first line in which a metric is largest."""
    return max(history, key=lambda line: -math.inf if line.get(name) is None else line[name])


def _number(line: Mapping[str, Any], name: str) -> float:
    value = line.get(name)
    return math.nan if value is None else float(value)


def spreads_of(runs: Iterable[tuple[str, str, int, Mapping[str, float]]]) -> Results:
    """Gather the figures of runs (setting, method, seed, figures) over seeds."""
    values: dict[str, dict[str, dict[str, dict[int, float]]]] = {}
    for setting, method, seed, figures in runs:
        cell = values.setdefault(setting, {}).setdefault(method, {})
        for name, value in figures.items():
            cell.setdefault(name, {})[seed] = value
    return {
        setting: {
            method: {name: Spread(by_seed) for name, by_seed in figures.items()}
            for method, figures in methods.items()
        }
        for setting, methods in values.items()
    }


@dataclass(frozen=True)
class Goal:
    """A figure that is asked for.

    Attributes:
        setting: Where it is to be reached.
        text: What is measured.
        bound: Least value that counts.
        measured: The value; NaN where runs are missing.
        exceed: Whether the bound itself is too little.
    """

    setting: str
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

    def mean(setting: str, method: str, name: str) -> float:
        spread = results.get(setting, {}).get(method, {}).get(name)
        return math.nan if spread is None else spread.mean

    def lead(setting: str, name: str, over: str | None = None) -> float:
        return mean(setting, "qmix", name) - mean(setting, "cross_entropy", over or name)

    def separation(name: str) -> float:
        return mean("synthetic", "qmix", f"separation/{name}")

    return [
        Goal("synthetic", "last kappa, QMix less cross-entropy", 0.04,
             lead("synthetic", "last/kappa")),
        Goal("synthetic", "last accuracy, QMix less cross-entropy", 0.15,
             lead("synthetic", "last/accuracy")),
        Goal("synthetic", "last kappa of QMix less cross-entropy's best on test", 0.0,
             lead("synthetic", "last/kappa", over="best_on_test/kappa"), exceed=True),
        Goal("synthetic", "separation AUC", 0.95, separation("auc")),
        Goal("synthetic", "recall of Mis-L", 0.9, separation("recall/mis_l")),
        Goal("synthetic", "precision of Mis-L", 0.6, separation("precision/mis_l")),
        Goal("synthetic", "share of classes that QMix still predicts, in the worst seed", 1.0,
             _worst_share_predicted(results.get("synthetic", {}).get("qmix", {}))),
        Goal("digits", "last accuracy, QMix less cross-entropy", 0.1,
             lead("digits", "last/accuracy")),
    ]  # fmt: skip


def _worst_share_predicted(figures: Mapping[str, Spread]) -> float:
    if "num_classes" not in figures:
        return math.nan
    wanted, found = figures["num_classes"].values, figures["num_classes_predicted"].values
    return min(found[seed] / wanted[seed] for seed in wanted)


def report(results: Results, goals: Sequence[Goal]) -> str:
    """Markdown: two tables for each setting, and one of the goals."""
    lines: list[str] = []
    for setting, methods in results.items():
        lines += [f"### {setting}", "", "Mean ± standard deviation over seeds.", ""]
        lines += _table(["method", "epoch", *METRICS.values()], _metric_rows(methods))
        lines += ["Separation and classes at the last epoch.", ""]
        columns = ["method", *SEPARATION.values(), "fewest classes predicted"]
        lines += _table(columns, _last_epoch_rows(methods))
    verdicts = {True: "reached", False: "not reached", None: "not measured"}
    rows = [
        [
            goal.setting,
            goal.text,
            f"{'>' if goal.exceed else '>='} {goal.bound:g}",
            UNDEFINED if goal.reached is None else f"{goal.measured:.3f}",
            verdicts[goal.reached],
        ]
        for goal in goals
    ]
    lines += ["### Goals", ""]
    lines += _table(["setting", "goal", "bound", "measured", "verdict"], rows)
    return "\n".join(lines)


def _metric_rows(methods: Mapping[str, Mapping[str, Spread]]) -> list[list[str]]:
    return [
        [
            f"{method} (n = {len(figures['num_classes'].values)})",
            title,
            *(str(figures[f"{occasion}/{metric}"]) for metric in METRICS),
        ]
        for method, figures in methods.items()
        for occasion, title in OCCASIONS.items()
        if f"{occasion}/kappa" in figures
    ]


def _last_epoch_rows(methods: Mapping[str, Mapping[str, Spread]]) -> list[list[str]]:
    rows = []
    for method, figures in methods.items():
        predicted = min(figures["num_classes_predicted"].values.values())
        wanted = max(figures["num_classes"].values.values())
        separation = [str(figures.get(name, UNDEFINED)) for name in SEPARATION]
        rows.append([method, *separation, f"{predicted:.0f} of {wanted:.0f}"])
    return rows


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]] + [""]


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
        setting: {
            method: {name: of(spread) for name, spread in spreads.items()}
            for method, spreads in methods.items()
        }
        for setting, methods in results.items()
    }
    asked = [
        {
            "setting": goal.setting,
            "goal": goal.text,
            "bound": goal.bound,
            "measured": plain(goal.measured),
            "reached": goal.reached,
        }
        for goal in goals
    ]
    return json.dumps({"results": figures, "goals": asked}, allow_nan=False)
