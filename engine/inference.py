"""Predictions of images that no run has seen, with how sure they are, on any number of processes.

Shapes: N images, B batch, M networks, V views, C classes, K statistics.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from engine import collectives
from methods.method import Method

__all__ = ["Predictions", "combine", "predict"]

ImageBatch = tuple[Tensor, Tensor, Sequence[str]]


@dataclass(frozen=True)
class Predictions:
    """What is known of N images, the same on every rank; rows of unread images are NaN.

    Attributes:
        probabilities: (N, C) float32, mean over networks and views.
        entropy: (N,) float64 in [0, 1], see :func:`combine`.
        disagreement: (N,) float64 in [0, 1], see :func:`combine`.
        statistics: (N, K) float64.
        errors: Place of an image that could not be read -> why.
    """

    probabilities: NDArray[np.float32]
    entropy: NDArray[np.float64]
    disagreement: NDArray[np.float64]
    statistics: NDArray[np.float64]
    errors: dict[int, str]


def combine(members: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean prediction of several networks and views, and how unsure it is.

    Args:
        members: (M * V, B, C) float32 class probabilities.

    Returns:
        The mean (B, C) float32; its entropy H(mean) (B,) float64; and the disagreement (B,)
        float64, the mutual information H(mean) - mean H of Houlsby et al. (arXiv:1112.5745): the
        part of the entropy that comes from members contradicting each other, not from each of them
        being unsure. Both are shares of log C, in [0, 1]; the disagreement of one member is 0.
    """
    mean = members.mean(0)
    largest = np.log(members.shape[-1])
    total, own = (
        torch.special.entr(values.double()).sum(-1) / largest for values in (mean, members)
    )
    return mean, total, (total - own.mean(0)).clamp_min(0)


@torch.no_grad()
def predict(
    accelerator: Accelerator,
    method: Method,
    batches: Iterable[ImageBatch],
    views: Callable[[Tensor], Sequence[Tensor]],
    statistics: Callable[[Tensor], Tensor],
    shape: tuple[int, int],
) -> Predictions:
    """Predict images, each on one rank; a collective call.

    Args:
        accelerator: Device, precision and processes.
        method: A trained method.
        batches: This rank's: places (B,) int64, images (B, 3, S, S) uint8, and a message for each
            that could not be read, else an empty text. All ranks' batches hold each place once.
        views: (B, 3, S, S) uint8 -> V times (B, 3, S, S) float32, what the networks see.
        statistics: (B, 3, S, S) uint8 -> (B, K) float64.
        shape: N and the number of this rank's images.
    """
    method.to(accelerator.device).to(memory_format=torch.channels_last).eval()
    num_images, num_mine = shape
    places: list[Tensor] = []
    rows: list[Tensor] = []
    errors: dict[int, str] = {}
    hidden = None if accelerator.is_main_process else True
    with tqdm(total=num_mine, desc="predicting", unit="image", disable=hidden) as bar:
        for indices, images, messages in batches:
            images = images.to(accelerator.device, non_blocking=True)
            seen = [view.contiguous(memory_format=torch.channels_last) for view in views(images)]
            with accelerator.autocast():
                members = torch.cat([method(view) for view in seen])
            mean, entropy, disagreement = combine(members)
            uncertainty = torch.stack([entropy, disagreement], dim=1)
            rows.append(torch.cat([mean.double(), uncertainty, statistics(images)], dim=1).cpu())
            places.append(indices)
            errors |= {int(i): text for i, text in zip(indices, messages, strict=True) if text}
            bar.update(len(indices))
    return _gather(places, rows, errors, (num_images, method.problem.num_classes))


def _gather(
    places: Sequence[Tensor],
    rows: Sequence[Tensor],
    errors: dict[int, str],
    shape: tuple[int, int],
) -> Predictions:
    """All ranks' rows in the order of the images."""
    num_images, num_classes = shape
    # A rank without a batch does not know how wide a row is.
    width = max(collectives.gather_objects(rows[0].shape[1] if rows else 0))
    arrived = collectives.gather_rows(torch.cat([torch.empty(0, dtype=torch.int64), *places]))
    values = collectives.gather_rows(
        torch.cat([torch.empty((0, width), dtype=torch.float64), *rows])
    )
    if not torch.equal(arrived.sort().values, torch.arange(num_images)):
        raise RuntimeError("some images were predicted twice or not at all: this is a defect")
    table = torch.empty_like(values)
    table[arrived] = values
    failed = {
        place: text for part in collectives.gather_objects(errors) for place, text in part.items()
    }
    table[list(failed)] = float("nan")
    columns = table.numpy()
    return Predictions(
        probabilities=columns[:, :num_classes].astype(np.float32),
        entropy=columns[:, num_classes],
        disagreement=columns[:, num_classes + 1],
        statistics=columns[:, num_classes + 2 :],
        errors=dict(sorted(failed.items())),
    )
