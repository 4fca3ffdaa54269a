import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from methods.separation import Mixture, MixtureConfig, fit_mixture, mixture_posteriors

START = MixtureConfig(max_iterations=0)
MEANS = torch.tensor([[0.1, 0.1], [0.8, 0.2], [0.4, 0.8]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.35, 0.15], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.010, 0.004], [0.004, 0.006]], dtype=torch.float64)


def _sample(num_networks, num_samples, seed=0):
    """Features (M, N, 2) of the known mixture and the component of each sample."""
    generator = torch.Generator().manual_seed(seed)
    component = torch.multinomial(WEIGHTS, num_samples, replacement=True, generator=generator)
    noise = torch.randn(num_networks, num_samples, 2, generator=generator, dtype=torch.float64)
    return MEANS[component] + noise @ torch.linalg.cholesky(COVARIANCE).T, component


def _case(num_networks=2, num_segments=3, num_samples=3000, seed=0):
    features, _ = _sample(num_networks, num_samples, seed)
    segments = torch.arange(num_samples) % num_segments
    return features, segments, (MEANS + 0.05).expand(num_networks, num_segments, 3, 2)


def _scikit_learn(features, start, config):
    """scikit-learn's mixture of one (network, segment), started where ours starts."""
    return GaussianMixture(
        start.weights.numel(),
        weights_init=start.weights.flatten().numpy(),
        means_init=start.means[0, 0].numpy(),
        precisions_init=torch.linalg.inv(start.covariances[0, 0]).numpy(),
        tol=config.tolerance,
        max_iter=config.max_iterations,
        reg_covar=config.reg_covar,
    ).fit(features.numpy())


def _pick(mixture, network, segment):
    """The mixture of one (network, segment) alone."""
    fields = vars(mixture).items()
    return Mixture(**{k: v[network : network + 1, segment : segment + 1] for k, v in fields})


def _assert_close(first, second, atol):
    for name, value in vars(first).items():
        torch.testing.assert_close(
            value, getattr(second, name), rtol=0, atol=atol, equal_nan=True, msg=name
        )


def test_start_by_hand():
    # Means 0 and 10; nearest: {-1, 1, 3} and {9}.
    features = torch.tensor([[-1.0, 1.0, 3.0, 9.0]]).unsqueeze(-1)
    means = torch.tensor([0.0, 10.0]).view(1, 1, 2, 1)
    start = fit_mixture(features, torch.zeros(4, dtype=torch.int64), means, START)
    # Shares with one sample more each: (3 + 1) / 6 and (1 + 1) / 6.
    torch.testing.assert_close(start.weights, torch.tensor([[[4 / 6, 2 / 6]]]).double())
    # Over all: mean 3, variance (16 + 4 + 0 + 36) / 4 = 14. Own scatters about own means: 8 and 0.
    expected = torch.tensor([(8 + 14) / 4, (0 + 14) / 2]).double() + 1e-6
    torch.testing.assert_close(start.covariances.flatten(), expected)
    assert start.means.flatten().tolist() == [0, 10]
    assert start.num_iterations.item() == 0 and math.isnan(start.log_likelihood.item())


def test_one_iteration_by_hand():
    # Two samples mirrored at 0 with mirrored starts: weights stay 1/2, the posterior is a sigmoid.
    features = torch.tensor([[-1.0, 1.0]]).unsqueeze(-1)
    segments, means = torch.zeros(2, dtype=torch.int64), torch.tensor([-2.0, 2.0]).view(1, 1, 2, 1)
    config = MixtureConfig(max_iterations=1, reg_covar=0.5)
    mixture = fit_mixture(features, segments, means, config)
    variance = (0 + 1) / 2 + 0.5  # own scatter 0, one more sample with the overall variance 1
    # log-odds of the right component at x = 1: ((1 + 2)^2 - (1 - 2)^2) / (2 variance).
    right = 1 / (1 + math.exp(-8 / (2 * variance)))
    mean = right - (1 - right)
    assert mixture.means.flatten().tolist() == pytest.approx([-mean, mean])
    assert mixture.weights.flatten().tolist() == pytest.approx([0.5, 0.5])
    assert mixture.covariances.flatten().tolist() == pytest.approx([1 - mean**2 + 0.5] * 2)
    density = (math.exp(-1 / 2) + math.exp(-9 / 2)) / 2 / math.sqrt(2 * math.pi)
    assert mixture.log_likelihood.item() == pytest.approx(math.log(density))
    assert mixture.num_iterations.item() == 1 and not mixture.converged.item()


def test_recovers_a_known_mixture():
    features, component = _sample(1, 60_000)
    segments = torch.zeros(60_000, dtype=torch.int64)
    start = MEANS.flip(0).view(1, 1, 3, 2) * 0.8
    mixture = fit_mixture(features, segments, start, MixtureConfig(tolerance=1e-7))
    assert mixture.converged.all()
    torch.testing.assert_close(mixture.weights[0, 0].flip(0), WEIGHTS, rtol=0, atol=0.01)
    torch.testing.assert_close(mixture.means[0, 0].flip(0), MEANS, rtol=0, atol=0.01)
    expected = COVARIANCE.expand(3, 2, 2)
    torch.testing.assert_close(mixture.covariances[0, 0], expected, rtol=0, atol=5e-4)
    found = 2 - mixture_posteriors(mixture, features, segments)[0].argmax(-1)
    assert (found == component).float().mean() > 0.97


@pytest.mark.parametrize("num_features", [1, 2, 3])
@pytest.mark.parametrize("num_components", [2, 3])
def test_agrees_with_scikit_learn(num_features, num_components):
    rng = np.random.default_rng(num_features * 10 + num_components)
    centres = rng.uniform(0, 1, (num_components, num_features))
    clouds = [rng.normal(c, 0.15, (400 * (k + 1), num_features)) for k, c in enumerate(centres)]
    features = torch.from_numpy(np.concatenate(clouds)).unsqueeze(0)
    segments = torch.zeros(features.shape[1], dtype=torch.int64)
    means = torch.from_numpy(centres + 0.1).view(1, 1, num_components, num_features)
    config = MixtureConfig(tolerance=1e-6, max_iterations=500)
    ours = fit_mixture(features, segments, means, config)
    theirs = _scikit_learn(features[0], fit_mixture(features, segments, means, START), config)

    assert ours.num_iterations.item() == theirs.n_iter_
    assert ours.converged.item() and theirs.converged_
    assert ours.log_likelihood.item() == pytest.approx(theirs.lower_bound_, abs=1e-9)
    np.testing.assert_allclose(ours.means[0, 0], theirs.means_, atol=1e-8)
    np.testing.assert_allclose(ours.covariances[0, 0], theirs.covariances_, atol=1e-8)
    posteriors = mixture_posteriors(ours, features, segments)[0].numpy()
    np.testing.assert_allclose(posteriors, theirs.predict_proba(features[0].numpy()), atol=1e-7)
    partition = theirs.predict(features[0].numpy())
    assert adjusted_rand_score(partition, posteriors.argmax(1)) == 1


@pytest.mark.parametrize("seed", range(4))
def test_a_batch_of_fits_agrees_with_scikit_learns_one_by_one(seed):
    """Classes of many chunks, of some blocks and of a handful, mingled, for two networks."""
    sizes = (18_000, 700, 12)
    num_samples = sum(sizes)
    features, _ = _sample(2, num_samples, seed)
    generator = torch.Generator().manual_seed(seed)
    segments = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    segments = segments[torch.randperm(num_samples, generator=generator)]
    means = (MEANS + 0.05).expand(2, 3, 3, 2)
    config = MixtureConfig(tolerance=1e-5, max_iterations=30, reg_covar=5e-4)
    unmoved = config.model_copy(update={"max_iterations": 0})
    ours, start = (fit_mixture(features, segments, means, c) for c in (config, unmoved))
    posteriors = mixture_posteriors(ours, features, segments)
    for network in range(2):
        for segment in range(3):
            rows = segments == segment
            mine = features[network, rows]
            theirs = _scikit_learn(mine, _pick(start, network, segment), config)
            assert ours.num_iterations[network, segment].item() == theirs.n_iter_
            found = _pick(ours, network, segment)
            np.testing.assert_allclose(found.weights[0, 0], theirs.weights_, atol=1e-8)
            np.testing.assert_allclose(found.means[0, 0], theirs.means_, atol=1e-8)
            np.testing.assert_allclose(found.covariances[0, 0], theirs.covariances_, atol=1e-8)
            expected = theirs.predict_proba(mine.numpy())
            np.testing.assert_allclose(posteriors[network, rows], expected, atol=1e-7)


def test_posteriors_by_bayes_rule():
    """Of densities that scipy computes, one sample at a time."""
    features, segments, means = _case(num_samples=300)
    mixture = fit_mixture(features, segments, means)
    posteriors = mixture_posteriors(mixture, features, segments)
    for network, row in [(0, 0), (0, 1), (1, 2), (1, 299)]:
        segment = segments[row]
        joint = [
            weight * multivariate_normal(mean, covariance).pdf(features[network, row])
            for weight, mean, covariance in zip(
                mixture.weights[network, segment].tolist(),
                mixture.means[network, segment].numpy(),
                mixture.covariances[network, segment].numpy(),
                strict=True,
            )
        ]
        expected = torch.tensor(joint).double() / sum(joint)
        torch.testing.assert_close(posteriors[network, row], expected, rtol=0, atol=1e-12)


def test_each_fit_is_what_it_would_be_alone():
    features, segments, means = _case(num_segments=4)
    segments = segments.clone()
    segments[segments == 3] = torch.tensor([0, 3]).repeat(375)  # of unequal size
    together = fit_mixture(features, segments, means, MixtureConfig(tolerance=1e-5))
    assert together.num_iterations.unique().numel() > 1  # they stop at different times
    for network in range(2):
        for segment in range(4):
            rows = segments == segment
            alone = fit_mixture(
                features[network : network + 1, rows],
                torch.zeros(int(rows.sum()), dtype=torch.int64),
                means[:1, :1],
                MixtureConfig(tolerance=1e-5),
            )
            _assert_close(_pick(together, network, segment), alone, atol=1e-9)


def test_order_of_samples_does_not_matter():
    features, segments, means = _case()
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(1))
    straight = fit_mixture(features, segments, means)
    shuffled = fit_mixture(features[:, order], segments[order], means)
    _assert_close(straight, shuffled, atol=1e-9)
    torch.testing.assert_close(
        mixture_posteriors(straight, features, segments)[:, order],
        mixture_posteriors(shuffled, features[:, order], segments[order]),
        rtol=0,
        atol=1e-9,
    )


def test_deterministic_and_independent_of_threads():
    features, segments, means = _case()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first, again = (fit_mixture(features, segments, means) for _ in range(2))
        torch.set_num_threads(2)
        threaded = fit_mixture(features, segments, means)
    finally:
        torch.set_num_threads(threads)
    _assert_close(first, again, atol=0)
    _assert_close(first, threaded, atol=1e-9)


def test_data_far_from_zero_is_fitted_as_well():
    features, segments, means = _case()
    near = fit_mixture(features, segments, means)
    far = fit_mixture(features + 1000, segments, means + 1000)
    torch.testing.assert_close(near.covariances, far.covariances, rtol=0, atol=1e-9)


def test_empty_segment_keeps_its_start_without_nan():
    features, segments, means = _case(num_segments=2)
    means = torch.cat([means, means[:, :1]], dim=1)
    mixture = fit_mixture(features, segments, means)
    assert mixture.num_iterations[:, 2].tolist() == [0, 0]
    assert not mixture.converged[:, 2].any() and mixture.log_likelihood[:, 2].isnan().all()
    torch.testing.assert_close(mixture.means[:, 2], means[:, 2])
    assert mixture.covariances.isfinite().all() and mixture.weights.isfinite().all()


@pytest.mark.parametrize(
    "values",
    [[0.3] * 50, [0.3], [0.1, 0.9], [0.0] * 49 + [1.0]],
    ids=["constant", "one sample", "two samples", "one outlier"],
)
def test_collapsed_components_stay_finite(values):
    features = torch.tensor([values, values]).T.unsqueeze(0)
    segments = torch.zeros(len(values), dtype=torch.int64)
    mixture = fit_mixture(features, segments, MEANS.view(1, 1, 3, 2), MixtureConfig(tolerance=0.0))
    posteriors = mixture_posteriors(mixture, features, segments)
    for value in (mixture.weights, mixture.means, mixture.covariances, posteriors):
        assert value.isfinite().all()
    torch.testing.assert_close(posteriors.sum(-1), torch.ones(1, len(values)).double())
    torch.testing.assert_close(mixture.weights.sum(-1), torch.ones(1, 1).double())


def test_a_component_without_samples_stays_where_it_was():
    features, segments, _ = _case(num_networks=1, num_segments=1)
    remote = torch.tensor([50.0, 50.0]).double()
    means = torch.stack([MEANS[0], MEANS[1], remote]).view(1, 1, 3, 2)
    mixture = fit_mixture(features, segments, means)
    assert mixture.weights[0, 0, 2] < 1e-12
    torch.testing.assert_close(mixture.means[0, 0, 2], remote)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, s, m: (f[:, :-1], s, m), r"\(2, 2999, 2\).*\(2, 3000, 2\)"),
        (lambda f, s, m: (f, s + 1, m), "1..3; expected 0..2"),
        (lambda f, s, m: (f * math.nan, s, m), "NaN"),
        # Two equal features: a singular covariance, and a regulariser too small to mend it.
        (lambda f, s, m: (f[..., [0, 0]], s, m[..., [0, 0]]), "not positive definite"),
    ],
)
def test_unusable_input_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        fit_mixture(*change(*_case()), MixtureConfig(reg_covar=1e-300))
