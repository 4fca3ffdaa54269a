"""What the user of a trained model must know and its configuration does not say."""

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from data.manifest import LEFT_OUT, SPLIT_NAMES, Manifest
from data.noise import MIS_H, MIS_L
from data.quality import QualityReference, image_statistics
from engine import collectives
from engine.plan import whole_batches
from engine.task import Task
from launcher.assemble import NoisyData

__all__ = ["ModelFacts", "gather_facts", "sample_digests"]

# Training images that the quality of others is compared with; enough for percentiles.
NUM_REFERENCE = 512
REFERENCE_BATCH = 32


class ModelFacts(BaseModel):
    """Kept in each checkpoint, so that predicting needs no training data.

    Attributes:
        class_names: The C classes in the order of their numbers.
        num_images: Split -> number of images of each given class; splits without images are absent.
        wrong_labels: Number of training labels known to be wrong; None where the truth is unknown.
        spoiled_images: Number of training images that were degraded on purpose; None likewise.
        quality: Sharpness and brightness of training images that were not degraded on purpose.
        corrected: Number of labels that corrections changed; None of an earlier version's run.
        left_out: Number of images that they left out; likewise.
        samples_sha256: What :func:`sample_digests` gave; likewise.
        planned_epochs: What ``run.epochs`` was while the run took its steps, in order; likewise.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    class_names: tuple[str, ...]
    num_images: dict[str, tuple[int, ...]]
    wrong_labels: int | None
    spoiled_images: int | None
    quality: QualityReference
    corrected: int | None = None
    left_out: int | None = None
    samples_sha256: dict[str, str] | None = None
    planned_epochs: tuple[int, ...] | None = None


def sample_digests(manifest: Manifest) -> dict[str, str]:
    """SHA-256 of all samples' names (``images``) and of what they are for (``splits``), in order.

    A run that goes on with other ones would take what it knows of one image for another's, or test
    with what it has trained on.
    """
    images = hashlib.sha256()
    for array in manifest.names.arrays:
        images.update(array.tobytes())
    return {
        "images": images.hexdigest(),
        "splits": hashlib.sha256(manifest.split.tobytes()).hexdigest(),
    }


def gather_facts(data: NoisyData, task: Task) -> dict[str, Any]:
    """The facts as a tree of JSON types; reads some of the training images; a collective call.

    Raises:
        DataError: One of these images cannot be read.
    """
    manifest, train_ids = data.source.manifest, task.train_ids
    counts = {
        name: np.bincount(data.labels[ids], minlength=manifest.num_classes).tolist()
        for split, name in enumerate(SPLIT_NAMES)
        if len(ids := manifest.where(split))
    }
    groups = None if data.groups is None else data.groups[train_ids]
    # Images that were spoiled on purpose are no standard for others.
    usable = train_ids if groups is None else train_ids[groups != MIS_L]
    places = np.linspace(0, len(usable) - 1, min(NUM_REFERENCE, len(usable)))
    facts = ModelFacts(
        class_names=manifest.class_names,
        num_images=counts,
        wrong_labels=None if groups is None else int((groups == MIS_H).sum()),
        spoiled_images=None if groups is None else int((groups == MIS_L).sum()),
        quality=QualityReference.of(_measure(task, usable[places.round().astype(np.int64)])),
        corrected=data.num_corrected,
        left_out=len(manifest.where(LEFT_OUT)),
        samples_sha256=sample_digests(manifest),
    )
    return facts.model_dump(mode="json")


def _measure(task: Task, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Statistics (len(ids), 2) of some images, on every rank."""
    mine = whole_batches(ids, REFERENCE_BATCH, collectives.rank(), collectives.num_ranks())
    rows = [torch.empty((0, 2), dtype=torch.float64)]
    rows += [image_statistics(images) for _, images in task.loader(mine)]
    return collectives.gather_rows(torch.cat(rows)).numpy()
