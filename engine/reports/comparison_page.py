"""``comparison.html``: tables, overlaid curves and differences of many runs on one page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.metrics import METRIC_TITLES
from engine.record import number, write_text
from engine.reports.charts import Chart, Line, line_chart
from engine.reports.comparison import OCCASIONS, Bed, Cell, Comparison
from engine.reports.comparison_tables import (
    CAPTION,
    HOLM,
    NO_PAIRS,
    contrast_table,
    main_table,
    write_tables,
)
from engine.reports.pages import render
from engine.reports.tables import Table

__all__ = ["comparison_page", "write_comparison"]

PAGE = "comparison.html"


def write_comparison(
    comparison: Comparison, out: Path, occasion: str, metric: str, problems: Sequence[str] = ()
) -> list[Path]:
    """Write the page and the files of a comparison; returns them, the page first.

    Args:
        comparison: What is compared.
        out: Their folder, made when missing.
        occasion: Key of ``OCCASIONS``: what is shown first, and tested.
        metric: Name of the metric that is tabulated, drawn and tested.
        problems: A line for each thing asked for that is no run.

    Raises:
        OSError: The disk is full or not writable.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = write_tables(comparison, out, occasion, metric)
    names = [file.name for file in files]
    write_text(out / PAGE, comparison_page(comparison, occasion, metric, names, problems))
    return [out / PAGE, *files]


def comparison_page(
    comparison: Comparison,
    occasion: str,
    metric: str,
    files: Sequence[str] = (),
    problems: Sequence[str] = (),
) -> str:
    """The page; arguments as above, ``files`` are the names of those beside it."""
    num_runs = sum(len(cell.runs) for bed in comparison.beds for cell in bed.cells.values())
    methods = {method for bed in comparison.beds for method in bed.methods}
    return render(
        "report_comparison.html",
        title="Comparison of methods",
        lead=f"{num_runs} finished runs of {len(methods)} methods on {len(comparison.beds)} "
        "data sets or lengths of training, each shown apart",
        notes=[*problems, *comparison.left_out],
        beds=[_bed(bed, occasion, metric) for bed in comparison.beds],
        metric=METRIC_TITLES[metric],
        occasion=OCCASIONS[occasion],
        caption=CAPTION,
        holm=HOLM,
        no_pairs=NO_PAIRS,
        files=files,
        runs=_runs(comparison),
    )


def _bed(bed: Bed, occasion: str, metric: str) -> dict[str, Any]:
    """What the template shows of a bed; the occasion asked for comes first."""
    optimistic = any(cell.is_optimistic for cell in bed.cells.values())
    star = "* chosen on the test set for want of validation: optimistic."
    charts = [_chart(bed, noise, metric) for noise in bed.noises]
    return {
        "name": bed.name,
        "notes": bed.notes,
        "tables": [
            {
                "title": OCCASIONS[key],
                "table": main_table(bed, key, metric),
                "note": star if key == "best" and optimistic else "",
            }
            for key in sorted(OCCASIONS, key=lambda key: key != occasion)
        ],
        "charts": [chart for chart in charts if chart is not None],
        "contrasts": contrast_table(bed, occasion, metric),
    }


def _chart(bed: Bed, noise: str, metric: str) -> Chart | None:
    """A line a method, always in the same colour."""
    cells = {
        method: (style, bed.cells[method, noise])
        for style, method in enumerate(bed.methods)
        if (method, noise) in bed.cells
    }
    # All have the bed's epochs; a run that was shortened on resume has more lines.
    num_epochs = min(len(run.history) for _, cell in cells.values() for run in cell.runs.values())
    lines = [
        _line(method, cell, metric, num_epochs, style) for method, (style, cell) in cells.items()
    ]
    return line_chart(noise, list(range(1, num_epochs + 1)), lines)


def _line(method: str, cell: Cell, metric: str, num_epochs: int, style: int) -> Line:
    """Mean, least and greatest over seeds in each epoch."""
    # One undefined value makes mean, least and greatest of its epoch undefined.
    curves = np.array(
        [
            [number(line, f"eval/{metric}") for line in run.history[:num_epochs]]
            for run in cell.runs.values()
        ]
    )
    return Line(
        f"{method} ({len(curves)})",
        y=curves.mean(axis=0).tolist(),
        low=curves.min(axis=0).tolist(),
        high=curves.max(axis=0).tolist(),
        style=style,
    )


def _runs(comparison: Comparison) -> Table:
    """Which run stands where."""
    rows = [
        [run.path, bed.name, noise, method, seed]
        for bed in comparison.beds
        for (method, noise), cell in sorted(bed.cells.items())
        for seed, run in cell.runs.items()
    ]
    return Table(["run", "data", "noise", "method", "seed"], rows)
