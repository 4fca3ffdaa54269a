"""Which samples are Correct, Mis-H or Mis-L, from each sample's loss and uncertainty.

Reference: Hou, Xu, Feng, Chen, "QMix: Quality-aware Learning with Mixed Noise for Robust Retinal
Disease Diagnosis", IEEE TMI 44(8), 2025, arXiv 2404.05169 (joint uncertainty-loss criterion); and,
for the loss alone, Li, Socher, Hoi, "DivideMix", ICLR 2020, section 3.1.

Ours, where the papers are silent: both statistics are clipped at their 0.5 % and 99.5 % quantiles
before they are scaled; EM starts from quantiles of the data; the rules by which components get
their meaning and by which a class falls back to the fit over all classes.

The statistics are in-sample: of networks that were trained on these labels. Posteriors are
responsibilities under the mixture, not calibrated probabilities.

Every function here is a collective call: each rank passes its own samples and gets back what holds
for them among all ranks' samples, so the work of a rank falls with the number of ranks.

Shapes: M networks, N samples of this rank (of several ranks, some may have none), C classes.
"""

from dataclasses import dataclass, fields, replace
from itertools import permutations

import torch
from pydantic import Field
from torch import Tensor

from engine import collectives
from methods.separation.mixture import Mixture, MixtureConfig, fit_mixture, mixture_posteriors
from methods.separation.quantiles import scale_to_unit, segment_quantiles

__all__ = [
    "ALL_CORRECT",
    "CORRECT",
    "MIS_H",
    "MIS_L",
    "OWN_FIT",
    "POOLED_FIT",
    "Separation",
    "SeparationConfig",
    "SeparationError",
    "quality_prototypes",
    "require_finite",
    "separate_loss",
    "separate_quality",
]

# The same numbers as in the data package, which methods do not import.
CORRECT, MIS_H, MIS_L = 0, 1, 2
NUM_GROUPS = 3

# Where a class's posteriors come from.
OWN_FIT, POOLED_FIT, ALL_CORRECT = 0, 1, 2

# Measured on digits (40 % Mis-H, 15 % Mis-L, two small networks, 18 points of training after the
# tenth epoch): a low quantile of 20 % finds Mis-L at precision 0.49 where 10 % gives 0.44; from
# 25 % on, simulated classes with only 17 % Correct begin to be lost.
_PROTOTYPE_QUANTILES = (0.2, 0.5, 0.9)
# Component means nearer than this share of the scaled range do not tell two groups apart.
_MIN_GAP = 1e-3
_NAMED = 10  # samples that an error names

_DIVIDEMIX = MixtureConfig(max_iterations=10, tolerance=1e-2, reg_covar=5e-4)


class SeparationConfig(MixtureConfig):
    """Settings of `separate_quality`.

    The variances' regulariser is DivideMix's, not scikit-learn's 1e-6: with that, the many samples
    learned by heart draw one component into a spike and push milder ones out of Correct. On digits
    (40 % Mis-H, 15 % Mis-L, small networks after ten epochs) 5e-4 raises the AUC of Correct from
    0.96 to 0.98 and its recall from 0.76 to 0.83.
    """

    reg_covar: float = Field(
        5e-4, gt=0.0, description="added to each variance of the scaled features"
    )
    pooling: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the fit over all classes in each posterior; 0 = own fit alone",
    )
    min_samples: int = Field(30, ge=NUM_GROUPS, description="smallest class with a fit of its own")


class SeparationError(ValueError):
    """A network's statistics are not finite: its training has diverged."""


@dataclass(frozen=True)
class Separation:
    """Result of `separate_quality`, on the CPU; mixtures and sources are the same on every rank.

    Attributes:
        posteriors: (M, N, 3) float64, columns CORRECT, MIS_H, MIS_L; rows sum to 1.
        groups: (M, N) uint8, the column of the largest posterior (the first of equals).
        mixture: each class's own mixture, components in the order of the columns; the one over all
            classes where ``source`` is not OWN_FIT.
        features: (M, N, 2) float64, scaled loss and uncertainty.
        source: (M, C) uint8: OWN_FIT, POOLED_FIT (too few samples, or no sensible arrangement of
            the class's components) or ALL_CORRECT (nor of the pooled ones: posterior (1, 0, 0)).
    """

    posteriors: Tensor
    groups: Tensor
    mixture: Mixture
    features: Tensor
    source: Tensor


def separate_quality(
    losses: Tensor,
    uncertainties: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    sample_ids: Tensor | None = None,
    config: SeparationConfig | None = None,
) -> Separation:
    """Split each given class into Correct, Mis-H and Mis-L, for each network.

    Loss and uncertainty are scaled to [0, 1] per network; within each given class a mixture of
    three Gaussians is fitted; `_arrange` gives the components their meaning. A class with fewer
    than ``config.min_samples`` samples, or whose components have no sensible arrangement (constant
    statistics, say), takes the mixture fitted over all classes. Where that has no sensible
    arrangement either, or there are fewer than three samples in all, the samples are Correct with
    posterior (1, 0, 0).

    Args:
        losses: (M, N) any float type, cross-entropy against the given label.
        uncertainties: (M, N) any float type, entropy of the prediction.
        labels: (N,) int64 in 0..C-1, the given labels.
        num_classes: C; classes may be empty.
        sample_ids: (N,) int64, for error messages; 0..N-1 if None.
        config: settings; the defaults if None.

    Raises:
        ValueError: no samples, shapes differ, or a label is out of range.
        SeparationError: a statistic is not finite; the message names network and sample_ids.
    """
    config = config or SeparationConfig()
    require_finite("loss", losses, sample_ids)
    require_finite("uncertainty", uncertainties, sample_ids)
    if losses.shape != uncertainties.shape:
        raise ValueError(
            f"separation: losses have shape {tuple(losses.shape)},"
            f" uncertainties {tuple(uncertainties.shape)}; expected the same"
        )
    features = torch.stack([scale_to_unit(losses), scale_to_unit(uncertainties)], dim=-1)
    labels = _checked_labels(labels, losses.shape[1], num_classes)
    pooled, pooled_sensible = _fit_groups(features, torch.zeros_like(labels), 1, config)
    own, own_sensible = _fit_groups(features, labels, num_classes, config)
    counts = _count(labels, num_classes)
    use_own = own_sensible & (counts >= config.min_samples)
    use_pooled = pooled_sensible & (counts.sum() >= NUM_GROUPS)
    source = torch.where(use_pooled, POOLED_FIT, ALL_CORRECT)
    source = torch.where(use_own, OWN_FIT, source).to(torch.uint8)

    mixture = _choose(use_own, own, pooled)
    posteriors = mixture_posteriors(mixture, features, labels)
    # Two opinions: a class's own fit follows its peculiarities, the pooled one has more samples.
    share = (config.pooling * use_pooled).unsqueeze(-1)
    shared = mixture_posteriors(pooled, features, torch.zeros_like(labels))
    posteriors = posteriors.mul_(1 - share).add_(shared.mul_(share))
    posteriors[source[:, labels] == ALL_CORRECT] = torch.eye(NUM_GROUPS).double()[CORRECT]
    groups = posteriors.argmax(dim=-1).to(torch.uint8)
    return Separation(posteriors, groups, mixture, features, source)


def separate_loss(
    losses: Tensor,
    *,
    labels: Tensor | None = None,
    num_classes: int = 1,
    sample_ids: Tensor | None = None,
    config: MixtureConfig | None = None,
) -> Tensor:
    """Probability that each sample's label is clean, from its loss alone (DivideMix).

    Per network, two Gaussians are fitted to the scaled losses, started at their 20 % and 90 %
    quantiles; the result is the posterior of the one with the lower mean. Where the two means
    coincide (constant losses, a single sample) every label counts as clean. The default settings
    are those of DivideMix's published program, which starts from random k-means; running EM on to
    convergence finds wrong labels less well.

    Args:
        losses: (M, N) any float type, cross-entropy against the given label.
        labels: (N,) int64 in 0..C-1, to fit a mixture to each class of at least 30 samples; smaller
            ones take that of all samples. None = one mixture of all samples, as published.
        num_classes: C; of use with labels.
        sample_ids: (N,) int64, for error messages; 0..N-1 if None.
        config: EM settings; 10 iterations, tolerance 1e-2 and regulariser 5e-4 if None.

    Returns:
        (M, N) float64 in [0, 1] on the CPU; 1 = surely clean.

    Raises:
        ValueError: no samples, or a label out of range.
        SeparationError: a loss is not finite; the message names network and sample_ids.
    """
    require_finite("loss", losses, sample_ids)
    scaled, config = scale_to_unit(losses), config or _DIVIDEMIX
    everywhere = torch.zeros(losses.shape[1], dtype=torch.int64)
    pooled = _clean_probability(scaled, everywhere, 1, config)
    if labels is None:
        return pooled
    labels = _checked_labels(labels, losses.shape[1], num_classes)
    own = _clean_probability(scaled, labels, num_classes, config)
    is_large = _count(labels, num_classes) >= SeparationConfig().min_samples
    return torch.where(is_large[labels], own, pooled)


def _clean_probability(
    scaled: Tensor, segments: Tensor, num_segments: int, config: MixtureConfig
) -> Tensor:
    """(M, N) posterior of the lower of two components, fitted to each segment of (M, N) losses."""
    features = scaled.unsqueeze(-1)
    low, _, high = segment_quantiles(scaled, segments, num_segments, _PROTOTYPE_QUANTILES).unbind(
        -1
    )
    start = torch.stack([low, high], dim=-1).unsqueeze(-1)
    mixture = fit_mixture(features, segments, start, config)
    means = mixture.means[..., 0]
    posteriors = mixture_posteriors(mixture, features, segments)
    chosen = means.argmin(dim=2)[:, segments].unsqueeze(-1)
    clean_probability = posteriors.gather(2, chosen).squeeze(2)
    separable = (means[..., 0] - means[..., 1]).abs() > _MIN_GAP
    return torch.where(separable[:, segments], clean_probability, 1.0)


def quality_prototypes(features: Tensor, segments: Tensor, num_segments: int) -> Tensor:
    """Start means of the three groups from quantiles of each segment's own statistics.

    Correct = (low loss, low uncertainty), Mis-H = (high, low), Mis-L = (median, high), where low,
    median and high are the 20 %, 50 % and 90 % quantiles.

    Args:
        features: (M, N, 2) float64, scaled loss and uncertainty.
        segments: (N,) int64 in 0..S-1.
        num_segments: S.

    Returns:
        (M, S, 3, 2) float64 in the order CORRECT, MIS_H, MIS_L; zeros for an empty segment.
    """
    loss, uncertainty = (
        segment_quantiles(features[..., i], segments, num_segments, _PROTOTYPE_QUANTILES)
        for i in range(2)
    )
    low, middle, high = range(3)
    return torch.stack([loss[..., [low, high, middle]], uncertainty[..., [low, low, high]]], dim=-1)


def _fit_groups(
    features: Tensor, segments: Tensor, num_segments: int, config: MixtureConfig | None
) -> tuple[Mixture, Tensor]:
    """Mixtures with components in group order, and whether that order makes sense (M, S) bool."""
    prototypes = quality_prototypes(features, segments, num_segments)
    mixture = fit_mixture(features, segments, prototypes, config)
    alive = mixture.weights * _count(segments, num_segments).unsqueeze(-1) > 0.5
    order, sensible = _arrange(mixture.means, prototypes, alive)
    arranged = replace(
        mixture,
        weights=mixture.weights.gather(2, order),
        means=torch.take_along_dim(mixture.means, order[..., None], dim=2),
        covariances=torch.take_along_dim(mixture.covariances, order[..., None, None], dim=2),
    )
    return arranged, sensible


def _arrange(means: Tensor, prototypes: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
    """Which component is which group: the sensible assignment nearest to the prototypes.

    EM may carry a component away from where it started, so its index says nothing. An assignment is
    sensible if Correct is alive and has the lowest mean loss of the three and a lower mean
    uncertainty than Mis-L, each by more than `_MIN_GAP`. (Without Mis-H or Mis-L, one component
    may well die.) Of the sensible ones, that with the least sum of squared distances between means
    and prototypes is taken: unlike ranking by one coordinate, it does not mistake Mis-H for
    Mis-L where their uncertainties are nearly equal.

    Args:
        means: (M, S, 3, 2) float64, scaled loss and uncertainty.
        prototypes: (M, S, 3, 2) float64 in group order.
        alive: (M, S, 3) bool, whether the component holds a sample, or most of one.

    Returns:
        (M, S, 3) int64, the component of each group, and (M, S) bool, whether any is sensible.
    """
    orders = torch.tensor(list(permutations(range(NUM_GROUPS))))
    candidates = means[:, :, orders]
    distance = (candidates - prototypes.unsqueeze(2)).square().sum(dim=(-2, -1))
    loss, uncertainty = candidates.unbind(-1)
    wrong = torch.stack([loss[..., MIS_H], loss[..., MIS_L]], dim=-1).amin(-1)
    surer = uncertainty[..., MIS_L] - uncertainty[..., CORRECT] > _MIN_GAP
    sensible = alive[:, :, orders[:, CORRECT]] & (wrong - loss[..., CORRECT] > _MIN_GAP) & surer
    best = torch.where(sensible, distance, torch.inf).argmin(dim=-1)
    return orders[best], sensible.any(dim=-1)


def _choose(use_first: Tensor, first: Mixture, second: Mixture) -> Mixture:
    """Mixture of each (network, segment) from ``first`` where the (M, S) mask says so."""
    chosen = {}
    for field in fields(Mixture):
        value = getattr(first, field.name)
        mask = use_first.view(*use_first.shape, *[1] * (value.dim() - 2))
        chosen[field.name] = torch.where(mask, value, getattr(second, field.name))
    return Mixture(**chosen)


def _count(segments: Tensor, num_segments: int) -> Tensor:
    """(S,) samples of each segment on all ranks."""
    return collectives.all_reduce_sum(torch.bincount(segments, minlength=num_segments))


def _checked_labels(labels: Tensor, num_samples: int, num_classes: int) -> Tensor:
    labels = labels.detach().to("cpu", torch.int64)
    if labels.shape != (num_samples,):
        raise ValueError(
            f"separation: labels have shape {tuple(labels.shape)}; expected ({num_samples},)"
        )
    if num_samples and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"separation: labels lie in {int(labels.min())}..{int(labels.max())};"
            f" expected 0..{num_classes - 1}"
        )
    return labels


def require_finite(name: str, values: Tensor, sample_ids: Tensor | None) -> None:
    """Refuse NaN and infinity on all ranks together, naming ten samples of each network with any.

    Args:
        name: What the values are.
        values: (M, N) float.
        sample_ids: (N,) int64; 0..N-1 if None.
    """
    shape = tuple(values.shape)
    refusal = f"separation: {name} has shape {shape}; expected (networks, samples >= 1)"
    if values.dim() != 2:
        raise ValueError(refusal)
    ids = torch.arange(values.shape[1]) if sample_ids is None else sample_ids.cpu()
    found = []
    for bad in (~torch.isfinite(values)).cpu():
        rows = bad.nonzero().flatten()
        found.append((len(rows), ids[rows[:_NAMED]].tolist()))
    of_ranks = collectives.gather_objects((values.shape[1], found))
    if not any(num_samples for num_samples, _ in of_ranks):
        raise ValueError(refusal)
    problems = []
    for network in range(len(values)):
        parts = [found[network] for _, found in of_ranks]
        total = sum(count for count, _ in parts)
        if total:
            first = sorted(sum((named for _, named in parts), []))[:_NAMED]
            more = f" and {total - _NAMED} more" if total > _NAMED else ""
            problems.append(f"network {network}: sample_ids {', '.join(map(str, first))}{more}")
    if problems:
        raise SeparationError(f"separation: {name} is not finite for {'; '.join(problems)}")
