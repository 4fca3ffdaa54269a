"""The optimiser and its learning rate, a pure function of the global step."""

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

__all__ = ["OptimConfig", "build_optimizer", "learning_rate", "set_learning_rate"]


class OptimConfig(BaseModel):
    """Section ``optim``."""

    model_config = ConfigDict(frozen=True)

    name: Literal["adamw", "sgd"] = Field("adamw", description="Optimiser.")
    lr: float = Field(1e-3, gt=0, description="Peak learning rate; never scaled by processes.")
    batch_size: int = Field(
        64, ge=2, description="Size of the global batch: the sum over all processes."
    )
    weight_decay: float = Field(
        5e-4, ge=0, description="Decoupled (adamw) or L2 (sgd); not on biases and norm layers."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd.")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="After lr warm-up.")
    lr_warmup_steps: int = Field(0, ge=0, description="Steps of linear rise from 0 to lr.")
    final_lr_share: float = Field(
        0.0, ge=0, le=1, description="Share of lr that the cosine ends at."
    )
    clip_norm: float | None = Field(5.0, gt=0, description="Largest global gradient norm.")


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Optimiser over the trained parameters, those of one dimension without weight decay."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr)


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """Learning rate of a step.

    Args:
        config: Section ``optim``.
        step: Global step from 0, the same on every rank.
        num_steps: Steps of the whole run.

    Returns:
        ``lr * (step + 1) / lr_warmup_steps`` while that is below 1; then constant, or half a cosine
        from ``lr`` to ``final_lr_share * lr`` at ``num_steps``.
    """
    if step < config.lr_warmup_steps:
        return config.lr * (step + 1) / config.lr_warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = (step - config.lr_warmup_steps) / max(num_steps - config.lr_warmup_steps, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return config.lr * (config.final_lr_share + (1 - config.final_lr_share) * cosine)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Use a learning rate from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = value
