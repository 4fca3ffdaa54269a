"""How well each method withstands injected noise: beds x noises x methods x seeds, and tables.

``python benchmarks/noise_robustness.py --out runs/robustness --jobs 2``. A cell of the grid, say
``digits-sym40-qmix-seed0``, is a run of the launcher in a folder of that name below ``--out``.
Beside it lie ``<cell>.yaml``, its whole configuration, which ``python launcher/run.py --config``
takes by hand, and ``<cell>.log``; ``figures.json`` holds every figure by seed. Finished cells are
skipped and those that were cut off are resumed, so the benchmark can be stopped and started again
at will. Start it in a new folder after changing code: a cell knows its settings, not the code that
made it.
"""

import argparse
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from robustness_figures import figures_of, goals_of, spreads_of, to_json
from robustness_grid import BEDS, DECIDED_BY_CELL, REAL_IMAGES, ROOT, Cell, select
from robustness_table import report
from tqdm import tqdm

from data.errors import DataError
from engine.config import ConfigError, differences, dump_config
from engine.record import write_text
from engine.reports.run_folder import read_run
from launcher.settings import MAY_CHANGE_ON_RESUME

__all__ = ["main"]


def run(cell: Cell, out: Path, settings: Sequence[str]) -> str:
    """Run or resume a cell on one thread; returns what went wrong, or nothing."""
    folder, log = out / str(cell), out / f"{cell}.log"
    try:
        wanted = cell.compose(out, settings)
    except (ConfigError, DataError) as error:
        return str(error)
    found = read_run(folder)
    # A run may be given more epochs; a cell of another length is another cell.
    may_change = [key for key in MAY_CHANGE_ON_RESUME if key != "run.epochs"]
    changed = differences(found.config, wanted, may_change) if found.config else []
    if changed:
        return f"made with other settings: {'; '.join(changed)}"
    if found.is_finished:
        return ""
    config = out / f"{cell}.yaml"
    write_text(config, dump_config(wanted))
    command = [
        sys.executable, str(ROOT / "launcher" / "run.py"), "--config", str(config),
        "--resume", "auto",
    ]  # fmt: skip
    search_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": search_path}
    with log.open("a", encoding="utf-8") as file:
        code = subprocess.run(command, env=environment, stdout=file, stderr=file).returncode
    return f"exit code {code}, see {log}" if code else ""


def run_all(
    cells: Sequence[Cell], out: Path, settings: Sequence[str], num_jobs: int
) -> dict[Cell, str]:
    """Run the cells, some at a time; returns what went wrong by cell."""
    out.mkdir(parents=True, exist_ok=True)
    failures: dict[Cell, str] = {}
    with ThreadPoolExecutor(num_jobs) as pool:
        futures = {pool.submit(run, cell, out, settings): cell for cell in cells}
        for future in tqdm(as_completed(futures), total=len(futures), desc="runs", unit="run"):
            if future.result():
                failures[futures[future]] = future.result()
    return failures


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/robustness"), help="folder of runs")
    parser.add_argument(
        "--only", default="", metavar="WORDS",
        help="comma-separated beds, noises, methods and seeds, such as digits,sym40,qmix,seed0",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="SECTION.KEY=VALUE",
        help="a setting of every run, such as run.epochs=4 or runtime.device=cpu; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--table-only", action="store_true", help="run nothing; tabulate what --out holds"
    )
    parser.add_argument(
        "--long", action="store_true",
        help="also tabulate every metric at every occasion, and every class",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        options.cells = select([word for word in options.only.split(",") if word])
    except ValueError as error:
        parser.error(str(error))
    keys = [setting.partition("=")[0] for setting in options.settings]
    decided = [key for key in keys if key in DECIDED_BY_CELL]
    if decided:
        parser.error(f"--set: {', '.join(decided)}: decided by the cells of the grid; use --only")
    return options


def leave_out_beds_without_files(cells: Sequence[Cell]) -> list[Cell]:
    """The cells whose images can be found; the beds of the others are named in one line."""
    if os.environ.get(REAL_IMAGES):
        return list(cells)
    missing = list(dict.fromkeys(cell.bed for cell in cells if BEDS[cell.bed].has_files))
    if missing:
        print(f"left out: {', '.join(missing)}; {REAL_IMAGES} names no folder", file=sys.stderr)
    return [cell for cell in cells if cell.bed not in missing]


def missing_cells(
    cells: Sequence[Cell], finished: Sequence[Cell], failures: Mapping[Cell, str]
) -> list[str]:
    """Why cells are not in the tables: a line for each kind of failure, one for the rest."""
    lines = []
    for text in dict.fromkeys(failures.values()):
        failed = [str(cell) for cell in cells if failures.get(cell) == text]
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        lines.append(f"not in the tables: {failed[0]}{more}, {text}")
    asked = Counter(cell.bed for cell in cells)
    unfinished = Counter(cell.bed for cell in {*cells} - {*finished} - {*failures})
    if unfinished:
        counts = [f"{bed} {unfinished[bed]} of {asked[bed]}" for bed in asked if unfinished[bed]]
        lines.append(f"not in the tables, since not finished: {', '.join(counts)} runs")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse_arguments(arguments)
    out, cells, failures = options.out.resolve(), options.cells, {}
    if not options.table_only:
        cells = leave_out_beds_without_files(cells)
        failures = run_all(cells, out, options.settings, options.jobs)
    found = {cell: read_run(out / str(cell)) for cell in cells if cell not in failures}
    finished = [cell for cell, run_folder in found.items() if run_folder.is_finished]
    results = spreads_of(
        (cell, figures_of(found[cell].history, BEDS[cell.bed].headline)) for cell in finished
    )
    goals = goals_of(results)
    print(report(results, goals, long=options.long))
    for line in missing_cells(cells, finished, failures):
        print(line)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "figures.json", to_json(results, goals))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
