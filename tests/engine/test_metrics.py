import math
import warnings

import numpy as np
import pytest
from sklearn.metrics import (
    balanced_accuracy_score,
    cohen_kappa_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from engine.metrics import classification_metrics, group_counts, separation_metrics


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _one_hot(predictions, num_classes):
    return np.eye(num_classes)[predictions]


def by_class(result, name, num_classes=3):
    """The values of a metric that is given for each class."""
    assert f"{name}/{num_classes}" not in result
    return [result[f"{name}/{c}"] for c in range(num_classes)]


def test_hand_calculation():
    # Predictions 0 1 2 1; confusion (true, predicted): (0,0) (1,1) (1,2) (2,1).
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.3, 0.6], [0.1, 0.5, 0.4]])
    labels = np.array([0, 1, 1, 2])
    result = classification_metrics(probabilities, labels)
    assert result["accuracy"] == pytest.approx(2 / 4)
    # Observed: two errors of distance 1 -> 2. Expected: row sums (1, 2, 1), column sums (1, 2, 1):
    # (2*1*2 + 2*2*1 + 1*1*4 + 1*1*4) / 4 = 16 / 4 = 4.
    assert result["kappa"] == pytest.approx(1 - 2 / 4)
    assert result["balanced_accuracy"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert result["macro_f1"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    # Class 0: 0.8 above all -> 1. Class 1: {0.7, 0.3} against {0.1, 0.5}: 3 of 4 pairs.
    # Class 2: 0.4 against {0.1, 0.1, 0.6}: 2 of 3 pairs.
    assert result["auroc"] == pytest.approx((1 + 3 / 4 + 2 / 3) / 3)
    assert by_class(result, "auroc") == pytest.approx([1, 3 / 4, 2 / 3])
    # Class 1 is predicted twice and once rightly, class 2 once and wrongly.
    assert by_class(result, "precision") == pytest.approx([1, 0.5, 0])
    assert by_class(result, "recall") == pytest.approx([1, 0.5, 0])
    assert by_class(result, "f1") == pytest.approx([1, 0.5, 0])


def test_precision_and_recall_are_told_apart():
    # Class 0: 2 of 3 found, every prediction right; class 1: 1 of 1 found, half of them right.
    result = classification_metrics(_one_hot([0, 0, 1, 1], 2), np.array([0, 0, 0, 1]))
    assert by_class(result, "precision", 2) == pytest.approx([1, 1 / 2])
    assert by_class(result, "recall", 2) == pytest.approx([2 / 3, 1])
    assert by_class(result, "f1", 2) == pytest.approx([4 / 5, 2 / 3])


def test_agrees_with_scikit_learn_when_every_class_is_present():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 300)
    probabilities = rng.dirichlet(np.ones(5), 300) + 0.3 * np.eye(5)[labels]
    probabilities /= probabilities.sum(1, keepdims=True)
    predictions = probabilities.argmax(1)
    result = classification_metrics(probabilities, labels)
    assert result["kappa"] == pytest.approx(
        cohen_kappa_score(labels, predictions, weights="quadratic")
    )
    assert result["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(labels, predictions)
    )
    assert result["macro_f1"] == pytest.approx(f1_score(labels, predictions, average="macro"))
    assert result["auroc"] == pytest.approx(
        roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    )
    for name, score in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        expected = score(labels, predictions, average=None)
        assert by_class(result, name, 5) == pytest.approx(expected.tolist())
    areas = roc_auc_score(labels, probabilities, multi_class="ovr", average=None)
    assert by_class(result, "auroc", 5) == pytest.approx(areas.tolist())


def test_a_prediction_further_off_lowers_kappa():
    labels = np.array([0, 1, 2, 3])
    near, far = np.array([1, 1, 2, 3]), np.array([3, 1, 2, 3])
    kappas = [classification_metrics(_one_hot(p, 4), labels)["kappa"] for p in (labels, near, far)]
    assert kappas[0] == 1 and kappas[0] > kappas[1] > kappas[2]


def test_one_predicted_class_has_kappa_zero():
    result = classification_metrics(_one_hot([2, 2, 2, 2], 3), np.array([0, 1, 2, 2]))
    assert result["kappa"] == 0
    assert result["auroc"] == 0.5
    assert result["balanced_accuracy"] == pytest.approx(1 / 3)
    # Precision 1/2, recall 1 -> F1 2/3; the other two 0.
    assert result["macro_f1"] == pytest.approx(2 / 9)
    # What is never predicted has precision 0, not an undefined one.
    assert by_class(result, "precision") == [0, 0, 0.5]


def test_absent_class_is_left_out_of_the_means():
    # Class 1 is absent though predicted once.
    result = classification_metrics(_one_hot([0, 1, 2, 2], 3), np.array([0, 0, 2, 2]))
    assert result["balanced_accuracy"] == pytest.approx((0.5 + 1) / 2)
    assert result["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert result["auroc"] == pytest.approx((0.75 + 1) / 2)
    for name in ("precision", "recall", "f1", "auroc"):
        undefined = [math.isnan(value) for value in by_class(result, name)]
        assert undefined == [False, True, False]
    assert (result["auroc/0"], result["auroc/2"]) == (0.75, 1)


def test_a_single_class_leaves_auroc_undefined():
    labels = np.array([1, 1])
    wrong = classification_metrics(_one_hot([0, 1], 3), labels)
    assert math.isnan(wrong["auroc"]) and wrong["kappa"] == 0 and wrong["accuracy"] == 0.5
    assert all(math.isnan(value) for value in by_class(wrong, "auroc"))
    assert (wrong["precision/1"], wrong["recall/1"]) == (1, 0.5)
    right = classification_metrics(_one_hot([1, 1], 3), labels)
    assert math.isnan(right["kappa"]) and right["accuracy"] == 1


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.ones((2, 3)), np.array([0]), r"\(2, 3\), labels \(1,\)"),
        (np.ones((0, 3)), np.array([], dtype=int), "N >= 1"),
        (np.ones((2, 3)), np.array([0, 3]), "labels lie in 0..3; expected 0..2"),
        (np.array([[0.5, np.nan], [1, 0]]), np.array([0, 1]), "1 rows of the probabilities"),
    ],
)
def test_unusable_predictions_are_refused(probabilities, labels, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(probabilities, labels)


def test_separation_hand_calculation():
    true_groups = np.array([0, 0, 1, 2], dtype=np.uint8)
    first = [[0.8, 0.1, 0.1], [0.4, 0.5, 0.1], [0.3, 0.6, 0.1], [0.2, 0.1, 0.7]]
    second = [[0.6, 0.3, 0.1], [0.6, 0.1, 0.3], [0.7, 0.2, 0.1], [0.2, 0.2, 0.6]]
    posteriors = np.array([first, second])
    result = separation_metrics(posteriors, posteriors.argmax(2), true_groups)
    # Mean w^Correct: 0.7 0.5 | 0.5 0.2 -> of four pairs three right and one tied.
    assert result["auc"] == pytest.approx(3.5 / 4)
    # Mean w^Mis-H: Mis-H 0.4 against 0.2 0.3 0.15.
    assert result["auc_mis_h"] == 1
    # Groups: first 0 1 1 2, second 0 0 0 2.
    assert result["precision/correct"] == pytest.approx((1 + 2 / 3) / 2)
    assert result["recall/correct"] == pytest.approx((1 / 2 + 1) / 2)
    # The second network assigns no Mis-H: its precision is undefined, its recall 0.
    assert result["precision/mis_h"] == pytest.approx(1 / 2)
    assert result["recall/mis_h"] == pytest.approx(1 / 2)
    assert result["precision/mis_l"] == result["recall/mis_l"] == 1
    assert [result[f"num_assigned/{g}"] for g in ("correct", "mis_h", "mis_l")] == [2, 1, 1]
    assert [result[f"num_true/{g}"] for g in ("correct", "mis_h", "mis_l")] == [2, 1, 1]


def test_separation_without_noise_is_undefined_not_an_error():
    posteriors = np.tile([1.0, 0.0, 0.0], (2, 3, 1))
    result = separation_metrics(posteriors, posteriors.argmax(2), np.zeros(3, dtype=np.uint8))
    undefined = {name for name, value in result.items() if math.isnan(value)}
    expected = {"auc", "auc_mis_h"}
    expected |= {f"{part}/{g}" for part in ("precision", "recall") for g in ("mis_h", "mis_l")}
    assert undefined == expected
    assert result["precision/correct"] == result["recall/correct"] == 1


@pytest.mark.parametrize(
    ("posteriors", "groups", "true_groups", "message"),
    [
        (np.ones((1, 2, 3)), np.zeros((2, 2), int), np.zeros(2, int), "expected"),
        (np.ones((1, 2, 3)), np.zeros((1, 2), int), np.zeros(3, int), "expected"),
        (np.ones((1, 2, 3)), np.full((1, 2), 3), np.zeros(2, int), "groups lie in 3..3"),
        (
            np.ones((1, 2, 3)),
            np.zeros((1, 2), int),
            np.array([0, 255]),
            "true groups lie in 0..255",
        ),
        (np.full((1, 2, 3), np.nan), np.zeros((1, 2), int), np.zeros(2, int), "2 rows"),
    ],
)
def test_unusable_separations_are_refused(posteriors, groups, true_groups, message):
    with pytest.raises(ValueError, match=message):
        separation_metrics(posteriors, groups, true_groups)


def test_groups_are_counted_by_given_class_as_a_mean_over_networks():
    groups = np.array([[0, 0, 1, 2, 2], [0, 1, 1, 2, 0]])
    labels = np.array([0, 0, 0, 2, 2])
    counts = group_counts(groups, labels, 3)
    assert len(counts) == 9
    assert counts["assigned/correct/0"] == 1.5 and counts["assigned/mis_h/0"] == 1.5
    assert counts["assigned/correct/2"] == 0.5 and counts["assigned/mis_l/2"] == 1.5
    assert all(counts[f"assigned/{group}/1"] == 0 for group in ("correct", "mis_h", "mis_l"))
    assert sum(counts.values()) == 5
