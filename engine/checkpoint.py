"""Checkpoints: complete or not there at all.

A checkpoint is a folder ``checkpoints/epoch-0007``, or ``epoch-0007-step-000040`` in the midst of
the next epoch, with the method's weights and the ledger as safetensors, the optimiser's state, and
``state.json``: where the run stands, its configuration, versions and the checksum of each file. It
is written under another name, flushed and renamed, so a process killed at any moment leaves the
previous ones as they were.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Snapshot",
    "TrainedWeights",
    "epoch_folder",
    "is_checkpoint",
    "load_weights",
    "save_tensors",
    "state_digest",
]

logger = logging.getLogger(__name__)

_STATE, _METHOD = "state.json", "method.safetensors"
# Counted up when a file's contents come to mean something else.
_FORMAT = 1
_STATE_KEYS = {
    "epochs_done", "steps_done", "metrics", "seconds", "config", "versions", "wandb_id", "facts",
    "sha256",
}  # fmt: skip
_NAME = re.compile(r"epoch-(\d+)(?:-step-(\d+))?")


Loaded = TypeVar("Loaded")


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message says which and why."""


class OtherFormatError(CheckpointError):
    """A checkpoint is of another version of this software; it is whole, so it is never skipped."""


@dataclass(frozen=True)
class Snapshot:
    """All that a run needs to go on.

    Attributes:
        epochs_done: Number of finished epochs; the run goes on at the epoch of this number.
        steps_done: Steps taken in that epoch; with 0 it is yet to be surveyed and separated.
        method: Weights and buffers by name.
        ledger: Columns by name.
        pending: What the steps of the epoch under way have noted: rows for the ledger, and sums of
            the terms.
        metrics: Metrics of the epoch under way.
        seconds: Time spent on it.
        optimizer: State of the optimiser, and of the loss scaler in fp16; tensors and plain values.
        config: The resolved configuration as a tree.
        versions: Package name -> version.
        wandb_id: What wandb knows the run by.
        facts: What the trained model's user must know beyond the configuration, such as the names
            of its classes; JSON types.
        folder: Where it was read; None of one that was not.
    """

    epochs_done: int
    steps_done: int
    method: Mapping[str, Tensor]
    ledger: Mapping[str, Tensor]
    pending: Mapping[str, Tensor]
    metrics: Mapping[str, float]
    seconds: float
    optimizer: Mapping[str, Any]
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    wandb_id: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def name(self) -> str:
        """Name of its folder."""
        epoch = epoch_folder(self.epochs_done)
        return f"{epoch}-step-{self.steps_done:06d}" if self.steps_done else epoch


@dataclass(frozen=True)
class TrainedWeights:
    """The part of a checkpoint that predicts; attributes as in :class:`Snapshot`.

    Attributes:
        folder: Where it was read.
    """

    folder: Path
    epochs_done: int
    steps_done: int
    method: Mapping[str, Tensor]
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    facts: Mapping[str, Any]


def epoch_folder(epochs_done: int) -> str:
    """Name of the checkpoint at the end of an epoch."""
    return f"epoch-{epochs_done:04d}"


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: ``<run.dir>/checkpoints``.
        keep: How many of the newest are kept.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, snapshot: Snapshot, protected: Collection[str] = ()) -> Path:
        """Write a checkpoint and remove those that are no longer kept; one process calls this.

        Args:
            snapshot: What to write.
            protected: Names of folders to keep however old.

        Raises:
            OSError: The disk is full or not writable; earlier checkpoints are untouched.
        """
        target = self.folder / snapshot.name
        if _is_whole(target):
            # Stopped where it had been saved already, such as in a survey.
            return target
        for unfinished in self.folder.glob(".epoch-*.tmp"):  # of saves that were killed
            shutil.rmtree(unfinished)
        temporary = self.folder / f".{target.name}.tmp"
        temporary.mkdir(parents=True)
        try:
            _write(temporary, snapshot)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if target.exists():  # torn
            shutil.rmtree(target)
        temporary.rename(target)
        _flush(self.folder)
        # Newer ones are torn, else the run would have gone on from them.
        older = [f for f in self._newest_first() if _position(f) <= _position(target)]
        for old in older[self.keep :]:
            if old.name not in protected:
                _remove(old)
        return target

    def latest(self) -> Snapshot | None:
        """The newest checkpoint that is complete; torn ones are skipped with a warning.

        Returns:
            The snapshot, its tensors on the CPU; None where there is none.

        Raises:
            OtherFormatError: It was written by another version of this software.
        """
        return self._newest(load)

    def latest_weights(self) -> TrainedWeights | None:
        """The newest checkpoint whose weights are complete; as :meth:`latest` otherwise."""
        return self._newest(load_weights)

    def _newest(self, read: Callable[[Path], Loaded]) -> Loaded | None:
        for folder in self._newest_first():
            try:
                return read(folder)
            except OtherFormatError:
                raise
            except CheckpointError as error:
                logger.warning("skipping a checkpoint: %s", error)
        return None

    def _newest_first(self) -> list[Path]:
        folders = (f for f in self.folder.glob("epoch-*") if _NAME.fullmatch(f.name))
        return sorted(folders, key=_position, reverse=True)


def _remove(folder: Path) -> None:
    """Remove a checkpoint that is no longer kept; where that fails it stays and the run goes on."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        # On NFS a file that some process still reads leaves its folder behind.
        logger.warning("%s: cannot be removed for now: %s", folder, error.strerror)


def _position(folder: Path) -> tuple[int, int]:
    """Epochs and steps done, by the name of a checkpoint's folder."""
    match = _NAME.fullmatch(folder.name)
    assert match is not None
    return int(match[1]), int(match[2] or 0)


def load(folder: Path) -> Snapshot:
    """Read a checkpoint after checking every file of it.

    Raises:
        CheckpointError: A file is missing or differs from its checksum.
    """
    state = _read_state(folder)
    for name in state["sha256"]:
        _require_whole(folder, name, state)
    return Snapshot(
        epochs_done=state["epochs_done"],
        steps_done=state["steps_done"],
        method=safetensors.torch.load_file(folder / _METHOD),
        ledger=safetensors.torch.load_file(folder / "ledger.safetensors"),
        # It is held until the epoch ends, and a file that is mapped so long cannot go on NFS.
        pending=safetensors.torch.load((folder / "pending.safetensors").read_bytes()),
        metrics=state["metrics"],
        seconds=state["seconds"],
        optimizer=torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True),
        config=state["config"],
        versions=state["versions"],
        wandb_id=state["wandb_id"],
        facts=state["facts"],
        folder=folder,
    )


def _is_whole(folder: Path) -> bool:
    try:
        state = _read_state(folder)
        for name in state["sha256"]:
            _require_whole(folder, name, state)
    except CheckpointError:
        return False
    return True


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint, whole or torn."""
    return (folder / _STATE).is_file()


def state_digest(folder: Path) -> str:
    """SHA-256 of a checkpoint's ``state.json``, which holds those of its other files.

    Raises:
        OSError: It is not there.
    """
    return _sha256(folder / _STATE)


def load_weights(folder: Path) -> TrainedWeights:
    """Read of a checkpoint what predicts, after checking it; the optimiser is left where it is.

    Raises:
        CheckpointError: A file is missing or differs from its checksum.
    """
    state = _read_state(folder)
    _require_whole(folder, _METHOD, state)
    return TrainedWeights(
        folder=folder,
        epochs_done=state["epochs_done"],
        steps_done=state["steps_done"],
        method=safetensors.torch.load_file(folder / _METHOD),
        config=state["config"],
        versions=state["versions"],
        facts=state["facts"],
    )


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: {_STATE} cannot be read ({error})") from error
    if not isinstance(state, dict) or _METHOD not in state.get("sha256", {}):
        raise CheckpointError(f"{folder}: {_STATE} is not that of a checkpoint of a run")
    if state.get("format") != _FORMAT:
        raise OtherFormatError(
            f"{folder}: written in format {state.get('format', 'without a number')} by another "
            f"version of mednoise; this one reads format {_FORMAT}"
        )
    missing = _STATE_KEYS - state.keys()
    if missing:
        raise CheckpointError(f"{folder}: {_STATE} has no {', '.join(sorted(missing))}")
    return state


def _require_whole(folder: Path, name: str, state: Mapping[str, Any]) -> None:
    if not (folder / name).is_file() or _sha256(folder / name) != state["sha256"][name]:
        raise CheckpointError(f"{folder}: {name} is missing or damaged")


def _write(folder: Path, snapshot: Snapshot) -> None:
    """Write all files of a checkpoint, ``state.json`` with their checksums last."""
    for name in ("method", "ledger", "pending"):
        tensors = {k: v.detach().cpu().contiguous() for k, v in getattr(snapshot, name).items()}
        save_tensors(tensors, folder / f"{name}.safetensors")
    with _said_of(folder / "optimizer.pt"):
        torch.save(dict(snapshot.optimizer), folder / "optimizer.pt")
    files = sorted(folder.iterdir())
    state = {
        "format": _FORMAT,
        "epochs_done": snapshot.epochs_done,
        "steps_done": snapshot.steps_done,
        "metrics": dict(snapshot.metrics),
        "seconds": snapshot.seconds,
        "config": snapshot.config,
        "versions": snapshot.versions,
        "wandb_id": snapshot.wandb_id,
        "facts": snapshot.facts,
        "sha256": {file.name: _sha256(file) for file in files},
    }
    (folder / _STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    for path in (*files, folder / _STATE, folder):
        _flush(path)


def save_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a file of safetensors that those may read who may read others of this user's files.

    Args:
        tensors: Name -> contiguous tensor on the CPU.
        path: The file.
        metadata: Texts to go with it.

    Raises:
        OSError: The disk is full or not writable.
    """
    path.touch()
    mode = path.stat().st_mode
    with _said_of(path):
        safetensors.torch.save_file(tensors, path, metadata)
    # The library makes a file that only its owner may read.
    path.chmod(mode)


@contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """Let a full disk be an OSError that names the file, whatever a library makes of it."""
    try:
        yield
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise OSError(f"{path}: cannot be written: {str(error).partition(chr(10))[0]}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Have the operating system write a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
