"""Cross-entropy on the given labels: the yardstick of every comparison.

Optional: label smoothing (Szegedy et al., CVPR 2016) and mixup (Zhang et al., ICLR 2018).

Differs from the mixup authors' program: partners are neighbours in the shuffled global batch, see
``methods.mixmatch``.
"""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field

from methods.losses import soft_cross_entropy
from methods.method import Batch, Problem, Term
from methods.mixmatch import mix_neighbours, mixup_coefficient, require_neighbours
from methods.single import OneViewConfig, Single

__all__ = ["CrossEntropy", "CrossEntropyConfig"]


class CrossEntropyConfig(OneViewConfig):
    """Section ``method`` for ``method.name: cross_entropy``."""

    name: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of each target spread evenly over all classes."
    )
    mixup_alpha: float = Field(
        0.0, ge=0, description="Beta(alpha, alpha) of mixup's coefficient; 0 = no mixup."
    )


class CrossEntropy(Single):
    """One network, trained on the labels as they are given."""

    Config = CrossEntropyConfig
    config: CrossEntropyConfig

    def __init__(self, config: CrossEntropyConfig, problem: Problem) -> None:
        super().__init__(config, problem)
        require_neighbours(config.mixup_alpha, problem)

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Cross-entropy of each sample of the batch."""
        images = batch.views["image"]
        targets = F.one_hot(batch.rows["label"], self.problem.num_classes).float()
        smoothing = self.config.label_smoothing
        targets = targets * (1 - smoothing) + smoothing / self.problem.num_classes
        if self.config.mixup_alpha > 0:
            coefficient = mixup_coefficient(self.config.mixup_alpha, self.problem.seed, batch.step)
            images = mix_neighbours(images, coefficient)
            targets = mix_neighbours(targets, coefficient)
        logits = self.network(images).logits
        if self.config.mixup_alpha == 0:
            batch.note(logits)
        losses = soft_cross_entropy(logits, targets)
        return {"cross_entropy": Term(losses.sum(), losses.new_full((), len(losses)))}
