"""Keyed random numbers: independence of the batch, distribution, stable values."""

import numpy as np
import pytest
from scipy import stats

from data.keyed import uniform

IDS = np.arange(4000, dtype=np.int64)


def test_row_depends_on_its_own_sample_only():
    whole = uniform(3, 5, IDS, 1, 7)
    order = np.random.default_rng(0).permutation(IDS)[:100]
    np.testing.assert_array_equal(uniform(3, 5, order, 1, 7), whole[order])
    np.testing.assert_array_equal(uniform(3, 5, IDS[17:18], 1, 7), whole[17:18])


def test_more_draws_keep_the_earlier_ones():
    np.testing.assert_array_equal(uniform(3, 5, IDS, 1, 9)[:, :4], uniform(3, 5, IDS, 1, 4))


def test_matches_the_published_splitmix64_stream():
    # A plain integer SplitMix64 (next(): state += increment; output the finaliser of state).
    word = (1 << 64) - 1

    def finalise(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & word
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
        return z ^ (z >> 31)

    # First outputs for the seed 1234567, as in the reference program's published test vector.
    increment = 0x9E3779B97F4A7C15
    assert finalise((1234567 + increment) & word) == 6457827717110365317
    assert finalise((1234567 + 2 * increment) & word) == 3203168211198807973

    state = 0
    for part in (11, 2, 4, 9):  # seed, epoch, view, sample_id
        state = finalise(((state ^ part) + increment) & word)
    expected = [(finalise((state + k * increment) & word) >> 11) * 2.0**-53 for k in (1, 2, 3)]
    got = uniform(11, 2, np.array([9]), 4, 3)[0]
    np.testing.assert_array_equal(got, expected)


def test_golden_values():
    got = uniform(0, 0, np.array([0, 1]), 0, 2)
    np.testing.assert_array_equal(
        got, [[0.47141042966848024, 0.7247520786262142], [0.17732475569272, 0.24491793717085653]]
    )


@pytest.mark.parametrize("axis", ["samples", "epochs", "views", "seeds", "draws"])
def test_uniform_along_each_part_of_the_key(axis):
    one = np.zeros(1, dtype=np.int64)
    values = {
        "samples": lambda: uniform(0, 0, IDS, 0, 1),
        "epochs": lambda: [uniform(0, e, one, 0, 1) for e in range(4000)],
        "views": lambda: [uniform(0, 0, one, v, 1) for v in range(4000)],
        "seeds": lambda: [uniform(s, 0, one, 0, 1) for s in range(4000)],
        "draws": lambda: uniform(0, 0, one, 0, 4000),
    }[axis]()
    flat = np.ravel(values)
    assert flat.min() >= 0 and flat.max() < 1
    assert stats.kstest(flat, "uniform").pvalue > 1e-3
    # Neighbours along the axis: |r| of 4000 independent pairs exceeds 4.5 / sqrt(n) once in 10^5.
    assert abs(np.corrcoef(flat[:-1], flat[1:])[0, 1]) < 4.5 / np.sqrt(len(flat))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((0, 0, 0), (1, 0, 0)),
        ((0, 0, 0), (0, 1, 0)),
        ((0, 0, 0), (0, 0, 1)),
        ((1, 2, 3), (3, 2, 1)),
    ],
)
def test_different_keys_are_unrelated(left, right):
    first = uniform(left[0], left[1], IDS, left[2], 1)[:, 0]
    second = uniform(right[0], right[1], IDS, right[2], 1)[:, 0]
    assert not np.any(first == second)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4.5 / np.sqrt(len(IDS))


def test_neighbouring_draws_are_uncorrelated_over_samples():
    draws = uniform(0, 0, IDS, 0, 8)
    correlation = np.corrcoef(draws.T) - np.eye(8)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(len(IDS))


def test_accepts_negative_and_large_keys():
    assert not np.array_equal(uniform(-1, 0, IDS, 0, 1), uniform(1, 0, IDS, 0, 1))
    np.testing.assert_array_equal(uniform(-1, 0, IDS, 0, 1), uniform(2**64 - 1, 0, IDS, 0, 1))


def test_each_sample_may_have_its_own_view():
    own = uniform(5, 1, IDS[:3], np.array([0, 4, 1 << 32]), 2)
    for row, view in enumerate((0, 4, 1 << 32)):
        np.testing.assert_array_equal(own[row], uniform(5, 1, IDS[row : row + 1], view, 2)[0])
