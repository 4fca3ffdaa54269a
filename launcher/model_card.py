"""The model card: what was trained on what, how well it does and where its limits are.

Every statement is taken from the run; what the run does not know is said to be unknown.
"""

import importlib.metadata
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.config import fingerprint
from engine.metrics import CLASS_METRIC_TITLES
from engine.reports.run_folder import changed_share
from engine.reports.tables import Table
from engine.strict_yaml import dump_yaml
from launcher.onnx_file import INPUT, OUTPUT
from launcher.show import RESULT_NAMES
from launcher.trained import TrainedModel

__all__ = ["write_card"]

# Below so many images of a class its metrics are called uncertain.
FEW_IMAGES = 30
# Sections of the configuration that the card shows: no folders of the machine it was trained on.
SHOWN_SECTIONS = ("method", "noise", "views", "optim")


def write_card(
    trained: TrainedModel, intended_use: str | None, onnx_difference: float | None
) -> str:
    """The card as Markdown.

    Args:
        trained: The model.
        intended_use: The user's words; None = none were given.
        onnx_difference: Largest difference of the ONNX file from PyTorch; None = there is none.
    """
    parts = [
        f"# {trained.config.method.name} on {trained.config.data.source}",
        _introduction(trained),
        "## Intended use",
        intended_use or "Not stated by whoever exported the model.",
        "## Limits",
        _bullets(_limits(trained)),
        "## Data and noise",
        _bullets(_data(trained)),
        _image_table(trained),
        "## Metrics",
        _metrics(trained),
        "## Input and output",
        _bullets(_interface(trained, onnx_difference)),
        "## Loading the weights",
        _loading(trained),
        "## Training",
        _bullets(_training(trained)),
        _settings(trained),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return "\n".join(Table(header, rows).markdown()).rstrip()


def _introduction(trained: TrainedModel) -> str:
    num_networks = len(trained.method.predictors())
    networks = f"the mean of {num_networks} networks" if num_networks > 1 else "one network"
    doc = inspect.cleandoc(sys.modules[type(trained.method).__module__].__doc__ or "")
    about = " ".join(" ".join(doc.split("\n\n")[:2]).split())
    return (
        f"An image classifier, {networks} ({trained.config.model.backbone}), into "
        f"{len(trained.class_names)} classes: {', '.join(trained.class_names)}.\n\n> {about}"
    )


def _limits(trained: TrainedModel) -> list[str]:
    data, facts, last = trained.config.data, trained.facts, _last_line(trained)
    lines = [
        f"Trained on images of one source ({data.source}); the run says nothing about images of "
        "other cameras, clinics or patients.",
        "The run holds no clinical validation; the metrics below are all that is known.",
    ]
    tested = () if facts is None else facts.num_images.get("test", ())
    few = [
        f"{name} ({num})"
        for name, num in zip(trained.class_names, tested, strict=False)
        if num < FEW_IMAGES
    ]
    if few:
        lines.append(f"Metrics of classes with few test images are uncertain: {', '.join(few)}.")
    never = [
        name for c, name in enumerate(trained.class_names) if last.get(f"eval/recall/{c}") == 0
    ]
    if never:
        lines.append(f"Recall on the test set is 0 for: {', '.join(never)}.")
    disc = ", the disc of the fundus alone" if data.crop == "disc" else ""
    lines.append(
        "Files are read as stored, without the rotation an EXIF tag asks for, and brought to "
        f"{data.image_size} x {data.image_size} pixels ({data.resize}{disc}); other ways of "
        "reading or resizing give other predictions."
    )
    lines.append("Probabilities are not calibrated.")
    return lines


def _data(trained: TrainedModel) -> list[str]:
    facts = trained.facts
    corrections = [path.name for path in trained.config.data.correction_files]
    lines = [f"Source: {trained.config.data.source}."]
    if _injects_noise(trained):
        lines.append(_noise(trained))
    elif corrections:
        lines.append("No noise was injected.")
    else:
        lines.append("No noise was injected; labels were taken as given.")
    if corrections:
        noisy = ", noise included," if _injects_noise(trained) else ""
        lines.append(
            f"Labels{noisy} were corrected and unusable images left out as reviewers decided "
            f"({', '.join(corrections)}); the test set was not reviewed."
        )
    if facts is not None and facts.corrected:
        lines.append(f"Labels corrected: {facts.corrected}.")
    if facts is not None and facts.left_out:
        lines.append(f"Images left out as unusable: {facts.left_out}.")
    if facts is None:
        lines.append("The checkpoint is of an earlier version and holds no numbers of images.")
    elif facts.wrong_labels is None:
        lines.append("How many of the labels are wrong is unknown.")
    else:
        num = sum(facts.num_images["train"])
        stands = "; where the source names no true label, the one before the noise stands for it"
        lines.append(
            f"Known of the {num} training images: {facts.wrong_labels} have a wrong label, "
            f"{facts.spoiled_images} were degraded{stands if _injects_noise(trained) else ''}."
        )
    return lines


def _noise(trained: TrainedModel) -> str:
    noise = trained.config.noise
    share = f"share of changed labels {noise.mis_h:g}"
    if isinstance(noise.matrix, Path):
        share = f"labels drawn from the rows of {noise.matrix.name}"
    elif noise.matrix is not None:
        mean = f"{changed_share(noise.matrix):.3g} averaged over the classes"
        share = f"share of changed labels {mean}"
    return (
        f"Noise injected into training and validation labels: kind {noise.kind}, {share}, share of "
        f"degraded images {noise.mis_l:g}. The test set is untouched."
    )


def _injects_noise(trained: TrainedModel) -> bool:
    noise = trained.config.noise
    return noise.mis_h > 0 or noise.mis_l > 0 or noise.kind == "matrix"


def _image_table(trained: TrainedModel) -> str:
    if trained.facts is None:
        return ""
    counts = trained.facts.num_images
    rows = [
        [name, *(counts[split][c] for split in counts)]
        for c, name in enumerate(trained.class_names)
    ]
    total = ["all", *(sum(counts[split]) for split in counts)]
    return _table(["given class", *counts], [*rows, total])


def _last_line(trained: TrainedModel) -> Mapping[str, Any]:
    return trained.history[-1] if trained.history else {}


def _metrics(trained: TrainedModel) -> str:
    last = _last_line(trained)
    sets = {
        title: prefix
        for prefix, title in (("eval", "test"), ("validation", "validation"))
        if f"{prefix}/accuracy" in last
    }
    if not sets:
        return "Unknown: the run's record was not beside the checkpoint, or has no metrics."
    rows = [
        [title, *(_number(last.get(f"{prefix}/{name}")) for prefix in sets.values())]
        for name, title in RESULT_NAMES.items()
    ]
    changes = {
        "the injected noise": _injects_noise(trained),
        "the corrections": bool(trained.config.data.correction_files),
    }
    changed = " and ".join(name for name, is_made in changes.items() if is_made)
    if changed and "validation" in sets:
        changed = f" (those of the validation set with {changed})"
    else:
        changed = ""
    parts = [
        f"At the end of epoch {last['epoch'] + 1}, on the labels as given{changed}.",
        _table(["metric", *sets], rows),
    ]
    for title, prefix in sets.items():
        parts += [f"By class, {title} set:", _class_table(trained, title, prefix)]
    if trained.weights.steps_done:
        parts.append(
            f"The weights are {trained.weights.steps_done} steps further on than these metrics."
        )
    return "\n\n".join(parts)


def _class_table(trained: TrainedModel, title: str, prefix: str) -> str:
    last, facts = _last_line(trained), trained.facts
    counts = None if facts is None else facts.num_images.get(title)
    rows = [
        [
            name,
            "unknown" if counts is None else counts[c],
            *(_number(last.get(f"{prefix}/{key}/{c}")) for key in CLASS_METRIC_TITLES),
        ]
        for c, name in enumerate(trained.class_names)
    ]
    return _table(["class", "images", *CLASS_METRIC_TITLES.values()], rows)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _interface(trained: TrainedModel, onnx_difference: float | None) -> list[str]:
    data, views = trained.config.data, trained.config.views
    size = data.image_size
    lines = [
        f"Input: (N, 3, {size}, {size}) uint8, red, green, blue, N images at a time. Division by "
        f"255, mean {list(views.mean)} and standard deviation {list(views.std)} are inside.",
        f"Output: (N, {len(trained.class_names)}) float32 class probabilities in the order "
        f"{', '.join(trained.class_names)}.",
    ]
    if onnx_difference is not None:
        lines.append(
            f"`model.onnx`: input `{INPUT}`, output `{OUTPUT}`, N dynamic. On random images its "
            f"probabilities differ from PyTorch's by at most {onnx_difference:.1e}."
        )
    lines.append("`model.safetensors`: the weights of the networks that predict, nothing else.")
    return lines


def _loading(trained: TrainedModel) -> str:
    model = trained.config.model.for_prediction()
    settings = ", ".join(f"{name}={value!r}" for name, value in model if value is not None)
    count, classes = len(trained.method.predictors()), len(trained.class_names)
    return f"""```python
from safetensors.torch import load_file

from methods.deployed import Deployed
from methods.networks import ModelConfig, build_network

config = ModelConfig({settings})
networks = [build_network(config, {classes}, seed=0, index=k) for k in range({count})]
model = Deployed(networks)
model.load_state_dict(load_file("model.safetensors"))
```"""


def _training(trained: TrainedModel) -> list[str]:
    config, weights = trained.config, trained.weights
    started = "random weights"
    if config.model.weights is not None:
        started = f"weights of the file {config.model.weights.name}"
    further = f" and {weights.steps_done} steps" if weights.steps_done else ""
    now = {name: importlib.metadata.version(name) for name in ("torch", "safetensors")}
    return [
        f"{weights.epochs_done} epochs{further} of {config.run.epochs}, seed {config.run.seed}, "
        f"from {started}.",
        f"Precision of the networks' passes: {config.runtime.precision}. Checkpoint: "
        f"{weights.folder.name}.",
        f"Versions in training: {_versions(weights.versions)}; in export: {_versions(now)}.",
        f"Fingerprint of the configuration (SHA-256): `{fingerprint(config)}`.",
    ]


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _settings(trained: TrainedModel) -> str:
    tree = trained.config.model_dump(mode="json", include=set(SHOWN_SECTIONS))
    if isinstance(trained.config.noise.matrix, Path):
        tree["noise"]["matrix"] = trained.config.noise.matrix.name
    return f"```yaml\n{dump_yaml({name: tree[name] for name in SHOWN_SECTIONS})}```"
