"""Figures and audit of a run's folder, made ready to stand inside a page."""

import base64
import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image

from engine.reports.tables import Table

__all__ = ["Audit", "Figure", "gather_audit", "gather_figures", "read_audit", "thumbnails"]

# Pictures take some 50 to 100 kB each: more would make the page heavy.
MAX_CLOUDS = 40
SEPARATION_FIGURES = {
    "posterior": "Posteriors of the groups",
    "suggested": "Given against suggested labels",
}
EVALUATION_FIGURES = {
    "confusion-eval": "Confusion matrix, test set",
    "calibration-eval": "Calibration, test set",
    "confusion-validation": "Confusion matrix, validation set",
    "calibration-validation": "Calibration, validation set",
}
NUM_GALLERY, NUM_PAIRS = 24, 6
AUDIT_COLUMNS = (
    "sample_id", "image", "given_label", "suggested_label", "label_quality_score", "is_label_issue",
)  # fmt: skip
_IMAGE_DATA = re.compile(r"data:image/(?:png|jpeg|webp);base64,[A-Za-z0-9+/]+=*")


@dataclass(frozen=True)
class Figure:
    """A picture inside a page.

    Attributes:
        source: A ``data:`` address.
        width: In pixels.
        height: In pixels.
        epoch: Which it is of, counted from 1.
        title: What it shows.
    """

    source: str
    width: int
    height: int
    epoch: int
    title: str


def gather_figures(folder: Path, best_epoch: int | None, missing: list[str]) -> dict[str, Any]:
    """The pictures in a run's ``figures/epoch-*/``.

    Args:
        folder: The run's.
        best_epoch: Counted from 1; its confusion and calibration are shown beside the last ones.
        missing: Gets a line for everything that is not there or damaged.

    Returns:
        ``cloud``: one for each epoch, some left out where they are very many, which ``cloud_note``
        then says; ``figures``: those of the ``separation`` and of the ``evaluation``.
    """
    found: dict[str, dict[int, Path]] = {}
    for path in sorted((folder / "figures").glob("epoch-*/*.png")):
        digits = path.parent.name.removeprefix("epoch-")
        if digits.isdecimal():
            found.setdefault(path.stem, {})[int(digits)] = path
    if not found:
        missing.append("figures: none, so no cloud, confusion matrices and calibration")
        return {"cloud": [], "cloud_note": "", "figures": {"separation": [], "evaluation": []}}
    if "cloud" not in found:
        missing.append("figures: no cloud; methods that do not separate samples have none")

    def read(name: str, title: str, *epochs: int) -> list[Figure]:
        read_ones = []
        for epoch in epochs:
            path = found[name][epoch]
            try:
                read_ones.append(_read_figure(path, epoch, title))
            except OSError as error:
                missing.append(f"{path.relative_to(folder)}: {error.strerror or error}")
        return read_ones

    clouds = sorted(found.get("cloud", {}))
    chosen = _spread_out(clouds, MAX_CLOUDS)
    separation = [
        figure
        for name, title in SEPARATION_FIGURES.items()
        if name in found
        for figure in read(name, f"{title}, epoch {max(found[name])}", max(found[name]))
    ]
    evaluation = []
    for name, title in EVALUATION_FIGURES.items():
        epochs = found.get(name, {})
        for epoch in sorted({best_epoch or 0, max(epochs, default=0)} & {*epochs}):
            which = "last" if epoch == max(epochs) else "best"
            evaluation += read(name, f"{title}, epoch {epoch} ({which})", epoch)
    if not evaluation:
        missing.append("figures: no confusion matrix and calibration")
    return {
        "cloud": read("cloud", "Loss and uncertainty", *chosen),
        "cloud_note": ""
        if chosen == clouds
        else f"{len(chosen)} of {len(clouds)} epochs, evenly spaced; the others are in figures/.",
        "figures": {"separation": separation, "evaluation": evaluation},
    }


def _spread_out(items: list[int], most: int) -> list[int]:
    """At most so many, evenly spaced, first and last among them."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _read_figure(path: Path, epoch: int, title: str) -> Figure:
    """Embed a PNG.

    Raises:
        OSError: It cannot be read, or is no whole PNG.
    """
    data = path.read_bytes()
    try:
        with Image.open(path, formats=["PNG"]) as image:
            width, height = image.size
            image.load()
    except (SyntaxError, ValueError) as error:  # so Pillow calls some kinds of damage
        raise OSError(f"damaged: {error}") from error
    source = "data:image/png;base64," + base64.b64encode(data).decode()
    return Figure(source, width, height, epoch, title)


@dataclass(frozen=True)
class Audit:
    """The head of ``labels.csv``.

    Attributes:
        rows: Column -> text, of the most suspicious samples, the most suspicious first.
        num_samples: Rows of the whole file.
        num_issues: Of these, labels thought wrong.
        pairs: (given, suggested) -> how many labels thought wrong have them, the most first.
    """

    rows: tuple[dict[str, str], ...]
    num_samples: int
    num_issues: int
    pairs: tuple[tuple[tuple[str, str], int], ...]


def read_audit(path: Path, num_rows: int) -> Audit:
    """Read ``labels.csv``, whose rows are sorted by suspicion.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not UTF-8, not CSV, or lacks a column or a cell.
    """
    head, num_samples, issues = list[dict[str, str]](), 0, Counter[tuple[str, str]]()
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        lacking = [name for name in AUDIT_COLUMNS if name not in (reader.fieldnames or ())]
        if lacking:
            raise ValueError(f"lacks the columns {', '.join(lacking)}")
        try:
            for row in reader:
                if any(row[name] is None for name in AUDIT_COLUMNS):
                    raise ValueError(f"line {reader.line_num} is cut off")
                num_samples += 1
                if len(head) < num_rows:
                    head.append({name: row[name] for name in AUDIT_COLUMNS})
                if row["is_label_issue"].lower() in ("true", "1"):
                    issues[row["given_label"], row["suggested_label"]] += 1
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from error
    return Audit(tuple(head), num_samples, issues.total(), tuple(issues.most_common()))


class _Images(HTMLParser):
    """Collects embedded images by their ``alt``, where the review page names the sample's image."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        source, name = values.get("src") or "", values.get("alt") or ""
        if tag == "img" and name and _IMAGE_DATA.fullmatch(source):
            self.found.setdefault(name, source)


def thumbnails(review: Path) -> dict[str, str]:
    """Name of an image -> ``data:`` address, from those that a review page has embedded.

    Raises:
        OSError: The page cannot be read.
        UnicodeDecodeError: It is not UTF-8.
    """
    images = _Images()
    images.feed(review.read_text(encoding="utf-8"))
    images.close()
    return images.found


def gather_audit(folder: Path, missing: list[str]) -> dict[str, Any] | None:
    """What the audit found, for the page; None where there is no readable ``labels.csv``.

    Args:
        folder: The run's.
        missing: Gets a line for everything that is not there or damaged.
    """
    try:
        audit = read_audit(folder / "labels.csv", NUM_GALLERY)
    except FileNotFoundError:
        missing.append("labels.csv: missing; it is written when training ends")
        return None
    except (OSError, ValueError) as error:
        missing.append(f"labels.csv: damaged ({error})")
        return None
    review, sources = folder / "review.html", dict[str, str]()
    try:
        sources = thumbnails(review)
    except FileNotFoundError:
        missing.append("review.html: missing, so the audit has no images")
    except (OSError, UnicodeDecodeError) as error:
        missing.append(f"review.html: cannot be read, so the audit has no images ({error})")
    rows = [
        {
            "given": row["given_label"],
            "suggested": row["suggested_label"],
            "score": _short(row["label_quality_score"]),
            "image": row["image"],
            "source": sources.get(row["image"], ""),
        }
        for row in audit.rows
    ]
    header = ["image", "given", "suggested", "label quality"]
    pairs = [[f"{given} → {to}", count] for (given, to), count in audit.pairs[:NUM_PAIRS]]
    share = f" ({100 * audit.num_issues / audit.num_samples:.1f} %)" if audit.num_samples else ""
    return {
        "text": f"{audit.num_issues} of {audit.num_samples} training labels{share} are thought "
        "wrong. Below are the most doubtful ones, given label → suggested label, with the quality "
        "of the label between 0 and 1.",
        "review": review.is_file(),
        "rows": rows,
        "images": any(row["source"] for row in rows),
        "table": Table(
            header, [[r["image"], r["given"], r["suggested"], r["score"]] for r in rows]
        ),
        "pairs": Table(["given → suggested", "labels"], pairs) if pairs else None,
    }


def _short(score: str) -> str:
    """A number with three digits; anything else as it stands."""
    try:
        return f"{float(score):.3f}"
    except ValueError:
        return score
