"""Scaling of per-sample statistics by their quantiles.

Shapes: M networks, N samples, S segments (classes), Q quantiles.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["scale_to_unit", "segment_quantiles"]

_CLIP_QUANTILES = (0.005, 0.995)


def scale_to_unit(values: Tensor) -> Tensor:
    """Clip each network's values at their 0.5 % and 99.5 % quantiles, then map these to 0 and 1.

    Args:
        values: (M, N) any float type, finite, N >= 1.

    Returns:
        (M, N) float64 in [0, 1] on the CPU; zeros for a network whose two quantiles coincide.
    """
    values = values.detach().to("cpu", torch.float64)
    # numpy, because torch.quantile refuses more than 2^24 values.
    low, high = torch.from_numpy(np.quantile(values.numpy(), _CLIP_QUANTILES, axis=1)).unsqueeze(2)
    span = high - low
    scaled = (values - low) / torch.where(span > 0, span, 1.0)
    return torch.where(span > 0, scaled.clamp(0, 1), 0.0)


def segment_quantiles(
    values: Tensor, segments: Tensor, num_segments: int, quantiles: tuple[float, ...]
) -> Tensor:
    """Quantiles of each segment's values, interpolated linearly (numpy's default).

    Args:
        values: (M, N) float64.
        segments: (N,) int64 in 0..S-1.
        num_segments: S.
        quantiles: Q numbers in [0, 1].

    Returns:
        (M, S, Q) float64; zero for an empty segment.
    """
    by_value = values.argsort(dim=1)
    order = by_value.gather(1, segments[by_value].argsort(dim=1, stable=True))
    ranked = values.gather(1, order)
    counts = torch.bincount(segments, minlength=num_segments)
    first = (counts.cumsum(0) - counts).unsqueeze(1)
    steps = (counts - 1).clamp_min(0).unsqueeze(1)
    place = steps * torch.tensor(quantiles, dtype=torch.float64)
    below = place.floor().long()
    last = values.shape[1] - 1
    lower = ranked[:, (first + below).clamp_max(last)]
    upper = ranked[:, (first + (below + 1).minimum(steps)).clamp_max(last)]
    result = torch.lerp(lower, upper, (place - below).expand_as(lower))
    return torch.where((counts > 0).unsqueeze(1), result, 0.0)
