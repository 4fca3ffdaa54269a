"""SSCL: combating medical label noise via robust semi-supervised contrastive learning.

Chen, Ye, Liu, Zhang, Pan, Zeng and Lu: "Combating Medical Label Noise via Robust Semi-supervised
Contrastive Learning", MICCAI 2023, doi:10.1007/978-3-031-43907-0_54.

A query encoder with projector and predictor and its momentum copy, the key encoder, see two strong
views, a linear classifier a weak one. From ``promotion_epoch`` on, the samples of each given class
whose label is predicted least are taken for wrongly labelled.

Equation map: ``losses`` the sum of the parts; ``losses.similarity_contrastive`` similarity
contrastive learning over ``methods.queue.KeyQueue``; ``losses.generalised_cross_entropy`` the
noise-robust loss; ``losses.information_bottleneck`` the bottleneck; ``keeps_label`` pseudo-label
promotion; mixup feature embedding is ``mixmatch.mix_neighbours`` on both strong views.

The paper's intent counts, not the authors' program: own pairs are at their true places in the
queue; the keys of a step enter before it contrasts with them, without gradient; each encoder sees
each view once a step, all views in one pass; the key encoder moves once a step and is always in
evaluation mode; dot products are clamped, not coordinates; promotion ranks the whole training set.
Contrast and bottleneck are means over the batch and both pairings of a strong view's query with the
other view's key. Their program sums the bottleneck over both: of B samples its lambda_c weighs as
2 B times as much does here. With ``promotion: soft`` the new target is the prediction of when the
sample was last drawn, mostly in the epoch before, theirs the step's own; ``promotion: drop`` is
what theirs does in effect, since its soft targets become integers. Mixup has the same neighbour and
coefficient for both strong views, theirs draws both anew; it is off by default there.

Passes of images through the backbone a step: the authors' program takes 6 with 3 backwards and two
key updates; this one 3 with gradient and 2 without, and one key update.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from engine.ledger import Column, Ledger
from methods.averages import MomentumCopy
from methods.losses import (
    generalised_cross_entropy,
    information_bottleneck,
    similarity_contrastive,
)
from methods.method import Batch, Method, MethodError, Problem, Term, View
from methods.mixmatch import mix_neighbours, mixup_coefficient, require_neighbours
from methods.networks import Network, Projector
from methods.queue import KeyQueue
from methods.separation import CORRECT, MIS_H

__all__ = ["SSCL", "SSCLConfig", "keeps_label"]

NUM_STRONG = 2


class SSCLConfig(BaseModel):
    """Section ``method`` for ``method.name: sscl``."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    name: Literal["sscl"] = "sscl"
    projector_hidden: int = Field(2048, ge=1, description="Hidden width of the projector.")
    projector_dim: int = Field(128, ge=2, description="Dimension of the embedding.")
    predictor_hidden: int = Field(512, ge=1, description="Hidden width of the predictor.")
    key_decay: float = Field(
        0.99, ge=0, lt=1, description="m, share of the old key encoder kept at each step."
    )
    queue_size: int = Field(
        480, ge=2, description="Past samples to contrast with; at least one global batch."
    )
    mixup_alpha: float = Field(
        5.0,
        ge=0,
        description="Beta(alpha, 1) of the coefficient that mixes strong views; 0 = none.",
    )
    threshold: float = Field(
        0.4, ge=0, le=1, description="tau, least agreement of class probabilities of a pair."
    )
    lambda_similarity: float = Field(
        8.0, ge=0, description="lambda_a, weight of similarity contrastive learning."
    )
    lambda_robust: float = Field(
        2.0, ge=0, description="lambda_b, weight of generalised cross-entropy."
    )
    lambda_bottleneck: float = Field(
        2.0, ge=0, description="lambda_c, weight of the information bottleneck."
    )
    q: float = Field(0.6, gt=0, le=1, description="beta of generalised cross-entropy.")
    promotion_epoch: int = Field(
        31, ge=1, description="Epochs on all labels as given, before the first promotion."
    )
    promotion_share: float = Field(
        0.5, ge=0, lt=1, description="t, share of each given class whose label is not kept."
    )
    promotion: Literal["soft", "drop"] = Field(
        "soft",
        description="What becomes of labels that are not kept: soft puts the model's prediction in "
        "their place, drop leaves the sample out of the noise-robust loss.",
    )


class SSCL(Method):
    """A query encoder with its classifier, and a momentum copy as key encoder."""

    Config = SSCLConfig
    config: SSCLConfig

    def __init__(self, config: SSCLConfig, problem: Problem) -> None:
        super().__init__(config, problem)
        if config.queue_size < problem.batch_size:
            raise MethodError(
                f"method.queue_size: {config.queue_size} is less than optim.batch_size "
                f"{problem.batch_size}; the queue must hold the whole global batch"
            )
        require_neighbours(config.mixup_alpha, problem)
        heads = Projector(
            config.projector_hidden, config.projector_dim,
            norm=True, predictor_hidden=config.predictor_hidden,
        )  # fmt: skip
        self.network = problem.build_network(0, heads)
        self.key_encoder = MomentumCopy(self.network, config.key_decay)
        self.queue = KeyQueue(
            config.queue_size, NUM_STRONG, config.projector_dim, problem.num_classes
        )

    def views(self, epoch: int) -> Mapping[str, View]:
        """Two strong views to contrast, a weak one to classify."""
        return {"strong0": View("strong", 0), "strong1": View("strong", 1), "weak": View("weak")}

    def forwards_per_image(self, epoch: int) -> dict[str, int]:
        """All three views of the query encoder with gradient, two of the key encoder without."""
        return {"with_gradient": NUM_STRONG + 1, "without": NUM_STRONG, "survey": 0}

    def predictors(self) -> Sequence[Network]:
        """The query encoder with its classifier."""
        return [self.network]

    # -- pseudo-label promotion ------------------------------------------------------------------

    def columns(self) -> dict[str, Column]:
        """The prediction of each sample's weak view, and whether its label is kept."""
        classes = (self.problem.num_classes,)
        return {
            "prediction": Column(classes, torch.float32, float("nan"), "p when last trained on"),
            "posterior": Column((1, 3), torch.float32, 0.0, "p[y], 1 - p[y], 0 at promotion"),
            "group": Column((1,), torch.uint8, CORRECT, "0 label kept, 1 not kept"),
        }

    def separates(self, epoch: int) -> bool:
        """Before each epoch with promotion; the predictions come from the steps before."""
        return epoch >= self.config.promotion_epoch

    def separate(self, ledger: Ledger, epoch: int) -> None:
        """Rank the training samples of each class by the probability of their label."""
        ids = self.problem.train_ids
        labels = ledger["label"][ids].long()
        confidence = ledger["prediction"][ids].gather(1, labels.unsqueeze(1)).squeeze(1)
        kept = keeps_label(
            confidence, labels, self.problem.num_classes, self.config.promotion_share
        )
        # Of a sample that no step has drawn yet nothing is known.
        confidence = confidence.nan_to_num(1.0)
        posterior, group = ledger["posterior"].clone(), ledger["group"].clone()
        wrong = torch.stack([confidence, 1 - confidence, torch.zeros_like(confidence)], dim=-1)
        posterior[ids] = wrong.unsqueeze(1)
        group[ids] = torch.where(kept, CORRECT, MIS_H).to(torch.uint8).unsqueeze(1)
        ledger.fill("posterior", posterior)
        ledger.fill("group", group)

    def predicted_labels(self, ledger: Ledger) -> Tensor:
        """The class of the largest probability when last trained on."""
        ids = self.problem.train_ids
        prediction = ledger["prediction"][ids]
        unknown = prediction.isnan().any(dim=1)
        return torch.where(unknown, ledger["label"][ids], prediction.argmax(dim=1))

    # -- training --------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Noise-robust loss of the weak view; contrast and bottleneck of the strong ones."""
        strong = [batch.views["strong0"], batch.views["strong1"]]
        if self.config.mixup_alpha > 0:
            coefficient = mixup_coefficient(
                self.config.mixup_alpha, self.problem.seed, batch.step, beta=1.0
            )
            coefficient = max(coefficient, 1 - coefficient)
            strong = [mix_neighbours(images, coefficient) for images in strong]
        size = len(batch.sample_ids)
        logits, features = self.network(torch.cat([*strong, batch.views["weak"]]))
        logits = logits[NUM_STRONG * size :]
        queries = self.network.predict(features[: NUM_STRONG * size]).unflatten(
            0, (NUM_STRONG, size)
        )
        probabilities = F.softmax(logits.detach().float(), dim=-1)
        batch.updates["prediction"] = probabilities
        batch.note_probabilities(probabilities)
        keys = self.key_encoder.embed(torch.cat(strong)).unflatten(0, (NUM_STRONG, size))
        own = self.queue.enter(keys, probabilities)
        # Each strong view's query meets the keys of the other view.
        contrast = [
            similarity_contrastive(
                query, probabilities, past, self.queue.probabilities,
                own_index=own, filled=self.queue.filled, threshold=self.config.threshold,
            )
            for query, past in zip(queries, self.queue.keys.flip(0), strict=True)
        ]  # fmt: skip
        bottleneck = information_bottleneck(queries.flatten(0, 1), keys.flip(0).flatten(0, 1))
        pairs = logits.new_full((), NUM_STRONG * size, dtype=torch.float32)
        return {
            "robust": self._robust_term(logits, batch.rows),
            "similarity": Term(torch.cat(contrast).sum(), pairs, self.config.lambda_similarity),
            "bottleneck": Term(bottleneck.sum(), pairs, self.config.lambda_bottleneck),
        }

    def _robust_term(self, logits: Tensor, rows: Mapping[str, Tensor]) -> Term:
        """Generalised cross-entropy on kept labels and, with ``soft``, on promoted ones."""
        targets = F.one_hot(rows["label"], self.problem.num_classes).float()
        kept = rows["group"][:, 0] == CORRECT
        counts = torch.ones_like(kept)
        if self.config.promotion == "soft":
            targets = torch.where(kept.unsqueeze(1), targets, rows["prediction"])
        else:
            counts = kept
        losses = generalised_cross_entropy(logits, targets, self.config.q) * counts.float()
        return Term(losses.sum(), counts.float().sum(), self.config.lambda_robust)

    def after_step(self) -> None:
        """Move the key encoder."""
        self.key_encoder.update(self.network)


def keeps_label(
    confidence: Tensor, labels: Tensor, num_classes: int, promotion_share: float
) -> Tensor:
    """Which samples keep their given label: the most confident ones of each class.

    Args:
        confidence: (N,) float, predicted probability of the given label; NaN = not yet known.
        labels: (N,) int64 given labels.
        num_classes: C.
        promotion_share: t; of the n samples of a class with a known confidence, floor(t n) do not
            keep their label. Of equal ones the first keeps it.

    Returns:
        (N,) bool, True where unknown. Confidences (0.2, 0.9, 0.5), one class, t = 0.5:
        (False, True, True).
    """
    kept = torch.ones_like(labels, dtype=torch.bool)
    for label in range(num_classes):
        members = torch.where((labels == label) & ~confidence.isnan())[0]
        order = members[confidence[members].argsort(descending=True, stable=True)]
        # Not a sample less because of the rounding of 0.29 * 100.
        num_not_kept = int(promotion_share * len(order) + 1e-6)
        kept[order[len(order) - num_not_kept :]] = False
    return kept
