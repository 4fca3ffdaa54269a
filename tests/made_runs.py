"""Run folders made up for the tests of what reports on them; nothing is trained."""

import base64
import io
import json

import numpy as np
import yaml
from method_settings import tiny_config
from PIL import Image

METRICS = ("kappa", "accuracy", "balanced_accuracy", "macro_f1", "auroc")
HEADER = "sample_id,image,given_label,suggested_label,label_quality_score,is_label_issue"


def line(epoch, value, num_classes=3, *, validation=True, **others):
    """An epoch of a record whose metrics are all one value."""
    metrics = {"epoch": epoch, "train/loss": 1 - value, "time/epoch_seconds": 30.5}
    for name in ("eval", "validation") if validation else ("eval",):
        metrics |= {f"{name}/{metric}": value for metric in METRICS}
        metrics |= {
            f"{name}/{metric}/{c}": value
            for metric in ("precision", "recall", "f1", "auroc")
            for c in range(num_classes)
        }
    return metrics | others


def write_run(folder, values, method="qmix", *, num_classes=3, validation=True, **sections):
    """A finished run with one value for all metrics in each epoch; returns its folder."""
    folder.mkdir(parents=True)
    run = {"dir": str(folder), "epochs": len(values), **sections.pop("run", {})}
    config = tiny_config(method, run=run, **sections)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [
        line(epoch, value, num_classes, validation=validation) for epoch, value in enumerate(values)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder


def image_bytes(kind, value=0, size=(60, 40)):
    """A picture of one colour as a file's content."""
    content = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), value, dtype=np.uint8)).save(content, kind)
    return content.getvalue()


def write_figures(
    folder, num_epochs, names=("cloud", "posterior", "confusion-eval", "calibration-eval")
):
    """Pictures of each epoch, each of another shade."""
    for epoch in range(1, num_epochs + 1):
        here = folder / "figures" / f"epoch-{epoch:04}"
        here.mkdir(parents=True)
        for name in names:
            (here / f"{name}.png").write_bytes(image_bytes("PNG", value=epoch))


def write_audit(folder, num_rows, class_names, *, num_issues=2, review=True):
    """``labels.csv`` and, unless told otherwise, ``review.html`` with its images."""
    rows, items = [HEADER], []
    jpeg = base64.b64encode(image_bytes("JPEG", 90)).decode()
    for i in range(num_rows):
        given, suggested = class_names[i % len(class_names)], class_names[0]
        rows.append(f"{i},image-{i}.png,{given},{suggested},{i / num_rows:.6f},{i < num_issues}")
        items.append(f'<li><img src="data:image/jpeg;base64,{jpeg}" alt="image-{i}.png"></li>')
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    if review:
        (folder / "review.html").write_text(f"<!doctype html><ol>{''.join(items)}</ol>")
