"""What a run reports: how well classes are predicted and how well noise is found.

A value that its data leave undefined is NaN, never an error or a warning: the documentation of each
function says when. Counting metrics follow scikit-learn, which computes most of them.

Shapes: N samples, C classes, M networks.
"""

import math

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, roc_auc_score

__all__ = [
    "CLASS_METRIC_TITLES",
    "METRIC_TITLES",
    "classification_metrics",
    "group_counts",
    "separation_metrics",
]

# Name in a record, after its set -> how tables and figures call it.
METRIC_TITLES = {
    "kappa": "kappa",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
}
# Likewise of one class: ``<name>/<c>``.
CLASS_METRIC_TITLES = {"precision": "precision", "recall": "recall", "f1": "F1", "auroc": "AUROC"}

# Named in the order of their numbers in a table of groups.
_GROUPS = ("correct", "mis_h", "mis_l")
_CORRECT, _MIS_H = 0, 1


def classification_metrics(
    probabilities: NDArray[np.floating], labels: NDArray[np.integer]
) -> dict[str, float]:
    """Agreement of predicted class probabilities with labels.

    A prediction is the class of the largest probability (the first of equals). Means over classes
    are over the classes *present* in ``labels``, so a class that a small test set lacks does not
    count as a failure.

    Args:
        probabilities: (N, C) finite scores, larger = more likely; N >= 1.
        labels: (N,) in 0..C-1.

    Returns:
        ``accuracy``; ``kappa``: Cohen's kappa with quadratic weights (i - j)^2, 0 where all
        predictions are one class; NaN where labels and predictions are all the same one class
        (0/0); ``balanced_accuracy``: mean recall; ``macro_f1``: mean F1; ``auroc``: mean
        one-versus-rest area under the ROC curve, NaN with fewer than two classes present.
        For every class c, NaN for one that is absent: ``precision/<c>``, 0 where it is never
        predicted; ``recall/<c>``; ``f1/<c>``; ``auroc/<c>``, one-versus-rest, NaN also where no
        other class is present.

    Raises:
        ValueError: shapes differ, no samples, a label out of range, or a score not finite.
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    _check_predictions(probabilities, labels)
    num_classes = probabilities.shape[1]
    predictions = probabilities.argmax(axis=1)
    table = confusion_matrix(labels, predictions, labels=np.arange(num_classes))
    num_true, num_predicted, hits = table.sum(axis=1), table.sum(axis=0), np.diagonal(table)
    present = num_true > 0
    recall = _ratio(hits, num_true)
    # A class that is present counts as 0 where it is never predicted, in its precision and its F1.
    precision = np.where(present, hits / np.maximum(num_predicted, 1), np.nan)
    f1 = np.where(present, _ratio(2 * hits, num_predicted + num_true), np.nan)
    auroc = np.array([_auroc(labels == c, probabilities[:, c]) for c in range(num_classes)])
    by_class = {"precision": precision, "recall": recall, "f1": f1, "auroc": auroc}
    return {
        "kappa": _quadratic_kappa(table),
        "accuracy": float(hits.sum() / len(labels)),
        "balanced_accuracy": float(recall[present].mean()),
        "macro_f1": float(f1[present].mean()),
        "auroc": float(auroc[present].mean()),
        **{
            f"{name}/{c}": float(value)
            for name, values in by_class.items()
            for c, value in enumerate(values)
        },
    }


def separation_metrics(
    posteriors: NDArray[np.floating],
    groups: NDArray[np.integer],
    true_groups: NDArray[np.integer],
) -> dict[str, float]:
    """How well the groups Correct, Mis-H and Mis-L (0, 1, 2) were found, given the true ones.

    Args:
        posteriors: (M, N, 3) in [0, 1], probability of each group by each network; N >= 1.
        groups: (M, N) in 0..2, the group that each network assigns.
        true_groups: (N,) in 0..2.

    Returns:
        ``auc``: area under the ROC curve of 1 - mean_M w^Correct for *not Correct* against Correct;
        ``auc_mis_h``: that of mean_M w^Mis-H for Mis-H against the rest; both NaN where one side
        has no samples. For each group g of correct, mis_h, mis_l: ``precision/g``, mean over the
        networks that assign any sample to g (NaN if none does); ``recall/g``, mean over networks
        (NaN if no sample truly is in g); ``num_assigned/g``, mean over networks; ``num_true/g``.

    Raises:
        ValueError: shapes differ, no samples, a group out of range, or a posterior not finite.
    """
    posteriors, groups = np.asarray(posteriors), np.asarray(groups)
    true_groups = np.asarray(true_groups)
    _check_separation(posteriors, groups, true_groups)
    mean = posteriors.mean(axis=0)
    result = {
        "auc": _auroc(true_groups != _CORRECT, 1 - mean[:, _CORRECT]),
        "auc_mis_h": _auroc(true_groups == _MIS_H, mean[:, _MIS_H]),
    }
    for group, name in enumerate(_GROUPS):
        assigned, truly = groups == group, true_groups == group
        hits = (assigned & truly).sum(axis=1)
        precision = _ratio(hits, assigned.sum(axis=1))
        defined = precision[~np.isnan(precision)]
        result[f"precision/{name}"] = float(defined.mean()) if defined.size else math.nan
        result[f"recall/{name}"] = float(_ratio(hits, truly.sum()).mean())
        result[f"num_assigned/{name}"] = float(assigned.sum(axis=1).mean())
        result[f"num_true/{name}"] = float(truly.sum())
    return result


def group_counts(
    groups: NDArray[np.integer], labels: NDArray[np.integer], num_classes: int
) -> dict[str, float]:
    """How many samples of each given class each group holds.

    Args:
        groups: (M, N) in 0..2, the group that each network assigns.
        labels: (N,) given labels in 0..C-1.
        num_classes: C.

    Returns:
        ``assigned/<group>/<c>`` for each group of correct, mis_h, mis_l and each class c: mean over
        the networks.
    """
    table = np.zeros((len(_GROUPS), num_classes))
    np.add.at(table, (groups, np.broadcast_to(labels, groups.shape)), 1)
    return {
        f"assigned/{name}/{c}": float(table[group, c] / len(groups))
        for group, name in enumerate(_GROUPS)
        for c in range(num_classes)
    }


def _quadratic_kappa(table: NDArray[np.integer]) -> float:
    """1 - observed / expected disagreement, from a confusion matrix (C, C).

    Not scikit-learn's ``cohen_kappa_score``, which warns where the value is 0/0.
    """
    classes = np.arange(len(table))
    weights = (classes[:, None] - classes) ** 2
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    disagreement = (weights * expected).sum()
    return float(1 - (weights * table).sum() / disagreement) if disagreement else math.nan


def _auroc(positive: NDArray[np.bool_], scores: NDArray[np.floating]) -> float:
    if positive.all() or not positive.any():
        return math.nan
    return float(roc_auc_score(positive, scores))


def _ratio(numerators: NDArray, denominators: NDArray) -> NDArray[np.float64]:
    """Element-wise quotient, NaN where the denominator is 0."""
    numerators, denominators = np.broadcast_arrays(numerators, denominators)
    undefined = np.full(numerators.shape, np.nan)
    return np.divide(numerators, denominators, out=undefined, where=denominators != 0)


def _check_predictions(probabilities: NDArray, labels: NDArray) -> None:
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise ValueError(
            f"metrics: probabilities have shape {probabilities.shape}, labels {labels.shape};"
            " expected (N, C) and (N,) with N >= 1"
        )
    _check_range("labels", labels, probabilities.shape[1])
    _check_finite("probabilities", probabilities)


def _check_separation(posteriors: NDArray, groups: NDArray, true_groups: NDArray) -> None:
    shape = (*groups.shape, len(_GROUPS))
    if (
        groups.ndim != 2
        or posteriors.shape != shape
        or true_groups.shape != groups.shape[1:]
        or not groups.size
    ):
        raise ValueError(
            f"metrics: posteriors have shape {posteriors.shape}, groups {groups.shape}, true groups"
            f" {true_groups.shape}; expected (M, N, 3), (M, N) and (N,) with M, N >= 1"
        )
    _check_range("groups", groups, len(_GROUPS))
    _check_range("true groups", true_groups, len(_GROUPS))
    _check_finite("posteriors", posteriors)


def _check_range(name: str, values: NDArray, upper: int) -> None:
    if values.min() < 0 or values.max() >= upper:
        raise ValueError(
            f"metrics: {name} lie in {values.min()}..{values.max()}; expected 0..{upper - 1}"
        )


def _check_finite(name: str, values: NDArray) -> None:
    num_bad = int((~np.isfinite(values)).any(axis=-1).sum())
    if num_bad:
        raise ValueError(f"metrics: {num_bad} rows of the {name} hold NaN or infinite values")
