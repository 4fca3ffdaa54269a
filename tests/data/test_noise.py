"""Injected noise: exact shares, distributions, seeds, refusals.

Statistical tolerances are five standard deviations of the counted share: about one failure in two
million.
"""

import json

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import chisquare, truncnorm

from data.errors import DataError
from data.noise import CORRECT, MIS_H, MIS_L, NoiseConfig, inject

NUM = 20_000
SHARES = np.array([0.4, 0.3, 0.2, 0.1])
LABELS = np.random.default_rng(0).choice(4, NUM, p=SHARES)

# Noisy labels and groups of 20 samples, whose labels are 8 times 0, 6 times 1, 3 times 2, 2 times 3
# and once 4.
GOLDEN = {
    "symmetric": (
        [1, 0, 4, 0, 3, 0, 1, 2, 2, 1, 3, 1, 1, 1, 2, 2, 2, 3, 3, 2],
        [1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 2, 0, 0, 2, 0, 0, 2, 1],
    ),
    "asymmetric": (
        [1, 0, 3, 0, 2, 0, 1, 1, 0, 1, 0, 1, 1, 1, 2, 2, 2, 3, 3, 1],
        [1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 2, 0, 0, 2, 0, 0, 2, 1],
    ),
    "instance": (
        [0, 0, 3, 3, 2, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 3, 2, 3, 3, 4],
        [0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 1, 0, 0, 2, 2],
    ),
}  # fmt: skip


def counts(result):
    return np.bincount(result.groups, minlength=3).tolist()


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric"])
@pytest.mark.parametrize(("mis_h", "mis_l"), [(0.4, 0.15), (0.8, 0.1999), (0.0, 0.3), (0.33333, 0)])
def test_rates_are_exact_and_disjoint(kind, mis_h, mis_l):
    result = inject(LABELS, 4, NoiseConfig(kind=kind, mis_h=mis_h, mis_l=mis_l), 1)
    num_h, num_l = round(mis_h * NUM), round(mis_l * NUM)
    assert counts(result) == [NUM - num_h - num_l, num_h, num_l]
    np.testing.assert_array_equal(result.noisy_labels != LABELS, result.groups == MIS_H)
    assert result.noisy_labels.dtype == np.int64 and result.groups.dtype == np.uint8


def test_none_changes_no_label():
    result = inject(LABELS, 4, NoiseConfig(kind="none", mis_l=0.1), 1)
    np.testing.assert_array_equal(result.noisy_labels, LABELS)
    assert counts(result) == [18_000, 0, 2_000]


def test_symmetric_is_even_over_the_other_classes():
    result = inject(LABELS, 4, NoiseConfig(kind="symmetric", mis_h=0.5), 2)
    for label in range(4):
        new = result.noisy_labels[(label == LABELS) & (result.groups == MIS_H)]
        assert chisquare(np.delete(np.bincount(new, minlength=4), label)).pvalue > 1e-4


def test_asymmetric_follows_the_other_classes_frequency():
    result = inject(LABELS, 4, NoiseConfig(kind="asymmetric", mis_h=0.5), 2)
    frequency = np.bincount(LABELS)
    for label in range(4):
        new = result.noisy_labels[(label == LABELS) & (result.groups == MIS_H)]
        others = np.delete(frequency, label)
        expected = others / others.sum() * len(new)
        assert chisquare(np.delete(np.bincount(new, minlength=4), label), expected).pvalue > 1e-4


def test_hit_samples_are_spread_over_classes_and_positions():
    result = inject(LABELS, 4, NoiseConfig(mis_h=0.4, mis_l=0.15), 3)
    first = np.arange(NUM) < NUM // 2
    for group, rate in ((MIS_H, 0.4), (MIS_L, 0.15)):
        for part in [first, *(c == LABELS for c in range(4))]:
            tolerance = 5 * np.sqrt(rate * (1 - rate) / part.sum())
            assert abs((result.groups[part] == group).mean() - rate) < tolerance


def test_matrix_rows_are_followed():
    matrix = ((0.7, 0.3, 0, 0), (0, 1, 0, 0), (0.1, 0.2, 0.3, 0.4), (0, 0, 0.5, 0.5))
    result = inject(LABELS, 4, NoiseConfig(kind="matrix", matrix=matrix, mis_l=0.1), 4)
    for label, row in enumerate(matrix):
        members = label == LABELS
        found = np.bincount(result.noisy_labels[members], minlength=4) / members.sum()
        tolerance = 5 * np.sqrt(0.25 / members.sum())
        np.testing.assert_allclose(found, row, atol=tolerance)
        assert not found[np.array(row) == 0].any()
    np.testing.assert_array_equal(result.noisy_labels != LABELS, result.groups == MIS_H)
    assert counts(result)[MIS_L] == 2000


def test_matrix_can_be_a_file(tmp_path):
    path = tmp_path / "matrix.csv"
    path.write_text("0.5,0.5,0,0\n0,1,0,0\n0,0,1,0\n0,0,0,1\n")
    written = ((0.5, 0.5, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))
    config = NoiseConfig.model_validate_json(
        json.dumps({"kind": "matrix", "matrix": str(path)}), strict=True
    )
    np.testing.assert_array_equal(
        inject(LABELS, 4, config, 0).noisy_labels,
        inject(LABELS, 4, NoiseConfig(kind="matrix", matrix=written), 0).noisy_labels,
    )


class TestInstance:
    features = np.random.default_rng(1).normal(size=(NUM, 6))

    def test_mean_rate(self):
        for rate in (0.1, 0.4):
            result = inject(
                LABELS, 4, NoiseConfig(kind="instance", mis_h=rate), 5, features=self.features
            )
            # The flip rates' own truncated normal, from scipy.
            expected = truncnorm.mean(-rate / 0.1, (1 - rate) / 0.1, loc=rate, scale=0.1)
            tolerance = 5 * np.sqrt(expected * (1 - expected) / NUM)
            assert abs((result.groups == MIS_H).mean() - expected) < tolerance

    def test_new_label_depends_on_the_features(self):
        config = NoiseConfig(kind="instance", mis_h=0.5)
        labels = np.zeros(NUM, dtype=np.int64)
        result = inject(labels, 4, config, 5, features=self.features)
        hit = result.groups == MIS_H
        means = np.stack(
            [self.features[hit & (result.noisy_labels == c)].mean(axis=0) for c in (1, 2, 3)]
        )
        # With symmetric noise the classes' mean features agree within 5 / sqrt(members) = 0.1.
        assert np.ptp(means, axis=0).max() > 0.5

    def test_units_of_the_features_do_not_matter(self):
        config = NoiseConfig(kind="instance", mis_h=0.3)
        scaled = np.concatenate([self.features * 1000 + 5, np.full((NUM, 1), 7.0)], axis=1)
        plain = np.concatenate([self.features, np.zeros((NUM, 1))], axis=1)
        first, second = (inject(LABELS, 4, config, 5, features=f) for f in (plain, scaled))
        np.testing.assert_array_equal(first.noisy_labels, second.noisy_labels)

    def test_features_are_required(self):
        with pytest.raises(DataError, match="needs features"):
            inject(LABELS, 4, NoiseConfig(kind="instance", mis_h=0.3), 5)


def test_bad_images_are_not_degraded_again():
    quality = np.random.default_rng(2).choice([-1, 0, 1], NUM)
    config = NoiseConfig(mis_h=0.4, mis_l=0.3)
    result = inject(LABELS, 4, config, 6, quality=quality)
    assert not (result.groups[quality == 0] == MIS_L).any()
    assert (result.groups[quality == -1] == MIS_L).any()
    assert counts(result)[MIS_L] == 6000
    with pytest.raises(DataError, match=r"noise.mis_l: 0.3 of 20000 samples is 6000, but only 0"):
        inject(LABELS, 4, config, 6, quality=np.zeros(NUM, dtype=np.int64))


def test_streams_are_separate():
    reference = inject(LABELS, 4, NoiseConfig(mis_h=0.2, mis_l=0.1), 7)
    more_bad = inject(LABELS, 4, NoiseConfig(mis_h=0.2, mis_l=0.3), 7)
    np.testing.assert_array_equal(reference.noisy_labels, more_bad.noisy_labels)
    assert (more_bad.groups[reference.groups == MIS_L] == MIS_L).all()
    # The same samples are hit, whatever they turn into.
    skewed = inject(LABELS, 4, NoiseConfig(kind="asymmetric", mis_h=0.2, mis_l=0.1), 7)
    np.testing.assert_array_equal(reference.groups, skewed.groups)


def test_seeds_differ():
    config = NoiseConfig(mis_h=0.4, mis_l=0.15)
    first, second = inject(LABELS, 4, config, 0), inject(LABELS, 4, config, 1)
    assert (first.groups != second.groups).mean() > 0.3


def test_arguments_are_left_alone():
    labels = LABELS.copy()
    inject(labels, 4, NoiseConfig(mis_h=0.4, mis_l=0.15), 0)
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "instance"])
def test_golden(kind):
    labels = np.repeat(np.arange(5), [8, 6, 3, 2, 1])
    features = np.outer(np.arange(20.0), [1.0, -2.0]) % 7
    config = NoiseConfig(kind=kind, mis_h=0.4, mis_l=0.15)
    result = inject(labels, 5, config, 0, features=features)
    assert (result.noisy_labels.tolist(), result.groups.tolist()) == GOLDEN[kind]


def test_one_class():
    labels = np.zeros(10, dtype=np.int64)
    assert counts(inject(labels, 1, NoiseConfig(mis_l=0.2), 0)) == [8, 0, 2]
    with pytest.raises(DataError, match="second class"):
        inject(labels, 1, NoiseConfig(mis_h=0.2), 0)
    only = inject(labels, 3, NoiseConfig(kind="asymmetric", mis_h=0.5), 0)
    assert counts(only) == [5, 5, 0] and only.noisy_labels.max() <= 2


def test_no_samples():
    result = inject(np.empty(0, dtype=np.int64), 3, NoiseConfig(mis_h=0.4, mis_l=0.1), 0)
    assert len(result.noisy_labels) == len(result.groups) == 0


def test_labels_out_of_range_are_refused():
    with pytest.raises(DataError, match=r"labels: found 0..3; allowed: 0..2"):
        inject(LABELS, 3, NoiseConfig(), 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5,0.5\n0,1\n", r"shape is \(2, 2\)"),
        ("1,0,0\n0,0.5,0.4\n0,0,1\n", "row 1"),
        ("1,0,0\n0,1.5,-0.5\n0,0,1\n", "row 1"),
        ("1,0,0\nnan,nan,nan\n0,0,1\n", "row 1"),
        ("a,b\n", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_bad_matrices_are_refused(tmp_path, text, message):
    path = tmp_path / "matrix.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        inject(np.array([0, 1, 2]), 3, NoiseConfig(kind="matrix", matrix=path), 0)


@pytest.mark.parametrize(
    "tree",
    [
        {"mis_h": 0.6, "mis_l": 0.4},
        {"mis_h": 1.0},
        {"kind": "matrix"},
        {"kind": "symmetric", "matrix": [[1.0]]},
        {"kind": "matrix", "matrix": [[1.0]], "mis_h": 0.1},
        {"kind": "none", "mis_h": 0.1},
        {"kind": "uniform"},
        {"severity": [0.9, 0.1]},
        {"rate": 0.1},
        {"seed": -1},
    ],
)
def test_bad_settings_are_refused(tree):
    with pytest.raises(ValidationError):
        NoiseConfig.model_validate_json(json.dumps(tree), strict=True, extra="forbid")


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "instance"])
def test_draws_belong_to_samples_not_to_places(kind):
    config = NoiseConfig(kind=kind, mis_h=0.3, mis_l=0.1)
    features = np.random.default_rng(1).normal(size=(NUM, 3))
    order = np.random.default_rng(2).permutation(NUM)
    straight = inject(LABELS, 4, config, 5, features=features)
    mixed = inject(LABELS[order], 4, config, 5, sample_ids=order, features=features[order])
    np.testing.assert_array_equal(mixed.noisy_labels, straight.noisy_labels[order])
    np.testing.assert_array_equal(mixed.groups, straight.groups[order])


def test_groups_have_their_published_codes():
    assert (CORRECT, MIS_H, MIS_L) == (0, 1, 2)


def test_an_estimated_matrix_may_be_rounded():
    """As an audit's transition.csv is."""
    thirds = ((0.333333, 0.333333, 0.333333),) * 3
    assert len(inject(np.arange(3), 3, NoiseConfig(kind="matrix", matrix=thirds), 0).noisy_labels)
    with pytest.raises(DataError, match="allowed: shares of at least 0 that sum to 1"):
        inject(np.arange(3), 3, NoiseConfig(kind="matrix", matrix=((0.3, 0.3, 0.3),) * 3), 0)
