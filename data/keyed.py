"""Random numbers as a pure function of what they are for, not of when they are drawn.

A stateful generator makes an augmentation depend on the worker, the rank and the order in which
samples arrive. Here each number is a hash of its key (seed, epoch, sample_id, view, draw), so it is
the same on any number of processes and after any resumption, and there is no state to save.

The hash is the output function of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom
number generators, OOPSLA 2014, with the constants of Stafford's variant 13), chained over the parts
of the key. For one key the draws are exactly the SplitMix64 stream that starts at the key's hash.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["uniform"]

# 2^64 divided by the golden ratio, made odd: SplitMix64's increment.
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_WORD = (1 << 64) - 1


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit words; a bijection, so different words never collide."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _words(part: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """A part of the key, one for all samples or one for each, modulo 2^64."""
    if isinstance(part, np.ndarray):
        return part.astype(np.int64).view(np.uint64)
    return np.full(1, part & _WORD, dtype=np.uint64)


def uniform(
    seed: int,
    epoch: int,
    sample_ids: NDArray[np.int64],
    view: int | NDArray[np.int64],
    num_draws: int,
) -> NDArray[np.float64]:
    """Draw uniform numbers for each sample of a batch.

    Args:
        seed: Any integer, taken modulo 2^64.
        epoch: Any integer, taken modulo 2^64.
        sample_ids: (B,) integers. Row i of the result depends on ``sample_ids[i]`` and on no other.
        view: Which of a sample's random variants this is, of all or (B,) of each; any integer,
            taken modulo 2^64.
        num_draws: Numbers for each sample. The first k of them do not depend on ``num_draws``.

    Returns:
        (B, num_draws) float64 in [0, 1), multiples of 2^-53.
    """
    # One-element arrays, since numpy warns of the intended overflow in scalars only.
    state = np.zeros(1, dtype=np.uint64)
    for part in (seed, epoch, view):
        state = _mix((state ^ _words(part)) + _INCREMENT)
    ids = np.asarray(sample_ids, dtype=np.int64).view(np.uint64)
    states = _mix((state ^ ids) + _INCREMENT)
    steps = np.arange(1, num_draws + 1, dtype=np.uint64) * _INCREMENT
    words = _mix(states[:, None] + steps)
    # The upper 53 bits fill a double's significand exactly.
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
