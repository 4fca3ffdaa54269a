"""DivideMix: learning with noisy labels as semi-supervised learning.

Li, Socher and Hoi: "DivideMix: Learning with Noisy Labels as Semi-supervised Learning", ICLR 2020,
arXiv:2002.07394.

Two networks are warmed up on all labels. From then on, before every epoch, a mixture of two
Gaussians is fitted to each network's losses of all samples; the division made with one network
into labelled and unlabelled samples trains the other.

Equation map: ``methods.separation.separate_loss`` co-divide, section 3.1;
``mixmatch.refine_targets`` co-refinement (eq. 3 and 4) and co-guessing, section 3.2; ``losses``
MixMatch's two losses and the uniform prior, eq. 9 to 12; ``confidence_penalty`` of the warm-up on
asymmetric noise, eq. 2.

Differs from the authors' program in this: a batch is drawn from all samples, whichever group they
are in, so an epoch sees each sample once for each network and its two views; partners of mixup are
neighbours in the global batch and, with the coefficient, the same for both networks; the weight of
the unlabelled loss rises once an epoch; both networks label in evaluation mode. ``ema_decay`` and
``divide`` are guards beyond the paper.

Passes of images through networks, N samples of which L1 and L2 are labelled for the two networks:
the authors' program takes 2 N + 6 (L1 + L2) without gradient and 4 (L1 + L2) with, an epoch; this
one 2 N + 4 N without and 4 N with.
"""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from engine import collectives
from engine.ledger import Column, Ledger
from methods.losses import soft_cross_entropy, squared_error
from methods.method import Batch, Problem, Term, View
from methods.mixmatch import (
    mix_neighbours,
    mixup_coefficient,
    refine_targets,
    require_neighbours,
)
from methods.networks import Network
from methods.pair import NUM_NETWORKS, Pair, prior_term
from methods.separation import CORRECT, MIS_H, require_finite, scale_to_unit, separate_loss

__all__ = ["DivideMix", "DivideMixConfig"]

NUM_VIEWS = 2


class DivideMixConfig(BaseModel):
    """Section ``method`` for ``method.name: dividemix``."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    name: Literal["dividemix"] = "dividemix"
    warmup_epochs: int = Field(10, ge=1, description="Epochs on all labels as given.")
    confidence_penalty: float = Field(
        0.0, ge=0,
        description="Weight of the negative entropy of predictions in warm-up; published: 1 for "
        "asymmetric noise, 0 for symmetric.",
    )  # fmt: skip
    p_threshold: float = Field(
        0.5, gt=0, lt=1, description="Least probability of a clean label among the labelled."
    )
    divide: Literal["pooled", "within_classes"] = Field(
        "pooled",
        description="Fit the mixture to the losses of all samples, as published, or to those of "
        "each given class, so that a class learned late does not count as wrongly labelled.",
    )
    loss_history: int = Field(
        1, ge=1,
        description="Surveys whose mean loss of a sample is divided; published: 5 at 90 % noise.",
    )  # fmt: skip
    temperature: float = Field(0.5, gt=0, le=1, description="T of sharpening; 1 = none.")
    mixup_alpha: float = Field(
        4.0, ge=0, description="Beta(alpha, alpha) of mixup's coefficient; 0 = no mixup."
    )
    lambda_u: float = Field(
        25.0, ge=0,
        description="Weight of the unlabelled loss; published for CIFAR-10: 0 at 20 % symmetric "
        "and 40 % asymmetric noise, 25 at 50 and 80 %, 50 at 90 %.",
    )  # fmt: skip
    ramp_up_epochs: int = Field(
        16, ge=1, description="Epochs after warm-up in which that weight rises linearly from 0."
    )
    lambda_prior: float = Field(
        1.0, ge=0, description="Weight of the divergence from a uniform prior."
    )
    ema_decay: float = Field(
        0.0, ge=0, lt=1,
        description="Decay a step of averaged networks that label, divide and predict; "
        "0 = the networks themselves, as published.",
    )  # fmt: skip


class DivideMix(Pair):
    """Two networks, each trained on the division that the other one made."""

    Config = DivideMixConfig
    config: DivideMixConfig

    def __init__(self, config: DivideMixConfig, problem: Problem) -> None:
        super().__init__(config, problem, ema_decay=config.ema_decay)
        require_neighbours(config.mixup_alpha, problem)
        uniform = torch.full((problem.num_classes,), 1 / problem.num_classes)
        self.register_buffer("prior", uniform, persistent=False)

    def views(self, epoch: int) -> Mapping[str, View]:
        """One weak view in warm-up, then two, which label and are trained on."""
        num_views = NUM_VIEWS if self._divides(epoch) else 1
        return {f"weak{m}": View("weak", m) for m in range(num_views)}

    def forwards_per_image(self, epoch: int) -> dict[str, int]:
        """2 with gradient in warm-up; then 4 with gradient, 4 without, and 2 in the survey."""
        if not self._divides(epoch):
            return {"with_gradient": NUM_NETWORKS, "without": 0, "survey": 0}
        passes = NUM_NETWORKS * NUM_VIEWS
        return {"with_gradient": passes, "without": passes, "survey": NUM_NETWORKS}

    # -- co-divide -------------------------------------------------------------------------------

    def columns(self) -> dict[str, Column]:
        """Losses of each sample, and what each network makes of them."""
        pair, nan = (NUM_NETWORKS,), float("nan")
        history = (*pair, self.config.loss_history)
        return {
            "loss": Column(
                history, torch.float32, nan, "-log p[y] of the last surveys, newest first"
            ),
            "predicted": Column((), torch.int16, -1, "class of the largest mean p in the survey"),
            "posterior": Column((*pair, 3), torch.float32, 0.0, "w of clean, wrong, and 0"),
            "group": Column(pair, torch.uint8, CORRECT, "0 labelled, 1 unlabelled"),
        }

    def needs_survey(self, epoch: int) -> bool:
        """Before each epoch after warm-up."""
        return self._divides(epoch)

    def observe(self, ledger: Ledger, sample_ids: Tensor, probabilities: Tensor) -> None:
        """Put each network's losses before those of earlier surveys."""
        rows = ledger.rows(sample_ids, probabilities.device)
        index = rows["label"].view(1, -1, 1).expand(NUM_NETWORKS, -1, 1)
        tiny = torch.finfo(torch.float32).tiny
        newest = -probabilities.gather(2, index).clamp_min(tiny).log().transpose(0, 1)
        losses = torch.cat([newest, rows["loss"][..., :-1]], dim=-1)
        ledger.write(sample_ids, loss=losses, predicted=probabilities.mean(0).argmax(1))

    def separate(self, ledger: Ledger, epoch: int) -> None:
        """Divide all training samples by each network's losses."""
        ids = self.problem.train_ids[collectives.own_rows()]
        losses, *older = ledger["loss"][ids].permute(2, 1, 0)
        require_finite("loss", losses, ids)
        # Asked of the whole table, so that all ranks take the same surveys.
        is_known = ledger["loss"].isfinite().flatten(0, 1).any(dim=0)[1:]
        known = [survey for survey, known in zip(older, is_known, strict=True) if known]
        if known:
            # As in the authors' program, each survey counts as much, whatever its range.
            losses = torch.stack([scale_to_unit(survey) for survey in (losses, *known)]).mean(0)
        within = self.config.divide == "within_classes"
        clean = separate_loss(
            losses,
            labels=ledger["label"][ids] if within else None,
            num_classes=self.problem.num_classes,
            sample_ids=ids,
        ).T.float()
        ledger.write(
            ids,
            posterior=torch.stack([clean, 1 - clean, torch.zeros_like(clean)], dim=-1),
            group=torch.where(clean > self.config.p_threshold, CORRECT, MIS_H),
        )
        ledger.synchronise(expected_ids=self.problem.train_ids)

    def predicted_labels(self, ledger: Ledger) -> Tensor:
        """What both networks predicted together in the last survey."""
        ids = self.problem.train_ids
        predicted = ledger["predicted"][ids].long()
        return torch.where(predicted < 0, ledger["label"][ids], predicted)

    # -- training --------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Cross-entropy in warm-up, then MixMatch, for each network."""
        divided = self._divides(batch.epoch)
        labelled = self.label(list(batch.views.values())) if divided else None
        if labelled is not None:
            batch.note_probabilities(*labelled)
        terms: dict[str, Term] = {}
        for index, network in self.pairs():
            if labelled is None:
                parts = self._warm_up_terms(network, batch)
            else:
                parts = self._mixmatch_terms(network, batch, labelled, index)
            terms |= self.named(index, parts)
        return terms

    def _warm_up_terms(self, network: Network, batch: Batch) -> dict[str, Term]:
        logits = network(batch.views["weak0"]).logits.float()
        batch.note(logits)
        losses = F.cross_entropy(logits, batch.rows["label"], reduction="none")
        # Not by probabilities: where one underflows to 0, the slope of p log p is infinite.
        log_probabilities = F.log_softmax(logits, dim=-1)
        negative_entropy = (log_probabilities.exp() * log_probabilities).sum(-1)
        count = losses.new_full((), len(losses))
        return {
            "warm_up": Term(losses.sum(), count),
            "confidence": Term(negative_entropy.sum(), count, self.config.confidence_penalty),
        }

    def _mixmatch_terms(
        self, network: Network, batch: Batch, labelled: Tensor, index: int
    ) -> dict[str, Term]:
        """The labelled, the unlabelled and the prior's term of one network."""
        config = self.config
        # The division made with the other network.
        groups, posteriors = (batch.rows[k][:, 1 - index] for k in ("group", "posterior"))
        given = F.one_hot(batch.rows["label"], self.problem.num_classes).float()
        targets = refine_targets(
            given, labelled[index], labelled.mean(0), posteriors[:, CORRECT], groups,
            temperature=config.temperature, sharpen_mis_l=False,
        )  # fmt: skip
        views = list(batch.views.values())
        if config.mixup_alpha > 0:
            coefficient = mixup_coefficient(config.mixup_alpha, self.problem.seed, batch.step)
            coefficient = max(coefficient, 1 - coefficient)
            views = [mix_neighbours(images, coefficient) for images in views]
            targets = mix_neighbours(targets, coefficient)
        mixed = targets.repeat(NUM_VIEWS, 1)
        logits = network(torch.cat(views)).logits
        # A mixed sample is of the group of the one that has the larger share in it.
        is_labelled = (groups == CORRECT).float().repeat(NUM_VIEWS)
        cross_entropies = soft_cross_entropy(logits, mixed) * is_labelled
        # The authors take the mean over classes as well.
        squared_errors = squared_error(logits, mixed) * (1 - is_labelled)
        num_classes = self.problem.num_classes
        return {
            "labelled": Term(cross_entropies.sum(), is_labelled.sum()),
            "unlabelled": Term(
                squared_errors.sum() / num_classes,
                (1 - is_labelled).sum(),
                self._unlabelled_weight(batch.epoch),
            ),
            "prior": prior_term(logits, self.get_buffer("prior"), config.lambda_prior),
        }

    def _divides(self, epoch: int) -> bool:
        return epoch >= self.config.warmup_epochs

    def _unlabelled_weight(self, epoch: int) -> float:
        """lambda_u, risen linearly since warm-up."""
        share = (epoch - self.config.warmup_epochs) / self.config.ramp_up_epochs
        return self.config.lambda_u * min(max(share, 0.0), 1.0)
