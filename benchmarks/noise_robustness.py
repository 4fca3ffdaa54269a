"""How well each method withstands injected noise: data sets x methods x seeds, and one table.

``python benchmarks/noise_robustness.py --out runs/robustness --jobs 2``. Each cell of the grid is a
run of the launcher in its own folder below ``--out``. Finished cells are skipped and those that
were cut off are resumed, so the benchmark can be stopped and started again at will. Start it in a
new folder after changing code: a cell knows its settings, not the code that made it.
"""

import argparse
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from robustness_table import figures_of, goals_of, report, spreads_of, to_json
from tqdm import tqdm

from engine.config import differences, load_config
from engine.record import Record
from engine.strict_yaml import parse_yaml
from launcher.settings import MAY_CHANGE_ON_RESUME, Config

__all__ = ["Cell", "main", "select"]

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
SETTINGS = ("synthetic", "deepdrid", "digits")
METHODS = ("qmix", "cross_entropy")
SEEDS = (0, 1, 2)
REAL_IMAGES = "MEDNOISE_REALDATA"


class Cell(NamedTuple):
    """One run of the grid."""

    setting: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.setting}-{self.method}-seed{self.seed}"

    @property
    def config(self) -> Path:
        """Its configuration file."""
        return CONFIGS / f"{self.method}_{self.setting}.yaml"

    def overrides(self, out: Path) -> list[str]:
        """What differs from the file."""
        changed = [f"run.dir={out / str(self)}", f"run.seed={self.seed}"]
        if self.setting == "deepdrid":
            changed.append(f"data.root={Path(os.environ[REAL_IMAGES], 'deepdrid')}")
        return changed


def select(only: Sequence[str]) -> list[Cell]:
    """The cells that words such as ``synthetic``, ``qmix`` and ``seed0`` choose.

    Words of one kind add up; a kind without any word is not restricted.

    Raises:
        ValueError: A word names nothing of the grid.
    """
    kinds = [SETTINGS, METHODS, tuple(f"seed{seed}" for seed in SEEDS)]
    known = list(itertools.chain(*kinds))
    unknown = [word for word in only if word not in known]
    if unknown:
        raise ValueError(f"--only: unknown {', '.join(unknown)}; choose from {', '.join(known)}")
    chosen = [[word for word in kind if word in only] or kind for kind in kinds]
    return [
        Cell(setting, method, int(seed.removeprefix("seed")))
        for setting, method, seed in itertools.product(*chosen)
    ]


def is_finished(folder: Path) -> bool:
    """Whether a run folder holds a line of metrics for each of its epochs."""
    config = folder / "config.yaml"
    if not config.exists():
        return False
    num_epochs = parse_yaml(config.read_text(encoding="utf-8")).tree["run"]["epochs"]
    return len(Record.read(folder / "metrics.jsonl")) >= num_epochs


def run(cell: Cell, out: Path) -> str:
    """Run or resume a cell on one thread; returns what went wrong, or nothing."""
    folder, log = out / str(cell), out / f"{cell}.log"
    if is_finished(folder):
        made_with = parse_yaml((folder / "config.yaml").read_text(encoding="utf-8")).tree
        wanted = load_config(Config, cell.config, cell.overrides(out))
        changed = differences(made_with, wanted, MAY_CHANGE_ON_RESUME)
        return f"made with other settings: {'; '.join(changed)}" if changed else ""
    command = [
        sys.executable, str(ROOT / "launcher" / "run.py"), "--config", str(cell.config),
        "--resume", "auto", *cell.overrides(out),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with log.open("a", encoding="utf-8") as file:
        code = subprocess.run(command, env=environment, stdout=file, stderr=file).returncode
    return f"exit code {code}, see {log}" if code else ""


def run_all(cells: Sequence[Cell], out: Path, num_jobs: int) -> dict[Cell, str]:
    """Run the cells, some at a time; returns what went wrong by cell."""
    out.mkdir(parents=True, exist_ok=True)
    failures: dict[Cell, str] = {}
    with ThreadPoolExecutor(num_jobs) as pool:
        futures = {pool.submit(run, cell, out): cell for cell in cells}
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
        help="comma-separated settings, methods and seeds, such as synthetic,qmix,seed0",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument(
        "--table-only", action="store_true", help="run nothing; tabulate what --out holds"
    )
    options = parser.parse_args(arguments)
    try:
        options.cells = select([word for word in options.only.split(",") if word])
    except ValueError as error:
        parser.error(str(error))
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse_arguments(arguments)
    out, cells, failures = options.out.resolve(), options.cells, {}
    if not options.table_only:
        if REAL_IMAGES not in os.environ and any(cell.setting == "deepdrid" for cell in cells):
            print(f"deepdrid is left out: {REAL_IMAGES} names no folder", file=sys.stderr)
            cells = [cell for cell in cells if cell.setting != "deepdrid"]
        failures = run_all(cells, out, options.jobs)
    finished = [cell for cell in cells if cell not in failures and is_finished(out / str(cell))]
    results = spreads_of(
        (*cell, figures_of(Record.read(out / str(cell) / "metrics.jsonl"))) for cell in finished
    )
    goals = goals_of(results)
    print(report(results, goals))
    for cell in cells:
        if cell not in finished:
            print(f"not in the tables: {cell}, {failures.get(cell, 'not finished')}")
    print(to_json(results, goals))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
