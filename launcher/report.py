"""Report on a run, ``python launcher/report.py RUN``; compare: ``RUN RUN... --out comparison``."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engine.metrics import METRIC_TITLES
from engine.reports.comparison import OCCASIONS, compare
from engine.reports.comparison_page import write_comparison
from engine.reports.run_folder import RunFolder, find_runs, read_run
from engine.reports.run_page import write_report
from launcher import EXIT_USER_ERROR
from launcher.settings import MAY_CHANGE_ON_RESUME, Config

__all__ = ["main"]


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Write report.html into a run's folder, or compare many runs.",
        epilog="example: python launcher/report.py runs/sweeps/default --out comparison",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN",
        help="folder of a run or of many, such as a sweep's; patterns are expanded",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path,
        help="compare the runs and write tables and a page to this folder; without it every run "
        "gets its own report",
    )  # fmt: skip
    parser.add_argument(
        "--metric", choices=list(METRIC_TITLES), default="kappa",
        help="test metric that is tabulated, drawn and tested (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--at", choices=list(OCCASIONS), default="last", dest="occasion",
        help="when: " + "; ".join(f"{key}: {title}" for key, title in OCCASIONS.items())
        + " (default: %(default)s)",
    )  # fmt: skip
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse_arguments(arguments)
    folders, problems = find_runs(options.runs)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not folders:
        return EXIT_USER_ERROR
    try:
        if options.out is None:
            for folder in folders:
                print(write_report(folder))
        else:
            _compare(folders, problems, options)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return EXIT_USER_ERROR if problems else 0


def _compare(folders: Sequence[Path], problems: Sequence[str], options: argparse.Namespace) -> None:
    runs = [_with_defaults(read_run(folder)) for folder in folders]
    comparison = compare(runs, MAY_CHANGE_ON_RESUME)
    for line in comparison.left_out:
        print(line, file=sys.stderr)
    if len(comparison.beds) > 1:
        names = "; ".join(bed.name for bed in comparison.beds)
        print(f"shown apart, since data or epochs differ: {names}", file=sys.stderr)
    for file in write_comparison(
        comparison, options.out, options.occasion, options.metric, problems
    ):
        print(file)


def _with_defaults(run: RunFolder) -> RunFolder:
    """A run with the settings that its file lacks, since it was made before there were such.

    Where the file is not valid today its settings are taken as they stand; keys that are unknown
    today stay, so that they set the run apart.
    """
    try:
        config = Config.model_validate_json(json.dumps(run.config), strict=True)
    except ValidationError:
        return run
    return replace(run, config=_merged(config.model_dump(mode="json"), run.config))


def _merged(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A tree with the values given, and the defaults where none is."""
    return {**defaults, **given} | {
        key: _merged(value, given[key])
        for key, value in defaults.items()
        if isinstance(value, dict) and isinstance(given.get(key), dict)
    }


if __name__ == "__main__":
    sys.exit(main())
