"""The interface between a method and the engine.

A method is one ``nn.Module`` that holds all its networks, so that DDP or DeepSpeed wraps one module
and one optimiser takes one step after one backward pass. What the engine calls, in order::

    method.columns()                         once: the ledger's columns
    for each epoch:
        if method.needs_survey(epoch):
            for each batch of all training samples, un-augmented, in eval mode:
                method.observe(ledger, sample_ids, method(images))
        if method.separates(epoch):
            method.separate(ledger, epoch)   every rank holds the whole table here
        for each global batch:
            method(Batch(...)) -> named terms, in training mode; rows for the ledger
            method.after_step()              after the optimiser's step
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel
from torch import Tensor, nn

from engine.ledger import Column, Ledger
from methods.networks import Network, Projector

__all__ = [
    "Batch",
    "FittedMixture",
    "Method",
    "MethodError",
    "Problem",
    "Term",
    "View",
    "ViewKind",
]

ViewKind = Literal["plain", "weak", "strong"]


class MethodError(ValueError):
    """The section ``method`` does not go with the others; one line that names the keys."""


@dataclass(frozen=True)
class Term:
    """A named part of the loss, as this rank's sum and count.

    The engine divides the sum by the count over *all* ranks; a method never divides by the size of
    its own part of a batch, since those parts differ.

    Attributes:
        total: Scalar float32, sum over this rank's samples of the term, differentiable.
        count: Scalar, how many samples (or how much weight) went into it; may be 0 on a rank.
        weight: Factor of the term in the total loss.
    """

    total: Tensor
    count: Tensor
    weight: float = 1.0


class View(NamedTuple):
    """Which view of a sample is wanted: its kind, and its number among those of that kind."""

    kind: ViewKind
    number: int = 0


@dataclass(frozen=True)
class Batch:
    """This rank's part of a global batch.

    Attributes:
        sample_ids: (B,) int64.
        views: Name -> (B, 3, S, S) float32, as asked for by :meth:`Method.views`.
        rows: Ledger column -> (B, ...), the rows of these samples.
        epoch: Epoch from 0.
        step: Global step from 0, the same on all ranks.
        updates: Ledger column -> (B, ...): what the step finds out about its samples. A method
            fills it in; the engine writes it to the ledger, where it takes effect at the end of the
            epoch.
        noted: Predictions (B, C) float, without gradient, see :meth:`note`.
    """

    sample_ids: Tensor
    views: Mapping[str, Tensor]
    rows: Mapping[str, Tensor]
    epoch: int
    step: int
    updates: dict[str, Tensor] = field(default_factory=dict)
    noted: list[Tensor] = field(default_factory=list)

    def note(self, logits: Tensor) -> None:
        """Let the engine remember what a network makes of the samples: (B, C) float logits.

        The label audit looks at the mean over epochs. A step notes each network once, and nothing
        of images that are mixed from several samples.
        """
        self.note_probabilities(F.softmax(logits.float(), dim=-1))

    def note_probabilities(self, *probabilities: Tensor) -> None:
        """The same of class probabilities (B, C) float, one a network."""
        self.noted.extend(p.detach() for p in probabilities)


@dataclass(frozen=True)
class Problem:
    """What a method is told about the task before it builds its networks.

    Attributes:
        num_classes: C.
        labels: (N,) int64 given labels of all rows of the manifest.
        train_ids: (n,) int64 ids of the training samples, ascending.
        num_epochs: Epochs of the whole run.
        batch_size: Samples of a global batch.
        seed: Seed of the run.
        build_network: Makes network number k of the run, with its own initial weights; takes k and
            the sizes of a contrastive method's heads (None = no heads).
        class_balanced: Whether each class fills the same share of an epoch's batches.
    """

    num_classes: int
    labels: Tensor
    train_ids: Tensor
    num_epochs: int
    batch_size: int
    seed: int
    build_network: Callable[[int, Projector | None], Network]
    class_balanced: bool = False

    def class_frequencies(self) -> Tensor:
        """Share of each given class among what is trained on: (C,) float32, sums to 1."""
        counts = torch.bincount(self.labels[self.train_ids], minlength=self.num_classes)
        if self.class_balanced:
            counts = counts.clamp_max(1)
        return counts.float() / counts.sum()


@dataclass(frozen=True)
class FittedMixture:
    """Statistics that a separation has divided, and the Gaussian mixtures fitted to them.

    Shapes: M networks, n training samples in the order of their ids, S segments, K components, D
    statistics.

    Attributes:
        names: What the D statistics are.
        features: (M, n, D) float64, as they were fitted.
        groups: (M, n) uint8, how the separation divides them.
        segments: (n,) int64 in 0..S-1, the mixture that a sample was fitted with. The groups may
            follow other mixtures too, such as a pooled one.
        weights: (M, S, K) float64, each mixture's sum to 1; components in the order of the groups.
        means: (M, S, K, D) float64.
        covariances: (M, S, K, D, D) float64.
    """

    names: tuple[str, ...]
    features: Tensor
    groups: Tensor
    segments: Tensor
    weights: Tensor
    means: Tensor
    covariances: Tensor


class Method(nn.Module, ABC):
    """Base of all methods; see the module's docstring for the calls in order."""

    Config: ClassVar[type[BaseModel]]

    def __init__(self, config: BaseModel, problem: Problem) -> None:
        super().__init__()
        self.config = config
        self.problem = problem

    def forward(self, inputs: Any) -> Any:
        """One entry for the wrapper: terms of a :class:`Batch` in training, else probabilities.

        In eval mode ``inputs`` are un-augmented images (B, 3, S, S) float32 and the result is
        (M, B, C) float32: the class probabilities of each of the method's M predictors.
        """
        return self.losses(inputs) if self.training else self.probabilities(inputs)

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Term]:
        """The loss of a batch by its named terms."""

    @abstractmethod
    def predictors(self) -> Sequence[Network]:
        """The M networks that predict: all that is needed of a trained method to use it."""

    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities of each predictor: (B, 3, S, S) -> (M, B, C) float32.

        The prediction of the method is their mean over M.
        """
        logits = [network(images).logits.float() for network in self.predictors()]
        return torch.stack([F.softmax(values, dim=-1) for values in logits])

    @abstractmethod
    def views(self, epoch: int) -> Mapping[str, View]:
        """The views of each sample that a step of this epoch needs, by the name used in a batch."""

    @abstractmethod
    def forwards_per_image(self, epoch: int) -> dict[str, int]:
        """Network passes per training image: ``with_gradient``, ``without``, ``survey``."""

    def columns(self) -> dict[str, Column]:
        """The method's own columns of the ledger."""
        return {}

    def needs_survey(self, epoch: int) -> bool:
        """Whether all training samples are to be predicted before this epoch."""
        return False

    def separates(self, epoch: int) -> bool:
        """Whether :meth:`separate` is to be called before this epoch: after each survey."""
        return self.needs_survey(epoch)

    def observe(self, ledger: Ledger, sample_ids: Tensor, probabilities: Tensor) -> None:
        """Write what a survey's batch tells into the ledger.

        Args:
            ledger: Table to write to.
            sample_ids: (B,) int64.
            probabilities: (M, B, C) float32 from :meth:`probabilities`.
        """

    def separate(self, ledger: Ledger, epoch: int) -> None:
        """Decide from the whole table how each sample is treated this epoch."""

    def fitted_mixture(self, ledger: Ledger) -> FittedMixture | None:
        """What a separation fits, for a figure; None where it fits no mixture in a plane.

        Worked out anew from the ledger as it stands, so that it outlives a restart: the last
        separation, unless steps have written other statistics since. A collective call, of whose
        samples each rank has its share.
        """
        return None

    def predicted_labels(self, ledger: Ledger) -> Tensor | None:
        """(n,) int64 class that the method last predicted of each training sample, if it notes it.

        Of a sample without a prediction yet: the given label.
        """
        return None

    def after_step(self) -> None:
        """Whatever follows each optimiser step, such as moving averages."""

    def untouched(self, *modules: nn.Module) -> Tensor:
        """A zero that depends on parameters which a step would otherwise leave out.

        Each trained parameter then has a gradient in each step, so DDP needs no search for unused
        parameters and one process takes the same step as many.
        """
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        zero = torch.zeros((), device=parameters[0].device)
        return torch.stack([p.float().sum() for p in parameters]).sum() * zero
