"""What can be said over seeds: mean and spread of a figure, and whether two methods differ."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

__all__ = ["UNDEFINED", "PairedTest", "Spread", "holm", "paired_test"]

UNDEFINED = "-"
LEVEL = 0.05
# The p-value of the t-test rests on normal differences, which fewer cannot show to be so.
FEW_PAIRS = 10


@dataclass(frozen=True)
class Spread:
    """A figure over seeds.

    Attributes:
        values: Seed -> value; NaN where it is undefined.
    """

    values: Mapping[Any, float]

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


@dataclass(frozen=True)
class PairedTest:
    """Two methods on the same seeds.

    Attributes:
        num_pairs: Seeds at which both have a defined value.
        difference: Mean of first less second; NaN without pairs.
        deviation: Sample standard deviation of the differences; NaN for fewer than two.
        p_t: Two-sided p-value of the paired t-test; NaN where it is undefined: fewer than two
            pairs, or all differences equal.
        p_wilcoxon: Likewise of Wilcoxon's signed-rank test; NaN for fewer than two pairs, or where
            no pair differs.
    """

    num_pairs: int
    difference: float
    deviation: float
    p_t: float
    p_wilcoxon: float

    @property
    def caution(self) -> str:
        """What so few pairs cannot show; empty where there are many."""
        if self.num_pairs < 2:
            return "too few pairs for a test"
        least = 2.0 ** (1 - self.num_pairs)
        if least >= LEVEL:
            return f"Wilcoxon cannot fall below {least:.3g} with {self.num_pairs} pairs"
        if self.num_pairs < FEW_PAIRS:
            return "few pairs: the t-test takes it on trust that differences are normal"
        return ""


def paired_test(first: Spread, second: Spread) -> PairedTest:
    """Compare two methods over the seeds that they share.

    Seeds are the pairs, since one seed gives both methods the same noise, weights and order of
    samples. The tests treat seeds as a sample of all seeds: data set and split stay the same, so
    nothing is said about other data.

    Source: Student's paired t-test and Wilcoxon's signed-rank test of ``scipy.stats``, the second
    exact for up to 50 pairs without ties.
    """
    seeds = [seed for seed in first.values if seed in second.values]
    pairs = np.array([(first.values[seed], second.values[seed]) for seed in seeds]).reshape(-1, 2)
    pairs = pairs[~np.isnan(pairs).any(axis=1)]
    differences = pairs[:, 0] - pairs[:, 1]
    num = len(differences)
    p_t = p_wilcoxon = math.nan
    # Equal but for rounding: a spread of 1e-17 would give any p-value.
    tolerance = 1e-12 * max(1.0, float(np.abs(pairs).max(initial=0)))
    if num >= 2 and np.ptp(differences) > tolerance:
        p_t = float(stats.ttest_rel(pairs[:, 0], pairs[:, 1]).pvalue)
    if num >= 2 and np.abs(differences).max() > tolerance:
        p_wilcoxon = float(stats.wilcoxon(np.round(differences, 12)).pvalue)
    return PairedTest(
        num_pairs=num,
        difference=float(differences.mean()) if num else math.nan,
        deviation=float(differences.std(ddof=1)) if num >= 2 else math.nan,
        p_t=p_t,
        p_wilcoxon=p_wilcoxon,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number, in their order.

    A method of Holm (Scandinavian Journal of Statistics 6, 1979): the k-th smallest of m is
    multiplied by m - k + 1, is never below a smaller one's result, and at most 1. The chance that
    any true null hypothesis is rejected stays below the level, whatever the tests have in common.

    Args:
        p_values: In [0, 1]; NaN is no test, does not count and stays NaN.
    """
    defined = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(defined, key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(defined) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
