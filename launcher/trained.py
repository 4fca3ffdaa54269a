"""From a run's folder, or one of its checkpoints, to the trained method; needs no training data."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from engine.checkpoint import (
    CheckpointError,
    Checkpoints,
    TrainedWeights,
    epoch_folder,
    is_checkpoint,
    load_weights,
)
from engine.record import Record, summarise
from launcher.assemble import build_trained_method
from launcher.facts import ModelFacts
from launcher.settings import Config
from methods.method import Method

__all__ = ["TrainedModel", "Which", "load_trained"]

logger = logging.getLogger(__name__)

Which = Literal["last", "best"]


@dataclass(frozen=True)
class TrainedModel:
    """A trained method and what is known of it.

    Attributes:
        config: Configuration of its run.
        method: In eval mode, on the CPU.
        class_names: The C classes.
        facts: None for a checkpoint that holds none; the classes then have numbers for names.
        weights: The checkpoint.
        history: Lines of the run's record up to the checkpoint; none where it lies elsewhere.
    """

    config: Config
    method: Method
    class_names: tuple[str, ...]
    facts: ModelFacts | None
    weights: TrainedWeights
    history: list[dict[str, Any]]


def load_trained(path: Path, which: Which | None = None) -> TrainedModel:
    """Load a trained method.

    To be called before the processes are joined: a method that is built afterwards checks that the
    run's global batch can be shared out among them, which matters in training alone.

    Args:
        path: A run's folder, or a checkpoint's.
        which: Of a run's checkpoints, the newest that is whole (``last``, as None) or that of the
            best epoch by validation kappa (``best``).

    Raises:
        CheckpointError: There is no such checkpoint, it is damaged, or is not of this program.
        ModelError: Its backbone needs an extra.
    """
    weights = _find(path, which)
    config = _read_config(weights)
    facts = _read_facts(weights)
    num_classes = _num_classes(weights)
    if facts is None:
        logger.warning(
            "%s: names no classes, being of an earlier version; they are called 0 to %d",
            weights.folder, num_classes - 1,
        )  # fmt: skip
    method = build_trained_method(config, num_classes)
    try:
        method.load_state_dict(dict(weights.method))
    except RuntimeError as error:
        # One of torch's lines for each weight would hide what matters.
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(
            f"{weights.folder}: its weights do not fit its configuration ({reason})"
        ) from error
    return TrainedModel(
        config=config,
        method=method.eval(),
        class_names=facts.class_names if facts else tuple(map(str, range(num_classes))),
        facts=facts,
        weights=weights,
        history=_read_history(weights),
    )


def _find(path: Path, which: Which | None) -> TrainedWeights:
    if is_checkpoint(path):
        if which is not None:
            raise CheckpointError(
                f"{path}: is a checkpoint; --which {which} chooses among those of a run's folder"
            )
        return load_weights(path)
    checkpoints = path / "checkpoints"
    if not checkpoints.is_dir():
        raise CheckpointError(
            f"{path}: neither a run's folder (no checkpoints/) nor a checkpoint (no state.json)"
        )
    if which == "best":
        return load_weights(checkpoints / _best(path))
    weights = Checkpoints(checkpoints, keep=1).latest_weights()
    if weights is None:
        raise CheckpointError(f"{checkpoints}: no checkpoint that is whole")
    return weights


def _best(run: Path) -> str:
    """Name of the checkpoint of the best epoch by validation."""
    history = Record.read(run / "metrics.jsonl")
    summary = summarise(history, []) if history else None
    if summary is None or summary.selected_on != "validation":
        raise CheckpointError(
            f"{run}: --which best needs metrics of a validation set, which metrics.jsonl lacks; "
            "use --which last"
        )
    name = epoch_folder(summary.best_epoch + 1)
    if not (run / "checkpoints" / name).is_dir():
        raise CheckpointError(
            f"{run}: the best epoch by validation is {summary.best_epoch + 1}, and checkpoints/"
            f"{name} is not there (run.keep_best keeps it); use --which last"
        )
    return name


def _read_config(weights: TrainedWeights) -> Config:
    """The run's configuration as the checkpoint has it."""
    try:
        return Config.model_validate_json(json.dumps(weights.config), strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{weights.folder}: its configuration is not of this version; {key}: {first['msg']}"
        ) from error


def _read_facts(weights: TrainedWeights) -> ModelFacts | None:
    if not weights.facts:
        return None
    try:
        return ModelFacts.model_validate_json(json.dumps(weights.facts))
    except ValidationError as error:
        raise CheckpointError(
            f"{weights.folder}: its facts are not of this version ({error.error_count()} errors)"
        ) from error


def _num_classes(weights: TrainedWeights) -> int:
    """Number of classes C, from the classifiers' weights (C, F)."""
    for name, tensor in weights.method.items():
        if name.endswith("classifier.weight"):
            return int(tensor.shape[0])
    raise CheckpointError(f"{weights.folder}: holds no classifier")


def _read_history(weights: TrainedWeights) -> list[dict[str, Any]]:
    checkpoints = weights.folder.resolve().parent
    if checkpoints.name != "checkpoints":
        return []
    record = checkpoints.parent / "metrics.jsonl"
    return [line for line in Record.read(record) if line["epoch"] < weights.epochs_done]
