"""A comparison as tables and files: CSV for programs, Markdown and LaTeX for people."""

import math
from collections.abc import Sequence
from pathlib import Path

from engine.metrics import METRIC_TITLES
from engine.record import write_text
from engine.reports.comparison import OCCASIONS, Bed, Cell, Comparison, contrasts
from engine.reports.seeds import UNDEFINED, Spread
from engine.reports.tables import Table, markdown_text

__all__ = ["CAPTION", "HOLM", "NO_PAIRS", "contrast_table", "main_table", "write_tables"]

CAPTION = (
    "mean ± standard deviation over seeds (number of seeds); the highest mean among the cells of a "
    "column with the most seeds stands out, which is no claim that it differs from the next"
)
HOLM = (
    "Two-sided tests over the seeds that both methods share. P-values are adjusted by Holm for "
    "all pairs and noises of this table, each kind of test by itself. Seeds vary the noise, the "
    "weights and the order of samples, not the images."
)
NO_PAIRS = "No two methods share two seeds under a noise: nothing can be tested."


def main_table(bed: Bed, occasion: str, metric: str) -> Table:
    """Methods x noises: ``mean ± deviation (n)``, ``*`` where the best epoch is one by test."""

    def entry(cell: Cell | None) -> str:
        if cell is None:
            return UNDEFINED
        mark = "*" if cell.is_optimistic and occasion == "best" else ""
        return f"{cell.spread(occasion, metric)} ({len(cell.runs)}){mark}"

    rows = [
        [method, *(entry(bed.cells.get((method, noise))) for noise in bed.noises)]
        for method in bed.methods
    ]
    columns = [[bed.cells.get((method, noise)) for method in bed.methods] for noise in bed.noises]
    strong = {
        (row, number)
        for number, cells in enumerate(columns, 1)
        for row in _highest([cell.spread(occasion, metric) if cell else None for cell in cells])
    }
    return Table(["method", *bed.noises], rows, strong)


def _highest(spreads: Sequence[Spread | None]) -> list[int]:
    """Where the mean is highest among those of the most seeds; nowhere if that is a single one."""
    most = max((len(spread.values) for spread in spreads if spread), default=0)
    means = {
        place: spread.mean
        for place, spread in enumerate(spreads)
        if spread and len(spread.values) == most and not math.isnan(spread.mean)
    }
    if len(means) < 2:
        return []
    return [place for place, mean in means.items() if mean == max(means.values())]


def contrast_table(bed: Bed, occasion: str, metric: str) -> Table:
    """Each two methods under each noise that share two seeds or more, with their tests."""
    header = ["noise", "methods", "difference ± sd", "pairs", "t-test p", "p, Holm",
              "Wilcoxon p", "p, Holm", "caution"]  # fmt: skip
    rows = []
    for contrast in contrasts(bed, occasion, metric):
        test = contrast.test
        if test.num_pairs < 2:
            continue
        difference = f"{test.difference:+.3f} ± {test.deviation:.3f}"
        p_values = (test.p_t, contrast.p_t, test.p_wilcoxon, contrast.p_wilcoxon)
        rows.append([
            contrast.noise, f"{contrast.first} - {contrast.second}", difference, test.num_pairs,
            *map(_p_value, p_values), test.caution,
        ])  # fmt: skip
    return Table(header, rows)


def _p_value(p: float) -> str:
    if math.isnan(p):
        return UNDEFINED
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _summary_table(comparison: Comparison) -> Table:
    """A row for each cell, occasion and metric."""
    rows = [
        [bed.name, noise, method, occasion, metric, _plain(spread.mean), _plain(spread.deviation),
         len(spread.values), "test" if cell.is_optimistic and occasion == "best" else ""]
        for bed in comparison.beds
        for (method, noise), cell in sorted(bed.cells.items())
        for occasion in OCCASIONS
        for metric in METRIC_TITLES
        for spread in [cell.spread(occasion, metric)]
    ]  # fmt: skip
    header = ["data", "noise", "method", "epoch", "metric", "mean", "sd", "n", "chosen_on"]
    return Table(header, rows)


def _run_table(comparison: Comparison) -> Table:
    """A row for each run: where it is and its metrics at each occasion."""
    names = [f"{occasion}_{metric}" for occasion in OCCASIONS for metric in METRIC_TITLES]
    rows = [
        [run.path, bed.name, noise, method, seed, cell.summaries[seed].best_epoch + 1,
         cell.summaries[seed].selected_on,
         *(_plain(getattr(cell.summaries[seed], occasion)[metric])
           for occasion in OCCASIONS for metric in METRIC_TITLES)]
        for bed in comparison.beds
        for (method, noise), cell in sorted(bed.cells.items())
        for seed, run in cell.runs.items()
    ]  # fmt: skip
    header = ["run", "data", "noise", "method", "seed", "best_epoch", "chosen_on", *names]
    return Table(header, rows)


def _significance_table(comparison: Comparison, occasion: str, metric: str) -> Table:
    header = ["data", "noise", "first", "second", "epoch", "metric", "n", "difference", "sd",
              "p_t", "p_t_holm", "p_wilcoxon", "p_wilcoxon_holm", "caution"]  # fmt: skip
    rows = [
        [bed.name, c.noise, c.first, c.second, occasion, metric, c.test.num_pairs,
         *map(_plain, (c.test.difference, c.test.deviation, c.test.p_t, c.p_t, c.test.p_wilcoxon,
                       c.p_wilcoxon)), c.test.caution]
        for bed in comparison.beds
        for c in contrasts(bed, occasion, metric)
    ]  # fmt: skip
    return Table(header, rows)


def _plain(value: float) -> str:
    """All digits, or nothing where it is undefined."""
    return "" if math.isnan(value) else repr(value)


def write_tables(comparison: Comparison, out: Path, occasion: str, metric: str) -> list[Path]:
    """Write the files of a comparison but for its page.

    Args:
        comparison: What is compared.
        out: Their folder; it exists.
        occasion: Key of ``OCCASIONS`` that is tested.
        metric: Name of the metric that is tabulated and tested.

    Returns:
        ``summary.csv``, ``runs.csv``, ``significance.csv``, ``comparison.md``, ``comparison.tex``.
    """
    texts = {
        "summary.csv": _summary_table(comparison).csv(),
        "runs.csv": _run_table(comparison).csv(),
        "significance.csv": _significance_table(comparison, occasion, metric).csv(),
        "comparison.md": _markdown(comparison, occasion, metric),
        "comparison.tex": _latex(comparison, metric),
    }
    for name, text in texts.items():
        write_text(out / name, text)
    return [out / name for name in texts]


def _markdown(comparison: Comparison, occasion: str, metric: str) -> str:
    lines = ["# Comparison", "", f"Test {METRIC_TITLES[metric]}: {CAPTION}.", ""]
    for bed in comparison.beds:
        lines += [f"## {markdown_text(bed.name)}", ""]
        for key, title in OCCASIONS.items():
            lines += [f"### {title}", "", *main_table(bed, key, metric).markdown()]
            if key == "best" and any(cell.is_optimistic for cell in bed.cells.values()):
                lines += ["\\* chosen on the test set for want of validation: optimistic.", ""]
        lines += [f"- {markdown_text(note)}" for note in bed.notes] + ([""] if bed.notes else [])
        table = contrast_table(bed, occasion, metric)
        lines += [f"### Differences, {OCCASIONS[occasion]}", ""]
        lines += [HOLM, "", *table.markdown()] if table.rows else [NO_PAIRS, ""]
    if comparison.left_out:
        lines += [
            "## Left out",
            "",
            *(f"- {markdown_text(line)}" for line in comparison.left_out),
            "",
        ]
    return "\n".join(lines)


def _latex(comparison: Comparison, metric: str) -> str:
    lines = [r"% needs \usepackage{booktabs}", ""]
    for bed in comparison.beds:
        for occasion, title in OCCASIONS.items():
            table = main_table(bed, occasion, metric)
            star = any("*" in str(cell) for row in table.rows for cell in row[1:])
            note = " (*: chosen on the test set, optimistic)" if star else ""
            caption = f"{bed.name}: test {METRIC_TITLES[metric]}, {title}{note}; {CAPTION}."
            lines += table.latex(caption)
    return "\n".join(lines)
