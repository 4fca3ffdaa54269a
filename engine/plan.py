"""The plan: which samples are in which batch, as a pure function of what the run is.

The *global* batch is the unit. Its samples depend on the seed, the epoch, the training samples (and
their given labels, where classes are balanced) and the global batch size, and on nothing else: not
on the number of processes, of workers, or on where a run was resumed. A rank takes its slice of
each global batch, so going on at step k is
``rank_slice(global_batches(...)[k:], ...)``: there is no sampler state to restore.
"""

import numpy as np
from numpy.typing import NDArray

from engine.config import ConfigError

__all__ = [
    "global_batches",
    "num_steps",
    "per_rank_batch_size",
    "rank_slice",
    "repeat_numbers",
    "whole_batches",
]

IntArray = NDArray[np.int64]

# Keep the streams of shuffles and of classes' orders apart from other uses of the same seed.
_SHUFFLE_STREAM, _CLASS_STREAM = 0x5EED, 0xC1A5


def num_steps(num_samples: int, batch_size: int) -> int:
    """Optimiser steps of one epoch: the number of full global batches.

    What is left over after the last full batch is left out of that epoch's training (other samples
    in each epoch), so that every step has the same shape on every rank. Statistics are taken over
    all samples, in :func:`whole_batches`.

    Raises:
        ConfigError: There are fewer samples than one global batch.
    """
    if num_samples < batch_size:
        raise ConfigError(
            f"optim.batch_size: {batch_size} is more than the {num_samples} training samples; "
            f"at most {num_samples} is possible"
        )
    return num_samples // batch_size


def per_rank_batch_size(batch_size: int, num_ranks: int) -> int:
    """Samples of a global batch that each rank takes.

    Raises:
        ConfigError: The global batch cannot be divided evenly, or leaves a rank fewer than two
            samples (of which BatchNorm could make no statistics).
    """
    if batch_size % num_ranks or batch_size < 2 * num_ranks:
        below = max(batch_size // num_ranks, 2) * num_ranks
        above = max(-(-batch_size // num_ranks), 2) * num_ranks
        nearest = " or ".join(str(size) for size in sorted({below, above}))
        raise ConfigError(
            f"optim.batch_size: {batch_size} samples cannot be shared evenly by {num_ranks} "
            f"processes with at least 2 each; nearest possible: {nearest}"
        )
    return batch_size // num_ranks


def global_batches(
    seed: int,
    epoch: int,
    sample_ids: IntArray,
    batch_size: int,
    labels: IntArray | None = None,
) -> IntArray:
    """The global batches of an epoch in the order in which they are trained on.

    Args:
        seed: Seed of the run.
        epoch: Epoch from 0; each has its own shuffle.
        sample_ids: (N,) int64, the training samples in ascending order.
        batch_size: Size of the global batch, the sum over ranks.
        labels: (N,) int64 given label of each sample, to fill the same number of batches with equal
            shares of the classes that occur; None = every sample is as likely as any other.

    Returns:
        (steps, batch_size) int64 sample ids; each id at most once. With labels, the classes'
        numbers of places in the epoch differ by at most 1, and so do the numbers of times that two
        samples of one class come up, in an epoch and in any number of successive ones; a batch of
        its own may be less even.

    Raises:
        ConfigError: There are fewer samples than one global batch.
    """
    steps = num_steps(len(sample_ids), batch_size)
    generator = np.random.default_rng(np.random.SeedSequence([seed, epoch, _SHUFFLE_STREAM]))
    if labels is None:
        order = generator.permutation(len(sample_ids))
        chosen = sample_ids[order[: steps * batch_size]]
    else:
        chosen = _equal_shares(seed, epoch, sample_ids, labels, steps * batch_size)
        chosen = generator.permutation(chosen)
    return chosen.reshape(steps, batch_size)


def _equal_shares(
    seed: int, epoch: int, sample_ids: IntArray, labels: IntArray, num_places: int
) -> IntArray:
    """(num_places,) int64 sample ids, as many of each class that occurs.

    A class has its samples in an order of the whole run and each epoch goes on in it where the one
    before has ended, so that none waits longer than any other. Classes take turns with the places
    left over.
    """
    classes = np.unique(labels)
    parts = []
    for turn, label in enumerate(classes):
        # The sum of such shares over all turns is exactly what there is to share.
        begin, end = ((k * num_places + turn) // len(classes) for k in (epoch, epoch + 1))
        stream = np.random.SeedSequence([seed, int(label), _CLASS_STREAM])
        order = np.random.default_rng(stream).permutation(sample_ids[labels == label])
        parts.append(order[np.arange(begin, end) % len(order)])
    return np.concatenate(parts)


def repeat_numbers(batches: IntArray) -> IntArray:
    """How often the sample at each place of an epoch has come up before: like ``batches``, int64.

    Batches ((5, 7), (5, 5)) give ((0, 0), (1, 2)).
    """
    ids = batches.ravel()
    order = np.argsort(ids, kind="stable")
    _, first, inverse = np.unique(ids[order], return_index=True, return_inverse=True)
    numbers = np.empty_like(ids)
    numbers[order] = np.arange(len(ids)) - first[inverse]
    return numbers.reshape(batches.shape)


def rank_slice(batches: IntArray, rank: int, num_ranks: int) -> IntArray:
    """This rank's contiguous part of each global batch: (steps, batch_size / num_ranks) int64."""
    size = per_rank_batch_size(batches.shape[1], num_ranks)
    return batches[:, rank * size : (rank + 1) * size]


def whole_batches(
    sample_ids: IntArray, batch_size: int, rank: int, num_ranks: int
) -> list[IntArray]:
    """Batches for evaluation: every id exactly once over all ranks, no padding.

    Batches are cut before they are dealt out, each whole to one rank, so a sample is evaluated in
    the same company whatever the number of processes and its result is the same to the last bit.

    Args:
        sample_ids: (N,) int64.
        batch_size: Samples a batch; the last one may be smaller.
        rank: This process.
        num_ranks: Number of processes.

    Returns:
        This rank's batches, (<= batch_size,) int64 each; possibly none.
    """
    batches = np.split(sample_ids, range(batch_size, len(sample_ids), batch_size))
    return [batch for batch in batches[rank::num_ranks] if len(batch)]
