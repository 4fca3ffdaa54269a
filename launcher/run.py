"""Train a method: ``accelerate launch launcher/run.py --config configs/qmix_deepdrid.yaml``."""

import argparse
import importlib.metadata
import logging
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from data.errors import DataError
from data.manifest import TRAIN
from data.sources import check_images
from engine import collectives
from engine.checkpoint import CheckpointError
from engine.collectives import MainProcessError
from engine.config import ConfigError, differences, dump_config, load_config
from engine.interrupts import EXIT_INTERRUPTED, Interrupts, RunInterruptedError
from engine.plan import num_steps, per_rank_batch_size
from engine.progress import PhaseFormatter
from engine.record import write_text
from engine.report import write_report
from engine.run_folder import RunFacts
from engine.runtime import (
    LostProcessError,
    is_lost_process,
    read_environment,
    start_processes,
)
from engine.saving import Saver
from engine.terms import NonFiniteLossError
from engine.tracking import Tracker
from engine.trainer import Trainer
from launcher.assemble import NoisyData, build_method, build_task, load_noisy_data, run_facts
from launcher.facts import gather_facts
from launcher.settings import MAY_CHANGE_ON_RESUME, Config
from launcher.show import describe_plan, describe_result
from methods.method import MethodError
from methods.separation import SeparationError
from methods.weights import ModelError

__all__ = ["main"]

logger = logging.getLogger("mednoise")

# What a user can mend is shown as its message alone; anything else keeps its traceback.
USER_ERRORS = (
    ConfigError, DataError, CheckpointError, NonFiniteLossError, ModelError, MethodError,
    SeparationError, OSError,
)  # fmt: skip
EXIT_USER_ERROR = 2
EXIT_LOST_PROCESS = 3


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Command line: configuration, overrides and what to do."""
    parser = argparse.ArgumentParser(
        description="Train a method that withstands noisy labels.",
        epilog="example: accelerate launch launcher/run.py --config configs/qmix_demo.yaml "
        "optim.lr=5e-4 noise.mis_h=0.5",
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file; see configs/")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that win over the file"
    )
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
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, handlers=[handler])
    interrupts, code = Interrupts(), 0
    try:
        with interrupts.listening():
            run(options, interrupts, formatter)
    except USER_ERRORS as error:
        # Every process meets the same error and one of them says it, unless a file may have failed
        # one of them alone.
        own = isinstance(error, DataError | OSError) and not isinstance(error, MainProcessError)
        if rank == 0 or own:
            print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except LostProcessError as error:
        # The one that has gone cannot say it.
        print(f"error: [rank {rank}] {error}", file=sys.stderr)
        return EXIT_LOST_PROCESS
    except RunInterruptedError as request:
        if rank == 0:
            print(request, file=sys.stderr)
        code = EXIT_INTERRUPTED
    # Here all ranks are still there; one that leaves the others without a word may make them abort.
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return code


def run(options: argparse.Namespace, interrupts: Interrupts, formatter: PhaseFormatter) -> None:
    """Check everything, then train to the end and print the result."""
    config = load_config(Config, options.config, options.overrides)
    accelerator = start_processes(config.runtime)
    if not options.check and options.resume is None:
        _require_no_run(config.run.dir)
    per_rank_batch_size(config.optim.batch_size, accelerator.num_processes)
    data = load_noisy_data(config)
    num_steps(len(data.source.manifest.where(TRAIN)), config.optim.batch_size)
    if options.check:
        check_images(data.source, config.data.num_workers)
        method = build_method(config, data)
        if accelerator.is_main_process:
            print(describe_plan(config, data, method, accelerator.num_processes))
        return
    history = train(config, data, accelerator, interrupts, formatter)
    if accelerator.is_main_process:
        facts = run_facts(data)
        names, num_test = facts.class_names, facts.num_test_images
        print(describe_result(history, config.run.dir, names, num_test))


def train(
    config: Config,
    data: NoisyData,
    accelerator: Accelerator,
    interrupts: Interrupts,
    formatter: PhaseFormatter,
) -> list[dict[str, Any]]:
    """Train, or go on training, in ``run.dir``; returns the record's lines on the main process."""
    if config.model.norm == "sync" and accelerator.device.type == "cpu":
        raise ModelError(
            "model.norm: sync needs a GPU and this run has none; group and frozen give equal "
            "results on any number of processes without one"
        )
    method = build_method(config, data)
    task = build_task(config, data, pin_memory=accelerator.device.type == "cuda")
    trainer = Trainer(
        accelerator, method, task, config.optim, config.evaluation, interrupts.raise_if_asked
    )
    formatter.phase = lambda: trainer.phase
    versions = {name: importlib.metadata.version(name) for name in ("torch", "accelerate", "numpy")}
    tree, names = config.model_dump(mode="json"), data.source.manifest.class_names
    tracker = Tracker(trainer, config.tracking, config.run.dir, names, tree)
    saver = Saver(trainer, config.run, tree, versions, tracker)
    snapshot = saver.checkpoints.latest()
    if snapshot is not None:
        changed = differences(snapshot.config, config, MAY_CHANGE_ON_RESUME)
        if changed:
            raise CheckpointError(
                f"{config.run.dir}: the checkpoint was made with other settings; "
                + "; ".join(changed)
            )
        logger.info(
            "going on from %s, %d steps into epoch %d of %d",
            snapshot.name, snapshot.steps_done, snapshot.epochs_done + 1, config.run.epochs,
        )  # fmt: skip
    try:
        # Nobody writes before everybody has looked at what is there.
        accelerator.wait_for_everyone()
        all_versions = versions | {"python": platform.python_version()}
        facts = run_facts(data, accelerator.num_processes, all_versions)
        collectives.on_main(lambda: _begin_folder(config, facts))
        known = None if snapshot is None else snapshot.facts
        saver.facts = known or gather_facts(data, task)
        saver.restore(snapshot)
        trainer.fit(saver.finish_epoch, saver.finish_step, tracker.note_step)
        tracker.close(0)
        collectives.on_main(lambda: logger.info("report: %s", write_report(config.run.dir)))
    except RunInterruptedError as request:
        saver.save()
        tracker.close(EXIT_INTERRUPTED)
        raise RunInterruptedError(
            f"stopped by {request} in {trainer.phase}, all is saved; go on with --resume auto"
        ) from request
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise LostProcessError(
            f"another process has gone or did not answer within runtime.timeout_seconds "
            f"{config.runtime.timeout_seconds:g}, in {trainer.phase}: {first_line(error)}; "
            "go on with --resume auto"
        ) from error
    finally:
        # With any other end; of no effect after one of those above.
        tracker.close(1)
    return saver.record.history


def first_line(error: Exception) -> str:
    """The message of an error without what follows its first line."""
    return str(error).partition("\n")[0]


def _begin_folder(config: Config, facts: RunFacts) -> None:
    config.run.dir.mkdir(parents=True, exist_ok=True)
    facts.write(config.run.dir)
    write_text(config.run.dir / "config.yaml", dump_config(config))


def _require_no_run(folder: Path) -> None:
    """Refuse to write over an earlier run."""
    if (folder / "metrics.jsonl").exists() or (folder / "checkpoints").exists():
        raise ConfigError(
            f"run.dir: {folder} holds a run already; go on with --resume auto, "
            "or choose another folder"
        )


if __name__ == "__main__":
    sys.exit(main())
