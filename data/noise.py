"""Mixed noise for experiments: wrong labels (Mis-H) and the choice of images to degrade (Mis-L).

The two kinds of noise are those of QMix (arXiv 2404.05169): a Mis-H sample has a wrong label and
its good image, a Mis-L sample keeps its label while its image becomes too poor to carry it. Which
samples are hit is a pure function of the arguments: the draws are keyed by (seed, sample_id,
purpose), so changing one rate or kind leaves the other draws alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.special import ndtr, ndtri

from data import keyed
from data.errors import DataError

__all__ = ["CORRECT", "MIS_H", "MIS_L", "InjectedNoise", "NoiseConfig", "inject"]

CORRECT, MIS_H, MIS_L = 0, 1, 2

# What a draw is for; part of its key. Epoch -1 keeps all of them apart from the views' draws.
_WHICH_LABELS, _NEW_LABELS, _WHICH_IMAGES, _FLIP_RATES, _PROJECTIONS = range(5)
_EPOCH = -1

# Standard deviation of the flip rates over samples (Xia et al., algorithm 2).
_FLIP_RATE_SPREAD = 0.1

Matrix = tuple[tuple[float, ...], ...]


class NoiseConfig(BaseModel):
    """Section ``noise``: what is injected into the training and validation samples, as one set."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    kind: Literal["none", "symmetric", "asymmetric", "matrix", "instance"] = Field(
        "symmetric",
        description="How wrong labels are drawn. symmetric: evenly among the other classes. "
        "asymmetric: among the other classes by their frequency. matrix: from the row of the label "
        "in noise.matrix. instance: depending on the image (Xia et al., NeurIPS 2020). none: no "
        "wrong labels.",
    )
    mis_h: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of all samples for training and validation whose label is changed: the "
        "true flip rate, exact for symmetric and asymmetric, the mean rate for instance; 0 for "
        "matrix and none.",
    )
    mis_l: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the same samples whose image is degraded while the label stays; "
        "exact, and disjoint from the samples of mis_h.",
    )
    matrix: Matrix | Path | None = Field(
        None,
        description="For kind matrix: P[true, given], rows summing to 1, written out or the path "
        "of a comma-separated file.",
    )
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**63,
        description="Seed of the noise alone; null: run.seed. With one, runs of other seeds, which "
        "validate on other samples, have the same wrong labels and degraded images.",
    )
    severity: tuple[float, float] = Field(
        (0.6, 1.0), description="Mildest and worst degradation of a Mis-L image, in [0, 1]."
    )

    @model_validator(mode="after")
    def _check(self) -> NoiseConfig:
        if self.mis_h + self.mis_l >= 1:
            raise ValueError(
                f"mis_h + mis_l is {self.mis_h} + {self.mis_l}; allowed: a sum below 1, "
                "since some samples must stay correct"
            )
        if (self.kind == "matrix") != (self.matrix is not None):
            raise ValueError(
                f"kind is {self.kind} and matrix is {'unset' if self.matrix is None else 'set'}; "
                "allowed: a matrix with kind matrix and only there"
            )
        if self.kind in ("matrix", "none") and self.mis_h:
            raise ValueError(
                f"mis_h is {self.mis_h}; kind {self.kind} does not use it: set it to 0"
            )
        if not 0 <= self.severity[0] <= self.severity[1] <= 1:
            raise ValueError(
                f"severity is {self.severity}; allowed: (low, high) with 0 <= low <= high <= 1"
            )
        return self


@dataclass(frozen=True, kw_only=True)
class InjectedNoise:
    """The labels that training is given, and what was done to each sample.

    Attributes:
        noisy_labels: (n,) int64.
        groups: (n,) uint8, CORRECT, MIS_H or MIS_L: what was injected, not what was already there.
    """

    noisy_labels: NDArray[np.int64]
    groups: NDArray[np.uint8]


def inject(
    labels: NDArray[np.int64],
    num_classes: int,
    config: NoiseConfig,
    seed: int,
    *,
    sample_ids: NDArray[np.int64] | None = None,
    quality: NDArray[np.int64] | None = None,
    features: NDArray[np.floating] | None = None,
) -> InjectedNoise:
    """Change labels and choose the images to degrade.

    Args:
        labels: (n,) int64 in 0..num_classes-1, taken as true.
        num_classes: Number of classes, C.
        config: What to inject.
        seed: Of all draws; that of the section is the caller's to take.
        sample_ids: (n,) int64, distinct; what the draws are keyed by. None: 0 to n - 1.
        quality: (n,) -1 unknown, 0 bad, 1 good. A bad image is never chosen for degradation.
        features: (n, d) what instance-dependent noise depends on, such as the pixels of small
            copies.

    Raises:
        DataError: A label is out of range, the matrix does not fit, too few good images are left to
            degrade, or features are missing.
    """
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise DataError(
            f"labels: found {labels.min()}..{labels.max()}; allowed: 0..{num_classes - 1}"
        )
    draws = _Draws(seed, np.arange(len(labels)) if sample_ids is None else sample_ids)
    noisy_labels = _change_labels(labels, num_classes, config, draws, features)
    groups = np.where(noisy_labels != labels, MIS_H, CORRECT).astype(np.uint8)
    candidates = groups == CORRECT
    if quality is not None:
        candidates &= quality != 0
    num_degraded = round(config.mis_l * len(labels))
    if num_degraded > candidates.sum():
        raise DataError(
            f"noise.mis_l: {config.mis_l} of {len(labels)} samples is {num_degraded}, but only "
            f"{candidates.sum()} have a correct label and an image that is not bad already"
        )
    order = draws.of(_WHICH_IMAGES)
    order[~candidates] = np.inf
    groups[np.argsort(order, kind="stable")[:num_degraded]] = MIS_L
    return InjectedNoise(noisy_labels=noisy_labels, groups=groups)


@dataclass(frozen=True)
class _Draws:
    """Keyed uniform draws: one of each sample for a purpose, or a table for all of them."""

    seed: int
    sample_ids: NDArray[np.int64]

    def of(self, purpose: int) -> NDArray[np.float64]:
        """A number of each sample: (n,)."""
        return keyed.uniform(self.seed, _EPOCH, self.sample_ids, purpose, 1)[:, 0]

    def table(self, purpose: int, num_rows: int, num_columns: int) -> NDArray[np.float64]:
        """Numbers that depend on no sample: (num_rows, num_columns)."""
        return keyed.uniform(self.seed, _EPOCH, np.arange(num_rows), purpose, num_columns)


def _change_labels(
    labels: NDArray[np.int64],
    num_classes: int,
    config: NoiseConfig,
    draws: _Draws,
    features: NDArray[np.floating] | None,
) -> NDArray[np.int64]:
    """Draw the noisy labels (n,) int64."""
    which = draws.of(_NEW_LABELS)
    if config.matrix is not None:
        return _draw_from_rows(_read_matrix(config.matrix, num_classes)[labels], which)
    if config.mis_h == 0:
        return labels.copy()
    if num_classes < 2:
        raise DataError("noise.mis_h: wrong labels need a second class; found one class")
    if config.kind == "instance":
        if features is None or len(features) != len(labels):
            raise DataError("noise.kind: instance needs features, one row for each label")
        rows = _instance_rows(labels, num_classes, config.mis_h, draws, features)
        return _draw_from_rows(rows, which)
    order = np.argsort(draws.of(_WHICH_LABELS), kind="stable")
    hit = order[: round(config.mis_h * len(labels))]
    noisy_labels = labels.copy()
    rows = _other_classes(labels, num_classes, config.kind)[labels[hit]]
    noisy_labels[hit] = _draw_from_rows(rows, which[hit])
    return noisy_labels


def _other_classes(labels: NDArray[np.int64], num_classes: int, kind: str) -> NDArray[np.float64]:
    """Where a changed label goes: (C, C) rows of probabilities with a zero diagonal."""
    weights = np.ones(num_classes)
    if kind == "asymmetric":
        weights = np.bincount(labels, minlength=num_classes).astype(np.float64)
    rows = np.tile(weights, (num_classes, 1))
    np.fill_diagonal(rows, 0)
    # By frequency, the only class that occurs has nowhere to go but evenly to the empty ones.
    stuck = rows.sum(axis=1) == 0
    rows[stuck] = 1 - np.eye(num_classes)[stuck]
    return rows / rows.sum(axis=1, keepdims=True)


def _instance_rows(
    labels: NDArray[np.int64],
    num_classes: int,
    mean_rate: float,
    draws: _Draws,
    features: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Transition probabilities (n, C) of each sample.

    Algorithm 2 of Xia et al., Part-dependent label noise, NeurIPS 2020 (arXiv 2006.07836): a flip
    rate from a normal distribution around the mean rate, truncated to [0, 1], is shared out among
    the other classes by the softmax of the features' projection, with one random projection for
    each true class. Truncation raises the actual mean rate when it is below 0.2 (to 0.13 at 0.1).
    Differs: the features are standardised first, so that the noise does not depend on their units.
    """
    low, high = ndtr(np.array([0 - mean_rate, 1 - mean_rate]) / _FLIP_RATE_SPREAD)
    spread = low + (high - low) * draws.of(_FLIP_RATES)
    rates = np.clip(mean_rate + _FLIP_RATE_SPREAD * ndtri(spread), 0, 1)
    deviation = features.std(axis=0)
    standard = (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    num_features = features.shape[1]
    table = draws.table(_PROJECTIONS, num_classes * num_features, num_classes)
    # Half a step above the draws' grid, since the normal quantile of 0 is not finite.
    projections = ndtri(table + 2.0**-54).reshape(num_classes, num_features, num_classes)
    rows = np.zeros((len(labels), num_classes))
    for label in range(num_classes):
        members = np.flatnonzero(labels == label)
        scores = standard[members] @ projections[label]
        scores[:, label] = -np.inf
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        rows[members] = rates[members, None] * odds / odds.sum(axis=1, keepdims=True)
        rows[members, label] = 1 - rates[members]
    return rows


def _draw_from_rows(rows: NDArray[np.float64], draws: NDArray[np.float64]) -> NDArray[np.int64]:
    """Draw one class from each row of probabilities (n, C) by its uniform number (n,)."""
    edges = np.cumsum(rows, axis=1)
    # Scaled by the row's sum, so that rounding of the sum cannot select a class of probability 0.
    return (draws[:, None] * edges[:, -1:] >= edges).sum(axis=1).astype(np.int64)


def _read_matrix(source: Matrix | Path, num_classes: int) -> NDArray[np.float64]:
    """The transition matrix (C, C), checked."""
    try:
        matrix = np.array(
            np.loadtxt(source, delimiter=",", ndmin=2) if isinstance(source, Path) else source,
            dtype=np.float64,
        )
    except (OSError, ValueError) as error:
        raise DataError(f"noise.matrix: cannot be read as rows of numbers ({error})") from error
    if matrix.shape != (num_classes, num_classes):
        raise DataError(
            f"noise.matrix: shape is {matrix.shape}; the {num_classes} classes need "
            f"({num_classes}, {num_classes})"
        )
    # So that what is not a number is bad, too.
    good = (np.abs(matrix.sum(axis=1) - 1) <= 1e-4) & (matrix >= 0).all(axis=1)
    bad = np.flatnonzero(~good)
    if len(bad):
        raise DataError(
            f"noise.matrix: row {bad[0]} is {matrix[bad[0]].tolist()}; "
            "allowed: shares of at least 0 that sum to 1"
        )
    return matrix
