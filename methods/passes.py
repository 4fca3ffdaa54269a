"""Passes with gradient that hold fewer activations, at the price of being repeated.

Activations are held from a pass until its gradient is taken. Here they are dropped and computed
again when they are needed (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016): for
a few images at a time, or block by block. What the losses see is the whole batch, so terms that
relate its samples stay as they are, which would not be so if each piece had a loss of its own.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from methods.weights import ModelError

__all__ = ["pass_in_pieces", "recompute_blocks"]


def pass_in_pieces(encoder: nn.Module, images: Tensor, most: int | None) -> Tensor:
    """Features of all images, with the activations of no more than some held at once.

    Args:
        encoder: (B, 3, S, S) -> (B, F).
        images: (B, 3, S, S).
        most: Images a piece; None = all in one.

    Returns:
        (B, F), differentiable.
    """
    if most is None or len(images) <= most:
        features: Tensor = encoder(images)
        return features
    run = _Recomputed(encoder, encoder) if torch.is_grad_enabled() else encoder
    # Of nearly equal sizes: a last piece of one image would have no statistics of a batch.
    pieces = images.tensor_split(math.ceil(len(images) / most))
    return torch.cat([run(piece) for piece in pieces])


def recompute_blocks(encoder: nn.Module) -> None:
    """From now on hold no activations inside the encoder's blocks, in place.

    A block is a member of an ``nn.Sequential`` that is made of several modules and holds no such
    sequence itself: the residual blocks of torchvision's, timm's and this project's ResNets, the
    layers of a transformer.

    Raises:
        ModelError: There are none.
    """
    blocks = [block for block in _members(encoder) if not any(_members(block))]
    if not blocks:
        raise ModelError("model.recompute: this backbone has no blocks; use micro_batch_size")
    for block in blocks:
        block.forward = _Recomputed(block, block.forward)


def _members(module: nn.Module) -> list[nn.Module]:
    """Members, of several modules each, of the sequences inside a module."""
    sequences = [inner for inner in module.modules() if isinstance(inner, nn.Sequential)]
    return [m for sequence in sequences for m in sequence if any(m.children())]


class _Recomputed:
    """A module's pass without its activations; the repeated one leaves no trace in statistics."""

    def __init__(self, module: nn.Module, run: Callable[..., Tensor]) -> None:
        self.module, self.run = module, run

    def __call__(self, images: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.run(images)
        result: Tensor = checkpoint(
            self.run, images, use_reentrant=False, context_fn=self._contexts
        )
        return result

    def _contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _without_statistics(self.module)


@contextmanager
def _without_statistics(module: nn.Module) -> Iterator[None]:
    """BatchNorm layers in training move their running statistics by nothing."""
    saved = [
        (layer, layer.momentum, layer.num_batches_tracked, layer.num_batches_tracked.clone())
        for layer in module.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        and layer.num_batches_tracked is not None
    ]
    for layer, *_ in saved:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum, counter, count in saved:
            layer.momentum = momentum
            counter.copy_(count)
