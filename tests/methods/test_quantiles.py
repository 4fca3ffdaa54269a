import numpy as np
import pytest
import torch

from methods.separation.quantiles import scale_to_unit, segment_quantiles

QUANTILES = (0.0, 0.005, 0.2, 0.5, 0.9, 1.0)


def draw(kind, rng, shape):
    values = rng.normal(size=shape)
    return {
        "normal": values,
        "tied": np.where(values < 0.5, 0.0, values),
        "constant": np.full(shape, -0.25),
        "of all sizes": np.sign(values) * 10.0 ** rng.uniform(-300, 300, shape),
        "whole": np.round(values * 3),
        "nearly equal": 1.0 + np.finfo(np.float64).eps * np.floor(4 * values),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["normal", "tied", "constant", "of all sizes", "whole", "nearly equal"]
)
@pytest.mark.parametrize("num_segments", [1, 7, 3000])
def test_quantiles_are_numpys(kind, num_segments):
    """3000 segments leave few bits for a digit, so there are more passes."""
    rng = np.random.default_rng(num_segments)
    values, segments = draw(kind, rng, (2, 4001)), rng.integers(0, num_segments, 4001)
    found = segment_quantiles(
        torch.from_numpy(values), torch.from_numpy(segments), num_segments, QUANTILES
    )
    for segment in np.unique(segments)[:50]:
        expected = np.quantile(values[:, segments == segment], QUANTILES, axis=1).T
        np.testing.assert_allclose(found[:, segment], expected, rtol=1e-15, atol=0)


def test_quantiles_at_samples_are_those_samples():
    values = torch.tensor([[3.5, -1.25, 0.1, 7.0, 1e-300]]).double()
    found = segment_quantiles(values, torch.zeros(5).long(), 1, (0, 0.25, 0.5, 0.75, 1))
    assert torch.equal(found[0, 0], values[0].sort().values)


def test_empty_segments_have_zeros():
    found = segment_quantiles(torch.ones(2, 3).double(), torch.tensor([1, 1, 3]), 5, (0.1, 0.9))
    assert found.tolist() == [[[0, 0], [1, 1], [0, 0], [1, 1], [0, 0]]] * 2


def test_scaling_clips_at_numpys_quantiles():
    values = np.random.default_rng(0).exponential(size=(2, 5000))
    low, high = np.quantile(values, (0.005, 0.995), axis=1)[..., None]
    expected = np.clip((values - low) / (high - low), 0, 1)
    found = scale_to_unit(torch.from_numpy(values))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)
