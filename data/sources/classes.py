"""The classes of a data set: which there are, in which order, and what a label's text means."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError, shorten
from data.sources.table import Row

__all__ = ["check_gaps", "check_names", "find_classes", "in_order", "label_parser", "whole_number"]

logger = logging.getLogger(__name__)

# Tables with gaps hold whole numbers as 3.0.
WHOLE_NUMBER = re.compile(r"(-?[0-9]+)(\.0*)?")


def whole_number(text: str) -> int | None:
    """The number of a text such as ``3`` or ``3.0``; None where it is none."""
    match = WHOLE_NUMBER.fullmatch(text)
    return int(match[1]) if match else None


def in_order(names: Iterable[str], where: str) -> tuple[str, ...]:
    """Names in alphabetical order, which is said from three classes on, then numbers in theirs.

    Names that differ in capitals alone are warned of.

    Args:
        names: The classes that were found.
        where: The data set's name for messages.
    """
    order = sorted(names, key=lambda name: (int(name) if name.isdecimal() else -1, name))
    spellings = Counter(name.casefold() for name in order)
    alike = [name for name in order if spellings[name.casefold()] > 1]
    if alike:
        logger.warning("%s: classes that differ in capitals alone: %s", where, shorten(alike))
    if len(order) > 2 and not all(map(str.isdecimal, order)):
        logger.info(
            "%s: classes are in alphabetical order: %s; quadratic kappa takes it for the order of "
            "the grades, data.class_names gives another", where, shorten(order),
        )  # fmt: skip
    return tuple(order)


def find_classes(rows: Sequence[Row], num_classes: int | None, where: str) -> tuple[str, ...]:
    """The classes of labels that come without a list of them: numbers, or names where most are.

    Args:
        rows: What the label files say.
        num_classes: How many there are, where they are numbers; None = up to the largest number.
        where: The data set's name for messages.
    """
    counts = Counter(text for row in rows for text in (row.label, row.true_label) if text)
    numbers = {text: number for text in counts if (number := whole_number(text)) is not None}
    # Of a few among many of the other kind each is a mistake, which the parser names.
    if 2 * sum(counts[text] for text in numbers) < counts.total():
        return in_order(counts.keys() - numbers.keys(), where)
    if num_classes is None:
        # Each class needs a sample, so a larger number is a mistake, not a class.
        num_classes = max((n for n in numbers.values() if n < len(rows)), default=0) + 1
    return tuple(map(str, range(num_classes)))


def check_names(rows: Sequence[Row], class_names: tuple[str, ...], where: str) -> None:
    """Checks that the names among the labels are those of data.class_names.

    Raises:
        DataError: Naming each other one and where it stands first.
    """
    known, unknown = {"", *class_names}, dict[str, str]()
    for row in rows:
        for text in (row.label, row.true_label):
            if text not in known and whole_number(text) is None:
                unknown.setdefault(text, row.place)
    if unknown:
        found = shorten([f"{text!r} (first {place})" for text, place in unknown.items()])
        raise DataError(
            f"{where}: labels that are not in data.class_names: {found}; "
            f"expected {', '.join(class_names)}"
        )


def check_gaps(
    rows: Sequence[Row],
    columns: Mapping[str, NDArray[np.int64]],
    class_names: tuple[str, ...],
    where: str,
) -> None:
    """Checks that numbers that are classes by themselves leave none out, from 0 to the largest.

    Args:
        rows: (N) rows.
        columns: Their labels and true_labels, (N,) int64 in [0, num_classes), or -1 = unknown.
        class_names: What `find_classes` found.
        where: The data set's name for messages.

    Raises:
        DataError: Naming the largest and where it stands first, or that they do not begin at 0.
    """
    labels, largest = columns["labels"], len(class_names) - 1
    missing = np.flatnonzero(np.bincount(labels, minlength=len(class_names)) == 0).tolist()
    if not missing or whole_number(class_names[0]) is None:
        return
    smallest = int(labels.min())
    if len(missing) == smallest:
        place = rows[int(labels.argmin())].place
        raise DataError(f"{where}: labels begin at {smallest} (first {place}); expected from 0")
    column = "label" if labels.max() == largest else "true_label"
    place = rows[int(columns[f"{column}s"].argmax())].place
    raise DataError(
        f"{where}: no label is {shorten(list(map(str, missing)))}, but the largest in column "
        f"{column} is {largest} (first {place}); expected some of each of 0..{largest}"
    )


def label_parser(class_names: tuple[str, ...], takes_both: bool) -> Callable[[str], int]:
    """A function from a label's text to its number; raises ValueError with the kind of problem.

    Args:
        class_names: The classes in order.
        takes_both: Whether a class that has a name may be written as a number, too. A number that
            is a name by itself is that class alone: of BI-RADS 1 to 5, 1 is the first.
    """
    numbers = {str(number): number for number in range(len(class_names))}
    lookup = {name: number for number, name in enumerate(class_names)}
    takes_both = takes_both and all(whole_number(name) is None for name in class_names)
    are_names, allowed = set(lookup) != set(numbers), f"0..{len(class_names) - 1}"
    if are_names:
        names = ", ".join(class_names)
        allowed = f"{allowed} or {names}" if takes_both else names
    if takes_both:
        lookup = numbers | lookup

    def parse(text: str) -> int:
        number = whole_number(text)
        name = text if number is None or text in lookup else str(number)
        if name in lookup:
            return lookup[name]
        if number is None:
            raise ValueError(f"label that is no number and no class, expected {allowed}")
        if are_names and not takes_both:
            raise ValueError(f"label that is a number among names, expected {allowed}")
        raise ValueError(f"label outside {allowed}")

    return parse
