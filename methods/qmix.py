"""QMix: quality-aware learning with mixed noise for robust retinal disease diagnosis.

Hou, Xu, Feng, Chen: "QMix: Quality-aware Learning with Mixed Noise for Robust Retinal Disease
Diagnosis", IEEE Transactions on Medical Imaging 44(8), 2025, arXiv:2404.05169.

Mixed noise is wrong labels on good images (Mis-H) together with images too poor to carry a label
(Mis-L). Two networks A and B are warmed up on all labels. From then on, before every epoch, the
samples of each class are divided by (loss, uncertainty) into Correct, Mis-H and Mis-L; the division
made with A trains B and the other way round.

Equation map: ``mixmatch.refine_targets`` co-refinement, co-guessing and pseudo-labelling;
``losses`` the three supervised terms, contrastive enhancement and the prior regulariser; ``omega``
the weight of the sample-reweighing loss; ``methods.separation.separate_quality`` the mixture.

Guards beyond the paper, each a setting whose default was chosen by measurement: ``ema_decay``,
``statistics_momentum``, ``relative_uncertainty``, ``pooling``, ``refine_with``, ``sharpen_mis_l``,
and ``lambda_prior`` with the class frequencies of the given labels as prior.
"""

import logging
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from engine import collectives
from engine.ledger import Column, Ledger
from methods.losses import (
    entropy,
    soft_cross_entropy,
    squared_error,
    supervised_contrastive,
)
from methods.method import Batch, FittedMixture, Problem, Term, View
from methods.mixmatch import refine_targets
from methods.networks import Network, Projector
from methods.pair import NUM_NETWORKS, Pair, prior_term
from methods.separation import (
    ALL_CORRECT,
    CORRECT,
    MIS_H,
    MIS_L,
    Separation,
    SeparationConfig,
    separate_quality,
)

__all__ = ["QMix", "QMixConfig", "omega", "relative_to_class"]

logger = logging.getLogger(__name__)


class QMixConfig(BaseModel):
    """Section ``method`` for ``method.name: qmix``."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    name: Literal["qmix"] = "qmix"
    warmup_epochs: int = Field(10, ge=1, description="T_w, epochs on all labels as given.")
    num_weak_views: int = Field(2, ge=1, description="M, weak views whose mean labels a sample.")
    temperature: float = Field(0.5, gt=0, le=1, description="T of sharpening; 1 = none.")
    lambda_mis_h: float = Field(1.0, ge=0, description="Weight of the Mis-H term.")
    omega_start: float = Field(
        1.0, ge=0, description="Weight of the Mis-L term at T_w; it falls linearly to 0 at the end."
    )
    lambda_contrastive: float = Field(0.05, ge=0, description="Weight of the contrastive term.")
    contrastive_temperature: float = Field(0.07, gt=0, description="Its temperature.")
    projector_hidden: int = Field(128, ge=1, description="Hidden width of the projector.")
    projector_dim: int = Field(128, ge=2, description="Dimension of the contrastive embedding.")
    lambda_prior: float = Field(
        1.0, ge=0,
        description="Weight of the prior regulariser. At 1 grades between others are found again "
        "sooner after warm-up than at 0.",
    )  # fmt: skip
    refine_with: Literal["own", "both"] = Field(
        "both", description="Whose prediction refines Correct and Mis-L labels."
    )
    sharpen_mis_l: bool = Field(False, description="Sharpen the pseudo-labels of Mis-L too.")
    ema_decay: float = Field(
        0.95, ge=0, lt=1,
        description="Decay a step of the averaged networks that label, separate and predict; "
        "0 = the networks themselves.",
    )  # fmt: skip
    statistics: Literal["survey", "steps"] = Field(
        "survey",
        description="Where loss and uncertainty come from: survey = a pass over all training "
        "images before each separation; steps = one before the first, then what labelled the weak "
        "views in the steps of the epoch before, which saves two passes of each image.",
    )
    statistics_momentum: float = Field(
        0.6, ge=0, lt=1, description="Share of the old loss and uncertainty kept at each new one."
    )
    pooling: float = Field(
        0.5, ge=0, le=1,
        description="Share of the fit over all classes in each posterior; 0 = within classes only, "
        "as published. On synthetic fundus at the last epoch it found Mis-L at precision 0.68 "
        "rather than 0.49 and Mis-H at recall 0.92 rather than 0.81.",
    )  # fmt: skip
    relative_uncertainty: bool = Field(
        True,
        description="Judge a sample's uncertainty against the mean of the samples predicted alike.",
    )


class QMix(Pair):
    """Two networks with projectors, and a moving average of each."""

    Config = QMixConfig
    config: QMixConfig

    def __init__(self, config: QMixConfig, problem: Problem) -> None:
        projector = Projector(config.projector_hidden, config.projector_dim)
        super().__init__(config, problem, ema_decay=config.ema_decay, projector=projector)
        self.register_buffer("prior", problem.class_frequencies(), persistent=False)

    def views(self, epoch: int) -> Mapping[str, View]:
        """One strong view that is trained on and, after warm-up, M weak ones that label it."""
        views = {"strong": View("strong")}
        if epoch >= self.config.warmup_epochs:
            views |= {f"weak{m}": View("weak", m) for m in range(self.config.num_weak_views)}
        return views

    def forwards_per_image(self, epoch: int) -> dict[str, int]:
        """2 with gradient; after warm-up 2 M without, and 2 in each survey."""
        return {
            "with_gradient": NUM_NETWORKS,
            "without": NUM_NETWORKS * self.config.num_weak_views * self.separates(epoch),
            "survey": NUM_NETWORKS * self.needs_survey(epoch),
        }

    # -- separation ------------------------------------------------------------------------------

    def columns(self) -> dict[str, Column]:
        """Loss, uncertainty, posterior and group of each sample, per network that judged it."""
        pair, nan = (NUM_NETWORKS,), float("nan")
        return {
            "loss": Column(pair, torch.float32, nan, "-log p[y], averaged over epochs"),
            "uncertainty": Column(pair, torch.float32, nan, "entropy of p, averaged over epochs"),
            "predicted": Column(pair, torch.int16, -1, "class of the largest p, the last time"),
            "posterior": Column((*pair, 3), torch.float32, 0.0, "w of Correct, Mis-H, Mis-L"),
            "group": Column(pair, torch.uint8, CORRECT, "0 Correct, 1 Mis-H, 2 Mis-L"),
        }

    def separates(self, epoch: int) -> bool:
        """Before each epoch after warm-up."""
        return epoch >= self.config.warmup_epochs

    def needs_survey(self, epoch: int) -> bool:
        """Before each separation, or before the first alone."""
        first = self.config.warmup_epochs
        return epoch == first if self.config.statistics == "steps" else epoch >= first

    def observe(self, ledger: Ledger, sample_ids: Tensor, probabilities: Tensor) -> None:
        """Note what a survey tells."""
        rows = ledger.rows(sample_ids, probabilities.device)
        ledger.write(sample_ids, order=0, **self._statistics(rows, probabilities))

    def _statistics(self, rows: Mapping[str, Tensor], probabilities: Tensor) -> dict[str, Tensor]:
        """Ledger rows of each network's loss and uncertainty, averaged with the earlier ones.

        Args:
            rows: The samples' rows before.
            probabilities: (2, B, C) float32 of the networks.
        """
        index = rows["label"].view(1, -1, 1).expand(NUM_NETWORKS, -1, 1)
        tiny = torch.finfo(torch.float32).tiny
        loss = -probabilities.gather(2, index).squeeze(2).clamp_min(tiny).log().T
        keep = self.config.statistics_momentum
        new = {"loss": loss, "uncertainty": entropy(probabilities).T}
        for name, value in new.items():
            old = rows[name]
            new[name] = torch.where(old.isnan(), value, keep * old + (1 - keep) * value)
        return new | {"predicted": probabilities.argmax(2).T}

    def separate(self, ledger: Ledger, epoch: int) -> None:
        """Divide the training samples of each class into the three groups, for each network."""
        ids, separation = self._divide(ledger)
        posteriors = separation.posteriors.transpose(0, 1).float()
        ledger.write(ids, posterior=posteriors, group=separation.groups.T)
        ledger.synchronise(expected_ids=self.problem.train_ids)
        if collectives.rank() == 0:
            for network, source in zip("AB", separation.source == ALL_CORRECT, strict=True):
                if source.any():
                    logger.warning(
                        "epoch %d, network %s: in classes %s the mixture's groups make no sense "
                        "(loss and uncertainty tell nothing apart); all samples count as Correct",
                        epoch + 1, network, source.nonzero().flatten().tolist(),
                    )  # fmt: skip

    def _divide(self, ledger: Ledger) -> tuple[Tensor, Separation]:
        """This rank's share of the training samples, and their division by the ledger."""
        ids = self.problem.train_ids[collectives.own_rows()]
        uncertainty = ledger["uncertainty"][ids].T
        if self.config.relative_uncertainty:
            predicted = ledger["predicted"][ids].T.long()
            uncertainty = relative_to_class(uncertainty, predicted, self.problem.num_classes)
        labels, num_classes = ledger["label"][ids], self.problem.num_classes
        return ids, separate_quality(
            ledger["loss"][ids].T, uncertainty, labels, num_classes,
            sample_ids=ids, config=SeparationConfig(pooling=self.config.pooling),
        )  # fmt: skip

    def fitted_mixture(self, ledger: Ledger) -> FittedMixture:
        """Loss and uncertainty with the mixture of each given class."""
        ids, separation = self._divide(ledger)
        mixture = separation.mixture
        uncertainty = "relative uncertainty" if self.config.relative_uncertainty else "uncertainty"
        return FittedMixture(
            ("loss", uncertainty), separation.features, separation.groups,
            ledger["label"][ids].long(), mixture.weights, mixture.means, mixture.covariances,
        )  # fmt: skip

    def predicted_labels(self, ledger: Ledger) -> Tensor:
        """Where the networks disagree, the class that is predicted with less uncertainty."""
        ids = self.problem.train_ids
        surer = ledger["uncertainty"][ids].argmin(dim=1, keepdim=True)
        predicted = ledger["predicted"][ids].gather(1, surer).squeeze(1).long()
        return torch.where(predicted < 0, ledger["label"][ids], predicted)

    # -- training --------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Cross-entropy of both networks in warm-up, then the five terms of each."""
        warm_up = batch.epoch < self.config.warmup_epochs
        weak = [images for name, images in batch.views.items() if name.startswith("weak")]
        labelled = None if warm_up else self.label(weak)
        if labelled is not None:
            batch.note_probabilities(*labelled)
            if self.config.statistics == "steps":
                batch.updates.update(self._statistics(batch.rows, labelled))
        terms: dict[str, Term] = {}
        for index, network in self.pairs():
            output = network(batch.views["strong"])
            if labelled is None:
                batch.note(output.logits)
                parts = self._warm_up_terms(network, output.logits, batch.rows["label"])
            else:
                embedding = network.project(output.features)
                # Co-training: the division made with the other network.
                rows = {name: batch.rows[name][:, 1 - index] for name in ("posterior", "group")}
                rows["label"] = batch.rows["label"]
                targets = self._targets(labelled, index, rows)
                parts = self._supervised_terms(output.logits, targets, rows["group"], batch.epoch)
                parts["contrastive"] = self._contrastive_term(embedding, rows)
                prior, weight = self.get_buffer("prior"), self.config.lambda_prior
                parts["prior"] = prior_term(output.logits, prior, weight)
            terms |= self.named(index, parts)
        return terms

    def _warm_up_terms(self, network: Network, logits: Tensor, labels: Tensor) -> dict[str, Term]:
        assert network.projector is not None
        losses = F.cross_entropy(logits.float(), labels, reduction="sum")
        idle = self.untouched(network.projector)
        return {"warm_up": Term(losses + idle, losses.new_full((), len(labels)))}

    def _targets(self, labelled: Tensor, index: int, rows: Mapping[str, Tensor]) -> Tensor:
        """Refined labels (B, C) that network ``index`` is trained towards."""
        both = labelled.mean(0)
        partner = both if self.config.refine_with == "both" else labelled[index]
        given = F.one_hot(rows["label"], self.problem.num_classes).float()
        return refine_targets(
            given, partner, both, rows["posterior"][:, CORRECT], rows["group"],
            temperature=self.config.temperature, sharpen_mis_l=self.config.sharpen_mis_l,
        )  # fmt: skip

    def _supervised_terms(
        self, logits: Tensor, targets: Tensor, groups: Tensor, epoch: int
    ) -> dict[str, Term]:
        """Cross-entropy on Correct, squared error on Mis-H, weighted cross-entropy on Mis-L."""
        cross_entropies = soft_cross_entropy(logits, targets)
        squared_errors = squared_error(logits, targets)
        weight = omega(
            epoch, self.config.warmup_epochs, self.problem.num_epochs, self.config.omega_start
        )

        def term(losses: Tensor, group: int, weight: float) -> Term:
            mask = (groups == group).float()
            return Term((losses * mask).sum(), mask.sum(), weight)

        return {
            "correct": term(cross_entropies, CORRECT, 1.0),
            "mis_h": term(squared_errors, MIS_H, self.config.lambda_mis_h),
            "mis_l": term(cross_entropies, MIS_L, weight),
        }

    def _contrastive_term(self, embedding: Tensor, rows: Mapping[str, Tensor]) -> Term:
        """Correct samples by class and every Mis-L sample as one extra class."""
        groups = rows["group"]
        classes = torch.where(groups == CORRECT, rows["label"], -1)
        classes = torch.where(groups == MIS_L, self.problem.num_classes, classes)
        start = collectives.rank() * len(classes)
        total, count = supervised_contrastive(
            embedding, classes,
            collectives.gather_with_grad(embedding), collectives.gather_equal_rows(classes),
            own_index=torch.arange(start, start + len(classes), device=classes.device),
            temperature=self.config.contrastive_temperature,
        )  # fmt: skip
        return Term(total, count, self.config.lambda_contrastive)


def relative_to_class(uncertainty: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """Uncertainty less the mean uncertainty of the samples that are predicted alike.

    A grade between two others is never predicted with the certainty of the ends of the scale, so
    good images of it look like poor ones; a poor image is uncertain for its predicted class too.

    Args:
        uncertainty: (M, N) float, of this rank's samples; the means are over all ranks'.
        predicted: (M, N) int64 in 0..C-1.
        num_classes: C.

    Returns:
        (M, N) float64; its mean over each predicted class is 0. Uncertainties (1, 3, 5) predicted
        (0, 0, 1) become (-1, 1, 0).
    """
    values = uncertainty.double()
    zeros = values.new_zeros(len(values), num_classes)
    sums = collectives.all_reduce_sum(zeros.scatter_add(1, predicted, values))
    counts = collectives.all_reduce_sum(zeros.scatter_add(1, predicted, torch.ones_like(values)))
    return values - (sums / counts.clamp_min(1)).gather(1, predicted)


def omega(epoch: int, warmup_epochs: int, num_epochs: int, start: float) -> float:
    """Omega(t), the weight of the Mis-L term: linear from ``start`` at T_w to 0 at T."""
    return start * (num_epochs - epoch) / max(num_epochs - warmup_epochs, 1)
