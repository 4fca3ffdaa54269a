"""Gaussian mixtures fitted by EM in float64, every (network, class) pair at once.

Reference: Dempster, Laird, Rubin, "Maximum likelihood from incomplete data via the EM algorithm",
JRSS B 39, 1977; start, regularisation and stopping rule as in scikit-learn's ``GaussianMixture``,
with which the results are compared.

Each rank passes its own samples and gets the fit to all ranks' samples together: the sums that an
M step needs are added up over ranks, one small all-reduce an iteration. Whether to go on follows
from those sums by exact arithmetic alone, so the ranks stop together even on processors of
different makes. The number of ranks changes the order of summation and nothing else.

Everything runs on the CPU in float64, whatever device the input is on.
``methods.separation.blocks`` says how the samples are laid out.

Shapes: M networks, n samples of this rank, S segments (classes), K components, D features,
F = 1 + D + D(D+1)/2 monomials, B blocks, R = M * S fits.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from engine import collectives
from methods.separation.blocks import BLOCK, CHUNK, Layout, lay_out, sum_by_fit

__all__ = ["Mixture", "MixtureConfig", "fit_mixture", "mixture_posteriors"]

# Weight of the previous parameters in each M step, in samples: too small to change a live
# component, enough to keep one that lost all its samples where it was, without dividing by zero.
_PERSISTENCE = 10 * torch.finfo(torch.float64).eps


class MixtureConfig(BaseModel):
    """Settings of the EM algorithm."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    max_iterations: int = Field(100, ge=0, description="most EM iterations; 0 keeps the start")
    tolerance: float = Field(
        1e-3, ge=0.0, description="a fit stops once its mean log-likelihood changes by less"
    )
    reg_covar: float = Field(
        1e-6, gt=0.0, description="added to each variance, in squared units of the features"
    )


@dataclass(frozen=True)
class Mixture:
    """One mixture a (network, segment).

    Attributes:
        weights: (M, S, K) float64, each fit's sum to 1.
        means: (M, S, K, D) float64.
        covariances: (M, S, K, D, D) float64, positive definite.
        log_likelihood: (M, S) float64, mean over the segment's samples at the last E step (so
            before the last M step, like scikit-learn's ``lower_bound_``); NaN without samples or
            iterations.
        num_iterations: (M, S) int64; 0 for a segment without samples.
        converged: (M, S) bool; False for a segment without samples.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor
    log_likelihood: Tensor
    num_iterations: Tensor
    converged: Tensor


class _Parameters(NamedTuple):
    weights: Tensor  # (R, K)
    means: Tensor  # (R, K, D), relative to the fit's origin
    covariances: Tensor  # (R, K, D, D)


def fit_mixture(
    features: Tensor,
    segments: Tensor,
    initial_means: Tensor,
    config: MixtureConfig | None = None,
) -> Mixture:
    """Fit one full-covariance mixture to each (network, segment).

    The start is deterministic: each sample goes to the nearest initial mean (Euclidean; the first
    of equals); these shares and scatters, each with one more sample spread like the whole segment
    so that none is empty, give weights and covariances; the means are the initial ones. A fit stops
    once its own mean log-likelihood changes by less than ``config.tolerance`` and is then frozen:
    no fit depends on which others are fitted with it. A component that loses all its samples keeps
    its mean and covariance at a weight near zero.

    Args:
        features: (M, n, D) any float type, finite; best of order one, as ``reg_covar`` is absolute.
        segments: (n,) int64 in 0..S-1, the segment of each sample; segments may be empty.
        initial_means: (M, S, K, D) any float type, the same on every rank.
        config: settings; the defaults if None.

    Returns:
        The mixtures, on the CPU.

    Raises:
        ValueError: shapes do not fit together, a segment is out of range, a feature is not finite,
            or a covariance is not positive definite (``reg_covar`` too small for their range).
    """
    config = config or MixtureConfig()
    means = initial_means.detach().to("cpu", torch.float64)
    num_networks, num_segments, num_components, num_features = means.shape
    origin = means.mean(dim=2)
    layout = lay_out(features, segments, origin)
    counts = collectives.all_reduce_sum(layout.counts)
    relative = (means - origin.unsqueeze(2)).flatten(0, 1)
    start = _start(layout, counts, relative, config.reg_covar)
    parameters, log_likelihood, num_iterations, converged = _iterate(layout, counts, start, config)
    fits = (num_networks, num_segments)
    return Mixture(
        weights=parameters.weights.reshape(*fits, num_components),
        means=parameters.means.reshape(means.shape) + origin.unsqueeze(2),
        covariances=parameters.covariances.reshape(*means.shape, num_features),
        log_likelihood=log_likelihood.reshape(fits),
        num_iterations=num_iterations.reshape(fits),
        converged=converged.reshape(fits),
    )


def mixture_posteriors(mixture: Mixture, features: Tensor, segments: Tensor) -> Tensor:
    """Probability of each component given a sample, under the mixture of the sample's segment.

    Args:
        mixture: M networks, S segments, K components, D features.
        features: (M, n, D) any float type, finite.
        segments: (n,) int64 in 0..S-1.

    Returns:
        (M, n, K) float64 on the CPU; rows sum to 1.

    Raises:
        ValueError: as `fit_mixture`.
    """
    origin = mixture.means.mean(dim=2)
    layout = lay_out(features, segments, origin)
    parameters = _Parameters(
        mixture.weights.flatten(0, 1),
        (mixture.means - origin.unsqueeze(2)).flatten(0, 1),
        mixture.covariances.flatten(0, 1),
    )
    num_networks, _, num_components = mixture.weights.shape
    coefficients = _coefficients(parameters)
    posteriors = layout.design.new_empty(len(layout.fit), BLOCK, num_components)
    for blocks in torch.arange(len(layout.fit)).split(CHUNK):
        log_joint = torch.bmm(coefficients[layout.fit[blocks]], layout.design[blocks])
        posteriors[blocks] = _normalise(log_joint)[0].transpose(1, 2)
    return posteriors.view(num_networks, -1, num_components)[:, layout.slot]


def _start(layout: Layout, counts: Tensor, means: Tensor, reg_covar: float) -> _Parameters:
    """Weights and covariances of the samples nearest to each mean; see `fit_mixture`."""
    num_fits, num_components, num_features = means.shape
    # The nearest mean m maximises x.m - |m|^2 / 2, which is linear in the monomials too.
    scores = means.new_zeros(num_fits, num_components, layout.design.shape[1])
    scores[..., 0] = -means.square().sum(-1) / 2
    scores[..., 1 : 1 + num_features] = means
    moments = means.new_zeros(len(layout.fit), num_components, layout.design.shape[1])
    for blocks in torch.arange(len(layout.fit)).split(CHUNK):
        design = layout.design[blocks]
        score = torch.bmm(scores[layout.fit[blocks]], design)
        is_best = score == score.amax(dim=1, keepdim=True)
        members = is_best & (is_best.cumsum(dim=1) == 1)  # the first of equals
        moments[blocks] = torch.bmm(members.double(), design.transpose(1, 2))
    moments = collectives.all_reduce_sum(sum_by_fit(moments, layout.fit, num_fits))

    members_of = moments[..., 0]
    size = counts.clamp_min(1).double().view(-1, 1, 1)
    _, overall = _centre(moments.sum(1, keepdim=True) / size)
    _, own = _centre(moments / members_of.clamp_min(1.0).unsqueeze(-1))
    share = (1 / (members_of + 1))[..., None, None]
    covariances = own * (1 - share) + overall * share
    weights = (members_of + 1) / (members_of.sum(1, keepdim=True) + num_components)
    return _Parameters(weights, means, _regularise(covariances, reg_covar))


def _iterate(
    layout: Layout, counts: Tensor, parameters: _Parameters, config: MixtureConfig
) -> tuple[_Parameters, Tensor, Tensor, Tensor]:
    """EM until each fit has converged; the blocks of a converged fit are left out."""
    running = counts > 0
    log_likelihood = torch.full(counts.shape, -math.inf, dtype=torch.float64)
    num_iterations = torch.zeros_like(counts)
    converged = torch.zeros_like(running)
    for _ in range(config.max_iterations):
        if not bool(running.any()):
            break
        moments, evidence = _expect(layout, running, parameters)
        current = evidence / counts.clamp_min(1)
        parameters = _maximise(moments, parameters, running, config.reg_covar)
        done = running & ((current - log_likelihood).abs() < config.tolerance)
        log_likelihood = torch.where(running, current, log_likelihood)
        num_iterations += running
        converged |= done
        running &= ~done
    return parameters, log_likelihood.nan_to_num(neginf=math.nan), num_iterations, converged


def _expect(layout: Layout, running: Tensor, parameters: _Parameters) -> tuple[Tensor, Tensor]:
    """E step of the running fits over all ranks' samples.

    Returns:
        (R, K, F) sums of posterior-weighted monomials and (R,) log-likelihood.
    """
    coefficients = _coefficients(parameters)
    num_fits, num_components, num_monomials = coefficients.shape
    active = running[layout.fit].nonzero().flatten()
    sums = coefficients.new_zeros(len(active), num_components * num_monomials + 1)
    for blocks, rows in zip(active.split(CHUNK), sums.split(CHUNK), strict=True):
        design = layout.design[blocks]
        posteriors, evidence = _normalise(torch.bmm(coefficients[layout.fit[blocks]], design))
        rows[:, :-1] = torch.bmm(posteriors, design.transpose(1, 2)).flatten(1)
        # The first monomial is 1 for a sample and 0 for an empty row.
        rows[:, -1] = torch.linalg.vecdot(evidence, design[:, 0])
    totals = collectives.all_reduce_sum(sum_by_fit(sums, layout.fit[active], num_fits))
    return totals[:, :-1].unflatten(1, (num_components, num_monomials)), totals[:, -1]


def _maximise(
    sums: Tensor, previous: _Parameters, running: Tensor, reg_covar: float
) -> _Parameters:
    """M step of the running fits from the sums of posterior-weighted monomials (R, K, F)."""
    lower, upper = torch.triu_indices(*previous.covariances.shape[-2:])
    outer = previous.means.unsqueeze(-1) * previous.means.unsqueeze(-2)
    second = (previous.covariances + outer)[..., lower, upper]
    ones = torch.ones_like(previous.weights).unsqueeze(-1)
    sums = sums + _PERSISTENCE * torch.cat([ones, previous.means, second], dim=-1)
    counts = sums[..., :1]
    means, covariances = _centre(sums / counts)
    new = _Parameters(sums[..., 0] / counts.sum(1), means, _regularise(covariances, reg_covar))
    weights, means, covariances = (
        torch.where(running.view(-1, *[1] * (value.dim() - 1)), value, old)
        for value, old in zip(new, previous, strict=True)
    )
    return _Parameters(weights, means, covariances)


def _coefficients(parameters: _Parameters) -> Tensor:
    """(R, K, F): log(weight) + log-density of each component as a linear form of the monomials."""
    weights, means, covariances = parameters
    num_features = means.shape[-1]
    factor, failed = torch.linalg.cholesky_ex(covariances)
    if bool(failed.any()):
        raise ValueError(
            f"mixture: {int((failed > 0).sum())} of {failed.numel()} covariances are not positive"
            " definite; scale the features or raise reg_covar"
        )
    precision = torch.cholesky_inverse(factor)
    linear = (precision @ means.unsqueeze(-1)).squeeze(-1)
    log_determinant = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    quadratic_of_mean = (means * linear).sum(-1)
    constant = weights.log() - 0.5 * (
        num_features * math.log(2 * math.pi) + log_determinant + quadratic_of_mean
    )
    lower, upper = torch.triu_indices(num_features, num_features)
    # Off the diagonal, one monomial stands for both x_i x_j and x_j x_i.
    factor_of_pair = torch.where(lower == upper, -0.5, -1.0).double()
    quadratic = factor_of_pair * precision[..., lower, upper]
    return torch.cat([constant.unsqueeze(-1), linear, quadratic], dim=-1)


def _normalise(log_joint: Tensor) -> tuple[Tensor, Tensor]:
    """Posteriors (B, K, BLOCK) and log-evidence (B, BLOCK) from log(weight * density)."""
    peak = log_joint.amax(dim=1, keepdim=True)
    posteriors = (log_joint - peak).exp_()
    total = posteriors.sum(dim=1, keepdim=True)
    return posteriors.div_(total), total.log_().add_(peak).squeeze(1)


def _centre(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (..., D) and covariance (..., D, D) from mean monomials (..., F)."""
    num_features = (math.isqrt(8 * moments.shape[-1] + 1) - 3) // 2
    mean = moments[..., 1 : 1 + num_features]
    lower, upper = torch.triu_indices(num_features, num_features)
    packed = moments[..., 1 + num_features :] - mean[..., lower] * mean[..., upper]
    covariance = moments.new_empty(*mean.shape, num_features)
    covariance[..., lower, upper] = packed
    covariance[..., upper, lower] = packed
    return mean, covariance


def _regularise(covariances: Tensor, reg_covar: float) -> Tensor:
    return covariances + reg_covar * torch.eye(covariances.shape[-1], dtype=torch.float64)
