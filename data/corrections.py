"""Decisions of a person who has looked at the label audit, applied to the next run.

A decision is about the label that the audited run was given, injected noise included. So it is
applied after the noise of a run has been drawn, which it leaves as it was: with the same data and
noise exactly the decided labels change. Where a run's labels are others, the given label of a
decision does not match and the file is refused.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError, Problems
from data.manifest import LEFT_OUT, TEST, TRAIN, Manifest, PackedStrings
from data.sources.table import read_csv

__all__ = ["COLUMNS", "apply_corrections"]

logger = logging.getLogger(__name__)

COLUMNS = ("sample_id", "image", "given_label", "decision", "new_label")
KEEP, CHANGE, UNUSABLE = DECISIONS = ("keep", "change", "unusable")


@dataclass
class _Decisions:
    """What a file decides: sample_id -> new label, and ids to leave out; how many stay."""

    changed: dict[int, int] = field(default_factory=dict)
    left_out: list[int] = field(default_factory=list)
    num_kept: int = 0


def apply_corrections(
    paths: Sequence[Path], manifest: Manifest, labels: NDArray[np.int64]
) -> tuple[Manifest, NDArray[np.int64]]:
    """Apply files of decisions one after the other.

    Args:
        paths: Files with the columns ``COLUMNS`` and no others, as a review page writes them:
            ``change`` gives a sample a new label, ``unusable`` leaves it out of training and
            validation, ``keep`` changes nothing.
        manifest: The samples.
        labels: (N,) int64 labels that the run would be given without corrections.

    Returns:
        The manifest, in which only ``split`` may differ, and new labels (N,) int64.

    Raises:
        DataError: Naming file and row: another header, a sample that there is not, whose image or
            given label is another, or that is of the test set; a sample decided on twice; an
            unknown decision or class; or a class that would have no training sample left.
    """
    labels, split = labels.copy(), manifest.split.copy()
    for path in paths:
        decisions = _read(path, manifest, labels, split)
        for sample_id, label in decisions.changed.items():
            labels[sample_id] = label
        split[decisions.left_out] = LEFT_OUT
        _require_all_classes(path, manifest, labels[split == TRAIN])
        logger.info(
            "%s: %d labels changed, %d images left out, %d labels kept",
            path, len(decisions.changed), len(decisions.left_out), decisions.num_kept,
        )  # fmt: skip
    return manifest.with_split(split), labels


def _read(
    path: Path, manifest: Manifest, labels: NDArray[np.int64], split: NDArray[np.uint8]
) -> _Decisions:
    """The decisions of one file, checked."""
    if not path.is_file():
        raise DataError(f"data.corrections: {path}: no such file")
    header, rows = read_csv(path, [(name,) for name in COLUMNS])
    if tuple(header) != COLUMNS:
        raise DataError(
            f"{path}: has the columns {', '.join(header)}; required: {', '.join(COLUMNS)}"
        )
    problems, decisions = Problems(str(path)), _Decisions()
    first_places: dict[int, str] = {}
    # Cells of a table are read without the blanks around them.
    names = [name.strip() for name in manifest.class_names]
    for place, values in rows:
        sample_id, image, given, decision, new = values
        try:
            index = _find(sample_id, image, manifest.names)
            if first_places.setdefault(index, place) != place:
                first = f"(first at {first_places[index]})"
                raise ValueError("sample decided on twice; keep one row", first)
            if split[index] in (TEST, LEFT_OUT):
                where = "of the test set" if split[index] == TEST else "left out already"
                raise ValueError(f"sample that is {where}; delete the row")
            if given != names[labels[index]]:
                raise ValueError(
                    "given_label other than this run's; take data, noise and earlier corrections "
                    "of the run that was reviewed",
                    f"(here {names[labels[index]]})",
                )
            _decide(decisions, index, given, decision, new, names)
        except ValueError as error:
            kind, *details = error.args
            problems.add(kind, " ".join([place, ",".join(values), *details]))
    problems.raise_any()
    return decisions


def _find(sample_id: str, image: str, names: PackedStrings) -> int:
    """The sample of this id and this name.

    Raises:
        ValueError: There is none; the kind of problem, and what is so of this row alone.
    """
    index = int(sample_id) if sample_id.isdecimal() else -1
    if 0 <= index < len(names) and names[index].strip() == image:
        return index
    elsewhere = [str(other) for other, name in enumerate(names) if name.strip() == image]
    if elsewhere:
        raise ValueError(
            "sample_id other than this image's; take the labels that were reviewed, or write the "
            "number that it has here",
            f"(here {elsewhere[0]})",
        )
    raise ValueError("unknown sample; delete the row")


def _decide(
    decisions: _Decisions, index: int, given: str, decision: str, new: str, names: Sequence[str]
) -> None:
    """Note a row's decision.

    Raises:
        ValueError: It is none; the kind of problem.
    """
    if decision not in DECISIONS:
        raise ValueError(f"decision other than {', '.join(DECISIONS)}")
    if decision == CHANGE:
        if new not in names:
            raise ValueError(f"new_label that is no class, expected {', '.join(names)}")
        if new == given:
            raise ValueError("change to the given label; decide keep")
        decisions.changed[index] = names.index(new)
    elif new not in ("", given if decision == KEEP else ""):
        raise ValueError(f"new_label with {decision}, expected none")
    elif decision == UNUSABLE:
        decisions.left_out.append(index)
    else:
        decisions.num_kept += 1


def _require_all_classes(path: Path, manifest: Manifest, labels: NDArray[np.int64]) -> None:
    counts = np.bincount(labels, minlength=manifest.num_classes)
    missing = [manifest.class_names[label] for label in np.flatnonzero(counts == 0)]
    if missing:
        raise DataError(
            f"{path}: leaves no training sample of class {', '.join(missing)}; "
            "each class needs some"
        )
