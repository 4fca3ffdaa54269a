"""Throughput of two processes against one, on two processors with a thread for each process.

``python benchmarks/scaling.py`` trains cross-entropy by the launcher, on one process and on two in
turn, and reads the time of an epoch from its metrics. Beside it, two runs of one process at the
same time, which exchange nothing, tell what the machine allows: processors that share a core or the
memory's bandwidth are no two. The last line is JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from timing import Goal, print_figures

__all__ = ["epoch_seconds", "main", "take_turns"]

ROOT = Path(__file__).resolve().parents[1]
NUM_EPOCHS = 3


def epoch_seconds(num_processes: int, folder: Path, settings: Sequence[str]) -> float:
    """Median seconds of an epoch after the first."""
    kind = ["--multi_gpu"] if num_processes > 1 else []
    command = [
        sys.executable, "-m", "accelerate.commands.launch", *kind, "--num_processes",
        str(num_processes), "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend",
        "no", "--main_process_port", "0", str(ROOT / "launcher" / "run.py"),
        "--config", str(ROOT / "configs" / "cross_entropy_synthetic.yaml"), *settings,
        f"run.dir={folder}", f"run.epochs={NUM_EPOCHS}",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"exit code {result.returncode}: {result.stderr[-3000:]}")
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return statistics.median(json.loads(line)["time/epoch_seconds"] for line in lines[1:])


def take_turns(settings: Sequence[str]) -> tuple[float, float, float]:
    """Seconds of an epoch: of one process, of the slower of two runs at once, of two processes."""
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(2) as pool:

        def run(name: str, num_processes: int = 1) -> float:
            return epoch_seconds(num_processes, Path(place, name), settings)

        return run("one"), max(pool.map(run, ("left", "right"))), run("two", 2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--set", action="append", dest="settings", metavar="SECTION.KEY=VALUE",
        # Much arithmetic for each weight that is exchanged.
        default=["runtime.device=cpu", "data.image_size=96", "model.width=32",
                 "model.blocks=2", "model.norm=group",
                 "data.synthetic={num_train: 1024, num_test: 16}", "optim.batch_size=128",
                 "tracking.wandb=off", "tracking.figures_every_epochs=0"],
        help="a setting of the runs; repeatable",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    speedups, allowed = [], []
    for _ in range(options.rounds):
        one, apart, two = take_turns(options.settings)
        print(f"seconds of an epoch: one {one:.2f}, two apart {apart:.2f}, two {two:.2f}")
        speedups.append(one / two)
        allowed.append(2 * one / apart)
    shares = [speedup / limit for speedup, limit in zip(speedups, allowed, strict=True)]
    print_figures(
        {
            "two_processes_over_one": Goal(statistics.median(speedups), 1.7, at_most=False),
            "two_runs_apart_over_one": statistics.median(allowed),
            "share_of_what_the_machine_allows": statistics.median(shares),
        }
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
