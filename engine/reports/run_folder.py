"""What a run's folder holds, read back by those who report on it; any file may be missing."""

import glob
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.record import Metrics, Record, write_text
from engine.strict_yaml import parse_yaml

__all__ = [
    "RunFacts", "RunFolder", "changed_share", "describe_noise", "find_runs", "read_run",
    "recorded_versions",
]  # fmt: skip

CONFIG, RECORD, FACTS = "config.yaml", "metrics.jsonl", "run.json"


class RunFacts(BaseModel):
    """``run.json``: what a run was executed with and on, besides its settings.

    Attributes:
        num_processes: Of the last attempt.
        class_names: The C classes in the order of their numbers.
        num_samples: Split -> number of its samples.
        num_test_images: Test images of each class.
        versions: Package name -> version, of the last attempt.
        planned_epochs: ``run.epochs`` of the attempts in order, as often as it changed; empty of an
            earlier version's run.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    num_processes: int | None = None
    class_names: tuple[str, ...] = ()
    num_samples: dict[str, int] = Field(default_factory=dict)
    num_test_images: tuple[int, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)
    planned_epochs: tuple[int, ...] = ()

    def write(self, folder: Path) -> None:
        """Write them to a run's folder."""
        write_text(folder / FACTS, self.model_dump_json(indent=1) + "\n")


@dataclass(frozen=True)
class RunFolder:
    """A run's folder as it was found.

    Attributes:
        path: The folder.
        config: The resolved configuration as a tree; empty where it is missing or damaged.
        history: Lines of the record; empty likewise.
        facts: What the run was executed with; empty likewise.
        problems: A line for each file that is missing or damaged.
    """

    path: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    history: list[Metrics] = field(default_factory=list)
    facts: RunFacts = field(default_factory=RunFacts)
    problems: tuple[str, ...] = ()

    def setting(self, key: str) -> Any:
        """The value of a dotted key such as ``run.epochs``; None where there is none."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    @property
    def num_epochs(self) -> int | None:
        """Epochs that the run is to have; None where its configuration does not tell."""
        epochs = self.setting("run.epochs")
        return epochs if isinstance(epochs, int) and epochs > 0 else None

    @property
    def is_finished(self) -> bool:
        """Whether there is a line of metrics for each epoch."""
        return self.num_epochs is not None and len(self.history) >= self.num_epochs

    @property
    def method(self) -> str:
        """Name of its method, or ``unknown``."""
        return str(self.setting("method.name") or "unknown")

    @property
    def data(self) -> str:
        """Its data set and size of images in a few words."""
        source, size = self.setting("data.source"), self.setting("data.image_size")
        return "unknown" if source is None else f"{source}, {size} px" if size else str(source)

    @property
    def noise(self) -> str:
        """The injected noise in a few words."""
        noise = self.setting("noise")
        try:
            return describe_noise(noise) if isinstance(noise, Mapping) else "unknown"
        except (TypeError, ValueError, LookupError):  # not as the launcher writes it
            return "unknown"


def describe_noise(noise: Mapping[str, Any]) -> str:
    """A section ``noise`` in a few words, such as ``symmetric 40 % + spoiled images 15 %``."""
    parts = []
    matrix = noise.get("matrix")
    if isinstance(matrix, list):
        parts.append(f"matrix {_percent(changed_share(matrix))}")
    elif matrix is not None:
        parts.append(f"matrix {Path(matrix).name}")
    elif noise.get("mis_h"):
        parts.append(f"{noise.get('kind', 'wrong labels')} {_percent(noise['mis_h'])}")
    if noise.get("mis_l"):
        parts.append(f"spoiled images {_percent(noise['mis_l'])}")
    return " + ".join(parts) or "none injected"


def changed_share(matrix: Sequence[Sequence[float]]) -> float:
    """Share of labels that a transition matrix (C, C) changes, averaged over the classes."""
    return 1 - sum(row[label] for label, row in enumerate(matrix)) / len(matrix)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def read_run(folder: Path) -> RunFolder:
    """Read a run's folder; what cannot be read is named in ``problems``, never raised."""
    problems: list[str] = []

    def read(name: str) -> str | None:
        try:
            return (folder / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            problems.append(f"{name}: missing")
        except OSError as error:
            problems.append(f"{name}: cannot be read ({error.strerror})")
        except UnicodeDecodeError:
            problems.append(f"{name}: damaged, not UTF-8 text")
        return None

    config, facts, history = {}, RunFacts(), []
    if (text := read(CONFIG)) is not None:
        parsed = parse_yaml(text)
        if isinstance(parsed.tree, dict) and not parsed.problems:
            config = parsed.tree
        else:
            where, what = (parsed.problems or [(1, "not a mapping of sections")])[0]
            problems.append(f"{CONFIG}: damaged, line {where}: {what}")
    if read(RECORD) is not None:
        try:
            history = _checked(Record.read(folder / RECORD))
        except (ValueError, TypeError) as error:
            problems.append(f"{RECORD}: damaged ({error})")
        else:
            problems += [] if history else [f"{RECORD}: holds no epoch"]
    if (text := read(FACTS)) is not None:
        try:
            facts = RunFacts.model_validate_json(text)
        except ValidationError as error:
            problems.append(f"{FACTS}: damaged ({error.errors()[0]['msg']})")
    return RunFolder(folder, config, history, facts, tuple(problems))


def _checked(history: list[Metrics]) -> list[Metrics]:
    """The lines of a record, each an object of numbers.

    Raises:
        ValueError: A line is not.
    """
    for number, line in enumerate(history, 1):
        for key, value in line.items():
            if not isinstance(value, int | float | None):
                raise ValueError(f"line {number}: {key} is not a number")
    return history


def find_runs(paths: Iterable[str]) -> tuple[list[Path], list[str]]:
    """The run folders that paths name.

    Args:
        paths: Run folders, folders of run folders at any depth, or patterns of such for those whom
            no shell expands them.

    Returns:
        The folders without repetitions, sorted within each path; and a line for each path that
        names none.
    """
    found: dict[Path, None] = {}
    problems = []
    for text in paths:
        named = [text] if os.path.lexists(text) else sorted(glob.glob(text))
        runs = [run for name in named for run in _runs_below(Path(name))]
        if not runs:
            why = "holds no run" if named else "does not exist"
            problems.append(f"{text}: {why}; a run's folder holds {CONFIG} and {RECORD}")
        # However it is spelled, a folder counts once.
        for run in runs:
            if run.resolve() not in {other.resolve() for other in found}:
                found[run] = None
    return list(found), problems


def _runs_below(folder: Path) -> list[Path]:
    """A folder itself if it is a run's, else those below it."""
    runs = []
    for parent, folders, files in os.walk(folder):
        if {CONFIG, RECORD, "checkpoints"} & {*files, *folders}:
            runs.append(Path(parent))
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    return runs


def recorded_versions(run: RunFolder) -> dict[str, str]:
    """Package name -> version: those of ``run.json``, else those of the newest checkpoint."""
    if run.facts.versions:
        return run.facts.versions
    for path in sorted((run.path / "checkpoints").glob("epoch-*/state.json"), reverse=True):
        try:
            versions = json.loads(path.read_text(encoding="utf-8"))["versions"]
            return {str(name): str(version) for name, version in versions.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return {}
