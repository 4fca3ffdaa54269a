"""Predict images: ``python launcher/predict.py --checkpoint RUN --images FOLDER --out out.csv``."""

import argparse
import csv
import hashlib
import io
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from data.errors import DataError
from data.manifest import PackedStrings
from data.quality import ImageQuality, image_statistics
from data.turns import Turn, known_turns
from data.unlabelled import UnlabelledImages, list_images, load_batches
from data.views import Views
from engine import collectives
from engine.checkpoint import CheckpointError, state_digest
from engine.config import ConfigError
from engine.inference import Predictions, predict
from engine.plan import whole_batches
from engine.record import write_text
from engine.runtime import (
    LostProcessError,
    RuntimeConfig,
    end_process,
    first_line,
    is_lost_process,
    read_environment,
    start_processes,
)
from launcher.ends import carry_out
from launcher.trained import TrainedModel, load_trained

__all__ = ["main"]


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Predict images with a trained method.",
        epilog="Columns of the result, a row for each image in the order of the request: image; "
        "predicted, the likeliest class; probability_CLASS of every class, the mean over the "
        "method's networks and the views; entropy of that mean, and disagreement, the part of it "
        "that comes from networks and views contradicting each other (mutual information), both as "
        "shares of the largest entropy, 0 to 1, the second empty where there is one network and "
        "one view; quality_warning, any of blurred, dark and bright, by comparison with the "
        "training images; sharpness_rank and brightness_rank among those, 0 to 1; error, why an "
        "image could not be read, the others then being empty.",
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a run's folder, or one of its checkpoints"
    )
    parser.add_argument(
        "--images", type=Path, nargs="+", required=True,
        help="folders, CSV files with a column of paths relative to the CSV, or image files",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="CSV file to write")
    parser.add_argument(
        "--which", choices=["last", "best"],
        help="of a run: its newest checkpoint (the default), or the best by validation",
    )  # fmt: skip
    parser.add_argument(
        "--views", type=_positive, default=1,
        help="flipped and turned variants of each image to average over, 1 = the image as it is; "
        "only those that the run has trained on",
    )  # fmt: skip
    parser.add_argument("--column", default="image", help="column of a CSV that holds the paths")
    parser.add_argument("--batch-size", type=_positive, help="images a process predicts at a time")
    parser.add_argument("--num-workers", type=_natural, help="processes that decode; 0 = none")
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto", help="auto takes GPUs")
    return parser.parse_args(arguments)


def _natural(text: str, smallest: int = 0) -> int:
    if not text.isdecimal() or int(text) < smallest:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {smallest}")
    return int(text)


def _positive(text: str) -> int:
    return _natural(text, smallest=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    rank = read_environment().rank
    logging.basicConfig(
        level=logging.WARNING if rank == 0 else logging.ERROR, format="warning: %(message)s"
    )
    return carry_out(lambda: run(options))


def run(options: argparse.Namespace) -> int:
    """Check everything, predict, write the result and say what was found; returns the exit code."""
    model = load_trained(options.checkpoint, options.which)
    turns = _choose_turns(model, options.views)
    images = list_images(options.images, options.column)
    try:
        accelerator = start_processes(_runtime(model, options.device))
        _require_equal_weights(model)
        _require_equal_lists(images)
        collectives.on_main(lambda: _require_free(options.out, options.images, images.paths))
        found = _predict(model, images, turns, accelerator, options)
        collectives.on_main(lambda: _write(options.out, _table(model, images, found, turns)))
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise LostProcessError(
            f"another process has gone or did not answer: {first_line(error)}"
        ) from error
    if accelerator.is_main_process:
        print(_summary(options.out, model, images, found))
    if len(found.errors) == len(images.names):
        raise DataError(
            f"none of the {len(images.names)} images could be read, the first because of: "
            f"{found.errors[0]}"
        )
    return 0


def _choose_turns(model: TrainedModel, num_views: int) -> list[Turn]:
    """The first views of those that the run has trained on."""
    views = model.config.views
    kinds = {view.kind for view in model.method.views(model.config.run.epochs - 1).values()}
    known = known_turns([getattr(views, kind) for kind in sorted(kinds - {"plain"})])
    if num_views > len(known):
        raise ConfigError(
            f"--views: found {num_views}, expected at most {len(known)}, the exact flips and turns "
            "among the views that the run has trained on (sections views.weak, views.strong)"
        )
    return known[:num_views]


def _runtime(model: TrainedModel, device: str) -> RuntimeConfig:
    """Devices and precision, as in training as far as this machine can."""
    trained = model.config.runtime
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    precision = "fp32" if on_cpu and trained.precision == "fp16" else trained.precision
    changed = {"device": device, "precision": precision, "zero_stage": 0}
    return trained.model_copy(update=changed)


def _require_equal_weights(model: TrainedModel) -> None:
    """Refuse a run that saves while the processes look at it: rows would be of several models."""
    folder = model.weights.folder
    if not collectives.all_equal(f"{folder.name} {state_digest(folder)}"):
        raise CheckpointError(
            "--checkpoint: the processes found different ones, since the run saves; again, or name "
            "one of its checkpoints"
        )


def _require_equal_lists(images: UnlabelledImages) -> None:
    """Refuse a folder that changes under the processes' hands: rows would be mixed up."""
    digest = hashlib.sha256("\0".join(images.paths).encode()).hexdigest()
    if not collectives.all_equal(digest):
        raise DataError("--images: the processes found different files; wait until all are there")


def _require_free(out: Path, sources: Sequence[Path], images: PackedStrings) -> None:
    """Refuse, before hours of predicting, a result that overwrites other things or cannot be."""
    if out.is_dir():
        raise ConfigError(f"--out: {out} is a folder; expected a CSV file to write")
    if out.exists():
        # To look at each image's file would take long; what is lost has the result's name.
        namesakes = [Path(path) for path in images if os.path.basename(path) == out.name]
        if any(path.exists() and out.samefile(path) for path in [*sources, *namesakes]):
            raise ConfigError(f"--out: {out} is one of --images; expected another file to write")
        if out.suffix.lower() != ".csv":
            raise ConfigError(
                f"--out: {out} is there and not a .csv; expected a new file, or a .csv to replace"
            )
        if not os.access(out, os.W_OK):
            raise ConfigError(f"--out: {out} is read-only; expected a file that may be replaced")
    folder = next(path for path in out.absolute().parents if os.path.lexists(path))
    try:
        # It has no name: whatever ends the command leaves nothing behind.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"--out: {out} cannot be written: {folder}: {error.strerror}") from error


def _predict(
    model: TrainedModel,
    images: UnlabelledImages,
    turns: Sequence[Turn],
    accelerator: Accelerator,
    options: argparse.Namespace,
) -> Predictions:
    """Predict this process's share of the images and exchange the results."""
    config, num_images = model.config, len(images.names)
    batch_size = options.batch_size or config.evaluation.batch_size
    workers = config.data.num_workers if options.num_workers is None else options.num_workers
    mine = whole_batches(
        np.arange(num_images), batch_size, collectives.rank(), collectives.num_ranks()
    )
    batches = load_batches(
        images.paths, mine, config.data.image_size, config.data.resize, workers,
        crop=config.data.crop, pin_memory=accelerator.device.type == "cuda",
    )  # fmt: skip
    views = Views(config.views, config.run.seed)

    def seen(batch: Tensor) -> list[Tensor]:
        plain = views(batch, torch.empty(0), 0, 0, "plain")
        return [turn(plain) for turn in turns]

    num_mine = sum(map(len, mine))
    return predict(
        accelerator, model.method, batches, seen, image_statistics, (num_images, num_mine)
    )


def _table(
    model: TrainedModel, images: UnlabelledImages, found: Predictions, turns: Sequence[Turn]
) -> str:
    """The result as CSV."""
    has_company = len(model.method.predictors()) * len(turns) > 1
    probabilities = [f"probability_{name}" for name in model.class_names]
    header = [
        "image", "predicted", *probabilities, "entropy", "disagreement",
        "quality_warning", "sharpness_rank", "brightness_rank", "error",
    ]  # fmt: skip
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    qualities = _qualities(model, found)
    for index, name in enumerate(images.names):
        if index in found.errors:
            message = " ".join(found.errors[index].split())
            writer.writerow([name, *[""] * (len(header) - 2), message])
            continue
        row, quality = found.probabilities[index], qualities[index]
        shown = ["", "", ""]
        if quality is not None:
            ranks = f"{quality.sharpness_rank:.4f}", f"{quality.brightness_rank:.4f}"
            shown = [" ".join(quality.warnings), *ranks]
        disagreement = f"{found.disagreement[index]:.6f}" if has_company else ""
        # The shortest text that reads back as the same float32.
        values = [*map(str, row), f"{found.entropy[index]:.6f}", disagreement]
        writer.writerow([name, model.class_names[int(row.argmax())], *values, *shown, ""])
    return text.getvalue()


def _qualities(model: TrainedModel, found: Predictions) -> list[ImageQuality | None]:
    """Of each image; None where there is nothing to compare it with."""
    if model.facts is None:
        return [None] * len(found.statistics)
    return list(model.facts.quality.judge(found.statistics))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def _summary(path: Path, model: TrainedModel, images: UnlabelledImages, found: Predictions) -> str:
    """One line on what was done."""
    num_images, weights = len(images.names), model.weights
    parts = [f"{num_images - len(found.errors)} of {num_images} images predicted"]
    if found.errors:
        parts.append(f"{len(found.errors)} unreadable (column error)")
    if images.num_passed_over:
        parts.append(f"{images.num_passed_over} files without an image's suffix passed over")
    warned = [
        quality
        for index, quality in enumerate(_qualities(model, found))
        if quality is not None and quality.warnings and index not in found.errors
    ]
    parts.append(f"{len(warned)} with a quality warning")
    return f"{', '.join(parts)}; {model.config.method.name}, {weights.folder}: {path}"


if __name__ == "__main__":
    end_process(main())
