"""Many runs from one file: ``python launcher/sweep.py status configs/sweeps/default.yaml``.

A sweep is methods x noises x seeds on a base configuration. Each combination is a cell, with a
number for job arrays and a run folder of its own. ``slurm/sweep.sh`` runs the cells as a job array;
without SLURM ``python launcher/sweep.py run FILE INDEX`` runs one of them.
"""

import argparse
import itertools
import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data.errors import DataError
from data.noise import NoiseConfig
from data.sources import settle
from engine.config import ConfigError, differences, load_config
from engine.interrupts import EXIT_INTERRUPTED
from engine.record import Record, write_text
from engine.reports.tables import Table
from engine.run_lock import holder_of, lasting_holder_of
from engine.runtime import end_process, read_environment
from engine.strict_yaml import parse_yaml
from launcher import run
from launcher.ends import carry_out, tell
from launcher.settings import MAY_CHANGE_ON_RESUME, Config, MethodConfig

__all__ = ["Cell", "State", "Sweep", "cells_of", "main", "state_of"]

# A part of the name of a cell's folder, where a hyphen joins the parts.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]*")
# What a cell decides, and nobody else.
DECIDED_BY_CELL = ("run", "run.dir", "run.seed", "noise", "method", "method.name")

FINISHED, RUNNING, WAITING, STOPPED, FAILED = "finished", "running", "waiting", "stopped", "failed"
CUT_OFF, NOT_BEGUN, OTHER_SETTINGS = "cut off", "not begun", "other settings"
# The user's jobs, each job of an array for itself.
SQUEUE = ["squeue", "--me", "--noheader", "--array", "--format=%F_%K %T"]
METRICS = {"accuracy": "acc", "balanced_accuracy": "bal. acc", "kappa": "kappa", "auroc": "AUROC"}


class Sweep(BaseModel):
    """A sweep, as its YAML file describes it."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    base: Path = Field(description="Configuration of all cells but for noise, method and seed.")
    out: Path = Field(description="Folder of the cells' run folders.")
    methods: dict[str, Annotated[MethodConfig, Field(discriminator="name")]] = Field(
        description="A name of one's choice -> a section method."
    )
    noises: dict[str, NoiseConfig] = Field(
        description="A name of one's choice -> a section noise; without a seed: the cell's."
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    settings: list[str] = Field(
        default_factory=list, description="section.key=value of all cells, winning over base."
    )

    @model_validator(mode="after")
    def _check(self) -> "Sweep":
        for key, names in {"methods": self.methods, "noises": self.noises}.items():
            if not names:
                raise ValueError(f"{key}: empty; expected one or more")
            for name in names:
                if not _NAME.fullmatch(name):
                    raise ValueError(
                        f"{key}: found name {name!r}, expected letters, digits, '_' and '.'"
                    )
        repeated = [seed for seed, times in Counter(self.seeds).items() if times > 1]
        if repeated:
            raise ValueError(f"seeds: {repeated[0]} is given twice")
        _refuse_what_cells_decide(self.settings)
        return self


class Cell(NamedTuple):
    """One run of a sweep."""

    sweep: Sweep
    noise: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.noise}-{self.method}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return self.sweep.out / str(self)

    @property
    def note(self) -> Path:
        """The file that says what became of its last attempt."""
        return self.sweep.out / f"{self}.json"

    def overrides(self, settings: Sequence[str] = ()) -> list[str]:
        """What it changes in the base configuration; ``settings`` win over the sweep's.

        Raises:
            ConfigError: A setting names what the cell decides.
        """
        try:
            _refuse_what_cells_decide(settings)
        except ValueError as error:
            raise ConfigError(f"command line: {error}") from error
        sections = {
            "noise": self.sweep.noises[self.noise].model_dump(mode="json"),
            "method": self.sweep.methods[self.method].model_dump(mode="json"),
            "run.dir": str(self.folder),
            "run.seed": self.seed,
            # Seeds make a group, so that wandb can show their mean and spread.
            "tracking.group": f"{self.noise}-{self.method}",
            "tracking.job_type": self.sweep.out.name,
            "tracking.tags": [self.noise, self.method, f"seed{self.seed}"],
        }
        # JSON is YAML, and quotes what paths may hold.
        own = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in sections.items()]
        return [*own, *self.sweep.settings, *settings]

    def compose(self, settings: Sequence[str] = ()) -> Config:
        """Its whole configuration, as its run keeps it.

        Raises:
            ConfigError: The base configuration or a setting is faulty.
            DataError: ``data.prepared`` is no prepared data set, or not that which is asked for.
        """
        config = load_config(Config, self.sweep.base, self.overrides(settings))
        return config.model_copy(update={"data": settle(config.data)})


class State(NamedTuple):
    """How far a cell is.

    Attributes:
        name: ``finished``; ``running``; ``waiting`` in the queue to go on; ``stopped`` by a signal;
            ``failed``; ``cut off`` without a word; ``not begun``; finished or under way with
            ``other settings`` than these.
        epochs_done: Finished epochs.
        num_epochs: Epochs of the whole run.
        metrics: The last line of its record; empty where there is none.
    """

    name: str
    epochs_done: int
    num_epochs: int
    metrics: Mapping[str, Any]


def _refuse_what_cells_decide(settings: Sequence[str]) -> None:
    keys = [setting.partition("=")[0] for setting in settings]
    decided = [key for key in keys if key in DECIDED_BY_CELL]
    if decided:
        raise ValueError(f"{', '.join(decided)}: decided by the cells of the sweep")


def cells_of(sweep: Sweep) -> list[Cell]:
    """All cells in the order of their numbers: seed by seed, so that the first ones compare all."""
    product = itertools.product(sweep.seeds, sweep.noises, sweep.methods)
    return [Cell(sweep, noise, method, seed) for seed, noise, method in product]


def state_of(
    cell: Cell, settings: Sequence[str] = (), jobs: Mapping[str, str] | None = None
) -> State:
    """Look up a cell.

    Args:
        cell: The cell.
        settings: Settings from the command line.
        jobs: Job number -> SLURM's state of the jobs in its queue; None where nobody knows.
    """
    wanted = cell.compose(settings)
    history = Record.read(cell.folder / "metrics.jsonl")
    has_all_epochs = len(history) >= wanted.run.epochs
    # The report is the last that a run writes: after its last line come checkpoint and audit.
    is_reported = has_all_epochs and (cell.folder / "report.html").exists()
    name = FINISHED if is_reported else STOPPED if history else NOT_BEGUN
    if note := _note_of(cell):
        name = note["state"]
        # A stopped job is back in the queue, and one that went with its machine is not.
        if name in (RUNNING, STOPPED) and note["job"] is not None and jobs is not None:
            gone = CUT_OFF if name == RUNNING else STOPPED
            in_queue = {"PENDING": WAITING, "COMPLETING": name}
            job = jobs.get(note["job"])
            name = gone if job is None else in_queue.get(job, RUNNING)
        elif name == RUNNING and note["job"] is None and holder_of(cell.folder) is None:
            name = CUT_OFF
        elif name == FINISHED and not has_all_epochs:
            name = STOPPED  # the sweep has more epochs now
    if (cell.folder / "config.yaml").exists() and _changed(cell, wanted):
        name = OTHER_SETTINGS
    return State(name, len(history), wanted.run.epochs, history[-1] if history else {})


def _note_of(cell: Cell) -> dict[str, Any]:
    """What a cell's last attempt has noted; empty where there was none."""
    if not cell.note.exists():
        return {}
    note: dict[str, Any] = parse_yaml(cell.note.read_text(encoding="utf-8")).tree
    return note


def _changed(cell: Cell, wanted: Config) -> list[str]:
    """Settings of a cell's run folder that are not those wanted now."""
    text = (cell.folder / "config.yaml").read_text(encoding="utf-8")
    return differences(parse_yaml(text).tree, wanted, MAY_CHANGE_ON_RESUME)


def run_cell(cell: Cell, settings: Sequence[str], job: str | None) -> int:
    """Train a cell to its end, or go on with it; returns the exit code of ``launcher/run.py``."""
    state = state_of(cell, settings)
    is_main = read_environment().rank == 0
    if state.name == FINISHED:
        if is_main:
            tell(f"{cell}: finished already, {state.epochs_done} epochs in {cell.folder}")
        return 0
    if state.name == OTHER_SETTINGS:
        changed = "; ".join(_changed(cell, cell.compose(settings)))
        raise ConfigError(
            f"{cell.folder}: the run was made with other settings; {changed}; remove the folder, "
            "or give the sweep another one (out)"
        )

    # Its own note is that of the run that is going on.
    if is_main and (holder := lasting_holder_of(cell.folder)):
        raise BlockingIOError(f"{cell}: runs already, in {cell.folder}: {holder}")

    def note(state: str) -> None:
        if is_main:
            cell.note.parent.mkdir(parents=True, exist_ok=True)
            write_text(cell.note, json.dumps({"state": state, "job": job}) + "\n")

    note(RUNNING)
    try:
        code = run.main(
            ["--config", str(cell.sweep.base), "--resume", "auto", *cell.overrides(settings)]
        )
    except Exception:
        note(FAILED)
        raise
    note({0: FINISHED, EXIT_INTERRUPTED: STOPPED}.get(code, FAILED))
    return code


def queued_jobs() -> dict[str, str] | None:
    """Number -> state of the user's jobs that SLURM knows; None where there is no SLURM."""
    try:
        output = subprocess.run(SQUEUE, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return read_queue(output)


def read_queue(output: str) -> dict[str, str]:
    """The same from what ``SQUEUE`` has printed.

    Raises:
        ConfigError: It has not printed this.
    """
    jobs = [line.split() for line in output.splitlines() if line]
    wrong = [words for words in jobs if len(words) != 2]
    if wrong:
        raise ConfigError(
            f"squeue: found {' '.join(wrong[0])!r}, expected number and state of a job"
        )
    return dict(jobs)


def describe(
    file: Path, cells: Sequence[Cell], settings: Sequence[str], jobs: Mapping[str, str] | None
) -> str:
    """The table of all cells, how many are in which state, and how to run those that need it."""
    states = [state_of(cell, settings, jobs) for cell in cells]
    rows = []
    for number, (cell, state) in enumerate(zip(cells, states, strict=True)):
        values = [state.metrics.get(f"eval/{name}") for name in METRICS]
        shown = ["-" if value is None else f"{value:.4f}" for value in values]
        epochs = f"{state.epochs_done}/{state.num_epochs}"
        rows.append([number, cell, state.name, epochs, *shown])
    lines = Table(["", "cell", "state", "epochs", *METRICS.values()], rows).text(left=(1, 2))
    counts = Counter(state.name for state in states)
    lines.append(f"{len(cells)} cells: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
    if jobs is None and any(map(_is_of_queue, cells, states)):
        lines.append(
            "the queue of SLURM is not known here (squeue gives no answer): cells of its jobs that "
            "are shown as running or stopped are as they were noted last, and may have ended or "
            "wait to go on; ask slurm/status.sh on a host with squeue"
        )
    to_run = [
        str(number)
        for number, state in enumerate(states)
        if state.name in (STOPPED, FAILED, CUT_OFF, NOT_BEGUN)
    ]
    if to_run:
        array = ",".join(to_run) if len(to_run) < len(cells) else f"0-{len(cells) - 1}"
        rest = shlex.join([str(file), *settings])
        lines.append(f"to run the rest: sbatch --array={array} slurm/sweep.sh {rest}")
    return "\n".join(lines)


def _is_of_queue(cell: Cell, state: State) -> bool:
    """Whether what a cell is doing is known only together with SLURM's queue."""
    return state.name in (RUNNING, STOPPED) and _note_of(cell).get("job") is not None


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Methods x noises x seeds from one file.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in {
        "count": "check the file and print the number of cells",
        "run": "train a cell, or go on with it; a finished one is left as it is",
        "status": "print how far each cell is",
    }.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("file", type=Path, help="YAML file; see configs/sweeps/")
        if name == "run":
            command.add_argument("index", type=int, help="number of the cell, from 0")
            command.add_argument("--job", help="number of the SLURM job that runs it")
        if name == "status":
            command.add_argument(
                "--queue-from-stdin", action="store_true",
                help="read SLURM's queue there, as slurm/status.sh writes it; else ask squeue",
            )  # fmt: skip
        command.add_argument(
            # Without a default argparse names them among what is missing.
            "settings", nargs="*", default=[], metavar="section.key=value",
            help="settings of all cells that win over the file",
        )  # fmt: skip
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse_arguments(arguments)

    def work() -> int:
        sweep = load_config(Sweep, options.file)
        cells = cells_of(sweep)
        if options.command == "run":
            if not 0 <= options.index < len(cells):
                raise ConfigError(
                    f"cell {options.index}: {options.file} has {len(cells)} cells, "
                    f"0 to {len(cells) - 1}; sbatch --array=0-{len(cells) - 1}"
                )
            return run_cell(cells[options.index], options.settings, options.job)
        # All of them, so that what is wrong with one is said before any has begun.
        for cell in cells:
            cell.compose(options.settings)
        if options.command == "count":
            tell(len(cells))
            return 0
        jobs = read_queue(sys.stdin.read()) if options.queue_from_stdin else queued_jobs()
        tell(describe(options.file, cells, options.settings, jobs))
        return 0

    return carry_out(work, met_alone=(DataError, OSError))


if __name__ == "__main__":
    end_process(main())
