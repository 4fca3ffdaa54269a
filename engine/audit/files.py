"""What a label audit leaves in the run folder: ``labels.csv``, ``transition.csv``, the page."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from engine import collectives
from engine.audit.findings import GROUPS, Findings, Samples, examine, gather_evidence
from engine.audit.review import render_review
from engine.record import write_text
from engine.task import IntArray, Loader
from engine.trainer import Trainer

__all__ = ["AuditConfig", "audit_run", "labels_table", "transition_table"]

READ_AT_A_TIME = 64


class AuditConfig(BaseModel):
    """Section ``audit``."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    gallery: int = Field(
        200, ge=0,
        description="Images of review.html, the most doubtful first; 0 = no such page.",
    )  # fmt: skip
    thumbnail: int = Field(256, ge=16, description="Longest side in pixels of the images in it.")


def audit_run(trainer: Trainer, samples: Samples, config: AuditConfig, folder: Path) -> Findings:
    """Audit the labels of a finished run and write what was found; a collective call.

    Args:
        trainer: At the end of the run.
        samples: Names and quality of all samples.
        config: Section ``audit``.
        folder: ``run.dir``; ``labels.csv`` and ``transition.csv`` are written to it, and
            ``review.html`` unless ``config.gallery`` is 0.

    Raises:
        OSError: The disk is full or not writable; on all ranks.
    """
    findings = examine(gather_evidence(trainer))

    def write() -> None:
        write_text(folder / "labels.csv", labels_table(findings, samples))
        write_text(folder / "transition.csv", transition_table(findings, samples.class_names))
        if config.gallery:
            page = render_review(
                findings, samples, lambda ids: _read(trainer.task.loader, ids),
                gallery=config.gallery, thumbnail=config.thumbnail, title=folder.resolve().name,
            )  # fmt: skip
            write_text(folder / "review.html", page)

    collectives.on_main(write)
    return findings


def _read(loader: Loader, ids: IntArray) -> NDArray[np.uint8]:
    """Images (k, S, S, 3) uint8 of sample_ids (k,), as the run trained on them."""
    parts = np.split(ids, range(READ_AT_A_TIME, len(ids), READ_AT_A_TIME))
    images = torch.cat([images for _, images in loader(parts)])
    return images.permute(0, 2, 3, 1).contiguous().numpy()


def labels_table(findings: Findings, samples: Samples) -> str:
    """``labels.csv``: a row for each training sample, the most doubtful label first."""
    columns = dict(_columns(findings, samples))
    rows = ([values[place] for values in columns.values()] for place in findings.order)
    return _to_csv(list(columns), rows)


def _columns(
    findings: Findings, samples: Samples
) -> Iterator[tuple[str, Sequence[Any] | NDArray[Any]]]:
    """Names and values of the columns, in the order of ``findings.sample_ids``."""
    ids, names = findings.sample_ids, samples.class_names
    yield "sample_id", ids
    yield "image", [samples.names[int(index)] for index in ids]
    yield "given_label", [names[label] for label in findings.given]
    yield "suggested_label", [names[label] for label in findings.suggested]
    yield "label_quality_score", findings.score
    yield "is_label_issue", findings.is_issue
    yield "finding", [findings.describe(place) for place in range(len(ids))]
    yield "given_index", findings.given
    yield "suggested_index", findings.suggested
    for judge in range(findings.num_judges):
        for group, name in enumerate(GROUPS):
            yield f"p_{name}_{_letter(judge)}", findings.posterior[:, judge, group]
    for network in range(len(findings.loss)):
        yield f"loss_{_letter(network)}", findings.loss[network]
        yield f"uncertainty_{_letter(network)}", findings.uncertainty[network]
    quality = samples.quality[ids]
    yield "quality", ["" if value < 0 else value for value in quality]
    for judge in range(findings.num_judges):
        yield f"epochs_since_group_change_{_letter(judge)}", findings.epochs_in_group[:, judge]
    blank = [""] * len(ids)
    yield "agreement", findings.agreement if len(findings.loss) > 1 else blank


def _letter(network: int) -> str:
    return chr(ord("a") + network)


def transition_table(findings: Findings, class_names: Sequence[str]) -> str:
    """``transition.csv``: for each pair of classes how many labels are thought to be so.

    ``share_of_suggested`` is the estimated transition matrix, P(given label | right label), whose
    rows ``noise.matrix`` takes; ``share_of_given`` is P(right label | given label).
    """
    counts = findings.counts
    of_given = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    of_suggested = counts / np.maximum(counts.sum(0, keepdims=True), 1)
    rows = (
        [class_names[g], class_names[s], counts[g, s], of_given[g, s], of_suggested[g, s]]
        for g, s in np.ndindex(counts.shape)
    )
    header = ["given_label", "suggested_label", "count", "share_of_given", "share_of_suggested"]
    return _to_csv(header, rows)


def _to_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_text(value) for value in row] for row in rows)
    return buffer.getvalue()


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)
