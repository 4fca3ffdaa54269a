"""Cross-entropy on the given labels: the yardstick of every comparison.

Optional: label smoothing (Szegedy et al., CVPR 2016) and mixup (Zhang et al., ICLR 2018).

Differs from the mixup authors' program: partners are neighbours in the shuffled global batch
instead of a second random permutation. A shuffle's neighbours are a uniformly random pairing
already, and neighbours lie on one rank, so the result does not depend on the number of processes.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from methods.losses import soft_cross_entropy
from methods.method import Batch, Method, MethodError, Problem, Term, View

__all__ = ["CrossEntropy", "CrossEntropyConfig"]


class CrossEntropyConfig(BaseModel):
    """Section ``method`` for ``method.name: cross_entropy``."""

    model_config = ConfigDict(frozen=True)

    name: Literal["cross_entropy"] = "cross_entropy"
    view: Literal["weak", "strong"] = Field(
        "weak", description="Which view of a sample is trained on."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of each target spread evenly over all classes."
    )
    mixup_alpha: float = Field(
        0.0, ge=0, description="Beta(alpha, alpha) of mixup's coefficient; 0 = no mixup."
    )


class CrossEntropy(Method):
    """One network, trained on the labels as they are given."""

    Config = CrossEntropyConfig
    config: CrossEntropyConfig

    def __init__(self, config: CrossEntropyConfig, problem: Problem) -> None:
        super().__init__(config, problem)
        self.network = problem.build_network(0, 0)

    def views(self, epoch: int) -> Mapping[str, View]:
        """One view of each sample."""
        return {"image": View(self.config.view)}

    def forwards_per_image(self, epoch: int) -> dict[str, int]:
        """One pass with gradient."""
        return {"with_gradient": 1, "without": 0, "survey": 0}

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Cross-entropy of each sample of the batch."""
        images = batch.views["image"]
        targets = F.one_hot(batch.rows["label"], self.problem.num_classes).float()
        smoothing = self.config.label_smoothing
        targets = targets * (1 - smoothing) + smoothing / self.problem.num_classes
        if self.config.mixup_alpha > 0:
            coefficient = mixup_coefficient(self.config.mixup_alpha, self.problem.seed, batch.step)
            images, targets = mix_neighbours(images, targets, coefficient)
        losses = soft_cross_entropy(self.network(images).logits, targets)
        return {"cross_entropy": Term(losses.sum(), losses.new_tensor(len(losses)))}

    def probabilities(self, images: Tensor) -> Tensor:
        """(1, B, C) class probabilities of the network."""
        return F.softmax(self.network(images).logits.float(), dim=-1).unsqueeze(0)


def mixup_coefficient(alpha: float, seed: int, step: int) -> float:
    """The step's mixing coefficient from Beta(alpha, alpha), the same on every rank."""
    return float(np.random.default_rng([seed, step]).beta(alpha, alpha))


def mix_neighbours(images: Tensor, targets: Tensor, coefficient: float) -> tuple[Tensor, Tensor]:
    """Mix samples 0 and 1, 2 and 3, and so on, with each other.

    Args:
        images: (B, ...) float; B even.
        targets: (B, C) float.
        coefficient: Share lambda of a sample itself; its neighbour has 1 - lambda.

    Returns:
        Images and targets of the same shapes.

    Raises:
        MethodError: B is odd.
    """
    if len(images) % 2:
        raise MethodError(
            f"method.mixup_alpha: mixup pairs neighbours, so each process needs an even number of "
            f"samples, got {len(images)}; change optim.batch_size"
        )
    neighbour = torch.arange(len(images), device=images.device) ^ 1
    return (
        coefficient * images + (1 - coefficient) * images[neighbour],
        coefficient * targets + (1 - coefficient) * targets[neighbour],
    )
