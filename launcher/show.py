"""What the launcher prints: the plan of a run and the table of its results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.manifest import LEFT_OUT, SPLIT_NAMES, TRAIN
from engine.audit.findings import Findings
from engine.history import ledger_columns
from engine.ledger import Ledger
from engine.metrics import CLASS_METRIC_TITLES
from engine.plan import num_steps, per_rank_batch_size
from engine.record import summarise
from engine.reports.tables import Table
from launcher.assemble import NoisyData
from launcher.settings import Config
from methods.method import Method

__all__ = ["RESULT_NAMES", "describe_audit", "describe_plan", "describe_result"]

GROUP_NAMES = ("Correct", "Mis-H", "Mis-L")
RESULT_NAMES = {
    "kappa": "quadratic weighted kappa",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "macro one-vs-rest AUROC",
}
# Pairs of classes that the label audit confuses most often.
MAX_PAIRS = 3


def describe_plan(config: Config, data: NoisyData, method: Method, num_ranks: int) -> str:
    """What a run would do: samples per class and group, steps, passes, memory of the ledger."""
    manifest = data.source.manifest
    lines = [
        f"data: {config.data.prepared or config.data.source}, {len(manifest)} images of "
        f"{manifest.num_classes} classes"
    ]
    if data.source.quarantined:
        lines.append(f"left out as unreadable: {len(data.source.quarantined)}")
    if data.num_corrected:
        lines.append(f"changed by data.corrections: {data.num_corrected}")
    if num_left_out := len(manifest.where(LEFT_OUT)):
        lines.append(f"left out by data.corrections: {num_left_out}")
    lines += _count_samples(data)
    batch, epochs = config.optim.batch_size, config.run.epochs
    train_ids = manifest.where(TRAIN)
    steps = num_steps(len(train_ids), batch)
    lines.append(
        f"processes: {num_ranks}; global batch {batch}, "
        f"{per_rank_batch_size(batch, num_ranks)} a process; {steps} steps an epoch, "
        f"{steps * epochs} in {epochs} epochs"
    )
    if config.data.sampler == "class_balanced":
        share = steps * batch / len(np.unique(data.labels[train_ids]))
        lines.append(f"sampler: class_balanced, about {share:.0f} images of each class an epoch")
    for epoch in (0, epochs - 1):
        passes = method.forwards_per_image(epoch)
        lines.append(
            f"network passes per training image in epoch {epoch + 1}: "
            f"{passes['with_gradient']} with gradient, {passes['without']} without, "
            f"{passes['survey']} in the survey"
        )
    ledger = Ledger(len(manifest), ledger_columns(method))
    lines.append(f"ledger: {ledger.memory_bytes / 1e6:.2f} MB a process")
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    lines.append(f"trained parameters: {trained / 1e6:.2f} million")
    return "\n".join(lines)


def _count_samples(data: NoisyData) -> list[str]:
    """Samples by given class: of each split and, in training, of each true group if known."""
    manifest = data.source.manifest
    columns = {name: manifest.split == split for split, name in enumerate(SPLIT_NAMES)}
    if data.groups is not None:
        training = columns[SPLIT_NAMES[TRAIN]]
        columns |= {
            f"train {name}": training & (data.groups == group)
            for group, name in enumerate(GROUP_NAMES)
        }
    rows = [
        [name, *(int((chosen & (data.labels == c)).sum()) for chosen in columns.values())]
        for c, name in enumerate(manifest.class_names)
    ]
    total = ["all", *(int(chosen.sum()) for chosen in columns.values())]
    return Table(["given class", *columns], [*rows, total]).text()


def describe_result(
    history: Sequence[Mapping[str, Any]],
    folder: Path,
    class_names: Sequence[str],
    num_test_images: Sequence[int],
    labels: Sequence[str] = (),
) -> str:
    """The tables of a finished run and where to find it.

    Args:
        history: Lines of the record, at least one.
        folder: The run's folder.
        class_names: The C classes.
        num_test_images: Test images of each class, C numbers.
        labels: Lines about the labels, from :func:`describe_audit`.

    Returns:
        Lines without a last line break; a metric that is undefined is shown as ``nan`` in the means
        over classes and as ``-`` elsewhere.
    """
    lines: list[str] = []
    if "eval/kappa" in history[-1]:
        summary = summarise(history, list(RESULT_NAMES))
        caution = "" if summary.selected_on == "validation" else " (chosen on test: optimistic)"
        parts = (summary.best, summary.last, summary.mean_last)
        rows = [
            [title, *(f"{part[name]:.4f}" for part in parts)]
            for name, title in RESULT_NAMES.items()
        ]
        lines += Table(["test metric", "best", "last", "mean of last 5"], rows).text()
        lines.append(
            f"best: epoch {summary.best_epoch + 1} by {summary.selected_on} kappa{caution}"
        )
        lines += _describe_classes(history[-1], class_names, num_test_images)
    lines += _describe_separation(history[-1])
    lines += labels
    lines.append(f"run folder: {folder}")
    return "\n".join(lines)


def describe_audit(findings: Findings, class_names: Sequence[str]) -> list[str]:
    """How many labels the audit thinks wrong, and which classes are confused most often."""
    counts = findings.counts.copy()
    np.fill_diagonal(counts, 0)
    total, num_samples = int(counts.sum()), len(findings.given)
    lines = [f"labels thought wrong: {total} of {num_samples}, see labels.csv"]
    if findings.is_poor.any():
        poor = int((findings.is_poor & ~findings.is_issue).sum())
        lines.append(f"images thought too poor to tell: {poor}")
    pairs = counts.ravel().argsort(kind="stable")[::-1][:MAX_PAIRS]
    for given, suggested in zip(*np.unravel_index(pairs, counts.shape), strict=True):
        if number := counts[given, suggested]:
            pair = f"{class_names[given]}, rather {class_names[suggested]}"
            lines.append(f"  {number} given as {pair}")
    return lines


def _describe_classes(
    metrics: Mapping[str, Any], class_names: Sequence[str], num_images: Sequence[int]
) -> list[str]:
    """The test metrics of each class in the last epoch."""
    rows = [
        [name, num, *(_shown(metrics.get(f"eval/{key}/{c}")) for key in CLASS_METRIC_TITLES)]
        for c, (name, num) in enumerate(zip(class_names, num_images, strict=True))
    ]
    return [
        "test metrics by class in the last epoch:",
        *Table(["class", "test images", *CLASS_METRIC_TITLES.values()], rows).text(),
    ]


def _describe_separation(metrics: Mapping[str, Any]) -> list[str]:
    """The separation of the last epoch, where the true groups are known."""
    if "separation/auc" not in metrics:
        return []
    keys = ("correct", "mis_h", "mis_l")

    def number(name: str, digits: int = 3) -> str:
        return _shown(metrics.get(f"separation/{name}"), digits)

    rows = [
        [
            name,
            number(f"num_assigned/{key}", 0),
            number(f"precision/{key}"),
            number(f"recall/{key}"),
        ]
        for name, key in zip(GROUP_NAMES, keys, strict=True)
    ]
    return [
        f"separation in the last epoch: AUC {number('auc')}",
        *Table(["group", "samples", "precision", "recall"], rows).text(),
    ]


def _shown(value: float | None, digits: int = 3) -> str:
    """A number, or a dash for one that the record holds as null or lacks."""
    return "-" if value is None else f"{value:.{digits}f}"
