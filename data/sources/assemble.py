"""From rows of text to a checked manifest: the part that every data set in files shares."""

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.errors import DataError, Problems, shorten
from data.images import FileImages
from data.manifest import SPLIT_NAMES, TEST, TRAIN, UNKNOWN, VALIDATION, Manifest, PackedStrings
from data.sources.classes import check_gaps, check_names, find_classes, label_parser, whole_number
from data.sources.finder import IMAGE_SUFFIXES, ImageFinder, compose
from data.sources.source import Source
from data.sources.table import Row

__all__ = ["assemble", "data_root", "label_file"]

logger = logging.getLogger(__name__)

SPLITS = {
    "train": TRAIN,
    "val": VALIDATION,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "test": TEST,
}


def data_root(config: DataConfig) -> Path:
    """The data set's folder.

    Raises:
        DataError: If there is no such folder.
    """
    if config.root is None or not config.root.is_dir():
        raise DataError(f"data.root: {config.root} is no folder")
    return config.root


def label_file(config: DataConfig, usual: str) -> Path:
    """The label file: the configured one, or the source's usual one; relative to the root."""
    return data_root(config) / (config.labels or usual)


def assemble(
    rows: Sequence[Row],
    config: DataConfig,
    class_names: tuple[str, ...] | None = None,
    folders: tuple[str, ...] = ("",),
) -> Source:
    """Checks rows and makes a data set of them.

    Args:
        rows: What the label files say.
        config: The data section.
        class_names: The classes in the order of their numbers, where data.class_names is unset;
            None = found in the labels: their numbers, or, where most of them are none, their names
            in alphabetical order.
        folders: Where images are looked for, relative to the root.

    Raises:
        DataError: Naming all problems: images that are missing (unless they are quarantined),
            ambiguous or listed twice, labels or other values that are not allowed, patients on
            two sides of a split.
    """
    root = data_root(config)
    problems = Problems(str(root))
    rows = [_compose(row) for row in rows]
    if config.class_names is not None:
        check_names(rows, config.class_names, str(root))
    given = config.class_names or class_names
    class_names = given or find_classes(rows, config.num_classes, str(root))
    if config.num_classes not in (None, len(class_names)):
        for name in class_names:
            problems.add(f"data.num_classes is {config.num_classes}, but the classes are", name)
    finder = ImageFinder(root, folders)
    names = _locate(rows, finder, problems)
    lost = [row for row, name in zip(rows, names, strict=True) if not name]
    offenders: defaultdict[str, list[str]] = defaultdict(list)
    for row in lost:
        offenders[_why_lost(row, finder, folders)].append(f"{row.place} {row.image!r}")
    if config.on_unreadable == "error":
        problems.add_all(offenders)
    parse_label = label_parser(class_names, takes_both=given is not None)
    columns = _parse_columns(rows, parse_label, problems)
    problems.raise_any()
    if given is None and config.num_classes is None:
        check_gaps(rows, columns, class_names, str(root))
    if len(class_names) < 2:
        raise DataError(
            f"{root}: {len(rows)} images of one class, {class_names[0]}; expected two classes or "
            "more. Check data.root and the labels"
        )
    if config.on_unreadable == "quarantine":
        for kind, left_out in offenders.items():
            logger.warning("%s: left out, %s: %s", root, kind, shorten(left_out))
    every = Manifest(names=PackedStrings.pack(names), class_names=class_names, **columns)
    manifest = every.select(np.flatnonzero([bool(name) for name in names]))
    reader = FileImages(root, manifest.names, config.image_size, config.resize, config.crop)
    return Source(manifest, reader, tuple(row.image for row in lost))


def _compose(row: Row) -> Row:
    """The row with equal texts for what looks the same; the image's name is the finder's matter."""
    if (row.label + row.true_label + row.patient).isascii():
        return row
    texts = {field: compose(getattr(row, field)) for field in ("label", "true_label", "patient")}
    return row._replace(**texts)


def _locate(rows: Sequence[Row], finder: ImageFinder, problems: Problems) -> list[str]:
    """Each row's image file, relative to the root; empty where there is none."""
    names: list[str] = []
    places: dict[str, str] = {}
    for row in rows:
        matches = finder.find(row.image) if row.image else []
        if len(matches) > 1:
            offender = f"{row.place} {row.image!r} ({', '.join(matches)})"
            problems.add("name that fits more than one file", offender)
        elif matches:
            first = places.setdefault(finder.place(matches[0]), row.place)
            if first != row.place:
                problems.add("same image twice", f"{row.place} {row.image!r} (also {first})")
        names.append(matches[0] if matches else "")
    return names


def _why_lost(row: Row, finder: ImageFinder, folders: tuple[str, ...]) -> str:
    """The kind of problem of a row without an image."""
    if finder.is_passed_over(row.image):
        return f"image with a suffix that is not read, expected {', '.join(IMAGE_SUFFIXES)}"
    hint = ", where / separates folders, not \\" if "\\" in row.image else ""
    return f"no such image in {', '.join(folder or '.' for folder in folders)}{hint}"


def _parse_columns(
    rows: Sequence[Row], parse_label: Callable[[str], int], problems: Problems
) -> dict[str, Any]:
    """The manifest's arrays, (N) each, and names; what is wrong goes to `problems`."""
    patients, patient_names = _encode([row.patient for row in rows])
    # Where no row has a split, all are training samples until splits are carved.
    no_splits = TRAIN if not any(row.split for row in rows) else None
    split = _parse(rows, "split", _parse_split, problems, empty=no_splits).astype(np.uint8)
    _check_patients(rows, patients, split, problems)
    return {
        "labels": _parse(rows, "label", parse_label, problems),
        "true_labels": _parse(rows, "true_label", parse_label, problems, empty=UNKNOWN),
        "quality": _parse(rows, "quality", _parse_quality, problems, empty=UNKNOWN),
        "patients": patients,
        "patient_names": patient_names,
        "split": split,
    }


def _parse_quality(text: str) -> int:
    quality = whole_number(text)
    if quality is None or quality < 0:
        raise ValueError("quality that is no whole number from 0")
    return quality


def _parse_split(text: str) -> int:
    if text.lower() not in SPLITS:
        raise ValueError("split other than train, val or test")
    return SPLITS[text.lower()]


def _parse(
    rows: Sequence[Row],
    field: str,
    parse: Callable[[str], int],
    problems: Problems,
    empty: int | None = None,
) -> NDArray[np.int64]:
    """Parses one field of all rows; what is wrong goes to `problems`.

    Args:
        rows: (N) rows.
        field: The field's name.
        parse: From text to number; raises ValueError with the kind of problem.
        problems: Gathers the offenders.
        empty: The value of an empty text; None = `parse` decides, and an empty label is a problem.

    Returns:
        (N,) int64.
    """
    values = np.empty(len(rows), np.int64)
    for index, row in enumerate(rows):
        text = getattr(row, field)
        try:
            values[index] = empty if not text and empty is not None else parse(text)
        except ValueError as error:
            values[index] = 0
            kind = f"empty {field}" if not text else str(error)
            problems.add(kind, f"{row.place} {text!r}" if text else row.place)
    return values


def _encode(texts: Sequence[str]) -> tuple[NDArray[np.int64], PackedStrings]:
    """Numbers distinct texts by first appearance; an empty one is unknown."""
    codes: dict[str, int] = {"": UNKNOWN}
    numbers = np.array([codes.setdefault(text, len(codes) - 1) for text in texts], np.int64)
    return numbers, PackedStrings.pack(list(codes)[1:])


def _check_patients(
    rows: Sequence[Row], patients: NDArray[np.int64], split: NDArray[np.uint8], problems: Problems
) -> None:
    """Notes each patient (or other group) with samples in two splits."""
    known = patients != UNKNOWN
    pairs, first = np.unique(np.stack([patients, split])[:, known], axis=1, return_index=True)
    places = np.flatnonzero(known)[first]
    for one, other in zip(range(pairs.shape[1]), range(1, pairs.shape[1]), strict=False):
        if pairs[0, one] == pairs[0, other]:
            sides = " and ".join(
                f"{SPLIT_NAMES[pairs[1, at]]} ({rows[places[at]].place})" for at in (one, other)
            )
            problems.add("patient or group in two splits", f"{rows[places[one]].patient}: {sides}")
