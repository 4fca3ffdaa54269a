"""Degradation: deterministic, strong enough to hide lesions, the same at every size."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from data.degrade import degrade
from data.fundus import draw_fundus

SEVERE = (0.6, 1.0)
NUM = 60


@pytest.fixture(scope="module")
def pictures():
    return [draw_fundus(3, 64, np.random.default_rng(k)) for k in range(NUM)]


def lesion_contrast(image, lesions, around):
    """How much darker than their surroundings the lesions are, in grey levels."""
    grey = image.astype(float).mean(axis=2)
    return grey[around].mean() - grey[lesions].mean()


def lesion_masks(picture):
    """Pixels of clearly dark spots inside the field, and pixels around them."""
    grey = picture.astype(float).mean(axis=2)
    inside = ndimage.binary_erosion(picture.max(axis=2) > 40, iterations=5)
    lesions = inside & (grey < 0.8 * ndimage.median_filter(grey, 15))
    around = inside & ndimage.binary_dilation(lesions, iterations=4)
    return lesions, around & ~ndimage.binary_dilation(lesions, iterations=1)


def test_same_arguments_same_result(pictures):
    first = degrade(pictures[0], SEVERE, 3, 7)
    np.testing.assert_array_equal(first, degrade(pictures[0], SEVERE, 3, 7))
    assert (first != degrade(pictures[0], SEVERE, 3, 8)).any()
    assert (first != degrade(pictures[0], SEVERE, 4, 7)).any()


def test_input_is_left_alone_and_every_image_changes(pictures):
    for k, picture in enumerate(pictures):
        before = picture.copy()
        got = degrade(picture, SEVERE, 0, k)
        np.testing.assert_array_equal(picture, before)
        assert got.shape == picture.shape and got.dtype == np.uint8
        assert np.abs(got.astype(int) - picture).mean() > 3


def test_lesions_fade(pictures):
    kept = []
    for k, picture in enumerate(pictures):
        lesions, around = lesion_masks(picture)
        before = lesion_contrast(picture, lesions, around)
        kept.append(lesion_contrast(degrade(picture, SEVERE, 0, k), lesions, around) / before)
    assert np.median(kept) < 0.35
    assert np.quantile(kept, 0.9) < 0.6


def test_severity_orders_the_damage(pictures):
    def mean_kept(strength):
        kept = []
        for k, picture in enumerate(pictures):
            lesions, around = lesion_masks(picture)
            got = degrade(picture, (strength, strength), 0, k)
            kept.append(
                lesion_contrast(got, lesions, around) / lesion_contrast(picture, lesions, around)
            )
        return np.mean(kept)

    assert mean_kept(0.0) > mean_kept(0.5) > mean_kept(1.0)


def test_kinds_of_damage_vary(pictures):
    # One picture, many samples: some darker, some brighter, some grainier and some smoother than
    # it.
    got = np.stack([degrade(pictures[0], SEVERE, 0, k) for k in range(100)]).astype(float)
    brightness = got.mean(axis=(1, 2, 3)) / pictures[0].mean()
    grain = np.abs(np.diff(got, axis=2)).mean(axis=(1, 2, 3))
    own_grain = np.abs(np.diff(pictures[0].astype(float), axis=1)).mean()
    assert (brightness < 0.6).any() and (brightness > 1.3).any()
    assert (grain < 0.6 * own_grain).any() and (grain > 1.5 * own_grain).any()


def test_black_surround_stays_dark(pictures):
    for k, picture in enumerate(pictures):
        corners = degrade(picture, SEVERE, 0, k)[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert corners.max() < 90


def test_strength_is_relative_to_the_size():
    small = draw_fundus(3, 64, np.random.default_rng(0))
    large = draw_fundus(3, 384, np.random.default_rng(0))
    alike = []
    for k in range(20):
        reduced = np.asarray(Image.fromarray(degrade(large, SEVERE, 0, k)).reduce(6), dtype=float)
        alike.append(np.corrcoef(degrade(small, SEVERE, 0, k).ravel(), reduced.ravel())[0, 1])
    # Grain differs with the number of pixels; everything else is the same defect at the same place.
    assert np.median(alike) > 0.97


@pytest.mark.parametrize("shape", [(1, 1, 3), (40, 90, 3), (301, 17, 3)])
def test_any_shape(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for k in range(20):
        assert degrade(image, (0.0, 1.0), 0, k).shape == shape
