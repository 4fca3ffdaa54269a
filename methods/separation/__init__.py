"""Separation of a training set into correctly and wrongly labelled samples."""

from methods.separation.groups import (
    ALL_CORRECT,
    CORRECT,
    MIS_H,
    MIS_L,
    OWN_FIT,
    POOLED_FIT,
    Separation,
    SeparationConfig,
    SeparationError,
    require_finite,
    separate_loss,
    separate_quality,
)
from methods.separation.mixture import Mixture, MixtureConfig, fit_mixture, mixture_posteriors
from methods.separation.quantiles import scale_to_unit

__all__ = [
    "ALL_CORRECT",
    "CORRECT",
    "MIS_H",
    "MIS_L",
    "OWN_FIT",
    "POOLED_FIT",
    "Mixture",
    "MixtureConfig",
    "Separation",
    "SeparationConfig",
    "SeparationError",
    "fit_mixture",
    "mixture_posteriors",
    "require_finite",
    "scale_to_unit",
    "separate_loss",
    "separate_quality",
]
