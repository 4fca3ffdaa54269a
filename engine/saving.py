"""What a run leaves behind as it goes: a line of metrics an epoch, and checkpoints."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine import collectives
from engine.checkpoint import (
    CheckpointError,
    Checkpoints,
    Snapshot,
    epoch_folder,
    load,
    state_digest,
)
from engine.record import Record, RunConfig, summarise
from engine.tracking.tracker import Tracker
from engine.trainer import Trainer

__all__ = ["Saver", "agreed_checkpoint"]

logger = logging.getLogger(__name__)


class Saver:
    """Records and saves; every method is a collective call, and rank 0 alone writes.

    Args:
        trainer: What is saved.
        config: Section ``run``.
        tree: The whole configuration, for the checkpoint.
        versions: Package name -> version, likewise.
        tracker: Gets the epochs that are recorded, for figures and wandb.

    Attributes:
        facts: What the trained model's user must know, likewise; set before anything is saved.

    Raises:
        OSError: The disk is full or not writable; from every method, on all ranks.
    """

    def __init__(
        self,
        trainer: Trainer,
        config: RunConfig,
        tree: Mapping[str, Any],
        versions: Mapping[str, str],
        tracker: Tracker,
    ) -> None:
        self.tracker = tracker
        self.trainer, self.config, self.tree, self.versions = trainer, config, tree, versions
        self.checkpoints = Checkpoints(config.dir / "checkpoints", config.keep_checkpoints)
        self.record = Record(config.dir / "metrics.jsonl")
        self.facts: Mapping[str, Any] = {}

    def restore(self, snapshot: Snapshot | None) -> None:
        """Go on from a snapshot, or begin; the record loses later lines."""
        if snapshot is not None:
            self.trainer.restore(snapshot)
        collectives.on_main(lambda: self.record.open(self.trainer.epochs_done))
        self.tracker.restore(snapshot, self.record.history)

    def finish_epoch(self, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Record an epoch, save, and show it."""
        self.tracker.draw(epoch)
        collectives.on_main(lambda: self.record.append(epoch, metrics))
        self.save()
        self.tracker.show_epoch(self.record.history)

    def finish_step(self, step: int) -> None:
        """Save where the configuration asks for it, after ``step`` steps of the run."""
        if self.config.save_every_steps and step % self.config.save_every_steps == 0:
            self.save()

    def save(self) -> None:
        """Write a checkpoint; it is complete when any rank goes on."""
        snapshot = self.trainer.snapshot(self.tree, self.versions, self.tracker.wandb_id)
        snapshot = replace(snapshot, facts=self.facts)
        collectives.on_main(lambda: self.checkpoints.save(snapshot, self._protected()))

    def _protected(self) -> set[str]:
        """Checkpoints to keep however old they are."""
        history, every = self.record.history, self.config.keep_every_epochs
        epochs = [line["epoch"] + 1 for line in history]
        names = {epoch_folder(epoch) for epoch in epochs if every and epoch % every == 0}
        if self.config.keep_best and history:
            summary = summarise(history, [])
            if summary.selected_on == "validation":
                names.add(epoch_folder(summary.best_epoch + 1))
        return names


def agreed_checkpoint(checkpoints: Checkpoints) -> Snapshot | None:
    """The newest whole checkpoint, the same on every rank; a collective call.

    Rank 0 chooses and the others read the one it names, so that a node whose list of files is of a
    minute ago does not hold up the run.

    Returns:
        The snapshot; None where rank 0 finds none.

    Raises:
        CheckpointError: It cannot be used, or some rank cannot read it, or has one where rank 0 has
            none; on all ranks.
    """
    found, chosen, problem = None, ("", "", ""), ""
    if collectives.rank() == 0:
        try:
            found = checkpoints.latest()
            if found is not None and found.folder is not None:
                chosen = (found.folder.name, state_digest(found.folder), "")
        except (CheckpointError, OSError) as error:
            chosen = ("", "", str(error))
    name, digest, refusal = collectives.gather_objects(chosen)[0]
    if refusal:
        raise CheckpointError(refusal)
    if collectives.rank() != 0:
        try:
            found = load(checkpoints.folder / name) if name else checkpoints.latest()
            if name and state_digest(checkpoints.folder / name) != digest:
                problem = "has another one of that name"
            elif found is not None and not name:
                # Beginning afresh would take the lines of metrics and, one by one, what it has.
                problem = f"finds {found.name}"
        except (CheckpointError, OSError) as error:
            problem = str(error)
    for rank, text in enumerate(collectives.gather_objects(problem)):
        if text:
            raise CheckpointError(
                f"run.dir: {checkpoints.folder.parent} must be on a file system that all nodes "
                f"see; rank 0 goes on from {name or 'no checkpoint'}, rank {rank}: {text}"
            )
    return found
