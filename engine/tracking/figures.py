"""Figures of a run: functions of arrays that return a figure and touch nothing else.

No pyplot, so there is no state and no window; :func:`save` writes a PNG with the Agg renderer. The
colours are those of Okabe and Ito, which people with any kind of colour vision tell apart; groups
differ in their markers too.

Shapes: M networks, n samples, C classes, S segments, K components.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from numpy.typing import NDArray

__all__ = [
    "GROUP_TITLES",
    "Reliability",
    "draw_calibration",
    "draw_cloud",
    "draw_confusion",
    "draw_posteriors",
    "ellipse_of",
    "reliability",
    "save",
    "thin",
]

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

GROUP_TITLES = ("Correct", "Mis-H: label wrong", "Mis-L: image too poor")
_COLOURS = ("#0072B2", "#D55E00", "#009E73")
_MARKERS = ("o", "x", "^")
_GREY = "#555555"

DPI = 110
MAX_POINTS = 5000
# More panels than these side by side are too small to read.
MAX_PANELS = 6
# Names and numbers in larger tables would lie on one another.
MAX_NUMBERED = 12
NUM_BINS = 15


def save(figure: Figure, path: Path) -> None:
    """Write a PNG.

    Raises:
        OSError: The disk is full or not writable.
    """
    figure.savefig(path, dpi=DPI, format="png")


def thin(num_samples: int, most: int = MAX_POINTS) -> Ints:
    """Places of at most so many samples, evenly spread: the same ones each time."""
    return np.unique(np.linspace(0, num_samples - 1, min(num_samples, most)).astype(np.int64))


# -- loss and uncertainty --------------------------------------------------------------------------


def draw_cloud(
    features: Floats,
    groups: Ints,
    segments: Ints,
    means: Floats,
    covariances: Floats,
    names: Sequence[str],
    class_names: Sequence[str],
) -> Figure:
    """The samples in the plane of the two statistics that divide them, with the fitted mixture.

    A row of panels for each network, a column for each given class: of more than ``MAX_PANELS``
    classes, those with the most samples. Ellipses are at one and two standard deviations of a
    component.

    Args:
        features: (M, n, 2), each statistic scaled to [0, 1].
        groups: (M, n) in 0..2, the group that each network assigns.
        segments: (n,) in 0..S-1, given classes.
        means: (M, S, 3, 2) of the components, in the order of the groups.
        covariances: (M, S, 3, 2, 2).
        names: Of the two statistics.
        class_names: Of the S classes.
    """
    counts = np.bincount(segments, minlength=len(class_names))
    shown = np.sort(np.argsort(-counts, kind="stable")[:MAX_PANELS])
    num_networks = len(features)
    size = (2.5 * len(shown) + 0.6, 2.4 * num_networks + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(num_networks, len(shown), sharex=True, sharey=True, squeeze=False)
    points = thin(len(segments))
    for network in range(num_networks):
        for panel, segment in zip(panels[network], shown, strict=True):
            chosen = points[segments[points] == segment]
            _scatter(panel, features[network, chosen], groups[network, chosen])
            _outline(panel, means[network, segment], covariances[network, segment])
            panel.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), aspect="equal")
            panel.set_xticks([0, 0.5, 1])
            panel.set_yticks([0, 0.5, 1])
    for panel, segment in zip(panels[0], shown, strict=True):
        panel.set_title(f"given {class_names[segment]} (n = {counts[segment]})", fontsize=9)
    for network, row in enumerate(panels):
        title = f"network {'AB'[network]}\n" if num_networks == 2 else ""
        row[0].set_ylabel(f"{title}{names[1]} (scaled)", fontsize=9)
    for panel in panels[-1]:
        panel.set_xlabel(f"{names[0]} (scaled)", fontsize=9)
    more = (
        f", the {len(shown)} largest of {len(counts)} classes" if len(shown) < len(counts) else ""
    )
    figure.suptitle(
        f"Training samples by {names[0]} and {names[1]}{more}\n"
        "lines: fitted components at 1 and 2 standard deviations",
        fontsize=10,
    )
    _group_legend(figure)
    return figure


def ellipse_of(covariance: Floats, num_deviations: float) -> tuple[float, float, float]:
    """Width, height and angle in degrees of the ellipse at a distance from a Gaussian's mean.

    Args:
        covariance: (2, 2), positive semi-definite.
        num_deviations: Mahalanobis distance of the line.

    Returns:
        The full length along the axis of the largest variance, that along the other, and the
        direction of the first, counter-clockwise from the x axis in (-90, 90].
    """
    variances, axes = np.linalg.eigh(covariance)
    minor, major = 2 * num_deviations * np.sqrt(np.maximum(variances, 0))
    x, y = axes[:, 1]
    if x < 0 or (x == 0 and y < 0):
        x, y = -x, -y
    return float(major), float(minor), math.degrees(math.atan2(y, x))


def _scatter(panel: Axes, features: Floats, groups: Ints) -> None:
    area = 9 if len(groups) > 400 else 18
    for group, (colour, marker) in enumerate(zip(_COLOURS, _MARKERS, strict=True)):
        own = features[groups == group]
        panel.scatter(
            own[:, 0], own[:, 1], s=area, c=colour, marker=marker, alpha=0.45,
            linewidths=0.8 if marker == "x" else 0,
        )  # fmt: skip


def _outline(panel: Axes, means: Floats, covariances: Floats) -> None:
    for group, (mean, covariance) in enumerate(zip(means, covariances, strict=True)):
        for num_deviations, width in ((1, 1.6), (2, 0.8)):
            major, minor, angle = ellipse_of(covariance, num_deviations)
            # White beneath, so that a line is seen on points of its own colour.
            for colour, extra in (("white", 1.6), (_COLOURS[group], 0.0)):
                panel.add_patch(
                    Ellipse(
                        (mean[0], mean[1]),
                        major,
                        minor,
                        angle=angle,
                        fill=False,
                        edgecolor=colour,
                        linewidth=width + extra,
                        zorder=3,
                    )  # fmt: skip
                )


def _group_legend(figure: Figure) -> None:
    panel = figure.axes[0]
    handles = [
        panel.scatter([], [], s=24, c=colour, marker=marker, label=title)
        for title, colour, marker in zip(GROUP_TITLES, _COLOURS, _MARKERS, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)


# -- posteriors ------------------------------------------------------------------------------------


def draw_posteriors(posteriors: Floats, groups: Ints, *, are_true: bool) -> Figure:
    """Histograms of the probability that a label is correct, of each group on its own.

    Args:
        posteriors: (M, n, 3), of Correct, Mis-H and Mis-L; their mean over M is shown.
        groups: (n,) in 0..2.
        are_true: Whether these are the samples' true groups; else those that were assigned.
    """
    correct = posteriors[..., 0].mean(axis=0)
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    panel = figure.subplots()
    edges = np.linspace(0, 1, 41).tolist()
    for group, (title, colour) in enumerate(zip(GROUP_TITLES, _COLOURS, strict=True)):
        own = correct[groups == group]
        if len(own):
            label = f"{title} (n = {len(own)})"
            panel.hist(own, bins=edges, histtype="stepfilled", alpha=0.25, color=colour)
            panel.hist(
                own, bins=edges, histtype="step", color=colour, linewidth=1.6, label=label,
                linestyle=("-", "--", "-.")[group],
            )  # fmt: skip
    panel.set_yscale("log")
    panel.set_ylim(bottom=0.7)
    panel.set_xlim(0, 1)
    panel.set_xlabel("posterior probability of Correct, mean over the networks")
    panel.set_ylabel("training samples (log scale)")
    panel.set_title(f"Posteriors by {'true' if are_true else 'assigned'} group", fontsize=10)
    panel.legend(fontsize=9, frameon=False, loc="upper center")
    _clear_frame(panel)
    return figure


# -- tables of counts ------------------------------------------------------------------------------


def draw_confusion(
    rows: Ints, columns: Ints, class_names: Sequence[str], title: str, axes: tuple[str, str]
) -> Figure:
    """How many samples of each class, by rows, are in each class, by columns.

    Args:
        rows: (n,) in 0..C-1.
        columns: (n,) likewise.
        class_names: Of the C classes.
        title: Of the figure.
        axes: What rows and columns are.
    """
    num_classes = len(class_names)
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(counts, (rows, columns), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(0.62 * num_classes, 2.6), 7.5)
    figure = Figure(figsize=(side + 1.9, side + 1.1), layout="constrained")
    panel = figure.subplots()
    image = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if num_classes <= MAX_NUMBERED:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.55 else "black"
            panel.text(
                column, row, f"{count}\n{shares[row, column]:.0%}", ha="center", va="center",
                color=colour, fontsize=8,
            )  # fmt: skip
        ticks = list(range(num_classes))
        panel.set_xticks(ticks, class_names, rotation=45, ha="right", rotation_mode="anchor")
        panel.set_yticks(ticks, class_names)
    panel.tick_params(labelsize=9)
    panel.set_ylabel(axes[0])
    panel.set_xlabel(axes[1])
    agreement = np.trace(counts) / max(counts.sum(), 1)
    panel.set_title(f"{title}\n{counts.sum()} samples, {agreement:.1%} agree", fontsize=10)
    figure.colorbar(image, ax=panel, label="share of the row", shrink=0.8)
    return figure


# -- calibration -----------------------------------------------------------------------------------


class Reliability(NamedTuple):
    """What :func:`reliability` returns; B bins of the confidence, equally wide.

    Attributes:
        counts: (B,) samples in each bin.
        confidence: (B,) their mean confidence; NaN in an empty bin.
        accuracy: (B,) share of them that is predicted rightly; likewise.
        ece: Expected calibration error: mean over the samples of |accuracy - confidence| of their
            bin.
    """

    counts: Ints
    confidence: Floats
    accuracy: Floats
    ece: float


def reliability(probabilities: Floats, labels: Ints, num_bins: int = NUM_BINS) -> Reliability:
    """How often predictions of a confidence are right (Guo et al., ICML 2017, section 2).

    Args:
        probabilities: (n, C), n >= 1, rows sum to 1; the confidence is the largest of a row.
        labels: (n,) in 0..C-1.
        num_bins: B. A confidence on an edge belongs to the bin below, as in the paper.
    """
    confidences = probabilities.max(axis=1).astype(np.float64)
    hits = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidences * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    empty = np.where(counts > 0, counts, np.nan)
    confidence = np.bincount(bins, weights=confidences, minlength=num_bins) / empty
    accuracy = np.bincount(bins, weights=hits, minlength=num_bins) / empty
    ece = float(np.nansum(np.abs(accuracy - confidence) * counts) / len(labels))
    return Reliability(counts, confidence, accuracy, ece)


def draw_calibration(probabilities: Floats, labels: Ints, title: str) -> Figure:
    """The reliability diagram, and how many predictions there are of each confidence.

    Args:
        probabilities: (n, C).
        labels: (n,) in 0..C-1.
        title: Of the figure; the expected calibration error is added to it.
    """
    counts, confidence, accuracy, ece = reliability(probabilities, labels)
    figure = Figure(figsize=(4.6, 5.0), layout="constrained")
    curve, bars = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    curve.plot([0, 1], [0, 1], color=_GREY, linestyle=":", label="perfectly calibrated")
    filled = counts > 0
    curve.vlines(
        confidence[filled], confidence[filled], accuracy[filled], color=_COLOURS[1], alpha=0.5,
        linewidth=2, label="gap",
    )  # fmt: skip
    curve.plot(
        confidence[filled], accuracy[filled], "o-", color=_COLOURS[0], markersize=4, label="model"
    )
    curve.set(ylim=(0, 1.02), xlim=(0, 1), ylabel="accuracy (share of predictions)")
    curve.legend(fontsize=9, frameon=False, loc="upper left")
    curve.set_title(f"{title}\nexpected calibration error {ece:.3f}", fontsize=10)
    width = 1 / len(counts)
    centres = (np.arange(len(counts)) + 0.5) * width
    bars.bar(centres, counts, width=0.9 * width, color=_COLOURS[0])
    bars.set(xlabel="confidence (largest class probability)", ylabel="samples")
    for panel in (curve, bars):
        _clear_frame(panel)
    return figure


def _clear_frame(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25, linewidth=0.6)
