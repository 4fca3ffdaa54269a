"""Quantiles of per-sample statistics over all ranks, and scaling by them.

Each rank passes its own samples; the result is that of all ranks' samples together, to the last
bit. Nothing is sorted or gathered: the wanted values are found digit by digit from counts, which
can be added up over ranks, and a sum of integers is the same in any order.

Shapes: M networks, n samples of this rank, S segments (classes), Q quantiles.
"""

import torch
from torch import Tensor

from engine import collectives

__all__ = ["scale_to_unit", "segment_quantiles"]

_CLIP_QUANTILES = (0.005, 0.995)
# Bits of a value told apart in one pass over the samples, and all counts of a pass: 8 MB.
_MAX_DIGIT_BITS, _MAX_TABLE_BITS = 12, 20
_SIGN = torch.iinfo(torch.int64).min


def scale_to_unit(values: Tensor) -> Tensor:
    """Clip each network's values at their 0.5 % and 99.5 % quantiles, then map these to 0 and 1.

    Args:
        values: (M, n) any float type, finite; n >= 1 on some rank.

    Returns:
        (M, n) float64 in [0, 1] on the CPU; zeros for a network whose two quantiles coincide.
    """
    values = values.detach().to("cpu", torch.float64)
    everywhere = torch.zeros(values.shape[1], dtype=torch.int64)
    low, high = segment_quantiles(values, everywhere, 1, _CLIP_QUANTILES).unbind(-1)
    span = high - low
    scaled = (values - low) / torch.where(span > 0, span, 1.0)
    return torch.where(span > 0, scaled.clamp_(0, 1), 0.0)


def segment_quantiles(
    values: Tensor, segments: Tensor, num_segments: int, quantiles: tuple[float, ...]
) -> Tensor:
    """Quantiles of each segment's values, interpolated linearly (numpy's default).

    Args:
        values: (M, n) float64, finite.
        segments: (n,) int64 in 0..S-1.
        num_segments: S.
        quantiles: Q numbers in [0, 1].

    Returns:
        (M, S, Q) float64; zero for an empty segment.
    """
    counts = collectives.all_reduce_sum(torch.bincount(segments, minlength=num_segments))
    last = (counts - 1).clamp_min(0).unsqueeze(1)
    place = last * torch.tensor(quantiles, dtype=torch.float64)
    below = place.floor().long()
    places = torch.cat([below, (below + 1).minimum(last)], dim=1)
    lower, upper = _order_statistics(values, segments, places).chunk(2, dim=-1)
    result = torch.lerp(lower, upper, (place - below).expand_as(lower))
    return torch.where((counts > 0).unsqueeze(1), result, 0.0)


def _order_statistics(values: Tensor, segments: Tensor, places: Tensor) -> Tensor:
    """The values at given places of each segment's ascending order, by radix selection.

    A value's bits, read as an unsigned number, ascend with the value once the sign bit is turned
    over and, for a negative one, all others too. A pass counts the candidates of each group by the
    next digit, which tells the digit of the value at the wanted place; those that have it are the
    candidates of the next pass.

    Args:
        values: (M, n) float64.
        segments: (n,) int64 in 0..S-1.
        places: (S, T) int64, from 0.

    Returns:
        (M, S, T) float64; anything for an empty segment.
    """
    num_networks, (num_segments, num_wanted) = len(values), places.shape
    bits = values.contiguous().view(torch.int64).flatten()
    keys = bits ^ ((bits >> 63) | _SIGN)
    # Candidates and wanted values of one group agree in network, segment and the digits so far.
    first_group = torch.arange(num_networks).unsqueeze(1) * num_segments
    groups = (first_group + segments).flatten()
    group = (first_group + torch.arange(num_segments)).flatten().repeat_interleave(num_wanted)
    place = places.flatten().repeat(num_networks)
    found = torch.zeros_like(place)
    num_groups, shift = num_networks * num_segments, 64
    while shift:
        spare = _MAX_TABLE_BITS - num_groups.bit_length()
        width = min(max(spare, 1), _MAX_DIGIT_BITS, shift)
        shift -= width
        cells = (groups << width) | ((keys >> shift) & ((1 << width) - 1))
        counts = torch.bincount(cells, minlength=num_groups << width)
        up_to = collectives.all_reduce_sum(counts).view(num_groups, -1).cumsum(1)[group]
        digit = (up_to <= place.unsqueeze(1)).sum(1).clamp_max((1 << width) - 1)
        passed = up_to.gather(1, (digit - 1).clamp_min(0).unsqueeze(1)).squeeze(1)
        place = place - torch.where(digit > 0, passed, 0)
        found = (found << width) | digit
        kept, group = ((group << width) | digit).unique(return_inverse=True)
        new_group = torch.full_like(counts, -1)
        new_group[kept] = torch.arange(len(kept))
        groups = new_group[cells]
        is_candidate = groups >= 0
        keys, groups, num_groups = keys[is_candidate], groups[is_candidate], len(kept)
    bits = found ^ (~(found >> 63) | _SIGN)
    return bits.view(torch.float64).view(num_networks, num_segments, num_wanted)
