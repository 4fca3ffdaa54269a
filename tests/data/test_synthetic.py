"""The synthetic fundus set: determinism, independence of size and number, what the grades look
like."""

import json

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from scipy import ndimage
from scipy.stats import chisquare

from data.fundus import draw_fundus
from data.synthetic import SyntheticConfig, generate


@pytest.fixture(scope="module")
def sample():
    return generate(SyntheticConfig(num_train=300, num_test=100), size=64, seed=5)


def test_shapes_and_split(sample):
    assert sample.images.shape == (400, 64, 64, 3) and sample.images.dtype == np.uint8
    assert sample.grades.dtype == np.int64 and set(sample.grades) == {0, 1, 2, 3, 4}
    assert sample.split.dtype == np.uint8
    np.testing.assert_array_equal(sample.split, np.repeat([0, 2], [300, 100]))


def test_a_picture_does_not_depend_on_the_number_of_pictures(sample):
    small = generate(SyntheticConfig(num_train=7, num_test=5), size=64, seed=5)
    np.testing.assert_array_equal(small.images, sample.images[:12])
    np.testing.assert_array_equal(small.grades, sample.grades[:12])


def test_seeds_and_indices_give_different_pictures(sample):
    other = generate(SyntheticConfig(num_train=10, num_test=0), size=64, seed=6)
    assert (other.images != sample.images[:10]).any(axis=(1, 2, 3)).all()
    assert len(np.unique(sample.images.reshape(400, -1), axis=0)) == 400


def test_grades_follow_the_class_balance(sample):
    expected = np.array([0.3, 0.15, 0.25, 0.15, 0.15]) * 400
    assert chisquare(np.bincount(sample.grades, minlength=5), expected).pvalue > 1e-3


def test_a_class_can_be_left_out():
    config = SyntheticConfig(num_train=30, num_test=0, class_balance=(0.5, 0.0, 0.5, 0.0, 0.0))
    assert set(generate(config, size=16, seed=0).grades) == {0, 2}


def test_field_is_round_bright_and_on_black(sample):
    grey = sample.images.astype(float).mean(axis=3)
    corners = grey[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.max() < 25
    assert grey[:, 28:36, 28:36].mean(axis=(1, 2)).min() > 30
    # The field's share of the square: between the circles of radius 0.43 and 0.49.
    shares = (grey > 25).mean(axis=(1, 2))
    assert np.quantile(shares, 0.1) > 0.5 and shares.max() < np.pi * 0.5**2


def test_both_eyes_occur(sample):
    # The optic disc is the brightest spot of a healthy eye, well off the centre on either side.
    healthy = sample.images[sample.grades == 0].astype(float).sum(axis=3)
    smooth = ndimage.gaussian_filter(healthy, (0, 2, 2))
    columns = smooth.reshape(len(smooth), -1).argmax(axis=1) % 64
    share_right = (columns > 32).mean()
    assert 0.3 < share_right < 0.7
    assert np.mean(np.abs(columns - 32) > 8) > 0.8


def dark_area(image):
    """Share of the picture that is much darker than its surroundings."""
    green = image[:, :, 1].astype(float)
    field = ndimage.binary_erosion(
        ndimage.uniform_filter(image[:, :, 0].astype(float), 3) > 40, iterations=4
    )
    background = ndimage.median_filter(green, 21)
    return ((green < 0.6 * background) & field).mean()


def test_bleeding_grows_with_the_grade():
    areas = [
        np.mean([dark_area(draw_fundus(g, 96, np.random.default_rng([g, k]))) for k in range(12)])
        for g in range(5)
    ]
    assert areas[2] > 1.5 * areas[1] and areas[3] > 1.5 * areas[2] and areas[4] > 1.5 * areas[2]


def test_small_and_large_pictures_show_the_same_eye():
    # The generator draws the same geometry at every size; only the sensor's noise differs.
    small = draw_fundus(3, 64, np.random.default_rng(1)).astype(float)
    large = Image.fromarray(draw_fundus(3, 640, np.random.default_rng(1))).reduce(10)
    same = np.corrcoef(small.ravel(), np.asarray(large, dtype=float).ravel())[0, 1]
    other = np.asarray(Image.fromarray(draw_fundus(3, 640, np.random.default_rng(2))).reduce(10))
    assert same > 0.97 > np.corrcoef(small.ravel(), other.ravel())[0, 1]


@pytest.mark.parametrize("size", [1, 8, 33, 700])
def test_any_size_works(size):
    assert draw_fundus(4, size, np.random.default_rng(0)).shape == (size, size, 3)


@pytest.mark.parametrize(
    "tree",
    [
        {"num_train": 0},
        {"class_balance": [0.5, 0.5, 0.5, 0.0, 0.0]},
        {"class_balance": [1.5, -0.5, 0.0, 0.0, 0.0]},
        {"class_balance": [0.5, 0.5]},
        {"number": 3},
    ],
)
def test_bad_settings_are_refused(tree):
    with pytest.raises(ValidationError):
        SyntheticConfig.model_validate_json(json.dumps(tree), strict=True, extra="forbid")
