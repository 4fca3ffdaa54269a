"""Normalisation layers, whatever the backbone came with."""

from collections.abc import Callable
from typing import Literal

from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from methods.weights import ModelError

__all__ = ["NormKind", "convert_norm"]

NormKind = Literal["batch", "sync", "group", "frozen"]
_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


def convert_norm(module: nn.Module, kind: NormKind, groups: int) -> None:
    """Replace every BatchNorm inside a module, in place, keeping its weights and statistics.

    Works on any backbone, so that the choice does not depend on its constructor. With ``frozen``
    the one-dimensional ones of a projector become GroupNorm: they have no statistics to freeze.

    Args:
        module: Module to change.
        kind: ``batch`` leaves it as it is.
        groups: Most groups of a GroupNorm; the largest divisor of the channels up to it is taken.

    Raises:
        ModelError: A layer is more than a BatchNorm; some of timm's hold an activation, which
            would be lost.
    """
    if kind == "batch":
        return
    make: Callable[[_BatchNorm], nn.Module] = {
        "sync": nn.SyncBatchNorm.convert_sync_batchnorm,
        "group": lambda norm: _group_norm(norm, groups),
        "frozen": lambda norm: _frozen_norm(norm, groups),
    }[kind]
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            if type(child) not in (nn.BatchNorm1d, nn.BatchNorm2d):
                raise ModelError(
                    f"model.norm: {kind} cannot replace this backbone's {type(child).__name__}, "
                    "which does more than normalise; use batch or another backbone"
                )
            setattr(module, name, make(child))
        else:
            convert_norm(child, kind, groups)


def _group_norm(norm: _BatchNorm, groups: int) -> nn.GroupNorm:
    channels = norm.num_features
    divisor = max(g for g in range(1, min(groups, channels) + 1) if channels % g == 0)
    group_norm = nn.GroupNorm(divisor, channels, eps=norm.eps)
    group_norm.load_state_dict({"weight": norm.weight, "bias": norm.bias})
    return group_norm


def _frozen_norm(norm: _BatchNorm, groups: int) -> nn.Module:
    if isinstance(norm, nn.BatchNorm1d):
        return _group_norm(norm, groups)
    frozen = FrozenBatchNorm2d(norm.num_features, eps=norm.eps)
    state = norm.state_dict()
    state.pop("num_batches_tracked")
    frozen.load_state_dict(state)
    return frozen
