"""What a run trains on and is judged by, as the engine is told."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["IntArray", "Loader", "Task", "ViewMaker"]

IntArray = NDArray[np.int64]
Loader = Callable[[Iterable[IntArray]], Iterator[tuple[Tensor, Tensor]]]


class ViewMaker(Protocol):
    """Makes one view of each image of a batch."""

    def __call__(
        self,
        images: Tensor,
        sample_ids: Tensor,
        epoch: int,
        view: int,
        kind: Any,
        repeats: IntArray | None = None,
    ) -> Tensor:
        """(B, 3, S, S) uint8 on the device and (B,) int64 on the CPU -> (B, 3, S, S) float32.

        The result is channels last, the memory format in which convolutions are fastest.
        ``repeats`` (B,) says how often each sample has come up in the epoch before.
        """
        ...


@dataclass(frozen=True)
class Task:
    """What a run trains on and is judged by.

    Attributes:
        labels: (N,) int64 given labels of all samples of the manifest.
        train_ids: (n,) int64 ascending.
        evaluation_ids: Name of the metrics (``validation``, ``eval``) -> ids to predict.
        true_groups: (N,) uint8 true group of each training sample, where noise was injected.
        loader: Batches of ids -> (sample_ids on the CPU, uint8 images).
        views: Makes the views of a batch.
        seed: Seed of the run.
        num_epochs: Epochs of the whole run.
        num_classes: C.
        class_balanced: Whether each given class fills the same share of an epoch's batches.
    """

    labels: Tensor
    train_ids: IntArray
    evaluation_ids: Mapping[str, IntArray]
    true_groups: NDArray[np.uint8] | None
    loader: Loader
    views: ViewMaker
    seed: int
    num_epochs: int
    num_classes: int
    class_balanced: bool = False
