"""Two networks trained side by side, each with its own initial weights."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import BaseModel
from torch import Tensor, nn

from engine import collectives
from methods.averages import MomentumCopy
from methods.losses import prior_divergence
from methods.method import Method, Problem, Term
from methods.networks import Network, Projector

__all__ = ["NUM_NETWORKS", "Pair", "prior_term"]

NUM_NETWORKS = 2


class Pair(Method):
    """Base of the methods that train two networks; the prediction is their mean.

    Args:
        config: The method's section.
        problem: The task.
        ema_decay: Decay of a moving average of each network, which then labels and predicts;
            None = no averages.
        warm_start: Whether the averages forget the initial weights sooner, see MomentumCopy.
        projector: Heads of both networks.
    """

    def __init__(
        self,
        config: BaseModel,
        problem: Problem,
        *,
        ema_decay: float | None = None,
        warm_start: bool = False,
        projector: Projector | None = None,
    ) -> None:
        super().__init__(config, problem)
        self.networks = nn.ModuleList(
            problem.build_network(index, projector) for index in range(NUM_NETWORKS)
        )
        self.averages = nn.ModuleList()
        if ema_decay is not None:
            self.averages.extend(
                MomentumCopy(network, ema_decay, warm_start=warm_start)
                for _, network in self.pairs()
            )

    def predictors(self) -> Sequence[Network]:
        """The two averaged networks, else the networks."""
        averages = [average.copy for average in self.averages if isinstance(average, MomentumCopy)]
        return averages or [network for _, network in self.pairs()]

    def label(self, views: Sequence[Tensor]) -> Tensor:
        """Mean prediction of each averaged network over M views (B, 3, S, S): (2, B, C) float32."""
        images = torch.cat(list(views))
        predictions = [average(images) for average in self.averages]
        return torch.stack([p.unflatten(0, (len(views), -1)).mean(0) for p in predictions])

    def after_step(self) -> None:
        """Move the averages."""
        for average, network in zip(self.averages, self.networks, strict=False):
            assert isinstance(average, MomentumCopy)
            average.update(network)

    @staticmethod
    def named(index: int, parts: Mapping[str, Term]) -> dict[str, Term]:
        """Terms of network A (0) or B (1) under the names of the pair."""
        return {f"{name}_{'ab'[index]}": term for name, term in parts.items()}

    def pairs(self) -> list[tuple[int, Network]]:
        """Both networks with their numbers."""
        return [(i, network) for i, network in enumerate(self.networks)
                if isinstance(network, Network)]  # fmt: skip


def prior_term(logits: Tensor, prior: Tensor, weight: float) -> Term:
    """Divergence of the mean prediction over the global batch from the prior.

    Args:
        logits: (B, C) float of this rank, the same B on all.
        prior: (C,) float, sums to 1.
        weight: Factor of the term.
    """
    summed = collectives.all_reduce_sum_with_grad(F.softmax(logits.float(), dim=-1).sum(0))
    mean = summed / (len(logits) * collectives.num_ranks())
    divergence = prior_divergence(prior, mean)
    # Equal on every rank: the mean over ranks, a count of one each, is the value itself.
    return Term(divergence, torch.ones_like(divergence), weight)
