import math

import numpy as np
import pytest
from scipy import special, stats

from engine.reports.seeds import Spread, holm, paired_test

FIRST = Spread({0: 0.9, 1: 0.8, 2: 0.7, 3: 0.95, 4: 0.6, 5: 0.85, 6: 0.77})
SECOND = Spread({0: 0.85, 1: 0.81, 2: 0.6, 3: 0.8, 4: 0.57, 5: 0.77, 6: 0.65})


def test_the_t_test_by_hand():
    test = paired_test(FIRST, SECOND)
    d = np.array([0.05, -0.01, 0.1, 0.15, 0.03, 0.08, 0.12])
    t = d.mean() / math.sqrt(((d - d.mean()) ** 2).sum() / 6 / 7)
    # P(|T| > t) of Student's distribution with 6 degrees of freedom.
    by_hand = special.betainc(6 / 2, 0.5, 6 / (6 + t**2))
    assert test.num_pairs == 7
    assert test.difference == pytest.approx(0.52 / 7)
    assert test.deviation == pytest.approx(d.std(ddof=1))
    assert test.p_t == pytest.approx(by_hand, rel=1e-9)
    assert test.p_t == pytest.approx(stats.ttest_1samp(d, 0).pvalue, rel=1e-9)


def test_wilcoxon_by_counting_all_signs():
    # Ranks of |d|: 0.01 is the least and the only negative one, so W- = 1. Of the 2^7 choices of
    # signs two have a sum of ranks of at most 1: {} and {1}; two-sided, 2 * 2 / 128.
    assert paired_test(FIRST, SECOND).p_wilcoxon == pytest.approx(4 / 128)
    swapped = paired_test(SECOND, FIRST)
    assert swapped.difference == pytest.approx(-0.52 / 7)
    assert swapped.p_wilcoxon == pytest.approx(4 / 128)


def test_only_seeds_of_both_count_in_pairs_of_one_seed():
    first = Spread({0: 0.5, 1: 0.9, 2: 0.4, 9: 0.0})
    second = Spread({2: 0.3, 1: 0.6, 0: 0.1, 7: 1.0})
    test = paired_test(first, second)
    assert (test.num_pairs, test.difference) == (3, pytest.approx((0.4 + 0.3 + 0.1) / 3))
    undefined = paired_test(first, Spread({0: 0.1, 1: math.nan, 2: 0.3}))
    assert (undefined.num_pairs, undefined.difference) == (2, pytest.approx(0.25))


def test_what_cannot_be_tested_is_undefined():
    for seeds in (0, 1):
        test = paired_test(Spread({s: 0.5 for s in range(seeds)}), Spread({0: 0.4, 1: 0.3}))
        assert test.num_pairs == seeds and math.isnan(test.p_t) and math.isnan(test.p_wilcoxon)
        assert test.caution == "too few pairs for a test"
    equal = paired_test(Spread({0: 0.5, 1: 0.7}), Spread({0: 0.5, 1: 0.7}))
    assert equal.difference == 0 and math.isnan(equal.p_t) and math.isnan(equal.p_wilcoxon)


def test_equal_differences_have_no_t_test_though_rounding_makes_them_differ():
    first = Spread({s: 0.1 * s + 0.1 for s in range(3)})
    second = Spread({s: 0.1 * s for s in range(3)})
    test = paired_test(first, second)
    assert math.isnan(test.p_t)
    assert test.p_wilcoxon == pytest.approx(2 / 8)  # ties, and still the least of three pairs


@pytest.mark.parametrize(
    ("num_pairs", "caution"),
    [
        (2, "Wilcoxon cannot fall below 0.5 with 2 pairs"),
        (3, "Wilcoxon cannot fall below 0.25 with 3 pairs"),
        (5, "Wilcoxon cannot fall below 0.0625 with 5 pairs"),
        (6, "few pairs: the t-test takes it on trust that differences are normal"),
        (10, ""),
    ],
)
def test_few_pairs_are_owned_up_to(num_pairs, caution):
    first = Spread({s: 0.5 + 0.01 * s**2 + 0.01 for s in range(num_pairs)})
    second = Spread({s: 0.5 for s in range(num_pairs)})
    test = paired_test(first, second)
    assert test.caution == caution
    # All differences have one sign: the least p-value there is.
    assert test.p_wilcoxon == pytest.approx(2 / 2**num_pairs)


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, which may not fall.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_holm_counts_tests_alone():
    found = holm([math.nan, 0.02, math.nan, 0.01])
    assert found[1] == pytest.approx(0.02) and found[3] == pytest.approx(0.02)
    assert math.isnan(found[0]) and math.isnan(found[2])
