"""Figures of hand-made arrays: what they say, and where things are drawn."""

import math

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.patches import Ellipse
from sklearn.metrics import confusion_matrix

from engine.tracking import figures

NAMES = ["no DR", "mild", "moderate"]


def texts(panel):
    return [text.get_text() for text in panel.texts]


def rotated(variances, degrees):
    """A covariance with these variances along axes that are turned counter-clockwise."""
    angle = math.radians(degrees)
    axes = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return axes @ np.diag(variances) @ axes.T


# -- ellipses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [-80, -30, 0, 30, 45, 90])
@pytest.mark.parametrize("num_deviations", [1, 2])
def test_an_ellipse_has_the_axes_it_was_made_of(degrees, num_deviations):
    major, minor, angle = figures.ellipse_of(rotated([0.09, 0.01], degrees), num_deviations)
    assert major == pytest.approx(2 * num_deviations * 0.3)
    assert minor == pytest.approx(2 * num_deviations * 0.1)
    assert (angle - degrees) % 180 == pytest.approx(0, abs=1e-9) or (
        (angle - degrees) % 180 == pytest.approx(180, abs=1e-9)
    )
    assert -90 < angle <= 90


def test_the_line_of_an_ellipse_is_at_its_mahalanobis_distance():
    covariance = np.array([[0.05, 0.02], [0.02, 0.03]])
    major, minor, angle = figures.ellipse_of(covariance, 2)
    patch = Ellipse((0.4, 0.6), major, minor, angle=angle)
    corners = patch.get_corners() - np.array([0.4, 0.6])
    # The middles of the sides of its box are its four vertices.
    vertices = (corners + np.roll(corners, 1, axis=0)) / 2
    distances = np.einsum("ni,ij,nj->n", vertices, np.linalg.inv(covariance), vertices)
    np.testing.assert_allclose(np.sqrt(distances), 2)


def test_a_flat_covariance_gives_a_line():
    major, minor, angle = figures.ellipse_of(np.array([[1.0, 1.0], [1.0, 1.0]]), 1)
    assert (major, minor, angle) == pytest.approx((2 * math.sqrt(2), 0, 45), abs=1e-6)


# -- the cloud -------------------------------------------------------------------------------------


def make_cloud(num_samples=60, num_classes=3, num_networks=2):
    chance = np.random.default_rng(0)
    features = chance.uniform(size=(num_networks, num_samples, 2))
    groups = chance.integers(0, 3, (num_networks, num_samples))
    segments = np.arange(num_samples) % num_classes
    means = chance.uniform(0.3, 0.7, size=(num_networks, num_classes, 3, 2))
    covariances = np.broadcast_to(rotated([0.04, 0.01], 30), (num_networks, num_classes, 3, 2, 2))
    names = [f"class {c}" for c in range(num_classes)]
    figure = figures.draw_cloud(
        features, groups, segments, means, covariances, ("loss", "uncertainty"), names
    )
    return figure, features, groups, segments, means


def drawn_points(panel):
    """Points of each group, in the order of the groups; the legend's are empty."""
    found = [c.get_offsets() for c in panel.collections if isinstance(c, PathCollection)]
    return [np.asarray(points) for points in found[:3]]


def test_a_panel_of_the_cloud_holds_its_network_and_class_by_group():
    figure, features, groups, segments, _ = make_cloud()
    assert len(figure.axes) == 6
    for place, panel in enumerate(figure.axes):
        network, label = divmod(place, 3)
        for group, points in enumerate(drawn_points(panel)):
            chosen = (segments == label) & (groups[network] == group)
            np.testing.assert_array_equal(points, features[network, chosen])


def test_the_cloud_has_each_component_at_one_and_two_deviations():
    figure, *_, means = make_cloud()
    for place, panel in enumerate(figure.axes):
        network, label = divmod(place, 3)
        # Each line twice: once in white beneath.
        lines = [p for p in panel.patches if isinstance(p, Ellipse)]
        assert len(lines) == 12
        for number, line in enumerate(lines):
            assert line.center == pytest.approx(means[network, label, number // 4])
            deviations = 1 + number // 2 % 2
            assert (line.width, line.height) == pytest.approx((0.4 * deviations, 0.2 * deviations))
            assert line.angle == pytest.approx(30)
        assert not any(line.fill for line in lines)


def test_the_cloud_says_what_it_shows():
    figure, *_ = make_cloud()
    titles = [panel.get_title() for panel in figure.axes[:3]]
    assert titles == [f"given class {c} (n = 20)" for c in range(3)]
    assert figure.axes[0].get_ylabel() == "network A\nuncertainty (scaled)"
    assert figure.axes[3].get_ylabel() == "network B\nuncertainty (scaled)"
    assert [panel.get_xlabel() for panel in figure.axes[3:]] == ["loss (scaled)"] * 3
    assert "1 and 2 standard deviations" in figure.get_suptitle()
    assert [t.get_text() for t in figure.legends[0].get_texts()] == list(figures.GROUP_TITLES)


def test_of_many_classes_the_largest_are_shown_and_of_many_samples_some(monkeypatch):
    monkeypatch.setattr(figures, "MAX_PANELS", 2)
    figure, *_ = make_cloud(num_samples=62, num_classes=4, num_networks=1)
    assert [p.get_title() for p in figure.axes] == [f"given class {c} (n = 16)" for c in (0, 1)]
    assert "the 2 largest of 4 classes" in figure.get_suptitle()
    assert len(figures.thin(100_000)) == figures.MAX_POINTS
    assert figures.thin(3).tolist() == [0, 1, 2]
    assert figures.thin(100, 3).tolist() == [0, 49, 99]


# -- posteriors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("are_true", "word"), [(True, "true"), (False, "assigned")])
def test_posteriors_are_counted_for_each_group(are_true, word):
    posteriors = np.zeros((2, 5, 3))
    posteriors[:, :, 0] = [[0.1, 0.2, 0.9, 1.0, 0.6], [0.3, 0.2, 0.9, 1.0, 0.4]]
    figure = figures.draw_posteriors(posteriors, np.array([1, 1, 0, 0, 0]), are_true=are_true)
    (panel,) = figure.axes
    labels = [text.get_text() for text in panel.get_legend().get_texts()]
    assert labels == ["Correct (n = 3)", "Mis-H: label wrong (n = 2)"]
    assert panel.get_title() == f"Posteriors by {word} group"
    assert "mean over the networks" in panel.get_xlabel()
    assert panel.get_yscale() == "log" and "log scale" in panel.get_ylabel()
    # Both Mis-H samples have a mean of 0.2: one column of two.
    heights = panel.patches[-1].get_xy()[:, 1]
    assert heights.max() == 2


# -- tables ----------------------------------------------------------------------------------------


def test_a_confusion_holds_the_counts_of_scikit_learn():
    chance = np.random.default_rng(1)
    given, suggested = chance.integers(0, 3, (2, 200))
    figure = figures.draw_confusion(given, suggested, NAMES, "Title", ("given", "suggested"))
    panel = figure.axes[0]
    expected = confusion_matrix(given, suggested)
    cells = [text.split("\n") for text in texts(panel)]
    np.testing.assert_array_equal([int(count) for count, _ in cells], expected.ravel())
    shares = expected / expected.sum(1, keepdims=True)
    assert [share for _, share in cells] == [f"{share:.0%}" for share in shares.ravel()]
    np.testing.assert_allclose(panel.images[0].get_array(), shares)
    assert (panel.get_ylabel(), panel.get_xlabel()) == ("given", "suggested")
    assert [t.get_text() for t in panel.get_xticklabels()] == NAMES
    agreement = (given == suggested).mean()
    assert panel.get_title() == f"Title\n200 samples, {agreement:.1%} agree"


def test_a_confusion_copes_with_absent_and_with_many_classes():
    figure = figures.draw_confusion(np.array([0]), np.array([2]), NAMES, "T", ("a", "b"))
    assert texts(figure.axes[0])[2] == "1\n100%"
    many = [f"c{i}" for i in range(30)]
    figure = figures.draw_confusion(np.arange(30), np.arange(30), many, "T", ("a", "b"))
    assert texts(figure.axes[0]) == []


# -- calibration -----------------------------------------------------------------------------------


def test_calibration_error_by_hand():
    # Confidences 0.9 (right), 0.9 (wrong), 0.6 (right), 0.55 (right); of ten bins two are filled
    # and a third: |0.5 - 0.9| * 2 + |1 - 0.6| + |1 - 0.55| over four samples.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.55, 0.45]])
    found = figures.reliability(probabilities, np.array([0, 1, 1, 0]), num_bins=10)
    assert found.counts.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 2, 0]  # 0.6 and 0.9 on upper edges
    assert found.confidence[[5, 8]] == pytest.approx([0.575, 0.9])
    assert found.accuracy[[5, 8]] == pytest.approx([1, 0.5])
    assert found.ece == pytest.approx((0.4 * 2 + 0.425 * 2) / 4)


def test_sure_and_right_is_perfectly_calibrated():
    found = figures.reliability(np.eye(3), np.arange(3))
    assert found.ece == 0 and found.counts[-1] == 3


def test_the_reliability_diagram_says_what_it_shows():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    labels = np.array([0, 1, 1])
    figure = figures.draw_calibration(probabilities, labels, "Calibration, test")
    curve, bars = figure.axes
    found = figures.reliability(probabilities, labels)
    assert f"expected calibration error {found.ece:.3f}" in curve.get_title()
    model = next(line for line in curve.lines if line.get_label() == "model")
    np.testing.assert_allclose(model.get_xdata(), found.confidence[found.counts > 0])
    np.testing.assert_allclose(model.get_ydata(), found.accuracy[found.counts > 0])
    assert [bar.get_height() for bar in bars.patches] == found.counts.tolist()
    assert "accuracy" in curve.get_ylabel() and "confidence" in bars.get_xlabel()
    assert bars.get_ylabel() == "samples"


def test_a_figure_is_written_as_a_png(tmp_path):
    figure = figures.draw_calibration(np.eye(2), np.arange(2), "T")
    figures.save(figure, tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
