"""The label audit: which labels of the training set are probably wrong, and what they should be.

It serves every method, since it asks what was predicted of a sample whenever it was trained on,
before that step; the mean over all epochs decides (``engine.history``). A wrong label that is
learned by heart in the end was contradicted for long: with 20 % symmetric noise on the HAM10000
pack the probability of the given label tells wrong from right labels at an AUROC of 0.869 in that
mean and 0.816 in the finished network of cross-entropy, 0.889 and 0.870 of QMix. QMix's posteriors,
alone (0.855) or added, were no better. But where a method separates the samples, its groups tell a
wrong label from an image too poor to carry any.

The predictions are not out-of-sample: scores rank labels, they are no calibrated probabilities.

Shapes: n training samples, C classes, M networks, J judges (networks that separate; 0 = none).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.history import NEVER
from engine.task import IntArray
from engine.trainer import Trainer

__all__ = ["GROUPS", "Evidence", "Findings", "Samples", "examine", "gather_evidence"]

FloatArray = NDArray[np.floating]

# In the order of their numbers in a ledger's column, as in methods.separation.
GROUPS = ("correct", "mis_h", "mis_l")
MIS_L = 2


class Names(Protocol):
    """Names of images by sample_id."""

    def __getitem__(self, index: int, /) -> str:
        """One name."""
        ...


@dataclass(frozen=True)
class Samples:
    """What people know the samples by.

    Attributes:
        names: Name of each image, by sample_id.
        class_names: The C classes.
        quality: (N,) int64, larger is better; -1 = unknown.
    """

    names: Names
    class_names: Sequence[str]
    quality: IntArray


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What an audit found; arrays are in the order of ``sample_ids``.

    Attributes:
        sample_ids: (n,) int64 ascending, the training samples.
        given: (n,) int64 labels that the run was given.
        suggested: (n,) int64 the likeliest classes in that mean.
        score: (n,) float64 in [0, 1]: label quality, the probability of the given label in the mean
            of predictions over epochs; low = probably wrong.
        is_issue: (n,) bool, labels thought wrong.
        is_poor: (n,) bool, images thought too poor to carry a label, where a method tells.
        loss: (M, n) float32, -log p[given] of the finished networks.
        uncertainty: (M, n) float32, entropy of p.
        agreement: (n,) float32 in [0, 1]: what the networks' predictions have in common,
            sum_c min over networks of p_c; 1 with one network.
        posterior: (n, J, 3) float32, probability of Correct, Mis-H, Mis-L.
        epochs_in_group: (n, J) int64, epochs since the group last changed; 0 = changed at the last
            separation.
        num_classes: C.
    """

    sample_ids: IntArray
    given: IntArray
    suggested: IntArray
    score: FloatArray
    is_issue: NDArray[np.bool_]
    is_poor: NDArray[np.bool_]
    loss: FloatArray
    uncertainty: FloatArray
    agreement: FloatArray
    posterior: FloatArray
    epochs_in_group: IntArray
    num_classes: int

    @property
    def num_judges(self) -> int:
        """J."""
        return self.posterior.shape[1]

    @property
    def order(self) -> IntArray:
        """Places by suspicion: labels thought wrong first, then by score, the lowest first."""
        return np.lexsort((self.sample_ids, self.score, ~self.is_issue))

    @property
    def counts(self) -> IntArray:
        """(C, C) int64: labels given as row and thought to be column; the diagonal is kept."""
        right = np.where(self.is_issue, self.suggested, self.given)
        counts = np.zeros((self.num_classes, self.num_classes), dtype=np.int64)
        np.add.at(counts, (self.given, right), 1)
        return counts

    def describe(self, place: int) -> str:
        """``mislabelled``, ``low quality`` or ``ok``."""
        if self.is_issue[place]:
            return "mislabelled"
        return "low quality" if self.is_poor[place] else "ok"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a run knows about its training samples.

    Attributes:
        sample_ids: (n,) int64 ascending.
        given: (n,) int64 labels.
        final: (M, n, C) float32, probabilities of the finished networks.
        running: (n, C) float32, mean of probabilities over the epochs.
        posterior: (n, J, 3) float32, probability of Correct, Mis-H, Mis-L; J = 0 without a
            separation.
        epochs_in_group: (n, J) int64, see :class:`Findings`.
    """

    sample_ids: IntArray
    given: IntArray
    final: FloatArray
    running: FloatArray
    posterior: FloatArray
    epochs_in_group: IntArray


def gather_evidence(trainer: Trainer) -> Evidence:
    """Predict all training samples once more; a collective call, the same on every rank."""
    trainer.phase = "the label audit"
    ids, ledger = trainer.task.train_ids, trainer.ledger
    final = trainer.predictor.each(ids, "audit")
    running = ledger["running_prediction"][ids].numpy()
    is_noted = ledger["num_predictions"][ids].numpy() > 0
    posterior = np.empty((len(ids), 0, len(GROUPS)), np.float32)
    epochs_in_group = np.empty((len(ids), 0), np.int64)
    if "group" in ledger.columns and bool((ledger["group_since"][ids] != NEVER).all()):
        posterior = ledger["posterior"][ids].numpy()
        last = trainer.epochs_done - 1
        epochs_in_group = last - ledger["group_since"][ids].numpy().astype(np.int64)
    return Evidence(
        sample_ids=ids,
        given=ledger["label"][ids].numpy(),
        final=final,
        # A method that mixes its images notes nothing, and a sample may never have been drawn.
        running=np.where(is_noted[:, None], running, final.mean(0)),
        posterior=posterior,
        epochs_in_group=epochs_in_group,
    )


def examine(evidence: Evidence) -> Findings:
    """Judge the labels."""
    given, final, posterior = evidence.given, evidence.final, evidence.posterior
    places = np.arange(len(given))
    mean = evidence.running.astype(np.float64)
    is_issue = find_issues(given, mean)
    tiny = np.finfo(np.float32).tiny
    logs = np.log(np.maximum(final, tiny))
    return Findings(
        sample_ids=evidence.sample_ids,
        given=given,
        suggested=mean.argmax(1),
        score=mean[places, given].clip(0, 1),
        is_issue=is_issue,
        is_poor=posterior.mean(1).argmax(1) == MIS_L if posterior.size else np.zeros_like(is_issue),
        loss=-logs[:, places, given],
        uncertainty=-(final * logs).sum(2),
        agreement=final.min(0).sum(1),
        posterior=posterior,
        epochs_in_group=evidence.epochs_in_group,
        num_classes=final.shape[2],
    )


def find_issues(given: IntArray, evidence: FloatArray) -> NDArray[np.bool_]:
    """Which labels are thought wrong, by confident learning.

    Northcutt, Jiang and Chuang: "Confident Learning: Estimating Uncertainty in Dataset Labels",
    JAIR 70, 2021, arXiv:1911.00068. A sample counts for the likeliest of the classes whose
    probability reaches its mean over the samples given that class. These counts say what share of
    each given class is wrong (section 3.1), and as many of its samples with the least probability
    of their label are taken (pruning by class, section 3.2), but none whose label is predicted.

    Args:
        given: (n,) int64.
        evidence: (n, C) probabilities.

    Returns:
        (n,) bool.
    """
    num_classes, places = evidence.shape[1], np.arange(len(given))
    num_given = np.bincount(given, minlength=num_classes)
    own = evidence[places, given]
    sums = np.bincount(given, weights=own, minlength=num_classes)
    # Nothing reaches the threshold of a class that is never given.
    thresholds = np.where(num_given > 0, sums / np.maximum(num_given, 1), np.inf)
    reaching = np.where(evidence >= thresholds, evidence, -1.0)
    is_counted, counted_for = reaching.max(1) >= 0, reaching.argmax(1)
    num_counted = np.bincount(given[is_counted], minlength=num_classes)
    agrees = is_counted & (counted_for == given)
    num_agreeing = np.bincount(given[agrees], minlength=num_classes)
    share_wrong = 1 - num_agreeing / np.maximum(num_counted, 1)
    num_wrong = np.where(num_counted > 0, np.rint(share_wrong * num_given), 0)
    # Place of each sample among those of its given class, from the most doubtful one.
    order = np.lexsort((places, own, given))
    rank = np.empty_like(order)
    rank[order] = places - (num_given.cumsum() - num_given)[given[order]]
    return (rank < num_wrong[given]) & (evidence.argmax(1) != given)
