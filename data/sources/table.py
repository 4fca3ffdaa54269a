"""Label files as rows of text: one reader for every CSV, one for plain lists.

What the text means (which label, which file, which split) is decided in `data.sources.assemble`,
where all problems of a data set are gathered; here only a file that cannot be read as a table at
all is an error.
"""

import csv
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data.errors import DataError, shorten

__all__ = ["Row", "read_csv", "read_lines", "read_rows"]

logger = logging.getLogger(__name__)


class Row(NamedTuple):
    """One sample as its label file has it; an empty text says that nothing is known.

    Attributes:
        place: Where it stands, such as ``labels.csv:17``, for messages.
        image: The image's path or name; its suffix may be absent or another than the file's.
        label: A class's name or number.
        true_label: Likewise.
        quality: A whole number, larger is better.
        patient: Whatever samples that must stay together have in common.
        split: train, validation or test.
    """

    place: str
    image: str
    label: str = ""
    true_label: str = ""
    quality: str = ""
    patient: str = ""
    split: str = ""


def read_rows(
    path: Path,
    required: Mapping[str, Sequence[str]],
    optional: Mapping[str, Sequence[str]] | None = None,
    unused_level: int = logging.INFO,
) -> list[Row]:
    """Reads a CSV whose columns are fields of `Row` under other names.

    Args:
        path: The file.
        required: For fields of `Row`, the column names accepted for each; the first found is read.
        optional: Likewise, for fields that stay empty where no such column exists.
        unused_level: How loudly the log names the columns that are not read.

    Raises:
        DataError: If the file is unreadable or a required column is absent.
    """
    header, records = read_csv(path, tuple(required.values()))
    places = {
        field: next((header.index(name) for name in names if name in header), None)
        for field, names in {**required, **(optional or {})}.items()
    }
    unused = [name for index, name in enumerate(header) if name and index not in places.values()]
    if unused:
        logger.log(unused_level, "%s: columns that are not read: %s", path, shorten(unused))
    used = {field: index for field, index in places.items() if index is not None}
    return [
        Row(place=place, **{field: values[index] for field, index in used.items()})
        for place, values in records
    ]


def read_csv(
    path: Path, required: Sequence[Sequence[str]]
) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Reads a comma-separated file with a header; blank lines are skipped, blanks stripped.

    Args:
        path: The file.
        required: Of each of these alternatives the header must have one.

    Returns:
        The header, and for each row its place (``name.csv:line``) and its values, as many as the
        header has.

    Raises:
        DataError: If the file is missing, no text or without rows, lacks a required column,
            names a column twice or has rows of another length.
    """
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    try:
        lines = [(reader.line_num, [value.strip() for value in line]) for line in reader]
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is no CSV ({error})") from error
    lines = [(number, values) for number, values in lines if any(values)]
    if len(lines) < 2:
        raise DataError(f"{path}: has no rows; expected a header and a row for each image")
    header = lines[0][1]
    if any(not set(names) & set(header) for names in required):
        wanted = ", ".join(" or ".join(names) for names in required)
        # As spreadsheets write it where the comma is the decimal mark.
        other = len(header) == 1 and any(mark in header[0] for mark in ";\t|")
        hint = ", separated by commas" if other else ""
        raise DataError(f"{path}: has the columns {', '.join(header)}; required: {wanted}{hint}")
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise DataError(f"{path}: columns given more than once: {', '.join(twice)}")
    ragged = [f"line {n} ({len(values)})" for n, values in lines if len(values) != len(header)]
    if ragged:
        raise DataError(f"{path}: lines without {len(header)} fields: {shorten(ragged)}")
    return header, [(f"{path.name}:{number}", values) for number, values in lines[1:]]


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Reads a plain list: (``name.txt:line``, the stripped line) for each line that is not blank.

    Raises:
        DataError: If the file is missing or no text.
    """
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if line.strip():
            yield f"{path.name}:{number}", line.strip()


def _read_text(path: Path) -> str:
    try:
        # Spreadsheet programs put a byte order mark in front, which is no part of the header.
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file; check data.root, or name the labels in data.labels"
        ) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 text; save it as UTF-8, which spreadsheets call CSV UTF-8"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
