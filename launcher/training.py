"""Train in a folder: from where the newest checkpoint stands to the reports of the finished run."""

import importlib.metadata
import logging
import platform
from typing import Any

from accelerate import Accelerator

from engine import collectives
from engine.audit.files import audit_run
from engine.audit.findings import Findings
from engine.checkpoint import CheckpointError, Snapshot
from engine.config import differences, dump_config
from engine.interrupts import EXIT_INTERRUPTED, Interrupts, RunInterruptedError
from engine.progress import PhaseFormatter
from engine.record import write_text
from engine.reports.run_folder import RunFacts, read_run
from engine.reports.run_page import write_report
from engine.run_lock import RunLock
from engine.saving import Saver, agreed_checkpoint
from engine.tracking.tracker import Tracker
from engine.trainer import Trainer
from launcher.assemble import NoisyData, build_method, build_task, describe_samples, run_facts
from launcher.facts import gather_facts, sample_digests
from launcher.settings import MAY_CHANGE_ON_RESUME, Config
from methods.weights import ModelError

__all__ = ["train"]

logger = logging.getLogger("mednoise")


def train(
    config: Config,
    data: NoisyData,
    accelerator: Accelerator,
    interrupts: Interrupts,
    formatter: PhaseFormatter,
) -> tuple[list[dict[str, Any]], Findings]:
    """Train, or go on training, in ``run.dir``, audit the labels and write the report.

    Args:
        config: The whole configuration.
        data: Samples with their noise.
        accelerator: Processes and device.
        interrupts: Signals that this process was sent.
        formatter: Of the log; is told the phase.

    Returns:
        The record's lines, on the main process, and what the audit found.

    Raises:
        RunInterruptedError: A signal came, on some rank; all is saved.
        CheckpointError: ``run.dir`` holds a run of other settings, or not the same on all
            processes.
        OSError: Another run is going on in ``run.dir``, or it cannot be written.
    """
    _require_gpu_for_sync(config, accelerator)
    method = build_method(config, data)
    task = build_task(config, data, pin_memory=accelerator.device.type == "cuda")
    trainer = Trainer(
        accelerator, method, task, config.optim, config.evaluation, interrupts.raise_if_asked
    )
    formatter.phase = lambda: trainer.phase
    tree, names = config.model_dump(mode="json"), data.source.manifest.class_names
    tracker = Tracker(trainer, config.tracking, config.run.dir, names, tree)
    saver = Saver(trainer, config.run, tree, _versions(), tracker)
    lock = RunLock(config.run.dir)
    try:
        collectives.on_main(lock.take)
        _begin(saver, config, data)
        trainer.fit(saver.finish_epoch, saver.finish_step, tracker.note_step)
        findings = audit_run(trainer, describe_samples(data), config.audit, config.run.dir)
        tracker.close(0)
        collectives.on_main(lambda: logger.info("report: %s", write_report(config.run.dir)))
    except RunInterruptedError as request:
        saver.save()
        tracker.close(EXIT_INTERRUPTED)
        raise RunInterruptedError(
            f"stopped by {request} in {trainer.phase}, all is saved; go on with --resume auto"
        ) from request
    finally:
        # With any other end; of no effect after one of those above.
        tracker.close(1)
        lock.release()
    return saver.record.history, findings


def _require_gpu_for_sync(config: Config, accelerator: Accelerator) -> None:
    if config.model.norm == "sync" and accelerator.device.type == "cpu":
        raise ModelError(
            "model.norm: sync needs a GPU and this run has none; group and, with model.weights, "
            "frozen give equal results on any number of processes without one"
        )


def _begin(saver: Saver, config: Config, data: NoisyData) -> None:
    """Write the settings and begin, or go on from the newest checkpoint; a collective call."""
    snapshot = agreed_checkpoint(saver.checkpoints)
    if snapshot is None and collectives.rank() == 0:
        if _saved_before(config):
            logger.warning(
                "%s: no checkpoint that can be used, so from the beginning", config.run.dir
            )
        saver.tracker.goes_on = not _begun_otherwise(config)
    if snapshot is not None:
        _require_same_settings(snapshot, config)
        saver.trainer.require_same_labels(snapshot)
        _require_same_samples(snapshot, data)
        _require_epochs_ahead(snapshot, config.run.epochs)
        if snapshot.epochs_done == config.run.epochs:
            logger.info("%s: run.epochs %d are done already", snapshot.name, config.run.epochs)
        else:
            logger.info(
                "going on from %s, %d steps into epoch %d of %d",
                snapshot.name, snapshot.steps_done, snapshot.epochs_done + 1, config.run.epochs,
            )  # fmt: skip
    planned = _planned_epochs(snapshot, config.run.epochs)
    if len(planned) > 1 and collectives.rank() == 0:
        logger.warning(
            "run.epochs: %d, after steps that were planned for %s: learning rate and schedules are "
            "not those of a run that was so long from the start, so reports show it as another row",
            planned[-1], ", then ".join(map(str, planned[:-1])),
        )  # fmt: skip
    versions = _versions() | {"python": platform.python_version()}
    facts = run_facts(data, collectives.num_ranks(), versions)
    facts = facts.model_copy(update={"planned_epochs": planned})
    # Nobody writes before everybody has looked at what is there.
    collectives.gather_objects(None)
    collectives.on_main(lambda: _write_settings(config, facts))
    of_model = (snapshot and snapshot.facts) or gather_facts(data, saver.trainer.task)
    saver.facts = {**of_model, "planned_epochs": list(planned)}
    saver.restore(snapshot)


def _saved_before(config: Config) -> bool:
    """Whether the run's folder holds anything of a checkpoint, whole or not."""
    folder = config.run.dir / "checkpoints"
    return folder.is_dir() and any(folder.iterdir())


def _begun_otherwise(config: Config) -> bool:
    """Whether the folder's last attempt, which left no checkpoint, had other settings."""
    before = read_run(config.run.dir).config
    return bool(before) and bool(differences(before, config, MAY_CHANGE_ON_RESUME))


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torch", "accelerate", "numpy")}


def _require_same_settings(snapshot: Snapshot, config: Config) -> None:
    changed = differences(snapshot.config, config, MAY_CHANGE_ON_RESUME)
    if changed:
        raise CheckpointError(
            f"{config.run.dir}: the checkpoint was made with other settings; " + "; ".join(changed)
        )


def _require_epochs_ahead(snapshot: Snapshot, epochs: int) -> None:
    """A run has no fewer epochs than it was trained for; its record and weights would differ."""
    begun = snapshot.epochs_done + (snapshot.steps_done > 0)
    if begun > epochs:
        raise CheckpointError(
            f"run.epochs: {epochs}, but the run is {snapshot.epochs_done} epochs and "
            f"{snapshot.steps_done} steps old; at least {begun}, or begin another run in another "
            "folder"
        )


def _planned_epochs(snapshot: Snapshot | None, epochs: int) -> tuple[int, ...]:
    """What ``run.epochs`` was while the run took its steps, in order, and is from now on."""
    if snapshot is None:
        return (epochs,)
    before = snapshot.facts.get("planned_epochs") or [snapshot.config["run"]["epochs"]]
    return (*before, epochs) if before[-1] != epochs else tuple(before)


def _require_same_samples(snapshot: Snapshot, data: NoisyData) -> None:
    before = snapshot.facts.get("samples_sha256") or {}
    for what, now in sample_digests(data.source.manifest).items():
        if before.get(what, now) != now:
            raise CheckpointError(
                f"the checkpoint was made with other {what}, or with the same in another order; "
                "put back the files of images and labels, or begin another run in another folder"
            )


def _write_settings(config: Config, facts: RunFacts) -> None:
    config.run.dir.mkdir(parents=True, exist_ok=True)
    facts.write(config.run.dir)
    write_text(config.run.dir / "config.yaml", dump_config(config))
