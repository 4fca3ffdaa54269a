"""The one error that a data set can cause and its user can mend."""

from collections.abc import Sequence

__all__ = ["DataError", "shorten"]

MAX_NAMED = 10


class DataError(ValueError):
    """Something is wrong with the data: which file, what was found, what is allowed.

    The message is written for the user. A single finding is one line; the findings of a whole
    check come in one error, a line for each kind.
    """


def shorten(offenders: Sequence[str], limit: int = MAX_NAMED) -> str:
    """Names the first offenders and counts the rest: ``a, b and 3 more``.

    Args:
        offenders: What to name, in the order in which it was found.
        limit: How many are named.
    """
    named = ", ".join(offenders[:limit])
    num_left = len(offenders) - limit
    return f"{named} and {num_left} more" if num_left > 0 else named
