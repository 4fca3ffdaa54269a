"""The moving average of a network, which labels and predicts."""

import copy
from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.networks import Network

__all__ = ["MomentumCopy"]


class MomentumCopy(nn.Module):
    """Exponential moving average of a network; always in eval mode, never with gradient.

    Floating-point parameters and buffers are averaged, integer buffers copied.

    Args:
        network: Network to follow; the copy starts equal to it.
        decay: Share of the old average kept at each update, in [0, 1); 0 follows exactly.
        warm_start: Keep at most ``1 - 1 / (n + 1)`` at update n = 1, 2, ..., so that the average is
            the mean of all networks so far while those are few (Tarvainen and Valpola, Mean
            Teacher, NeurIPS 2017).
    """

    num_updates: Tensor

    def __init__(self, network: Network, decay: float, *, warm_start: bool = False) -> None:
        super().__init__()
        self.decay, self.warm_start = decay, warm_start
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        # The same where no GPU has to be waited for; None = to be asked for.
        self._count: int | None = None
        self.copy = copy.deepcopy(network).requires_grad_(False).eval()
        if network.compile_mode is not None:  # deepcopy leaves compiled passes out
            self.copy.compile_encoder(network.compile_mode)
        # Layers that keep what they have made of their weights in eval mode, as some of timm do.
        self._keeps = any(type(m).train is not nn.Module.train for m in self.copy.modules())

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._count = None

    def train(self, mode: bool = True) -> "MomentumCopy":
        """Stay in eval mode whatever the owner does."""
        return super().train(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Set average := decay * average + (1 - decay) * network."""
        share = 1 - self.decay
        if self.warm_start:
            if self._count is None:
                self._count = int(self.num_updates)
            self._count += 1
            share = max(share, 1 / (self._count + 1))
        self.num_updates += 1
        for dtype, (averages, currents) in _by_dtype(self.copy, network).items():
            if dtype.is_floating_point:
                torch._foreach_lerp_(averages, currents, share)
            else:
                torch._foreach_copy_(averages, currents)
        if self._keeps:
            self.copy.train()
            self.copy.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Class probabilities (B, C) float32 of the averaged network."""
        return F.softmax(self.copy(images).logits.float(), dim=-1)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """L2-normalised embedding (B, D) float32 by the averaged encoder and projector."""
        embedding: Tensor = self.copy.project(self.copy(images).features)
        return embedding


def _by_dtype(*modules: nn.Module) -> dict[torch.dtype, tuple[list[Tensor], ...]]:
    """State of modules of one structure, each tensor once, those of a type together.

    A GPU takes each list in a few kernels instead of one for each tensor.
    """
    # Buffers that are no state may be remade, in another shape, in a pass that only one has made.
    states = [
        {id(tensor): tensor for tensor in module.state_dict(keep_vars=True).values()}.values()
        for module in modules
    ]
    lists: defaultdict[torch.dtype, tuple[list[Tensor], ...]]
    lists = defaultdict(lambda: tuple([] for _ in modules))
    for tensors in zip(*states, strict=True):
        for found, tensor in zip(lists[tensors[0].dtype], tensors, strict=True):
            found.append(tensor)
    return lists
