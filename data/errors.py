"""The one error that a data set can cause and its user can mend."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

__all__ = ["DataError", "Problems", "shorten"]

MAX_NAMED = 10


class DataError(ValueError):
    """Something is wrong with the data: which file, what was found, what is allowed.

    The message is written for the user. A single finding is one line; the findings of a whole
    check come in one error, a line for each kind.
    """


class Problems:
    """What a check found, kind by kind, so that the user mends everything in one go."""

    def __init__(self, where: str):
        """Starts with nothing found.

        Args:
            where: The data set or file that is checked; the message opens with it.
        """
        self._where = where
        self._offenders: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, offender: str) -> None:
        """Notes one offender, such as ``labels.csv:17 '9'``, under a kind of problem."""
        self._offenders[kind].append(offender)

    def add_all(self, offenders: Mapping[str, Sequence[str]]) -> None:
        """Notes offenders by their kinds."""
        for kind, found in offenders.items():
            self._offenders[kind] += found

    def raise_any(self) -> None:
        """Does nothing where nothing was found.

        Raises:
            DataError: Naming each kind, its number and its first offenders.
        """
        lines = [
            f"{kind} ({len(offenders)}): {shorten(offenders)}"
            for kind, offenders in self._offenders.items()
        ]
        if len(lines) == 1:
            raise DataError(f"{self._where}: {lines[0]}")
        if lines:
            raise DataError("\n  ".join([f"{self._where}:", *lines]))


def shorten(offenders: Sequence[str], limit: int = MAX_NAMED) -> str:
    """Names the first offenders and counts the rest: ``a, b and 3 more``.

    Args:
        offenders: What to name, in the order in which it was found.
        limit: How many are named.
    """
    named = ", ".join(offenders[:limit])
    num_left = len(offenders) - limit
    return f"{named} and {num_left} more" if num_left > 0 else named
