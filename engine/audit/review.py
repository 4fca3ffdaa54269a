"""The review page: one HTML file in which a person decides on the most doubtful labels.

It needs nothing but itself: images are embedded, decisions are kept in the browser and downloaded
as ``decisions.csv``, which ``data.corrections`` of the next run takes.
"""

import base64
import hashlib
import io
from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment
from numpy.typing import NDArray
from PIL import Image

from engine.audit.findings import Findings, Samples
from engine.task import IntArray

__all__ = ["render_review"]

JPEG_QUALITY = 85


def render_review(
    findings: Findings,
    samples: Samples,
    images: Callable[[IntArray], NDArray[np.uint8]],
    *,
    gallery: int,
    thumbnail: int,
    title: str,
) -> str:
    """The page of the most doubtful training samples.

    Args:
        findings: The audit.
        samples: Names of all samples and of the classes.
        images: Given (k,) sample_ids, their images (k, S, S, 3) uint8.
        gallery: How many samples are shown at most.
        thumbnail: Longest side of an embedded image in pixels; smaller ones stay as they are.
        title: Name of the run.
    """
    places = findings.order[:gallery]
    shown: list[dict[str, Any]] = [
        {
            "id": int(findings.sample_ids[place]),
            "image": samples.names[int(findings.sample_ids[place])],
            "given": int(findings.given[place]),
            "suggested": int(findings.suggested[place]),
            "score": round(float(findings.score[place]), 6),
            "finding": findings.describe(place),
        }
        for place in places
    ]
    # Decisions that a browser has kept belong to these images with these labels.
    digest = hashlib.sha256(repr((samples.class_names, shown)).encode()).hexdigest()
    thumbnails = [_jpeg(image, thumbnail) for image in images(findings.sample_ids[places])]
    source = resources.files("engine").joinpath("templates/review.html")
    template = Environment(autoescape=True).from_string(source.read_text(encoding="utf-8"))
    return template.render(
        title=title,
        class_names=samples.class_names,
        num_samples=len(findings.order),
        num_issues=int(findings.is_issue.sum()),
        samples=[row | {"jpeg": jpeg} for row, jpeg in zip(shown, thumbnails, strict=True)],
        data={
            "key": f"mednoise-review-{digest[:16]}",
            "classNames": list(samples.class_names),
            "samples": shown,
        },
    )


def _jpeg(image: NDArray[np.uint8], side: int) -> str:
    """An image (S, S, 3) uint8 as JPEG in base 64, at most ``side`` pixels wide."""
    picture = Image.fromarray(image)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()
