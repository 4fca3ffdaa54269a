"""A first-in-first-out queue of past keys, the same on every rank."""

import torch
from torch import Tensor, nn

from engine import collectives

__all__ = ["KeyQueue"]


class KeyQueue(nn.Module):
    """A ring of the newest K samples' keys and class probabilities (He et al., MoCo, CVPR 2020).

    Keys of all ranks are gathered before they enter, so every rank holds the same queue, in the
    order of the global batches. What enters has no gradient. The queue is part of the state that
    checkpoints carry.

    Args:
        size: K, samples held.
        num_views: V, keys of each sample.
        dim: D of a key.
        num_classes: C.
    """

    keys: Tensor
    probabilities: Tensor
    position: Tensor
    num_filled: Tensor

    def __init__(self, size: int, num_views: int, dim: int, num_classes: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("keys", torch.zeros(num_views, size, dim))
        self.register_buffer("probabilities", torch.zeros(size, num_classes))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))
        self.register_buffer("num_filled", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enter(self, keys: Tensor, probabilities: Tensor) -> Tensor:
        """Put the global batch in, over what is oldest.

        Args:
            keys: (V, B, D) float of this rank, the same B on all; at most K samples on all ranks
                together, or some would lose their places at once.
            probabilities: (B, C) float.

        Returns:
            (B,) int64, the places of this rank's samples. With K = 5, the second batch of 3 is in
            places 3, 4, 0.
        """
        num_new = keys.shape[1] * collectives.num_ranks()
        places = (self.position + torch.arange(num_new, device=keys.device)) % self.size
        by_sample = collectives.gather_equal_rows(keys.transpose(0, 1).contiguous())
        self.keys[:, places] = by_sample.transpose(0, 1).to(self.keys.dtype)
        gathered = collectives.gather_equal_rows(probabilities)
        self.probabilities[places] = gathered.to(self.probabilities.dtype)
        self.position.copy_((self.position + num_new) % self.size)
        self.num_filled.copy_((self.num_filled + num_new).clamp_max(self.size))
        start = collectives.rank() * keys.shape[1]
        return places[start : start + keys.shape[1]]

    @property
    def filled(self) -> Tensor:
        """(K,) bool: places that hold a sample."""
        return torch.arange(self.size, device=self.keys.device) < self.num_filled
