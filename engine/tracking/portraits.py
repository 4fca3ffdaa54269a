"""What the figures of an epoch show, gathered from a trainer; on the main process alone."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

from engine.task import IntArray
from engine.tracking import figures
from engine.tracking.mirror import Gallery
from engine.trainer import Trainer

__all__ = ["draw_epoch", "most_suspicious", "suggested_labels"]

THUMBNAIL_SIDE = 128
_CORRECT = 0


def draw_epoch(
    trainer: Trainer, class_names: Sequence[str], epoch: int
) -> Iterator[tuple[str, Figure]]:
    """The figures that apply to the method, each with its name.

    ``cloud``, ``posterior`` and ``suggested`` where the samples were separated before this epoch;
    ``confusion-<set>`` and ``calibration-<set>`` of the test set or, without one, of validation.
    """
    if trainer.method.separates(epoch) and "group" in trainer.ledger.columns:
        yield from _draw_separation(trainer, class_names)
    for name in list(trainer.predictions)[-1:]:
        probabilities = trainer.predictions[name]
        labels = trainer.task.labels[trainer.task.evaluation_ids[name]].numpy()
        yield (
            f"confusion-{name}",
            figures.draw_confusion(
                labels, probabilities.argmax(axis=1), class_names, f"Predictions, {name} set",
                ("given label", "predicted label"),
            ),
        )  # fmt: skip
        title = f"Calibration, {name} set"
        yield f"calibration-{name}", figures.draw_calibration(probabilities, labels, title)


def _draw_separation(trainer: Trainer, class_names: Sequence[str]) -> Iterator[tuple[str, Figure]]:
    ids, ledger = trainer.task.train_ids, trainer.ledger
    posteriors = ledger["posterior"][ids].transpose(0, 1).numpy()
    mixture = trainer.method.fitted_mixture(ledger)
    if mixture is not None:
        yield (
            "cloud",
            figures.draw_cloud(
                mixture.features.numpy(), mixture.groups.numpy(), mixture.segments.numpy(),
                mixture.means.numpy(), mixture.covariances.numpy(), mixture.names, class_names,
            ),
        )  # fmt: skip
    truth = trainer.task.true_groups
    shown = posteriors.mean(axis=0).argmax(axis=1) if truth is None else truth[ids]
    yield "posterior", figures.draw_posteriors(posteriors, shown, are_true=truth is not None)
    suggested = suggested_labels(trainer)
    if suggested is not None:
        yield (
            "suggested",
            figures.draw_confusion(
                ledger["label"][ids].numpy(), suggested, class_names,
                "Given and suggested labels, training set", ("given label", "suggested label"),
            ),
        )  # fmt: skip


def suggested_labels(trainer: Trainer) -> IntArray | None:
    """(n,) labels of the training samples as the separation would have them.

    The given label where it is more likely correct than not, else the method's own prediction; None
    where the method notes none.
    """
    predicted = trainer.method.predicted_labels(trainer.ledger)
    if predicted is None:
        return None
    ids = trainer.task.train_ids
    correct = trainer.ledger["posterior"][ids][..., _CORRECT].mean(dim=1)
    return torch.where(correct >= 0.5, trainer.ledger["label"][ids], predicted).numpy()


def most_suspicious(trainer: Trainer, class_names: Sequence[str], num: int) -> Gallery | None:
    """The training samples whose labels are least likely correct, with their images.

    Returns:
        At most ``num`` rows, the most suspicious first; None where the method has not separated.
    """
    ids, ledger = trainer.task.train_ids, trainer.ledger
    if "posterior" not in ledger.columns:
        return None
    posterior = ledger["posterior"][ids].mean(dim=1).numpy()
    if not posterior.any():
        return None
    order = np.argsort(posterior[:, _CORRECT], kind="stable")[:num]
    suggested = suggested_labels(trainer)
    rows = [
        [
            int(ids[place]),
            class_names[int(ledger["label"][ids[place]])],
            "" if suggested is None else class_names[suggested[place]],
            *(round(float(p), 4) for p in posterior[place]),
        ]
        for place in order
    ]
    columns = ["sample_id", "given", "suggested", "p correct", "p mis_h", "p mis_l"]
    images = torch.cat([images for _, images in trainer.task.loader([ids[order]])])
    side = min(THUMBNAIL_SIDE, images.shape[-1])
    small = F.interpolate(images.float(), size=(side, side), mode="area").byte()
    return Gallery(columns, small.permute(0, 2, 3, 1).contiguous().numpy(), rows)
