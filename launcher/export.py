"""Export a trained method: ``python launcher/export.py --checkpoint RUN --out FOLDER``.

Writes ``model.onnx`` (checked against PyTorch), ``model.safetensors`` (the weights of the networks
that predict) and ``MODEL_CARD.md``.
"""

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.checkpoint import save_tensors
from engine.config import ConfigError, fingerprint
from engine.record import write_text
from launcher import EXIT_USER_ERROR
from launcher.ends import USER_ERRORS
from launcher.model_card import write_card
from launcher.onnx_file import ExportError, require_onnx, write_onnx
from launcher.trained import TrainedModel, load_trained
from methods.deployed import Deployed

__all__ = ["main"]


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Write a trained method as model.onnx and model.safetensors with a model card.",
    )
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a run's folder, or one of its checkpoints"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must be new")
    parser.add_argument(
        "--which", choices=["last", "best"],
        help="of a run: its newest checkpoint (the default), or the best by validation",
    )  # fmt: skip
    parser.add_argument("--intended-use", help="what the model card is to say the model is for")
    parser.add_argument("--no-onnx", action="store_true", help="leave model.onnx out")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="warning: %(message)s")
    try:
        print(run(options))
    except (*USER_ERRORS, ExportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def run(options: argparse.Namespace) -> str:
    """Export into a folder that appears when all of it is there; returns what to tell the user."""
    out: Path = options.out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out: {out} is there already; choose another folder")
    if not options.no_onnx:
        require_onnx()
    trained = load_trained(options.checkpoint, options.which)
    unfinished = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        difference = _write(trained, unfinished, options)
        if out.exists():
            out.rmdir()
        unfinished.rename(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    checked = "" if difference is None else f"; model.onnx agrees with PyTorch to {difference:.1g}"
    files = ", ".join(sorted(path.name for path in out.iterdir()))
    return f"{trained.config.method.name}, {trained.weights.folder} -> {out}: {files}{checked}"


def _write(trained: TrainedModel, folder: Path, options: argparse.Namespace) -> float | None:
    """All files; the largest difference of ONNX from PyTorch, None without ONNX."""
    config = trained.config
    model = Deployed(trained.method.predictors(), config.views.mean, config.views.std)
    metadata = _metadata(trained)
    difference = None
    if not options.no_onnx:
        difference = write_onnx(model, config.data.image_size, metadata, folder / "model.onnx")
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    save_tensors(tensors, folder / "model.safetensors", texts)
    write_text(folder / "MODEL_CARD.md", write_card(trained, options.intended_use, difference))
    return difference


def _metadata(trained: TrainedModel) -> dict[str, Any]:
    """What a program that loads the files must know."""
    data = trained.config.data
    return {
        "class_names": trained.class_names,
        "image_size": data.image_size,
        "resize": data.resize,
        "crop": data.crop,
        "input": "(N, 3, S, S) uint8, red, green, blue; normalised inside",
        "output": "(N, C) float32 class probabilities, mean of the networks",
        "method": trained.config.method.name,
        "epochs": trained.weights.epochs_done,
        "config_sha256": fingerprint(trained.config),
    }


if __name__ == "__main__":
    sys.exit(main())
