"""Who is trained on, who is validated on: carving splits, and checking those that exist."""

import logging
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.manifest import SPLIT_NAMES, TEST, TRAIN, UNKNOWN, VALIDATION, Manifest

__all__ = ["carve", "check_splits", "complete_splits"]

logger = logging.getLogger(__name__)

# The test samples of a data set without a test split are the same in every run, whatever its seed:
# runs with several seeds stay comparable, and none trains on what another is tested with.
TEST_SEED = 20250101


def complete_splits(
    manifest: Manifest, validation_fraction: float, test_fraction: float, seed: int
) -> Manifest:
    """Carves the splits that a data set does not have itself from its training samples.

    Args:
        manifest: The data set with its own splits.
        validation_fraction: Share of the training samples for validation; 0 = none.
        test_fraction: Share of all samples for testing, taken before validation.
        seed: Decides who is validated on; not who is tested on.

    Returns:
        The manifest with other values in `split` and nothing else changed.
    """
    for code, fraction, entropy in (
        (TEST, test_fraction, TEST_SEED),
        (VALIDATION, validation_fraction, seed),
    ):
        if fraction == 0 or len(manifest.where(code)):
            continue
        rest = manifest.where(TRAIN)
        rng = np.random.default_rng([entropy, code])
        chosen = rest[carve(manifest.labels[rest], manifest.patients[rest], fraction, rng)]
        split = manifest.split.copy()
        split[chosen] = code
        manifest = replace(manifest, split=split)
        name = SPLIT_NAMES[code]
        logger.info("no %s split of its own: %d samples taken from train", name, len(chosen))
    return manifest


def carve(
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    fraction: float,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Chooses whole groups so that each class contributes its share.

    Groups are visited in random order, and one is taken where that brings the class counts nearer
    to ``fraction * count`` (squared distance, each class in units of its own size, so that a rare
    class weighs as much as a frequent one). Without groups every class's share is exact up to
    rounding; with groups it is as near as the order allows.

    Args:
        labels: (M,) int64 in [0, num_classes).
        groups: (M,) int64; equal codes stay together, -1 stays with nobody.
        fraction: In (0, 1).
        rng: The source of the order.

    Returns:
        The chosen positions, ascending: int64 in [0, M).
    """
    alone = groups == UNKNOWN
    distinct = np.where(alone, groups.max(initial=0) + 1 + np.arange(len(groups)), groups)
    codes, group_of = np.unique(distinct, return_inverse=True)
    counts = np.zeros((len(codes), labels.max(initial=0) + 1))
    np.add.at(counts, (group_of, labels), 1)
    totals = counts.sum(axis=0)
    excess = -fraction * totals  # taken so far, minus wanted
    weights = 1 / np.maximum(totals, 1)
    taken = np.zeros(len(codes), dtype=bool)
    for group in rng.permutation(len(codes)):
        gain = counts[group]
        if weights @ (gain * (2 * excess + gain)) < 0:
            excess += gain
            taken[group] = True
    return np.flatnonzero(taken[group_of])


def check_splits(manifest: Manifest, where: str, needs_validation: bool) -> None:
    """Checks that there is something to train on, and to test with.

    Args:
        manifest: The data set with all its splits.
        where: The data set's name for messages.
        needs_validation: Whether a validation split was asked for.

    Raises:
        DataError: If a split is empty, or a class has no training sample.
    """
    for code in (TRAIN, TEST, *((VALIDATION,) if needs_validation else ())):
        if not len(manifest.where(code)):
            raise DataError(
                f"{where}: no sample is left for {SPLIT_NAMES[code]} ({len(manifest)} in all); "
                "check the split column, data.test_fraction and data.validation_fraction"
            )
    for code in (TRAIN, VALIDATION, TEST):
        labels = manifest.labels[manifest.where(code)]
        absent = np.flatnonzero(np.bincount(labels, minlength=manifest.num_classes) == 0)
        missing = ", ".join(f"{index} ({manifest.class_names[index]})" for index in absent)
        if missing and code == TRAIN:
            raise DataError(
                f"{where}: no training sample has class {missing}; "
                f"expected some of each of {manifest.num_classes}. Check the labels and the splits"
            )
        if missing and len(labels):
            logger.warning(
                "%s: no %s sample has class %s: metrics are means over the others",
                where, SPLIT_NAMES[code], missing,
            )  # fmt: skip
