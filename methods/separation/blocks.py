"""Samples laid out in blocks of one segment each, with the monomials that a Gaussian needs.

A Gaussian's log-density is linear in the monomials (1, x_i, x_i x_j) of a sample, and the
statistics that an M step needs are weighted sums of the same monomials. So both steps of EM are
batched matrix products with the *design*, the table of monomials. Its samples are sorted by segment
and padded to blocks of ``BLOCK`` rows: a block belongs to one fit, so segments of a million samples
and of ten each cost in proportion to their size, and there is no loop over segments.

A pass over the design takes ``CHUNK`` blocks at a time, whose intermediate results stay in the
processor's cache: three times as fast as all blocks at once.

Shapes: M networks, n samples of this rank, S segments (classes), D features,
F = 1 + D + D(D+1)/2 monomials, B blocks, R = M * S fits.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["BLOCK", "CHUNK", "Layout", "lay_out", "sum_by_fit"]

BLOCK, CHUNK = 256, 64


class Layout(NamedTuple):
    """What `lay_out` returns."""

    design: Tensor  # (B, F, BLOCK) monomials; all zero where a block is not full
    fit: Tensor  # (B,) the fit that a block belongs to, network * S + segment
    slot: Tensor  # (n,) a sample's place among one network's rows
    counts: Tensor  # (R,) samples of each fit on this rank


def lay_out(features: Tensor, segments: Tensor, origin: Tensor) -> Layout:
    """Sort samples into blocks of one segment each and compute their monomials, on the CPU.

    Args:
        features: (M, n, D) any float type, finite.
        segments: (n,) int64 in 0..S-1.
        origin: (M, S, D) float64, a point amid each fit's data to which the features are taken
            relative, because second moments about a far point would cancel.

    Raises:
        ValueError: shapes do not fit together, a segment is out of range, or a feature is not
            finite.
    """
    features = features.detach().to("cpu", torch.float64)
    segments = segments.detach().cpu()
    num_networks, num_segments, num_features = origin.shape
    _check(features, segments, origin)
    counts = torch.bincount(segments, minlength=num_segments)
    num_blocks = (counts + BLOCK - 1) // BLOCK
    # Narrow, because small integers are sorted by counting.
    narrow = segments.to(torch.int16) if num_segments < 2**15 else segments
    order = narrow.argsort(stable=True)
    first = counts.cumsum(0) - counts
    first_slot = (num_blocks.cumsum(0) - num_blocks) * BLOCK
    slot = torch.empty_like(order)
    slot[order] = torch.arange(order.numel()) + (first_slot - first)[segments[order]]

    total = int(num_blocks.sum())
    lower, upper = torch.triu_indices(num_features, num_features) + 1
    num_monomials = 1 + num_features + len(lower)
    design = torch.zeros(num_networks, total, num_monomials, BLOCK, dtype=torch.float64)
    for place in range(1 + num_features):
        column = torch.zeros(num_networks, total * BLOCK, dtype=torch.float64)
        feature = features[..., place - 1] - origin[:, segments, place - 1] if place else 1.0
        column[:, slot] = feature
        design[:, :, place] = column.view(num_networks, total, BLOCK)
    for place, pair in enumerate(zip(lower, upper, strict=True), 1 + num_features):
        torch.mul(design[:, :, pair[0]], design[:, :, pair[1]], out=design[:, :, place])
    segment_of_block = torch.repeat_interleave(torch.arange(num_segments), num_blocks)
    offsets = torch.arange(num_networks).unsqueeze(1) * num_segments
    fit = (offsets + segment_of_block).flatten()
    return Layout(design.flatten(0, 1), fit, slot, counts.repeat(num_networks))


def _check(features: Tensor, segments: Tensor, origin: Tensor) -> None:
    num_networks, num_segments, num_features = origin.shape
    expected = (num_networks, segments.numel(), num_features)
    if tuple(features.shape) != expected:
        raise ValueError(
            f"mixture: features have shape {tuple(features.shape)}; segments and initial means"
            f" make it {expected}"
        )
    if segments.numel() and not 0 <= int(segments.min()) <= int(segments.max()) < num_segments:
        raise ValueError(
            f"mixture: segments lie in {int(segments.min())}..{int(segments.max())};"
            f" expected 0..{num_segments - 1}"
        )
    if not bool(torch.isfinite(features).all()):
        raise ValueError("mixture: features hold NaN or infinite values")


def sum_by_fit(values: Tensor, fit: Tensor, num_fits: int) -> Tensor:
    """Sums (R, ...) of the rows (B, ...) of each fit, in the order of the rows."""
    return values.new_zeros(num_fits, *values.shape[1:]).index_add_(0, fit, values)
