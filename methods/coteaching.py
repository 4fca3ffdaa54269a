"""Co-teaching: each network picks the samples that the other learns from.

Han, Yao, Yu, Niu, Xu, Hu, Tsang and Sugiyama: "Co-teaching: Robust Training of Deep Neural Networks
with Extremely Noisy Labels", NeurIPS 2018, arXiv:1804.06872.

Equation map: ``keep_rate`` R(T) of algorithm 1, step 8; ``smallest_losses`` steps 4 and 5 in the
*global* batch; ``losses`` steps 6 and 7, cross-entropy on the other network's choice.

Epochs count from 0, as in the authors' program, so the first one keeps every sample.
"""

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from engine import collectives
from methods.method import Batch, Term, View
from methods.pair import NUM_NETWORKS, Pair
from methods.single import OneViewConfig

__all__ = ["CoTeaching", "CoTeachingConfig", "keep_rate", "smallest_losses"]


class CoTeachingConfig(OneViewConfig):
    """Section ``method`` for ``method.name: coteaching``."""

    name: Literal["coteaching"] = "coteaching"
    forget_rate: float = Field(
        0.4, ge=0, lt=1, description="tau, share of a batch left out in the end: the noise rate."
    )
    ramp_epochs: int = Field(10, ge=1, description="T_k, epochs until that share is left out.")
    exponent: float = Field(
        1.0, gt=0, description="c: the share grows as epoch^c / ramp_epochs (paper, section 4)."
    )


class CoTeaching(Pair):
    """Two networks; predictions are their mean."""

    Config = CoTeachingConfig
    config: CoTeachingConfig

    def views(self, epoch: int) -> Mapping[str, View]:
        """One view of each sample, the same for both networks."""
        return self.config.views()

    def forwards_per_image(self, epoch: int) -> dict[str, int]:
        """One pass of each network, with gradient."""
        return {"with_gradient": NUM_NETWORKS, "without": 0, "survey": 0}

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Cross-entropy of each network on the samples that the other one finds easiest."""
        config, labels = self.config, batch.rows["label"]
        rate = keep_rate(batch.epoch, config.forget_rate, config.ramp_epochs, config.exponent)
        losses = []
        for _, network in self.pairs():
            logits = network(batch.views["image"]).logits.float()
            batch.note(logits)
            losses.append(F.cross_entropy(logits, labels, reduction="none"))
        chosen = [smallest_losses(loss, rate) for loss in losses]
        terms: dict[str, Term] = {}
        for index, loss in enumerate(losses):
            mask = chosen[1 - index].float()
            terms |= self.named(index, {"cross_entropy": Term((loss * mask).sum(), mask.sum())})
        return terms


def keep_rate(epoch: int, forget_rate: float, ramp_epochs: int, exponent: float) -> float:
    """R(t) = 1 - tau min(t^c / T_k, 1): 1, 0.96 and, from epoch 10 on, 0.6 at tau 0.4, T_k 10."""
    return 1 - forget_rate * min(epoch**exponent / ramp_epochs, 1.0)


def smallest_losses(losses: Tensor, rate: float) -> Tensor:
    """Which of this rank's samples are among the smallest losses of the global batch.

    Args:
        losses: (B,) float of this rank, the same B on all; of equal ones the first counts as
            smaller.
        rate: Share of the global batch that is kept, rounded down, at least one sample.

    Returns:
        (B,) bool. Losses (3, 1, 2) at a rate of 2/3: (False, True, True).
    """
    everywhere = collectives.gather_equal_rows(losses)
    # Not a sample less because of the rounding of 0.6 * 10.
    num_kept = max(int(rate * len(everywhere) + 1e-6), 1)
    # By place in the order: a mask that is written at an index would wait for a GPU.
    places = everywhere.argsort(stable=True).argsort()
    start = collectives.rank() * len(losses)
    return places[start : start + len(losses)] < num_kept
