"""Following a run: step metrics, figures, and their copy in wandb.

The run folder has it all: ``metrics.jsonl`` (see engine.saving), ``steps.jsonl`` and ``figures/``.
wandb gets a copy, row by row. A row has a place that follows from its step or epoch alone, and
wandb gets none at or before the last place that it has. So after a kill, or a time without wandb,
what it lacks is taken from the folder, and what is done again is not shown again.
"""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine import collectives
from engine.checkpoint import Snapshot
from engine.interrupts import EXIT_INTERRUPTED
from engine.record import Metrics, Record
from engine.runtime import wandb_mode
from engine.tracking.figures import save
from engine.tracking.mirror import Gallery, Mirror, Row
from engine.tracking.portraits import draw_epoch, most_suspicious
from engine.tracking.wandb_file import newest_run_id
from engine.trainer import Trainer

__all__ = ["Tracker", "TrackingConfig", "figure_folder"]


class TrackingConfig(BaseModel):
    """Section ``tracking``."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    wandb: Literal["auto", "online", "offline", "off"] = Field(
        "auto",
        description="auto is online where there is an API key, else offline; WANDB_MODE wins over "
        "auto.",
    )
    project: str = Field("mednoise", min_length=1, description="Project in wandb.")
    entity: str | None = Field(None, description="User or team in wandb; unset = its default.")
    group: str | None = Field(None, description="Runs that wandb shows together.")
    job_type: str | None = Field(None, description="Kind of run in wandb.")
    tags: list[str] = Field(default_factory=list, description="Words to find the run by in wandb.")
    name: str | None = Field(None, description="Name in wandb; unset = that of run.dir.")
    every_steps: int = Field(
        50, ge=1, description="Steps between rows of steps.jsonl, which are means over these."
    )
    figures_every_epochs: int = Field(
        1, ge=0, description="Epochs between figures, the last one's among them; 0 = none."
    )
    num_suspects: int = Field(
        16, ge=0,
        description="Training images in wandb's table of the most suspicious labels, which goes "
        "with the figures; 0 = no image leaves the run folder.",
    )  # fmt: skip


def figure_folder(run_dir: Path, epoch: int) -> Path:
    """Where the figures of an epoch, counted from 0, are."""
    return run_dir / "figures" / f"epoch-{epoch + 1:04d}"


class Tracker:
    """Follows a trainer; every method but :meth:`close` is a collective call.

    Args:
        trainer: What is followed.
        config: Section ``tracking``.
        folder: The run's folder.
        class_names: Of the C classes.
        tree: The whole configuration, for wandb.

    Attributes:
        wandb_id: What wandb knows the run by; that of the main process counts.
        goes_on: Whether what wandb has of this folder, though there is no checkpoint, is the
            beginning of this run.

    Raises:
        OSError: The disk is full or not writable; from every method but :meth:`close`, on all
            ranks. Failures of wandb are reported once and raise nothing.
    """

    def __init__(
        self,
        trainer: Trainer,
        config: TrackingConfig,
        folder: Path,
        class_names: Sequence[str],
        tree: Mapping[str, Any],
    ) -> None:
        self.trainer, self.config, self.folder = trainer, config, folder
        self.class_names, self.tree = class_names, tree
        self.steps = Record(folder / "steps.jsonl", "global_step")
        self.wandb_id = ""
        self.goes_on = True
        self._mirror: Mirror | None = None

    def restore(self, snapshot: Snapshot | None, epochs: Sequence[Metrics]) -> None:
        """Go on with what is there, or begin, when the trainer has been restored.

        Args:
            snapshot: What it was restored from.
            epochs: The lines of ``metrics.jsonl``.
        """
        self.wandb_id = snapshot.wandb_id if snapshot is not None else ""
        collectives.on_main(lambda: self._restore(epochs))

    def _restore(self, epochs: Sequence[Metrics]) -> None:
        trainer = self.trainer
        taken = trainer.epochs_done * trainer.steps_per_epoch + trainer.steps_done
        self.steps.open(taken + 1)
        earlier = newest_run_id(self.folder) if self.goes_on else None
        self.wandb_id = self.wandb_id or earlier or secrets.token_hex(4)
        mode = self.config.wandb
        wanted = wandb_mode() if mode == "auto" else mode
        if wanted == "off":
            return
        self._mirror = Mirror(wanted, self.folder, self.wandb_id, self._about())
        rows = [self._step_row(line) for line in self.steps.history]
        rows += [self._epoch_row(line) for line in epochs]
        for row in sorted(rows, key=lambda row: row.place):
            self._mirror.show(row)

    def _about(self) -> dict[str, Any]:
        config = self.config
        return {
            "project": config.project,
            "entity": config.entity,
            "group": config.group,
            "job_type": config.job_type,
            "tags": config.tags,
            "name": config.name or self.folder.resolve().name,
            "config": dict(self.tree),
        }

    def note_step(self, step: int) -> None:
        """Record and show the steps since the last time, after ``step`` steps of the run."""
        if step % self.config.every_steps == 0:
            found = self.trainer.take_window()
            collectives.on_main(lambda: self._note_step(step, found))

    def _note_step(self, step: int, found: Mapping[str, float]) -> None:
        self.steps.append(step, {f"step/{name}": value for name, value in found.items()})
        if self._mirror is not None:
            self._mirror.show(self._step_row(self.steps.history[-1]))

    def draw(self, epoch: int) -> None:
        """Draw the figures of an epoch that has been evaluated, where it is their turn."""
        if self._is_drawn(epoch):
            collectives.on_main(lambda: self._draw(epoch))

    def _is_drawn(self, epoch: int) -> bool:
        every = self.config.figures_every_epochs
        return every > 0 and ((epoch + 1) % every == 0 or epoch + 1 == self.trainer.task.num_epochs)

    def _draw(self, epoch: int) -> None:
        folder = figure_folder(self.folder, epoch)
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in draw_epoch(self.trainer, self.class_names, epoch):
            save(figure, folder / f"{name}.png")

    def show_epoch(self, epochs: Sequence[Metrics]) -> None:
        """Show the last epoch of ``metrics.jsonl``, whose checkpoint is complete."""
        collectives.on_main(lambda: self._show_epoch(epochs[-1]))

    def _show_epoch(self, line: Metrics) -> None:
        if self._mirror is None or not self._mirror.is_open:
            return
        galleries: dict[str, Gallery] = {}
        if self.config.num_suspects and self._is_drawn(line["epoch"]):
            gallery = most_suspicious(self.trainer, self.class_names, self.config.num_suspects)
            galleries = {"separation/suspects": gallery} if gallery else {}
        self._mirror.show(self._epoch_row(line, galleries))

    def close(self, exit_code: int) -> None:
        """End the run of wandb; the process is about to answer with this code."""
        if self._mirror is not None:
            self._mirror.close(exit_code, interrupted=exit_code == EXIT_INTERRUPTED)

    # -- rows ------------------------------------------------------------------------------------

    def _step_row(self, line: Metrics) -> Row:
        return Row(2 * line["global_step"], "global_step", line)

    def _epoch_row(self, line: Metrics, galleries: Mapping[str, Gallery] | None = None) -> Row:
        """An epoch comes after its last step and before the next one."""
        place = 2 * (line["epoch"] + 1) * self.trainer.steps_per_epoch + 1
        files = sorted(figure_folder(self.folder, line["epoch"]).glob("*.png"))
        figures = {f"figures/{path.stem}": path for path in files}
        return Row(place, "epoch", line, figures, galleries or {})
