"""A run as wandb shows it: a copy of what the run folder holds, which training never depends on."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engine.runtime import set_up_wandb
from engine.tracking.wandb_file import last_step

__all__ = ["Gallery", "Mirror", "Mode", "Row"]

logger = logging.getLogger(__name__)

Mode = Literal["online", "offline"]

# How long a server may keep a run waiting at its beginning and at its end.
INIT_TIMEOUT_SECONDS = 30.0
FINISH_TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True)
class Gallery:
    """A table with a picture in each row.

    Attributes:
        columns: Titles of the values.
        pictures: (n, S, S, 3) uint8.
        rows: n lists of values.
    """

    columns: Sequence[str]
    pictures: NDArray[np.uint8]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Row:
    """What is shown together.

    Attributes:
        place: Its number; rows come in ascending order, and each is the same whenever it is made.
        axis: The value against which charts show the others, ``epoch`` or ``global_step``.
        values: Names such as ``eval/kappa`` -> values, the axis among them; None = undefined.
        figures: Name -> PNG file.
        galleries: Name -> table.
    """

    place: int
    axis: str
    values: Mapping[str, Any]
    figures: Mapping[str, Path] = field(default_factory=dict)
    galleries: Mapping[str, Gallery] = field(default_factory=dict)


class Mirror:
    """One run of wandb, on the main process.

    wandb may fail at any time, by any exception: the first is reported and ends the mirror.

    Args:
        mode: Whether wandb is asked to send what it gets.
        folder: The run's folder; wandb writes to ``wandb/`` in it.
        run_id: What wandb knows the run by; of a run that it knows already, it goes on.
        settings: Arguments of ``wandb.init``, such as ``project`` and ``config``.
    """

    def __init__(self, mode: Mode, folder: Path, run_id: str, settings: Mapping[str, Any]) -> None:
        self.folder, self.run_id = folder, run_id
        self._run: Any = None
        self._last_place = -1
        self._sections: set[str] = set()
        self._attempt(lambda: self._begin(mode, settings))

    @property
    def is_open(self) -> bool:
        """Whether rows are still taken."""
        return self._run is not None

    def show(self, row: Row) -> None:
        """Show a row, unless it, or a later one, is there already."""
        if self._run is not None and row.place > self._last_place:
            self._attempt(lambda: self._send(row))

    def close(self, exit_code: int, *, interrupted: bool = False) -> None:
        """End the run of wandb.

        Args:
            exit_code: What the process is about to answer; another than 0 marks the run.
            interrupted: Whether it will be gone on with.
        """
        if self._run is not None:
            self._attempt(lambda: self._end(exit_code, interrupted))
            self._run = None

    # -- what may fail ---------------------------------------------------------------------------

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        # Whatever it is: a copy of the record is worth no run.
        except Exception as error:
            self._run = None
            logger.warning(
                "wandb failed, and training goes on without it: %s: %s; metrics.jsonl and "
                "steps.jsonl have everything, and a resumed run shows what is missing",
                type(error).__name__, str(error).partition("\n")[0],
            )  # fmt: skip
            self._abandon()

    def _abandon(self) -> None:
        """Let go of wandb's own process, which would complain when this one ends."""
        try:
            import wandb

            wandb.teardown()
        except Exception as error:
            logger.debug("wandb.teardown: %s", error)

    def _begin(self, mode: Mode, settings: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        set_up_wandb(self.folder.resolve() / "wandb")
        import wandb

        if mode == "online":
            try:
                self._run = self._init("online", settings)
            except Exception as error:
                logger.warning(
                    "wandb does not answer, so the run is kept for later: %s",
                    str(error).partition("\n")[0],
                )
                # Its process holds the run's id until then.
                wandb.teardown()
                mode = "offline"
        if mode == "offline":
            self._run = self._init("offline", settings)
            logger.info("wandb is offline; to show this run: wandb sync %s", self.folder / "wandb")
        else:
            logger.info("wandb: %s", self._run.url)
        for axis in ("epoch", "global_step"):
            self._run.define_metric(axis, hidden=True)
        # Online, what an earlier part had yet to send is lost: what the server has counts, and what
        # waits offline to be sent.
        on_disk = last_step(self.folder, self.run_id, "offline-" if mode == "online" else "")
        self._last_place = max(on_disk, self._run.step - 1)

    def _init(self, mode: Mode, settings: Mapping[str, Any]) -> Any:
        import wandb

        return wandb.init(
            mode=mode, dir=self.folder, id=self.run_id, resume="allow", **settings,
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, disable_code=True,
                init_timeout=INIT_TIMEOUT_SECONDS, login_timeout=INIT_TIMEOUT_SECONDS,
                finish_timeout=FINISH_TIMEOUT_SECONDS,
            ),
        )  # fmt: skip

    def _send(self, row: Row) -> None:
        import wandb

        values = {name: value for name, value in row.values.items() if value is not None}
        values |= {name: wandb.Image(str(path)) for name, path in row.figures.items()}
        for name, gallery in row.galleries.items():
            pictures = [wandb.Image(picture) for picture in gallery.pictures]
            rows = [[p, *r] for p, r in zip(pictures, gallery.rows, strict=True)]
            values[name] = wandb.Table(columns=["image", *gallery.columns], data=rows)
        for section in {name.partition("/")[0] for name in values if "/" in name} - self._sections:
            self._run.define_metric(f"{section}/*", step_metric=row.axis)
            self._sections.add(section)
        self._run.log(values, step=row.place, commit=True)
        self._last_place = row.place

    def _end(self, exit_code: int, interrupted: bool) -> None:
        import wandb

        if interrupted:
            self._run.mark_preempting()
        self._run.finish(exit_code=exit_code)
        wandb.teardown(exit_code)
