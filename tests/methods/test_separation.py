import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, roc_auc_score
from sklearn.mixture import GaussianMixture

from methods.separation import (
    ALL_CORRECT,
    CORRECT,
    MIS_H,
    MIS_L,
    OWN_FIT,
    POOLED_FIT,
    MixtureConfig,
    SeparationConfig,
    SeparationError,
    fit_mixture,
    scale_to_unit,
    separate_loss,
    separate_quality,
)
from methods.separation.groups import _arrange, quality_prototypes
from methods.separation.quantiles import segment_quantiles

NUM_CLASSES = 5


def _statistics(num_samples=3000, seed=0, confidence=6.0):
    """Losses and uncertainties (2, N) of simulated softmax outputs, given labels and true groups.

    40 % Mis-H: the output favours the true class, the given label is another. 15 % Mis-L: the
    output hardly favours any class.
    """
    rng = np.random.default_rng(seed)
    true_labels = rng.integers(0, NUM_CLASSES, num_samples)
    groups = rng.choice([CORRECT, MIS_H, MIS_L], num_samples, p=[0.45, 0.40, 0.15])
    other = (true_labels + rng.integers(1, NUM_CLASSES, num_samples)) % NUM_CLASSES
    labels = np.where(groups == MIS_H, other, true_labels)
    rows = np.arange(num_samples)
    losses, uncertainties = [], []
    for _ in range(2):
        logits = rng.normal(size=(num_samples, NUM_CLASSES))
        favour = confidence * rng.uniform(0.5, 1.5, num_samples)
        logits[rows, true_labels] += np.where(groups == MIS_L, 0.2 * favour, favour)
        log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        losses.append(-log_probabilities[rows, labels])
        uncertainties.append(-(np.exp(log_probabilities) * log_probabilities).sum(1))
    arrays = np.array(losses), np.array(uncertainties), labels, groups
    return tuple(torch.from_numpy(array) for array in arrays)


def _assert_distributions(separation):
    total = separation.posteriors.sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))
    assert torch.equal(separation.groups, separation.posteriors.argmax(-1).to(torch.uint8))


def test_group_numbers_are_those_of_the_data():
    noise = pytest.importorskip("data.noise")
    assert (CORRECT, MIS_H, MIS_L) == (noise.CORRECT, noise.MIS_H, noise.MIS_L)


# -- quantiles -------------------------------------------------------------------------------------


def test_scaling_by_hand():
    values = torch.arange(1001.0)
    # The 0.5 % and 99.5 % quantiles of 0..1000 are 5 and 995.
    expected = ((values - 5) / 990).clamp(0, 1).double()
    torch.testing.assert_close(scale_to_unit(values.unsqueeze(0))[0], expected)


def test_scaling_is_per_network_and_constant_values_become_zero():
    spread = torch.linspace(-3, 7, 100)
    scaled = scale_to_unit(torch.stack([spread, 1000 * spread, torch.full((100,), 4.0)]))
    torch.testing.assert_close(scaled[0], scaled[1], rtol=0, atol=1e-6)
    assert scaled[0].min() == 0 and scaled[0].max() == 1
    assert scaled[2].tolist() == [0.0] * 100


def test_one_huge_loss_does_not_squeeze_the_others():
    values = torch.cat([torch.linspace(0, 1, 999), torch.tensor([1e6])]).unsqueeze(0)
    assert scale_to_unit(values)[0, 499] == pytest.approx(0.5, abs=0.01)


def test_segment_quantiles_agree_with_numpy():
    rng = np.random.default_rng(0)
    values, segments = rng.normal(size=(2, 60)), rng.choice([0, 1, 3], 60)
    segments[7] = 4  # one sample alone; segment 2 is empty
    quantiles = (0.0, 0.1, 0.5, 1.0)
    result = segment_quantiles(torch.from_numpy(values), torch.from_numpy(segments), 6, quantiles)
    for segment in (0, 1, 3, 4):
        expected = np.quantile(values[:, segments == segment], quantiles, axis=1).T
        np.testing.assert_allclose(result[:, segment], expected, atol=1e-12)
    assert not result[:, [2, 5]].any()


def test_prototypes_by_hand():
    loss, uncertainty = torch.linspace(0, 1, 11).double(), torch.linspace(0, 2, 11).double()
    features = torch.stack([loss, uncertainty], dim=-1).unsqueeze(0)
    prototypes = quality_prototypes(features, torch.zeros(11, dtype=torch.int64), 1)[0, 0]
    expected = torch.tensor([[0.2, 0.4], [0.9, 0.4], [0.5, 1.8]]).double()
    torch.testing.assert_close(prototypes, expected)


# -- meaning of components -------------------------------------------------------------------------

PROTOTYPES = torch.tensor([[0.0, 0.0], [0.9, 0.1], [0.4, 0.8]]).double().view(1, 1, 3, 2)
ALIVE = torch.ones(1, 1, 3, dtype=torch.bool)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 0, 2]])
def test_components_are_recognised_wherever_em_left_them(order):
    found, sensible = _arrange(PROTOTYPES[:, :, order] + 0.05, PROTOTYPES, ALIVE)
    assert [order[component] for component in found[0, 0].tolist()] == [CORRECT, MIS_H, MIS_L]
    assert sensible.item()


def test_mis_h_that_is_hardly_more_uncertain_than_mis_l_stays_mis_h():
    means = torch.tensor([[0.0, 0.02], [0.9, 0.36], [0.1, 0.35]]).double().view(1, 1, 3, 2)
    found, sensible = _arrange(means, PROTOTYPES, ALIVE)
    assert found[0, 0].tolist() == [0, 1, 2] and sensible.item()


@pytest.mark.parametrize(
    "means",
    [
        [[0.5, 0.0], [0.2, 0.1], [0.2, 0.9]],  # lowest loss twice, by neither the most certain
        [[0.2, 0.5], [0.5, 0.2], [0.9, 0.1]],  # uncertainty falls as the loss rises
        [[0.3, 0.3], [0.3, 0.3], [0.3, 0.3]],
        [[0.1, 0.2], [0.1005, 0.2], [0.1005, 0.2005]],  # told apart by less than a thousandth
    ],
)
def test_senseless_arrangement_is_reported(means):
    _, sensible = _arrange(torch.tensor(means).double().view(1, 1, 3, 2), PROTOTYPES, ALIVE)
    assert not sensible.item()


def test_correct_is_not_a_component_that_lost_its_samples():
    for dead, expected in [(CORRECT, False), (MIS_H, True), (MIS_L, True)]:
        alive = ALIVE.clone()
        alive[..., dead] = False
        assert _arrange(PROTOTYPES, PROTOTYPES, alive)[1].item() == expected


# -- QMix ------------------------------------------------------------------------------------------


def test_finds_the_noise_in_realistic_outputs():
    losses, uncertainties, labels, groups = _statistics()
    separation = separate_quality(losses, uncertainties, labels, NUM_CLASSES)
    _assert_distributions(separation)
    assert (separation.source == OWN_FIT).all()
    wrong = 1 - separation.posteriors.mean(0)[:, CORRECT]
    assert roc_auc_score(groups != CORRECT, wrong) > 0.98
    for network in range(2):
        found = separation.groups[network]
        assert (groups[found == CORRECT] == CORRECT).double().mean() > 0.9
        assert (groups[found == MIS_H] == MIS_H).double().mean() > 0.9
        assert (found[groups == MIS_L] == MIS_L).double().mean() > 0.7


def test_same_partition_as_scikit_learn():
    losses, uncertainties, labels, _ = _statistics()
    config = SeparationConfig(tolerance=1e-7, max_iterations=1000)
    separation = separate_quality(losses, uncertainties, labels, NUM_CLASSES, config=config)
    features = torch.stack([scale_to_unit(losses), scale_to_unit(uncertainties)], dim=-1)
    means = quality_prototypes(features, labels, NUM_CLASSES)
    unmoved = MixtureConfig(max_iterations=0, reg_covar=config.reg_covar)
    start = fit_mixture(features, labels, means, unmoved)
    for network in range(2):
        for c in range(NUM_CLASSES):
            rows = labels == c
            theirs = GaussianMixture(
                3,
                weights_init=start.weights[network, c].numpy(),
                means_init=start.means[network, c].numpy(),
                precisions_init=torch.linalg.inv(start.covariances[network, c]).numpy(),
                tol=1e-7,
                max_iter=1000,
                reg_covar=config.reg_covar,
            )
            partition = theirs.fit_predict(features[network, rows].numpy())
            assert adjusted_rand_score(partition, separation.groups[network, rows]) >= 0.98
            log_likelihood = separation.mixture.log_likelihood[network, c].item()
            assert log_likelihood == pytest.approx(theirs.lower_bound_, abs=1e-6)


def test_order_of_samples_and_of_networks_does_not_matter():
    losses, uncertainties, labels, _ = _statistics()
    order = torch.randperm(labels.numel(), generator=torch.Generator().manual_seed(2))
    straight = separate_quality(losses, uncertainties, labels, NUM_CLASSES)
    shuffled = separate_quality(
        losses[:, order].flip(0), uncertainties[:, order].flip(0), labels[order], NUM_CLASSES
    )
    expected = straight.posteriors[:, order].flip(0)
    torch.testing.assert_close(shuffled.posteriors, expected, rtol=0, atol=1e-9)


def test_small_and_empty_classes_take_the_pooled_fit():
    losses, uncertainties, labels, _ = _statistics()
    rows = torch.arange(labels.numel())[labels == 4][29:]  # 29 of class 4 remain
    kept = torch.ones_like(labels, dtype=torch.bool)
    kept[rows] = False
    losses, uncertainties, labels = losses[:, kept], uncertainties[:, kept], labels[kept]
    separation = separate_quality(losses, uncertainties, labels, NUM_CLASSES + 1)
    _assert_distributions(separation)
    expected = [OWN_FIT] * 4 + [POOLED_FIT] * 2  # class 5 is empty
    assert separation.source.tolist() == [expected, expected]

    pooled = separate_quality(losses, uncertainties, torch.zeros_like(labels), 1)
    small = labels == 4
    torch.testing.assert_close(separation.posteriors[:, small], pooled.posteriors[:, small])

    config = SeparationConfig(min_samples=29)
    enough = separate_quality(losses, uncertainties, labels, NUM_CLASSES, config=config)
    assert (enough.source[:, :4] == OWN_FIT).all()
    assert not torch.equal(enough.posteriors[:, small], pooled.posteriors[:, small])


def test_class_with_constant_statistics_takes_the_pooled_fit():
    losses, uncertainties, labels, _ = _statistics()
    losses[0, labels == 2], uncertainties[0, labels == 2] = losses.min(), uncertainties.min()
    separation = separate_quality(losses, uncertainties, labels, NUM_CLASSES)
    _assert_distributions(separation)
    expected = [OWN_FIT, OWN_FIT, POOLED_FIT, OWN_FIT, OWN_FIT]
    assert separation.source.tolist() == [expected, [OWN_FIT] * NUM_CLASSES]
    assert (separation.groups[0, labels == 2] == CORRECT).all()


@pytest.mark.parametrize("num_samples", [1, 2, 3, 100])
def test_nothing_to_tell_apart_counts_as_correct(num_samples):
    values = torch.full((2, num_samples), 0.7)
    separation = separate_quality(values, values, torch.zeros(num_samples, dtype=torch.int64), 2)
    assert (separation.source == ALL_CORRECT).all()
    assert separation.posteriors.tolist() == [[[1.0, 0.0, 0.0]] * num_samples] * 2
    assert not separation.groups.any()


def test_fewer_samples_than_groups_count_as_correct_however_far_apart():
    losses, uncertainties = torch.tensor([[0.0, 5.0]]), torch.tensor([[0.0, 1.0]])
    separation = separate_quality(losses, uncertainties, torch.tensor([0, 1]), 2)
    assert separation.posteriors.tolist() == [[[1.0, 0.0, 0.0]] * 2]


def test_uncertainty_that_falls_as_the_loss_rises_is_not_called_a_separation():
    # A network surest where it contradicts the label and least sure where it agrees.
    generator = torch.Generator().manual_seed(0)
    losses = torch.cat([torch.full((1, 100), x) for x in (0.1, 0.5, 0.9)], dim=1)
    losses += 0.01 * torch.randn(1, 300, generator=generator)
    separation = separate_quality(losses, 1 - losses, torch.zeros(300, dtype=torch.int64), 1)
    assert separation.source.tolist() == [[ALL_CORRECT]]


def test_non_finite_statistics_name_network_and_samples():
    losses, uncertainties, labels, _ = _statistics(100)
    losses[1, 20:33] = torch.nan
    uncertainties[0, 5] = torch.inf
    ids = torch.arange(100) + 1000
    message = r"loss is not finite for network 1: sample_ids 1020, .*, 1029 and 3 more$"
    with pytest.raises(SeparationError, match=message):
        separate_quality(losses, uncertainties, labels, NUM_CLASSES, sample_ids=ids)
    with pytest.raises(ValueError, match=r"uncertainty is .* network 0: sample_ids 5$"):
        separate_quality(losses.nan_to_num(), uncertainties, labels, NUM_CLASSES)
    with pytest.raises(ValueError, match="sample_ids 20, 21"):
        separate_loss(losses)


@pytest.mark.parametrize(
    ("losses", "uncertainties", "labels", "message"),
    [
        (torch.ones(2, 4), torch.ones(1, 4), torch.zeros(4), r"\(2, 4\).*\(1, 4\)"),
        (torch.ones(2, 4), torch.ones(2, 4), torch.zeros(3), r"\(3,\); expected \(4,\)"),
        (
            torch.ones(2, 4),
            torch.ones(2, 4),
            torch.tensor([0, 0, 0, 2]),
            r"0\.\.2; expected 0\.\.1",
        ),
        (torch.ones(2, 0), torch.ones(2, 0), torch.zeros(0), "samples >= 1"),
        (torch.ones(4), torch.ones(4), torch.zeros(4), "networks"),
    ],
)
def test_unusable_input_is_refused(losses, uncertainties, labels, message):
    with pytest.raises(ValueError, match=message):
        separate_quality(losses, uncertainties, labels.long(), 2)


# -- DivideMix -------------------------------------------------------------------------------------


def test_loss_alone_finds_wrong_labels():
    losses, _, _, groups = _statistics()
    clean_probability = separate_loss(losses)
    assert clean_probability.shape == losses.shape and clean_probability.dtype == torch.float64
    assert roc_auc_score(groups == CORRECT, clean_probability.mean(0)) > 0.95


def test_loss_alone_by_hand():
    # Two tight clouds far apart: posteriors are 0 or 1, whatever the order of the samples.
    losses = torch.tensor([[2.0, 0.1, 2.1, 0.2, 0.1, 1.9]])
    expected = torch.tensor([[0.0, 1.0, 0.0, 1.0, 1.0, 0.0]]).double()
    torch.testing.assert_close(separate_loss(losses), expected, rtol=0, atol=1e-6)


def test_within_classes_a_class_that_is_learned_late_is_not_taken_for_noise():
    # Class 1 has larger losses throughout; the wrong labels of both classes are the last ten.
    losses = torch.linspace(0.0, 0.3, 50).repeat(2)
    losses[40:50] += 2.0
    losses[50:] += 1.5
    losses[90:] += 2.0
    labels = torch.arange(2).repeat_interleave(50)
    wrong = (torch.arange(100) % 50) >= 40
    clean = separate_loss(losses[None], labels=labels, num_classes=2)[0]
    assert torch.equal(clean < 0.5, wrong)
    assert not torch.equal(separate_loss(losses[None])[0] < 0.5, wrong)


def test_a_small_class_takes_the_division_of_all_samples():
    losses = torch.rand(2, 100, generator=torch.Generator().manual_seed(0)) ** 4
    labels = (torch.arange(100) >= 71).long()  # 29 of class 1
    pooled = separate_loss(losses)
    clean = separate_loss(losses, labels=labels, num_classes=2)
    assert torch.equal(clean[:, 71:], pooled[:, 71:])
    assert not torch.equal(clean[:, :71], pooled[:, :71])
    with pytest.raises(ValueError, match="expected 0..0"):
        separate_loss(losses, labels=labels, num_classes=1)


@pytest.mark.parametrize("num_samples", [1, 50])
def test_equal_losses_count_as_clean(num_samples):
    assert separate_loss(torch.full((2, num_samples), 1.3)).tolist() == [[1.0] * num_samples] * 2


def test_pooling_blends_a_classs_own_posteriors_with_those_over_all_classes():
    losses, uncertainties, labels, _ = _statistics(1500)

    def separate(pooling, labels=labels, num_classes=NUM_CLASSES):
        config = SeparationConfig(pooling=pooling)
        return separate_quality(losses, uncertainties, labels, num_classes, config=config)

    own, everything = separate(0.0), separate(0.0, torch.zeros_like(labels), 1)
    assert not torch.allclose(own.posteriors, everything.posteriors, atol=0.1)
    torch.testing.assert_close(separate(1.0).posteriors, everything.posteriors)
    blend = separate(0.25)
    torch.testing.assert_close(
        blend.posteriors, 0.75 * own.posteriors + 0.25 * everything.posteriors
    )
    _assert_distributions(blend)
