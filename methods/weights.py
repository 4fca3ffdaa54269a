"""Pre-trained weights from a file, for machines without a network."""

import logging
import pickle
import struct
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

__all__ = ["ModelError", "load_weights"]

logger = logging.getLogger(__name__)

# What readers raise depends on the bytes that they find instead.
_DAMAGE = (
    safetensors.SafetensorError, pickle.UnpicklingError, struct.error, RuntimeError, EOFError,
    LookupError, ValueError, AttributeError, TypeError, AssertionError,
)  # fmt: skip

# Classifier heads of torchvision's and most of timm's models, of which an encoder keeps at most a
# part; timm's say themselves what theirs are called.
_HEADS = ("fc.", "classifier.", "head.")


class ModelError(ValueError):
    """The section ``model`` asks for what cannot be built; one line that names the key."""


def load_weights(encoder: nn.Module, path: Path) -> None:
    """Load an encoder's weights and say what did not fit.

    What the encoder lacks of a classifier head in the file is left out; everything else must match
    exactly.

    Args:
        encoder: Module to fill.
        path: ``.safetensors``, or a ``.pth``/``.pt``/``.bin`` state dict of tensors.

    Raises:
        ModelError: The file is missing, damaged or not a state dict, or its keys or shapes do not
            match; the message names ``model.weights``, the file and the first ten keys of each
            kind.
    """
    own = encoder.state_dict()
    named = (getattr(encoder, "pretrained_cfg", None) or {}).get("classifier") or ()
    layers = [named] if isinstance(named, str) else named  # such as head_dist.linear
    heads = (*_HEADS, *(f"{layer.partition('.')[0]}." for layer in layers))
    state = {k: v for k, v in _read(path).items() if k in own or not k.startswith(heads)}
    missing = sorted(k for k in own.keys() - state.keys() if not k.endswith("num_batches_tracked"))
    unexpected = sorted(state.keys() - own.keys())
    shapes = sorted(
        f"{k} ({tuple(state[k].shape)}, needed {tuple(own[k].shape)})"
        for k in own.keys() & state.keys()
        if own[k].shape != state[k].shape
    )
    findings = [
        f"{len(keys)} {kind}: {', '.join(keys[:10])}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("misshapen", shapes))
        if keys
    ]
    if findings:
        raise ModelError(
            f"model.weights: {path} does not fit model.backbone; " + "; ".join(findings)
        )
    encoder.load_state_dict(state, strict=False)
    logger.info("loaded %d tensors from %s", len(state), path)


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name."""
    if not path.is_file():
        raise ModelError(f"model.weights: no file {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        # torch's own message advises to trust the file.
        raise ModelError(
            f"model.weights: {path} cannot be read: it is damaged or holds more than tensors"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise ModelError(f"model.weights: {path} is not a state dict of tensors")
    return state
