"""The run folder: the resolved configuration, lines of metrics, and their summary."""

import json
import math
import os
import secrets
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

__all__ = [
    "NUM_LAST", "SELECTION_METRIC", "Metrics", "Record", "RecordError", "RunConfig", "Summary",
    "choose_lines", "number", "summarise", "write_text",
]  # fmt: skip

Metrics = dict[str, Any]

# By quadratic weighted kappa, which ordinal grades are judged by.
SELECTION_METRIC = "kappa"
NUM_LAST = 5


class RecordError(ValueError):
    """A record cannot be read; the message names file and line."""


class RunConfig(BaseModel):
    """Section ``run``."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    dir: Path = Field(description="The run's own folder; made when missing.")
    epochs: int = Field(100, ge=1, description="Epochs of the whole run, warm-up included.")
    seed: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="Of weights, order, views and, unless given there, noise.",
    )
    save_every_steps: int | None = Field(
        None, ge=1,
        description="Save in the midst of an epoch too, whenever the run's steps are a multiple of "
        "this; unset = at the end of each epoch.",
    )  # fmt: skip
    keep_checkpoints: int = Field(2, ge=1, description="How many of the newest are kept.")
    keep_best: bool = Field(
        True, description="Keep that of the best epoch by validation too, where there is one."
    )
    keep_every_epochs: int | None = Field(
        None, ge=1, description="Keep those of every n-th epoch too; unset = none."
    )

    @field_validator("dir", mode="before")
    @classmethod
    def _is_named(cls, folder: Any) -> Any:
        # Else a shell's variable that is not set would mean the working folder.
        if folder == "":
            raise ValueError("found '', expected the name of a folder")
        return folder


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new content, never a part."""
    # Of each writer its own: a report may be asked for while the run writes it.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _plain(value: Any) -> Any:
    """The value as strict JSON holds it: what is undefined (NaN) or infinite becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class Record:
    """``metrics.jsonl``: one JSON object an epoch, with the key ``epoch``; or one every few steps.

    Args:
        path: The file; nothing is written before :meth:`open`.
        key: What the lines are numbered by, in ascending order.
    """

    def __init__(self, path: Path, key: str = "epoch") -> None:
        self.path, self.key = path, key
        self.history: list[Metrics] = []

    def open(self, first: int) -> None:
        """Begin or go on.

        Args:
            first: Number of the next line; lines from there on, left by an attempt that was cut
                off, are removed.
        """
        found = self.read(self.path, self.key)
        self.history = [line for line in found if line[self.key] < first]
        lines = [json.dumps(line, allow_nan=False) + "\n" for line in self.history]
        write_text(self.path, "".join(lines))

    @staticmethod
    def read(path: Path, key: str = "epoch") -> list[Metrics]:
        """All complete lines of a record; none where there is no file.

        Raises:
            RecordError: A line is damaged, or no object with its number.
        """
        if not path.exists():
            return []
        lines: list[Metrics] = []
        for place, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
            # A line that was being written when the process was killed has no end.
            if line.endswith(b"\n"):
                try:
                    metrics = json.loads(line)
                except ValueError as error:
                    raise RecordError(f"{path}, line {place}: damaged ({error})") from error
                if not isinstance(metrics, dict) or not isinstance(metrics.get(key), int):
                    raise RecordError(f"{path}, line {place}: damaged (no object with its {key})")
                lines.append(metrics)
        return lines

    def append(self, number: int, metrics: Mapping[str, Any]) -> None:
        """Add a line, such as an epoch's metrics."""
        line = {self.key: number} | {key: _plain(value) for key, value in metrics.items()}
        self.history.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


class Summary(BaseModel):
    """Test metrics of a run at the epochs that are reported.

    Attributes:
        best_epoch: Epoch chosen by validation, or by the test set where there is no validation.
        selected_on: ``validation`` or ``test``; the second is optimistic and is marked so.
        best: Metrics of that epoch.
        last: Metrics of the last epoch.
        mean_last: Means over the last five epochs.
    """

    best_epoch: int
    selected_on: str
    best: dict[str, float]
    last: dict[str, float]
    mean_last: dict[str, float]


def choose_lines(
    history: Sequence[Mapping[str, Any]], metric: str = SELECTION_METRIC
) -> dict[str, list[Mapping[str, Any]]]:
    """The lines of a record that a table may report.

    Args:
        history: Lines of a record, at least one.
        metric: What the best epochs are the best in; the first of equals.

    Returns:
        ``last``; ``mean_of_last_5``, those that a mean is taken over; ``best_on_validation`` where
        any line has the metric there; ``best_on_test``, which is optimistic.
    """

    def best(key: str) -> list[Mapping[str, Any]]:
        return [max(history, key=lambda line: number(line, key, missing=-math.inf))]

    chosen = {
        "last": [history[-1]],
        "mean_of_last_5": list(history[-NUM_LAST:]),
        "best_on_test": best(f"eval/{metric}"),
    }
    if any(line.get(f"validation/{metric}") is not None for line in history):
        chosen["best_on_validation"] = best(f"validation/{metric}")
    return chosen


def summarise(history: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Summary:
    """Best, last, and mean of the last five epochs.

    Args:
        history: Lines of a record, at least one.
        names: Metrics without their ``eval/`` prefix.

    Returns:
        The summary; undefined values are NaN.
    """
    chosen = choose_lines(history)
    selected_on = "validation" if "best_on_validation" in chosen else "test"
    best = chosen[f"best_on_{selected_on}"]

    def means(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        return {
            name: statistics.fmean(number(line, f"eval/{name}") for line in lines) for name in names
        }

    return Summary(
        best_epoch=best[0]["epoch"],
        selected_on=selected_on,
        best=means(best),
        last=means(chosen["last"]),
        mean_last=means(chosen["mean_of_last_5"]),
    )


def number(line: Mapping[str, Any], key: str, missing: float = math.nan) -> float:
    """A value of a record's line; ``missing`` where it is null or absent."""
    value = line.get(key)
    return missing if value is None else float(value)
