"""GCE: generalised cross-entropy.

Zhang and Sabuncu: "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy
Labels", NeurIPS 2018, arXiv:1805.07836.

Equation map: ``losses.generalised_cross_entropy`` L_q, eq. 6. The truncated variant (eq. 9), whose
pruning alternates with training, is left out.
"""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from methods.losses import generalised_cross_entropy
from methods.method import Batch, Term
from methods.single import OneViewConfig, Single

__all__ = ["GCE", "GCEConfig"]


class GCEConfig(OneViewConfig):
    """Section ``method`` for ``method.name: gce``."""

    name: Literal["gce"] = "gce"
    q: float = Field(
        0.7, gt=0, le=1, description="From cross-entropy (towards 0) to mean absolute error (1)."
    )


class GCE(Single):
    """One network, trained on the labels as they are given with a bounded loss."""

    Config = GCEConfig
    config: GCEConfig

    def losses(self, batch: Batch) -> dict[str, Term]:
        """L_q of each sample of the batch."""
        targets = F.one_hot(batch.rows["label"], self.problem.num_classes).float()
        logits: Tensor = self.network(batch.views["image"]).logits
        batch.note(logits)
        losses = generalised_cross_entropy(logits, targets, self.config.q)
        return {"gce": Term(losses.sum(), losses.new_full((), len(losses)))}
