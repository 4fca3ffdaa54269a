"""A trained model as an ONNX file, which is kept only if it predicts as PyTorch does."""

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from methods.deployed import Deployed

__all__ = ["INPUT", "OUTPUT", "TOLERANCE", "ExportError", "require_onnx", "verify", "write_onnx"]

INPUT, OUTPUT = "images", "probabilities"
TOLERANCE = 1e-5
# Neither is the batch that the graph is traced with, which must not have become a constant.
VERIFIED_BATCHES = (1, 5)
TRACED_BATCH = 2


class ExportError(ValueError):
    """A model cannot be exported; the message says why."""


def require_onnx() -> None:
    """Look for the packages of the extra before any work is done.

    Raises:
        ExportError: One is absent.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(
            f"model.onnx needs the extra: pip install 'mednoise[onnx]' ({error}); "
            "--no-onnx leaves it out"
        ) from error


def write_onnx(model: Deployed, size: int, metadata: Mapping[str, Any], path: Path) -> float:
    """Write a model with a dynamic batch, and compare it with PyTorch.

    Args:
        model: On the CPU.
        size: Side S in pixels of its images.
        metadata: Put into the file, each value as JSON.
        path: The file.

    Returns:
        The largest difference of a probability from PyTorch's.

    Raises:
        ExportError: It cannot be written as ONNX, or predicts otherwise; the file is then removed.
    """
    import onnx

    example = torch.zeros((TRACED_BATCH, 3, size, size), dtype=torch.uint8)
    # The exporter tells its own progress and its plans for later versions.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                model, (example,), dynamo=True, verbose=False, external_data=False,
                input_names=[INPUT], output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )  # fmt: skip
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise ExportError(f"this network cannot be written as ONNX: {reason}") from error
    assert program is not None
    proto = program.model_proto
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=json.dumps(value))
    try:
        onnx.checker.check_model(proto)
        onnx.save(proto, path)
        return verify(path, model, size)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def verify(path: Path, model: Deployed, size: int) -> float:
    """Compare an ONNX file with the model on random images of several batch sizes.

    Raises:
        ExportError: A probability differs by more than ``TOLERANCE``, or it cannot be run.
    """
    import onnxruntime

    def run(images: Tensor) -> NDArray[np.float32]:
        try:
            (probabilities,) = session.run([OUTPUT], {INPUT: images.numpy()})
        except Exception as error:  # onnxruntime's own have no base of their own
            reason = str(error).strip().splitlines()[0]
            raise ExportError(f"{path.name}: onnxruntime cannot run it: {reason}") from error
        return np.asarray(probabilities)

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch_size in VERIFIED_BATCHES:
        images = _draw_images(batch_size, size)
        ours = run(images)
        theirs = model(images).numpy()
        if ours.shape != theirs.shape:
            raise ExportError(
                f"{path.name}: gives {ours.shape} for {batch_size} images, PyTorch {theirs.shape}"
            )
        difference = float(np.abs(ours - theirs).max())
        # Not "difference > TOLERANCE", which NaN would pass.
        if not difference <= TOLERANCE:
            raise ExportError(
                f"{path.name}: a probability differs from PyTorch's by {difference:.2g}, more than "
                f"{TOLERANCE:g}; the file was removed"
            )
        worst = max(worst, difference)
    return worst


def _draw_images(num_images: int, size: int) -> Tensor:
    """(num_images, 3, size, size) uint8: noise on top of smooth blotches, as photographs have."""
    generator = torch.Generator().manual_seed(num_images)
    coarse = torch.rand((num_images, 3, 4, 4), generator=generator)
    smooth = F.interpolate(coarse, (size, size), mode="bilinear")
    fine = torch.randn((num_images, 3, size, size), generator=generator)
    return (255 * smooth + 20 * fine).clamp(0, 255).round().to(torch.uint8)
