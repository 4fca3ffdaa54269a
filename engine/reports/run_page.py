"""``report.html``: what a run's folder holds, on one page that needs nothing but itself.

It is made from the folder alone, at the end of a run or at any later time, and says what it lacks.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.metrics import CLASS_METRIC_TITLES, METRIC_TITLES
from engine.record import NUM_LAST, number, summarise, write_text
from engine.reports.charts import Chart, Line, line_chart
from engine.reports.embedded import gather_audit, gather_figures
from engine.reports.pages import render
from engine.reports.run_folder import CONFIG, RunFolder, read_run, recorded_versions
from engine.reports.seeds import UNDEFINED
from engine.reports.tables import Table

__all__ = ["report", "write_report"]

REPORT = "report.html"
GROUP_TITLES = {"correct": "Correct", "mis_h": "Mis-H", "mis_l": "Mis-L"}
TILES = ("accuracy", "kappa", "balanced_accuracy", "auroc")


def write_report(folder: Path) -> Path:
    """Write a run's report into its folder; returns the file.

    Raises:
        OSError: The disk is full or not writable.
    """
    write_text(folder / REPORT, report(read_run(folder)))
    return folder / REPORT


def report(run: RunFolder) -> str:
    """The page of a run; whatever is missing or damaged is named on it."""
    missing = list(run.problems)
    names = _class_names(run)
    best_epoch = summarise(run.history, []).best_epoch + 1 if _has_test(run) else None
    values = {
        "title": run.path.resolve().name,
        "lead": f"{run.method} on {run.data}; noise: {run.noise}",
        "notes": _notes(run),
        "facts": _facts(run),
        **_metrics(run),
        "charts": _charts(run, names),
        "classes": _classes(run, names),
        "groups": _groups(run),
        **gather_figures(run.path, best_epoch, missing),
        "audit": gather_audit(run.path, missing),
        "config": _config_text(run.path),
        "versions": _versions(run, missing),
        "missing": missing,
    }
    sections = {
        "summary": True,
        "curves": values["charts"],
        "classes": values["classes"],
        "separation": values["groups"] or values["cloud"] or values["figures"]["separation"],
        "evaluation": values["figures"]["evaluation"],
        "audit": values["audit"],
        "settings": True,
        "missing": missing,
    }
    titles = {"evaluation": "Confusion and calibration", "missing": "What is missing"}
    shown = [(name, titles.get(name, name.capitalize())) for name, has in sections.items() if has]
    return render("report_run.html", sections=shown, **values)


def _class_names(run: RunFolder) -> list[str]:
    """Names of the classes; their numbers where ``run.json`` does not tell."""
    found = [key.rpartition("/")[2] for key in (run.history or [{}])[-1] if _is_recall(key)]
    num_classes = 1 + max((int(text) for text in found if text.isdecimal()), default=-1)
    if len(run.facts.class_names) >= num_classes:
        return list(run.facts.class_names)
    return [f"class {c}" for c in range(num_classes)]


def _is_recall(key: str) -> bool:
    return key.startswith("eval/recall/")


def _notes(run: RunFolder) -> list[str]:
    notes = []
    if run.history and not run.is_finished:
        wanted = run.num_epochs or "an unknown number of"
        notes.append(f"Not finished: {len(run.history)} of {wanted} epochs.")
    if _has_test(run) and summarise(run.history, []).selected_on == "test":
        notes.append(
            "There is no validation set: the best epoch is chosen on the test set, which is "
            "optimistic."
        )
    return notes


def _has_test(run: RunFolder) -> bool:
    return bool(run.history) and "eval/kappa" in run.history[-1]


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    """What a reader wants to know first, as far as it is recorded."""
    seconds = sum(line.get("time/epoch_seconds") or 0 for line in run.history)
    samples = [f"{num} {name}" for name, num in run.facts.num_samples.items()]
    facts = {
        "Method": run.method,
        "Data": run.data,
        "Noise": run.noise,
        "Images": ", ".join(samples),
        "Classes": ", ".join(run.facts.class_names),
        "Network": run.setting("model.backbone"),
        "Optimiser": run.setting("optim.name"),
        "Global batch": run.setting("optim.batch_size"),
        "Epochs": f"{len(run.history)} of {run.num_epochs or 'unknown'}",
        "Time in epochs": _duration(seconds) if seconds else None,
        "Seed": run.setting("run.seed"),
        "Processes": run.facts.num_processes,
        "Folder": run.path,
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _metrics(run: RunFolder) -> dict[str, Any]:
    """Test metrics at the epochs that are reported, and the greatest of them as tiles."""
    if not _has_test(run):
        return {"tiles": [], "metrics": None, "best_note": "", "mark_note": ""}
    summary = summarise(run.history, list(METRIC_TITLES))
    parts = (summary.best, summary.last, summary.mean_last)
    rows = [
        [title, *(_shown(part[name]) for part in parts)] for name, title in METRIC_TITLES.items()
    ]
    best = f"epoch {summary.best_epoch + 1}, the best by {summary.selected_on} kappa"
    tiles = [(_shown(summary.last[name]), f"{METRIC_TITLES[name]}, last epoch") for name in TILES]
    separation = run.history[-1].get("separation/auc")
    if separation is not None:
        tiles.append((_shown(separation), "AUC of the separation"))
    return {
        "tiles": tiles,
        "metrics": Table(["test metric", "best", "last", f"mean of last {NUM_LAST}"], rows),
        "best_note": f"Best: {best}. Kappa is quadratic weighted; AUROC is the mean over classes.",
        "mark_note": f"The dotted line is {best}.",
    }


def _shown(value: float | None, digits: int = 3) -> str:
    return UNDEFINED if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _charts(run: RunFolder, class_names: Sequence[str]) -> list[Chart]:
    """The curves of everything that the record holds."""
    if not run.history:
        return []
    epochs = [line["epoch"] + 1 for line in run.history]
    mark = {}
    if _has_test(run):
        summary = summarise(run.history, [])
        mark = {summary.best_epoch + 1: f"best by {summary.selected_on} kappa"}

    def chart(title: str, keys: Mapping[str, str]) -> Chart | None:
        lines = [
            Line(name, [number(line, key) for line in run.history], style=style)
            for style, (key, name) in enumerate(keys.items())
        ]
        return line_chart(title, epochs, lines, mark)

    terms = dict.fromkeys(key for line in run.history for key in line if key.startswith("train/"))
    groups = GROUP_TITLES.items()
    found = {"separation/auc": "AUC"} | {
        f"separation/{kind}/{group}": f"{kind}, {title}"
        for group, title in groups
        for kind in ("precision", "recall")
    }
    charts = [
        chart("Test set", {f"eval/{name}": title for name, title in METRIC_TITLES.items()}),
        chart(
            "Validation set, labels as given",
            {f"validation/{name}": title for name, title in METRIC_TITLES.items()},
        ),
        chart("Recall of each class, test set",
              {f"eval/recall/{c}": name for c, name in enumerate(class_names)}),
        chart("Terms of the loss", {key: key.removeprefix("train/") for key in terms}),
        chart("Separation against the true groups", found),
        chart("Samples in each group",
              {f"separation/num_assigned/{group}": title for group, title in groups}),
    ]  # fmt: skip
    return [item for item in charts if item is not None]


def _classes(run: RunFolder, names: Sequence[str]) -> Table | None:
    """Test metrics of each class in the last epoch."""
    if not _has_test(run) or not names:
        return None
    last, counts = run.history[-1], run.facts.num_test_images
    rows = [
        [
            name,
            counts[c] if c < len(counts) else UNDEFINED,
            *(_shown(last.get(f"eval/{key}/{c}")) for key in CLASS_METRIC_TITLES),
        ]
        for c, name in enumerate(names)
    ]
    return Table(["class", "test images", *CLASS_METRIC_TITLES.values()], rows)


def _groups(run: RunFolder) -> Table | None:
    """How well the groups were found in the last epoch, where the true ones are known."""
    last = run.history[-1] if run.history else {}
    if "separation/auc" not in last:
        return None
    kinds = {"num_assigned": 0, "num_true": 0, "precision": 3, "recall": 3}
    rows = [
        [title, *(_shown(last.get(f"separation/{k}/{group}"), d) for k, d in kinds.items())]
        for group, title in GROUP_TITLES.items()
    ]
    return Table(["group", "found", "true", "precision", "recall"], rows)


def _config_text(folder: Path) -> str:
    """``config.yaml`` as it stands; an unreadable one is among the problems already."""
    path = folder / CONFIG
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _versions(run: RunFolder, missing: list[str]) -> dict[str, str]:
    versions = recorded_versions(run)
    if not versions:
        missing.append("versions: neither run.json nor a checkpoint tells them")
    return versions
