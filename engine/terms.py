"""From each rank's sums and counts to one loss: never a mean of means."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from engine import collectives
from methods.method import Term

__all__ = ["GlobalLoss", "NonFiniteLossError", "TermMeans", "global_loss"]


class NonFiniteLossError(RuntimeError):
    """The loss is NaN or infinite on some rank; raised on all ranks together."""


class GlobalLoss(NamedTuple):
    """A step's loss on all ranks together.

    Attributes:
        value: () float32 to differentiate.
        shares: Of each term this rank's share of its global mean, () float32, detached; summed over
            ranks it is the mean.
        require_finite: Waits for the passes that the terms were made by, and raises
            :class:`NonFiniteLossError` on all ranks where some rank's term is not finite. Called
            when the GPU has been given the backward pass, it costs no time.
    """

    value: Tensor
    shares: dict[str, Tensor]
    require_finite: Callable[[], None]


def global_loss(terms: Mapping[str, Term], sample_ids: Tensor) -> GlobalLoss:
    """The loss whose gradient, averaged over ranks by the wrapper, is that of the global batch.

    Each term's local sum is divided by its *global* count, fetched for all terms in one small
    all-reduce, and multiplied by the number of ranks, since DDP averages gradients.

    Args:
        terms: The method's terms, the same names in the same order on every rank.
        sample_ids: (B,) int64 of this rank, for the message.
    """
    totals = torch.stack([term.total.detach().float() for term in terms.values()])
    broken = (~totals.isfinite()).any().float()
    counts = torch.stack([term.count.detach().float() for term in terms.values()])
    counts = collectives.all_reduce_sum(torch.cat([counts, broken[None]]))
    num_broken = collectives.to_cpu_later(counts[-1])

    def require_finite() -> None:
        if num_broken() > 0:
            _raise_non_finite(terms, sample_ids)

    # A term without any sample has a sum of zero.
    shares = counts[:-1].clamp_min(torch.finfo(torch.float32).tiny).reciprocal()
    shares = torch.where(counts[:-1] > 0, shares, 0.0)
    num_ranks = collectives.num_ranks()
    loss = torch.stack(
        [
            term.total.float() * share * (term.weight * num_ranks)
            for term, share in zip(terms.values(), shares, strict=True)
        ]
    ).sum()
    return GlobalLoss(loss, dict(zip(terms, totals * shares, strict=True)), require_finite)


def _raise_non_finite(terms: Mapping[str, Term], sample_ids: Tensor) -> None:
    names = [name for name, term in terms.items() if not bool(term.total.isfinite())]
    ids = sample_ids.tolist() if names else []
    reports = collectives.gather_objects((names, ids))
    lines = [
        f"rank {rank}: {', '.join(names)} in a batch of {len(ids)} samples, first {ids[:10]}"
        for rank, (names, ids) in enumerate(reports)
        if names
    ]
    raise NonFiniteLossError("the loss is not finite on " + "; ".join(lines))


class TermMeans:
    """Means of the terms over steps, of each over those that had it.

    All steps of an epoch have the same terms; the steps from one line to the next may not.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._num_steps: dict[str, int] = {}

    def add(self, shares: Mapping[str, Tensor]) -> None:
        """Add a step's shares, as :func:`global_loss` returns them."""
        for name, share in shares.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(share)) + share
            self._num_steps[name] = self._num_steps.get(name, 0) + 1

    def gather(self) -> dict[str, Tensor]:
        """Every rank's sums over steps of one epoch, for a checkpoint; a collective call.

        Returns:
            ``mean/<term>`` (num_ranks,) and, where there was a step, ``num_steps`` ().
        """
        if not self._num_steps:
            return {}
        names = sorted(self._sums)
        gathered = collectives.gather_rows(torch.stack([self._sums[name] for name in names])[None])
        sums = {f"mean/{name}": gathered[:, i].cpu() for i, name in enumerate(names)}
        return sums | {"num_steps": torch.tensor(self._num_steps[names[0]])}

    @classmethod
    def scattered(cls, state: Mapping[str, Tensor], device: torch.device) -> "TermMeans":
        """The means of :meth:`gather`: each rank's own, or all on rank 0 of another number."""
        means = cls()
        for key, sums in state.items():
            if key.startswith("mean/"):
                if len(sums) == collectives.num_ranks():
                    own = sums[collectives.rank()]
                else:
                    own = sums.sum() * (collectives.rank() == 0)
                name = key.removeprefix("mean/")
                means._sums[name], means._num_steps[name] = own.to(device), int(state["num_steps"])
        return means

    def reduce(self) -> dict[str, float]:
        """Mean of each term over steps and all ranks; a collective call."""
        names = sorted(self._sums)
        if not names:
            return {}
        sums = collectives.all_reduce_sum(torch.stack([self._sums[name] for name in names]))
        return {
            name: total / self._num_steps[name]
            for name, total in zip(names, sums.tolist(), strict=True)
        }
