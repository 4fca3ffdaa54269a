"""The manifest: everything known about each sample except its pixels, as flat arrays.

One row a sample; the row number is the ``sample_id`` used everywhere else. Arrays instead of
Python objects, so that worker processes share the memory of their parent: reading a list of
strings touches each one's reference count and copies its page (pytorch#13246).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError

__all__ = [
    "LEFT_OUT", "SPLIT_NAMES", "TEST", "TRAIN", "UNKNOWN", "VALIDATION", "Manifest",
    "PackedStrings",
]  # fmt: skip

TRAIN, VALIDATION, TEST = 0, 1, 2
SPLIT_NAMES = ("train", "validation", "test")
# A sample that a person found unusable keeps its row, and with it every other one its number.
LEFT_OUT = 3
# In true_labels, quality and patients: nothing is known about this sample.
UNKNOWN = -1


class PackedStrings:
    """An immutable sequence of strings in two arrays: the UTF-8 bytes, and where each begins."""

    __slots__ = ("_bytes", "_offsets")

    def __init__(self, packed: NDArray[np.uint8], offsets: NDArray[np.int64]):
        """Wraps arrays that `pack` made.

        Args:
            packed: (num_bytes,) uint8, all strings one after the other.
            offsets: (N + 1,) int64; string i is ``packed[offsets[i]:offsets[i + 1]]``.
        """
        self._bytes, self._offsets = packed, offsets
        packed.flags.writeable = offsets.flags.writeable = False

    @classmethod
    def pack(cls, strings: Iterable[str]) -> "PackedStrings":
        """Packs strings in the order in which they come.

        Raises:
            DataError: If one is a file's name in another encoding than UTF-8.
        """
        encoded: list[bytes] = []
        for string in strings:
            try:
                encoded.append(string.encode())
            except UnicodeEncodeError as error:
                raise DataError(f"{ascii(string)}: a name that is not UTF-8; rename it") from error
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return cls(np.frombuffer(bytearray(b"".join(encoded)), np.uint8), offsets)

    @property
    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The two arrays, as the constructor takes them."""
        return self._bytes, self._offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(f"string {index} of {len(self)}")
        start, stop = self._offsets[index % len(self)], self._offsets[index % len(self) + 1]
        return self._bytes[start:stop].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PackedStrings):
            return NotImplemented
        return np.array_equal(self._offsets, other._offsets) and np.array_equal(
            self._bytes, other._bytes
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"PackedStrings({len(self)} strings, {len(self._bytes)} bytes)"


@dataclass(frozen=True, kw_only=True, eq=False)
class Manifest:
    """What is known about N samples; index-aligned, read-only arrays.

    Attributes:
        names: N names: the image's path relative to the data set's root, or a generated name.
        labels: (N,) int64 in [0, num_classes): the labels given, right or wrong.
        true_labels: (N,) int64 in [-1, num_classes): the right ones; -1 = unknown.
        quality: (N,) int64, at least -1: larger is better, 0 = bad, 1 = good enough to diagnose,
            more where a data set grades finer; -1 = unknown.
        patients: (N,) int64: equal codes belong to one patient (or lesion, or group of
            near-duplicates), who must stay on one side of a split; -1 = unknown.
        patient_names: What the data set calls them, by code; None where that is not known.
        split: (N,) uint8: TRAIN, VALIDATION, TEST, or LEFT_OUT of them all.
        class_names: The classes' names; their order defines the labels.

    Raises:
        ValueError: If an array has another length, dtype or range.
    """

    names: PackedStrings
    labels: NDArray[np.int64]
    true_labels: NDArray[np.int64]
    quality: NDArray[np.int64]
    patients: NDArray[np.int64]
    split: NDArray[np.uint8]
    class_names: tuple[str, ...]
    patient_names: PackedStrings | None = None

    def __post_init__(self) -> None:
        self._check("labels", np.int64, 0, self.num_classes - 1)
        self._check("true_labels", np.int64, UNKNOWN, self.num_classes - 1)
        self._check("quality", np.int64, UNKNOWN, None)
        self._check("patients", np.int64, UNKNOWN, None)
        self._check("split", np.uint8, TRAIN, LEFT_OUT)

    def _check(self, name: str, dtype: type[np.generic], low: int, high: int | None) -> None:
        column = getattr(self, name)
        if column.shape != (len(self),) or column.dtype != dtype:
            raise ValueError(
                f"{name}: {column.dtype} {column.shape}, expected {dtype.__name__} ({len(self)},)"
            )
        wrong = column < low if high is None else (column < low) | (column > high)
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"{name}[{first}] is {column[first]}, expected {low}..{high or ''}")
        column.flags.writeable = False

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_classes(self) -> int:
        """The number of classes, those without samples included."""
        return len(self.class_names)

    def where(self, split: int) -> NDArray[np.int64]:
        """The sample_ids of a split, ascending: (num_in_split,) int64."""
        return np.flatnonzero(self.split == split)

    def with_split(self, split: NDArray[np.uint8]) -> "Manifest":
        """The same samples with other splits, (N,) uint8."""
        return replace(self, split=split)

    def select(self, sample_ids: NDArray[np.int64]) -> "Manifest":
        """The manifest of these samples alone, in this order; they are numbered anew.

        Args:
            sample_ids: (M,) int64 in [0, N).
        """
        columns: dict[str, Any] = {
            field.name: getattr(self, field.name)[sample_ids]
            for field in fields(self)
            if field.name not in ("names", "class_names", "patient_names")
        }
        names = PackedStrings.pack(self.names[index] for index in sample_ids)
        return replace(self, names=names, **columns)
