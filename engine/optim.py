"""The optimiser and its learning rate, a pure function of the global step."""

import math
from itertools import pairwise
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

__all__ = ["OptimConfig", "build_optimizer", "learning_rate", "set_learning_rate"]


class OptimConfig(BaseModel):
    """Section ``optim``."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    name: Literal["adamw", "adam", "sgd"] = Field("adamw", description="Optimiser.")
    lr: float = Field(1e-3, gt=0, description="Peak learning rate; never scaled by processes.")
    batch_size: int = Field(
        64, ge=2, description="Size of the global batch: the sum over all processes."
    )
    weight_decay: float = Field(
        5e-4,
        ge=0,
        description="Decoupled (adamw) or L2 (adam, sgd); not on biases and norm layers.",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd.")
    schedule: Literal["cosine", "constant", "multistep", "halving_cosine"] = Field(
        "cosine",
        description="After lr warm-up: cosine falls to final_lr_share; multistep takes gamma times "
        "the rate at each milestone; halving_cosine is a cosine to 0 that is halved besides after "
        "each fifth of the way.",
    )
    lr_warmup_steps: int = Field(0, ge=0, description="Steps of linear rise from 0 to lr.")
    final_lr_share: float = Field(
        0.0, ge=0, le=1, description="Share of lr that schedule cosine ends at."
    )
    milestones: tuple[float, ...] = Field(
        (),
        description="Needed by schedule multistep and only there: where the rate drops, as shares "
        "of all steps of the run, between 0 and 1 and ascending.",
    )
    gamma: float = Field(
        0.1, gt=0, le=1, description="Factor on the rate at each milestone of schedule multistep."
    )
    clip_norm: float | None = Field(
        5.0,
        gt=0,
        description="Largest norm of the gradient, of all networks together; null = no limit.",
    )

    @model_validator(mode="after")
    def _check_milestones(self) -> "OptimConfig":
        shown = list(self.milestones)
        if self.schedule != "multistep":
            if shown:
                raise ValueError(
                    f"milestones: set to {shown}, but schedule {self.schedule} has none"
                )
        elif not shown:
            raise ValueError(
                "milestones: not set; schedule multistep needs the shares of the run at which the "
                "rate drops, such as [0.5, 0.75]"
            )
        # Comparisons that hold, not ones that fail, so that NaN is refused.
        elif not all(before < after for before, after in pairwise((0, *shown, 1))):
            raise ValueError(
                f"milestones: set to {shown}; expected ascending shares of the run, all > 0 and < 1"
            )
        return self


def build_optimizer(
    module: nn.Module, config: OptimConfig, *, fused: bool = False
) -> torch.optim.Optimizer:
    """Optimiser over the trained parameters, those of one dimension without weight decay.

    Args:
        module: What is trained.
        config: Section ``optim``.
        fused: Whether a step is one kernel for many parameters; for GPUs.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
    if config.name == "adam":
        return torch.optim.Adam(groups, lr=config.lr, fused=fused)
    return torch.optim.AdamW(groups, lr=config.lr, fused=fused)


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """Learning rate of a step.

    Args:
        config: Section ``optim``.
        step: Global step from 0, the same on every rank.
        num_steps: Steps of the whole run.

    Returns:
        ``lr * (step + 1) / lr_warmup_steps`` during lr warm-up; then, with ``done`` the share of
        the steps after it that are done:

        - constant: ``lr``;
        - cosine: half a cosine from ``lr`` to ``final_lr_share * lr`` at ``num_steps``;
        - multistep: ``lr * gamma ** m`` with m the number of milestones at or before
          ``step / num_steps``, a share of the whole run so that lr warm-up does not move them;
        - halving_cosine: ``lr * 0.5 ** floor(5 * done) * 0.5 * (1 + cos(pi * done))``, SSCL's
          published schedule, taken by the step here.
    """
    if step < config.lr_warmup_steps:
        return config.lr * (step + 1) / config.lr_warmup_steps
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "multistep":
        num_passed = sum(milestone <= step / num_steps for milestone in config.milestones)
        return config.lr * config.gamma**num_passed
    done = (step - config.lr_warmup_steps) / max(num_steps - config.lr_warmup_steps, 1)
    done = min(done, 1.0)
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "halving_cosine":
        return config.lr * 0.5 ** math.floor(5 * done) * cosine
    return config.lr * (config.final_lr_share + (1 - config.final_lr_share) * cosine)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Use a learning rate from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = value
