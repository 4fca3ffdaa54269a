"""What is left of a trained method where it is only to predict: the networks and their mean."""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.networks import Network

__all__ = ["Deployed"]


class Deployed(nn.Module):
    """Decoded images in, mean class probabilities out; always in eval mode.

    The heads of contrastive methods are left out, and passes are taken whole. ``mean`` and ``std``
    are part of the state, so that loading weights brings their normalisation with them.

    Args:
        networks: The networks that predict; copied.
        mean: Subtracted from red, green, blue in [0, 1].
        std: Divides red, green, blue afterwards.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        networks: Sequence[Network],
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(copy.deepcopy(network) for network in networks)
        for network in self.networks:
            assert isinstance(network, Network)
            network.projector = network.predictor = None
            network.micro_batch_size = None
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None])
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Deployed":
        """Stay in eval mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, S, S) uint8, red, green, blue -> (N, C) float32 class probabilities."""
        normalised = (images.float() / 255 - self.mean) / self.std
        logits = [network(normalised).logits.float() for network in self.networks]
        return torch.stack([F.softmax(values, dim=-1) for values in logits]).mean(0)
