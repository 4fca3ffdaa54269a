"""How well wrong labels are found: the audit of a QMix run next to cleanlab.

``python benchmarks/audit.py --out runs/audit``. On each bed QMix is trained once on all training
samples with injected noise, and its label audit is compared with what cleanlab makes of
cross-entropy's out-of-sample probabilities: five networks, each trained on four fifths of the same
samples and labels, predict the fifth that they have not seen. Both have the bed's images, network,
optimiser and epochs. The true labels are those before the noise was injected; on real images they
hold mistakes of their own, which count against whoever finds them.

Needs the extra ``benchmark``. What has been predicted lies in ``--out``, with its settings, and is
not computed again; other settings need another ``--out``. The last line is JSON.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from robustness_grid import BEDS as GRID_BEDS
from robustness_grid import REAL_IMAGES, Cell
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from data.errors import DataError
from engine.audit.findings import Evidence, examine, gather_evidence
from engine.config import ConfigError, differences, dump_config
from engine.runtime import start_processes
from engine.strict_yaml import parse_yaml
from engine.trainer import Trainer
from launcher.assemble import build_method, build_task, load_noisy_data
from launcher.settings import MAY_CHANGE_ON_RESUME, Config

__all__ = ["main"]

NUM_FOLDS = 5
SEED = 0


class Bed(NamedTuple):
    """What is audited: the noise of the robustness benchmark's bed, and its changed settings."""

    noise: str
    settings: tuple[str, ...] = ()
    qmix: tuple[str, ...] = ()


# Every training sample is audited, so none is held out for validation.
ALL = "data.validation_fraction=0"
BEDS = {
    # Half of the bed's images and two thirds of its epochs: minutes on a CPU.
    "synthetic": Bed(
        "mixed",
        ("data.synthetic.num_train=1000", "data.synthetic.num_test=100", "run.epochs=36"),
        ("method.warmup_epochs=18", "method.ema_decay=0.97"),
    ),
    "ham10000": Bed("sym20"),
    "deepdrid": Bed("sym20"),
}


def configure(bed: str, method: str, extra: Sequence[str]) -> Config:
    """The configuration of a method on a bed."""
    settings = [ALL, *BEDS[bed].settings, *(BEDS[bed].qmix if method == "qmix" else ()), *extra]
    return Cell(bed, BEDS[bed].noise, method, SEED).compose(Path("runs"), settings)


def require_same_settings(path: Path, config: Config) -> None:
    """Refuse a file of results that were made with other settings.

    Raises:
        ConfigError: It was; or it holds no settings, being of an earlier version.
    """
    if not path.exists():
        return
    with np.load(path) as arrays:
        made_with = str(arrays["settings"]) if "settings" in arrays else None
    if made_with is None:
        raise ConfigError(f"{path}: holds no settings, being of an earlier version; remove it")
    # Results of another number of epochs are other results.
    may_change = [key for key in MAY_CHANGE_ON_RESUME if key != "run.epochs"]
    changed = differences(parse_yaml(made_with).tree, config, may_change)
    if changed:
        raise ConfigError(
            f"{path}: made with other settings: {'; '.join(changed)}; remove it, or give another "
            "--out"
        )


def remembered(
    path: Path, config: Config, compute: Callable[[Config], dict[str, Any]]
) -> dict[str, Any]:
    """Arrays of a file, computed and written where there is none; with the seconds it took.

    Raises:
        ConfigError: The file was made with other settings.
    """
    require_same_settings(path, config)
    if not path.exists():
        began = time.perf_counter()
        arrays = compute(config)
        arrays |= {"seconds": time.perf_counter() - began, "settings": dump_config(config)}
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.npz")
        np.savez(temporary, **arrays)
        temporary.replace(path)
    with np.load(path) as arrays:
        return dict(arrays)


def train_qmix(config: Config) -> dict[str, Any]:
    """What a run of QMix knows about its samples, and whose labels are really wrong."""
    data = load_noisy_data(config)
    accelerator = start_processes(config.runtime)
    method, task = build_method(config, data), build_task(config, data, pin_memory=False)
    task = dataclasses.replace(task, evaluation_ids={})
    trainer = Trainer(accelerator, method, task, config.optim, config.evaluation)
    trainer.fit(lambda epoch, metrics: None)
    evidence = gather_evidence(trainer)
    return vars(evidence) | {
        "is_wrong": is_wrong(data.source.manifest, data.labels, task.train_ids)
    }


def is_wrong(manifest: Any, labels: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which given labels differ from those before the noise."""
    return labels[ids] != manifest.labels[ids]


def cross_validate(config: Config) -> dict[str, Any]:
    """Cross-entropy's out-of-sample probabilities of all training samples, and their labels."""
    data = load_noisy_data(config)
    accelerator = start_processes(config.runtime)
    task = build_task(config, data, pin_memory=False)
    ids, labels = task.train_ids, data.labels[task.train_ids]
    probabilities = np.full((len(ids), task.num_classes), np.nan, np.float32)
    folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=SEED)
    for seen, unseen in folds.split(ids, labels):
        of_fold = dataclasses.replace(task, train_ids=ids[seen], evaluation_ids={})
        trainer = Trainer(
            accelerator, build_method(config, data), of_fold, config.optim, config.evaluation
        )
        trainer.fit(lambda epoch, metrics: None)
        probabilities[unseen] = trainer.predict(ids[unseen])
        accelerator.free_memory()
    wrong = is_wrong(data.source.manifest, data.labels, ids)
    return {"probabilities": probabilities, "sample_ids": ids, "given": labels, "is_wrong": wrong}


# Method -> what is made with it, in a file of its own.
WAYS = {"qmix": train_qmix, "cross_entropy": cross_validate}


def file_of(bed: str, method: str, out: Path) -> Path:
    """Where the results of a method on a bed lie."""
    return out / f"{bed}-{method}.npz"


def results_of(bed: str, out: Path, extra: Sequence[str]) -> list[dict[str, Any]]:
    """Arrays of both ways on a bed.

    Raises:
        ConfigError: A file was made with other settings.
        DataError: The files are not of the same samples and labels.
    """
    ours, theirs = (
        remembered(file_of(bed, method, out), configure(bed, method, extra), compute)
        for method, compute in WAYS.items()
    )
    other = [
        key
        for key in ("sample_ids", "given", "is_wrong")
        if not np.array_equal(ours[key], theirs[key])
    ]
    if other:
        paths = " and ".join(str(file_of(bed, method, out)) for method in WAYS)
        raise DataError(f"{paths}: differ in {', '.join(other)}; remove them")
    return [ours, theirs]


def compare(bed: str, out: Path, extra: Sequence[str]) -> dict[str, dict[str, float]]:
    """Figures of both ways on a bed; raises what ``results_of`` does."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    ours, theirs = results_of(bed, out, extra)
    names = [field.name for field in dataclasses.fields(Evidence)]
    findings = examine(Evidence(**{name: ours[name] for name in names}))
    wrong, given, probabilities = ours["is_wrong"], ours["given"], theirs["probabilities"]
    return {
        "audit": figures(wrong, findings.is_issue, findings.score, ours["seconds"]),
        "cleanlab": figures(
            wrong,
            find_label_issues(given, probabilities),
            get_label_quality_scores(given, probabilities),
            theirs["seconds"],
        ),
    }


def figures(
    wrong: NDArray[np.bool_],
    is_issue: NDArray[np.bool_],
    score: NDArray[np.floating],
    seconds: float,
) -> dict[str, float]:
    """Precision, recall and F1 of the labels found; AUROC of the score; seconds of training."""
    hits = float((wrong & is_issue).sum())
    return {
        "auroc": float(roc_auc_score(wrong, -score)),
        "precision": hits / max(float(is_issue.sum()), 1.0),
        "recall": hits / float(wrong.sum()),
        "f1": 2 * hits / float(is_issue.sum() + wrong.sum()),
        "seconds": float(seconds),
    }


def beds_with_files(asked: Sequence[str]) -> list[str]:
    """The beds whose images can be found; each of the others is named in a line."""
    beds = []
    for bed in asked:
        if GRID_BEDS[bed].has_files and not os.environ.get(REAL_IMAGES):
            print(f"left out: {bed}; {REAL_IMAGES} names no folder", file=sys.stderr)
        else:
            beds.append(bed)
    return beds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/audit"), help="folder of predictions"
    )
    parser.add_argument("--only", nargs="+", choices=list(BEDS), default=list(BEDS))
    parser.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="SECTION.KEY=VALUE",
        help="a setting of every run, such as runtime.device=cpu; repeatable",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results, beds = {}, beds_with_files(options.only)
    try:
        for bed in beds:
            # Before hours of training on another bed.
            for method in WAYS:
                config = configure(bed, method, options.settings)
                require_same_settings(file_of(bed, method, options.out), config)
        for bed in beds:
            results[bed] = compare(bed, options.out, options.settings)
            for way, found in results[bed].items():
                shown = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
                print(f"{bed}, {BEDS[bed].noise}, {way}: {shown}", flush=True)
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # The aim on each bed: above cleanlab.
    goals = {
        f"{bed}/{name}": {"found": ways["audit"][name], "above": ways["cleanlab"][name],
                          "met": ways["audit"][name] > ways["cleanlab"][name]}
        for bed, ways in results.items() for name in ("auroc", "f1", "precision", "recall")
    }  # fmt: skip
    print(json.dumps({"benchmark": "audit", "results": results, "goals": goals}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
