"""Test-time views: the turned and mirrored images that a run has met in training.

Exact, without resampling or chance, so a prediction depends on the image alone: not on its place in
a list nor on a seed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from data.views import ViewConfig

__all__ = ["Turn", "known_turns"]


class Turn(NamedTuple):
    """One of the eight symmetries of a square.

    Attributes:
        quarters: Quarter turns to the left.
        mirrored: Whether left and right are swapped before.
    """

    quarters: int = 0
    mirrored: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) of any dtype, turned."""
        return torch.rot90(images.flip(3) if self.mirrored else images, self.quarters, (2, 3))


def known_turns(trained_on: Sequence[ViewConfig]) -> list[Turn]:
    """The symmetries that lie within what a run's views do to an image, the plain image first.

    A network that never saw an ultrasound image upside down has no opinion worth averaging on one.

    Args:
        trained_on: The kinds of view that the run has trained on.
    """
    horizontal = any(view.horizontal_flip > 0 for view in trained_on)
    vertical = any(view.vertical_flip > 0 for view in trained_on)
    rotation = max((view.rotation for view in trained_on), default=0.0)
    known = {
        Turn(): True,
        Turn(mirrored=True): horizontal,
        Turn(2, mirrored=True): vertical,
        Turn(2): (horizontal and vertical) or rotation >= 180,
        Turn(1): rotation >= 90,
        Turn(3): rotation >= 90,
        Turn(1, mirrored=True): rotation >= 90 and (horizontal or vertical),
        Turn(3, mirrored=True): rotation >= 90 and (horizontal or vertical),
    }
    return [turn for turn, is_known in known.items() if is_known]
