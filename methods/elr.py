"""ELR and ELR+: early-learning regularisation.

Liu, Niles-Weed, Razavian and Fernandez-Granda: "Early-Learning Regularization Prevents Memorization
of Noisy Labels", NeurIPS 2020, arXiv:2007.00151.

Each sample has a target t, a running average of the network's own predictions of it. The loss
``CE + lambda log(1 - <p, t>)`` pulls predictions towards it, so what was learned early is kept.
ELR+ trains two networks; the target of each comes from the moving average of the other one's
weights, and samples are mixed with mixup.

Equation map: ``losses.early_learning_penalty`` the regulariser, eq. 6; ``running_target`` temporal
ensembling, eq. 9; the weight average is ``averages.MomentumCopy``.

Targets live in the ledger, so a step finds those of the sample's last epoch and writes the new ones
for the next. ELR+ differs from the authors' program in this: the regulariser's weight rises by
epoch, theirs by step; the averages forget their initial weights by ``min(decay, 1 - 1 / (step +
1))`` and run in evaluation mode; mixup's partners are neighbours in the global batch and, with the
coefficient, the same for both networks; the prediction is the mean of the averaged networks.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from engine.ledger import Column
from methods.losses import early_learning_penalty, soft_cross_entropy
from methods.method import Batch, Problem, Term, View
from methods.mixmatch import mix_neighbours, mixup_coefficient, require_neighbours
from methods.pair import NUM_NETWORKS, Pair
from methods.single import OneViewConfig, Single

__all__ = ["ELR", "ELRConfig", "ELRPlus", "ELRPlusConfig", "running_target"]


class _Common(OneViewConfig):
    beta: float = Field(
        0.7, ge=0, lt=1, description="Share of the old target that is kept at each epoch."
    )
    lambda_elr: float = Field(3.0, ge=0, description="Weight of the regulariser.")
    ramp_up_epochs: int = Field(
        0, ge=0,
        description="Epochs in which that weight rises from nearly 0, for classes that are learned "
        "late; published: 0 for ELR and on CIFAR-10, 102 of 250 for ELR+ on CIFAR-100.",
    )  # fmt: skip

    def penalty_weight(self, epoch: int) -> float:
        """``lambda exp(-5 (1 - epoch / ramp_up_epochs)^2)``, then lambda; epochs from 0."""
        if epoch >= self.ramp_up_epochs:
            return self.lambda_elr
        return self.lambda_elr * math.exp(-5 * (1 - epoch / self.ramp_up_epochs) ** 2)


class ELRConfig(_Common):
    """Section ``method`` for ``method.name: elr``."""

    name: Literal["elr"] = "elr"


class ELRPlusConfig(_Common):
    """Section ``method`` for ``method.name: elr_plus``."""

    name: Literal["elr_plus"] = "elr_plus"
    ema_decay: float = Field(
        0.997, ge=0, lt=1, description="Decay a step of the averaged networks."
    )
    mixup_alpha: float = Field(
        1.0, ge=0, description="Beta(alpha, alpha) of mixup's coefficient; 0 = no mixup."
    )


class ELR(Single):
    """One network; its predictions average into the targets."""

    Config = ELRConfig
    config: ELRConfig

    def columns(self) -> dict[str, Column]:
        """The target of each sample."""
        shape = (self.problem.num_classes,)
        return {"target": Column(shape, torch.float32, 0.0, "t, average of own predictions")}

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Cross-entropy and the regulariser."""
        logits = self.network(batch.views["image"]).logits
        batch.note(logits)
        predicted = F.softmax(logits.detach().float(), dim=-1)
        targets = running_target(batch.rows["target"], predicted, self.config.beta)
        batch.updates["target"] = targets
        given = F.one_hot(batch.rows["label"], self.problem.num_classes).float()
        return _terms(logits, given, targets, self.config.penalty_weight(batch.epoch))


class ELRPlus(Pair):
    """Two networks with mixup; the average of each one's weights makes the other one's targets."""

    Config = ELRPlusConfig
    config: ELRPlusConfig

    def __init__(self, config: ELRPlusConfig, problem: Problem) -> None:
        super().__init__(config, problem, ema_decay=config.ema_decay, warm_start=True)
        require_neighbours(config.mixup_alpha, problem)

    def views(self, epoch: int) -> Mapping[str, View]:
        """One view of each sample, the same for both networks."""
        return self.config.views()

    def forwards_per_image(self, epoch: int) -> dict[str, int]:
        """One pass of each network with gradient, one of each average without."""
        return {"with_gradient": NUM_NETWORKS, "without": NUM_NETWORKS, "survey": 0}

    def columns(self) -> dict[str, Column]:
        """The target of each sample for each network."""
        shape = (NUM_NETWORKS, self.problem.num_classes)
        meaning = "t, average of predictions of the other network's average"
        return {"target": Column(shape, torch.float32, 0.0, meaning)}

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Cross-entropy and the regulariser of each network, on mixed samples."""
        images = batch.views["image"]
        given = F.one_hot(batch.rows["label"], self.problem.num_classes).float()
        predicted = self.label([images]).flip(0)
        batch.note_probabilities(*predicted)
        targets = running_target(batch.rows["target"], predicted.transpose(0, 1), self.config.beta)
        batch.updates["target"] = targets
        if self.config.mixup_alpha > 0:
            coefficient = mixup_coefficient(self.config.mixup_alpha, self.problem.seed, batch.step)
            coefficient = max(coefficient, 1 - coefficient)
            images, given, targets = (
                mix_neighbours(values, coefficient) for values in (images, given, targets)
            )
        weight = self.config.penalty_weight(batch.epoch)
        terms: dict[str, Term] = {}
        for index, network in self.pairs():
            parts = _terms(network(images).logits, given, targets[:, index], weight)
            terms |= self.named(index, parts)
        return terms


def running_target(old: Tensor, predicted: Tensor, beta: float) -> Tensor:
    """``beta t + (1 - beta) p / sum_c p_c``, p within [1e-4, 1 - 1e-4].

    The bounds are those of the authors' ELR; their ELR+ has none here.

    Args:
        old: (..., C) float, t; zeros before a sample is first seen.
        predicted: (..., C) float, p.
        beta: Share of the old target.

    Returns:
        (..., C) float32 without gradient; rows sum to at most 1.
    """
    probabilities = predicted.detach().float().clamp(1e-4, 1 - 1e-4)
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return beta * old + (1 - beta) * probabilities


def _terms(logits: Tensor, given: Tensor, targets: Tensor, weight: float) -> dict[str, Term]:
    cross_entropy = soft_cross_entropy(logits, given)
    penalty = early_learning_penalty(logits, targets)
    count = penalty.new_full((), len(penalty))
    return {
        "cross_entropy": Term(cross_entropy.sum(), count),
        "early_learning": Term(penalty.sum(), count, weight),
    }
