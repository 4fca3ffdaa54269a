"""Train a method: ``accelerate launch launcher/run.py --config configs/qmix_deepdrid.yaml``."""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.manifest import TRAIN
from data.sources import check_images, settle
from engine import collectives
from engine.config import ConfigError, load_config
from engine.interrupts import EXIT_INTERRUPTED, Interrupts, RunInterruptedError
from engine.plan import num_steps, per_rank_batch_size
from engine.progress import PhaseFormatter
from engine.runtime import (
    LostProcessError,
    end_process,
    first_line,
    is_lost_process,
    read_environment,
    start_processes,
)
from launcher.assemble import build_method, load_noisy_data, run_facts
from launcher.ends import carry_out, tell
from launcher.reference import describe_settings
from launcher.settings import Config
from launcher.show import describe_audit, describe_plan, describe_result
from launcher.training import train

__all__ = ["main"]

logger = logging.getLogger("mednoise")


class _ShowSettings(argparse.Action):
    """As ``--help``: print and stop, whatever else is given or missing."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: Any) -> None:
        wanted = arguments[1]
        text = describe_settings(wanted)
        if not text:
            parser.error(f"--settings {wanted}: no key begins so, and no method is called so")
        tell(text)
        parser.exit()


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Command line: configuration, overrides and what to do."""
    parser = argparse.ArgumentParser(
        description="Train a method that withstands noisy labels.",
        epilog="example: accelerate launch launcher/run.py --config configs/qmix_demo.yaml "
        "optim.lr=5e-4 noise.mis_h=0.5",
        allow_abbrev=False,  # --set, as other programs have it, is no beginning of --settings
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file; see configs/")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that win over the file"
    )
    parser.add_argument(
        "--settings", nargs="?", const="", action=_ShowSettings, metavar="BEGINNING",
        help="print every setting with its default and meaning and stop; of one section (optim) "
        "or method (qmix) where named",
    )  # fmt: skip
    parser.add_argument(
        "--check", action="store_true",
        help="validate configuration, data and number of processes, print the plan, and stop",
    )  # fmt: skip
    parser.add_argument(
        "--resume", choices=["auto"],
        help="go on from the newest valid checkpoint in run.dir; start afresh where there is none",
    )  # fmt: skip
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    rank = read_environment().rank
    formatter, handler = PhaseFormatter(rank), logging.StreamHandler()
    handler.setFormatter(formatter)
    # Every process reads the same labels and would warn of the same.
    handler.addFilter(lambda record: rank == 0 or not record.name.startswith("data."))
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, handlers=[handler])
    interrupts = Interrupts()

    def work() -> int:
        try:
            with interrupts.listening():
                run(options, interrupts, formatter)
        except RunInterruptedError as request:
            if rank == 0:
                print(request, file=sys.stderr)
            return EXIT_INTERRUPTED
        return 0

    return carry_out(work, met_alone=(DataError, OSError))


@contextmanager
def _lost_processes_named(config: Config, formatter: PhaseFormatter) -> Iterator[None]:
    """Tell an exchange that another process did not come to from a defect of this one.

    Raises:
        LostProcessError: Another process has gone; the newest checkpoint is as it was.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise LostProcessError(
            f"another process has gone or did not answer within runtime.timeout_seconds "
            f"{config.runtime.timeout_seconds:g}, in {formatter.phase()}: {first_line(error)}; "
            "go on with --resume auto"
        ) from error


def run(options: argparse.Namespace, interrupts: Interrupts, formatter: PhaseFormatter) -> None:
    """Check everything, then train to the end and print the result."""
    config = load_config(Config, options.config, options.overrides)
    config = config.model_copy(update={"data": settle(config.data)})
    with _lost_processes_named(config, formatter):
        _run(config, options, interrupts, formatter)


def _run(
    config: Config, options: argparse.Namespace, interrupts: Interrupts, formatter: PhaseFormatter
) -> None:
    accelerator = start_processes(config.runtime)
    _look_at_folder(config.run.dir, options)
    per_rank_batch_size(config.optim.batch_size, accelerator.num_processes)
    data = load_noisy_data(config)
    num_steps(len(data.source.manifest.where(TRAIN)), config.optim.batch_size)
    if options.check:
        if not data.source.decoded:
            check_images(data.source, config.data.num_workers)
        method = build_method(config, data)
        if accelerator.is_main_process:
            tell(describe_plan(config, data, method, accelerator.num_processes))
        return
    history, findings = train(config, data, accelerator, interrupts, formatter)
    if accelerator.is_main_process:
        facts = run_facts(data)
        names, num_test = facts.class_names, facts.num_test_images
        labels = describe_audit(findings, names)
        tell(describe_result(history, config.run.dir, names, num_test, labels))


def _look_at_folder(folder: Path, options: argparse.Namespace) -> None:
    """Refuse to write over a file or an earlier run; of a run a check only says so."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run.dir: {folder} is a file, expected a folder or nothing")
    holds_run = (folder / "metrics.jsonl").exists() or (folder / "checkpoints").exists()
    if not holds_run or options.resume is not None:
        return
    message = (
        f"run.dir: {folder} holds a run already; go on with --resume auto, or choose another folder"
    )
    if not options.check:
        raise ConfigError(message)
    if collectives.rank() == 0:
        logger.warning("%s", message)


if __name__ == "__main__":
    end_process(main())
