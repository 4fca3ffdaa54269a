import math

import pytest
import torch
import torch.nn.functional as F
from small_problem import (
    LABELS,
    NUM_CLASSES,
    NUM_EPOCHS,
    TRAIN_IDS,
    build_pair,
    draw,
    judge,
    make_batch,
    mean_labels,
)

from methods.losses import sharpen, supervised_contrastive
from methods.qmix import omega, relative_to_class
from methods.separation import CORRECT, MIS_H, MIS_L, separate_quality

WARM_UP, TRAIN = 0, 3  # an epoch of each phase
SETTINGS = {"warmup_epochs": 2, "projector_dim": 4, "lambda_prior": 0.5}


def make_qmix(**settings):
    return build_pair("qmix", **SETTINGS | settings)


def cross_entropy(logits, targets):
    return -(targets * F.log_softmax(logits, -1)).sum()


# -- the weight of Mis-L --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epoch", "expected"), [(10, 0.8), (55, 0.4), (100, 0.0), (20, 0.8 * 80 / 90)]
)
def test_omega_falls_from_its_start_to_zero(epoch, expected):
    assert omega(epoch, 10, 100, 0.8) == pytest.approx(expected)


def test_omega_without_any_epoch_after_warm_up():
    assert omega(10, 10, 10, 1.0) == 0


# -- phases ----------------------------------------------------------------------------------------


def test_warm_up_is_cross_entropy_on_all_labels():
    method, ledger = make_qmix()
    judge(ledger, 0, MIS_L)  # which warm-up does not look at
    batch = make_batch(method, ledger, WARM_UP)
    terms = method(batch)
    assert terms.keys() == {"warm_up_a", "warm_up_b"}
    for network, term in zip(method.networks, terms.values(), strict=True):
        logits = network(batch.views["strong"]).logits
        expected = F.cross_entropy(logits, LABELS[:8], reduction="sum")
        torch.testing.assert_close(term.total, expected)
        assert (term.count.item(), term.weight) == (8, 1)


def test_phases_ask_for_what_they_need():
    method, _ = make_qmix(num_weak_views=3)
    assert set(method.views(1)) == {"strong"}
    assert not method.needs_survey(1)
    views = method.views(2)
    assert method.needs_survey(2)
    assert [view.kind for view in views.values()].count("strong") == 1
    weak = {view for view in views.values() if view.kind == "weak"}
    assert len(weak) == 3


def test_with_statistics_of_steps_one_survey_is_enough():
    method, _ = make_qmix(statistics="steps")
    assert [method.needs_survey(epoch) for epoch in range(5)] == [False, False, True, False, False]
    assert [method.separates(epoch) for epoch in range(5)] == [False, False, True, True, True]
    assert method.forwards_per_image(3) == {"with_gradient": 2, "without": 4, "survey": 0}


# -- supervised terms ------------------------------------------------------------------------------

GROUPS_OF_BATCH = [CORRECT, MIS_H, MIS_L, CORRECT, MIS_H, CORRECT, MIS_L, MIS_L]


@pytest.mark.parametrize("refine_with", ["own", "both"])
def test_terms_equal_their_formulas(refine_with):
    method, ledger = make_qmix(
        refine_with=refine_with, temperature=0.7, omega_start=0.8, lambda_mis_h=2.0
    )
    judge(ledger, 1, GROUPS_OF_BATCH + [CORRECT] * 4, correct=0.6)
    batch = make_batch(method, ledger, TRAIN)
    terms, labelled = method(batch), mean_labels(method, batch)
    both = labelled.mean(0)
    partner = both if refine_with == "both" else labelled[0]
    logits = method.networks[0](batch.views["strong"]).logits
    correct, mis_h, mis_l = (torch.tensor(GROUPS_OF_BATCH) == g for g in (CORRECT, MIS_H, MIS_L))

    refined = sharpen(0.6 * F.one_hot(LABELS[:8], NUM_CLASSES) + 0.4 * partner, 0.7)
    torch.testing.assert_close(
        terms["correct_a"].total, cross_entropy(logits[correct], refined[correct])
    )
    guessed = F.softmax(logits, -1) - sharpen(both, 0.7)
    torch.testing.assert_close(terms["mis_h_a"].total, guessed[mis_h].square().sum())
    torch.testing.assert_close(terms["mis_l_a"].total, cross_entropy(logits[mis_l], partner[mis_l]))
    assert [terms[f"{n}_a"].count.item() for n in ("correct", "mis_h", "mis_l")] == [3, 2, 3]
    # Epoch 3 of 6 with two of warm-up: omega is 3/4 of its start.
    weights = [terms[f"{name}_a"].weight for name in ("correct", "mis_h", "mis_l")]
    assert weights == pytest.approx([1, 2, 0.6])


@pytest.mark.parametrize("trained", [0, 1])
def test_each_network_is_trained_by_the_others_division(trained):
    method, ledger = make_qmix()
    before = method(make_batch(method, ledger, TRAIN))
    judge(ledger, 1 - trained, [MIS_H] * 6 + [MIS_L] * 6, correct=0.1)
    after = method(make_batch(method, ledger, TRAIN))

    def values(terms, suffix):
        return {n: t.total.item() for n, t in terms.items() if n.endswith(suffix)}

    suffix, other = ("_a", "_b") if trained == 0 else ("_b", "_a")
    assert values(after, other) == values(before, other)
    changed, unchanged = values(after, suffix), values(before, suffix)
    for name in ("correct", "mis_h", "mis_l", "contrastive"):
        assert changed[name + suffix] != unchanged[name + suffix], name
    assert after[f"correct{suffix}"].count.item() == 0
    assert after[f"mis_h{suffix}"].count.item() == 6
    assert after[f"mis_l{suffix}"].count.item() == 2


def test_a_sure_label_is_taken_as_given():
    method, ledger = make_qmix()
    judge(ledger, 1, CORRECT, correct=1.0)
    batch = make_batch(method, ledger, TRAIN)
    logits = method.networks[0](batch.views["strong"]).logits
    expected = F.cross_entropy(logits, LABELS[:8], reduction="sum")
    torch.testing.assert_close(method(batch)["correct_a"].total, expected)


# -- contrast and prior ----------------------------------------------------------------------------


def test_contrast_is_over_correct_by_class_and_mis_l_as_one_more():
    method, ledger = make_qmix(contrastive_temperature=0.3, lambda_contrastive=0.2)
    judge(ledger, 1, GROUPS_OF_BATCH + [CORRECT] * 4)
    batch = make_batch(method, ledger, TRAIN)
    network = method.networks[0]
    embedding = network.project(network(batch.views["strong"]).features)
    # Labels 0, 1, 2, 0, 1, 0, 0, 2: Correct keeps them, Mis-H takes no part, Mis-L is class 3.
    classes = torch.tensor([0, -1, 3, 0, -1, 0, 3, 3])
    total, count = supervised_contrastive(
        embedding, classes, embedding, classes, own_index=torch.arange(8), temperature=0.3
    )
    term = method(batch)["contrastive_a"]
    torch.testing.assert_close(term.total, total)
    assert (term.count.item(), term.weight) == (count.item(), 0.2) == (6, 0.2)


def test_the_prior_is_that_of_the_training_labels():
    method, ledger = make_qmix(lambda_prior=0.25)
    # Of the ten training samples four are of class 0, two of 1 and four of 2.
    prior = torch.tensor([0.4, 0.2, 0.4])
    torch.testing.assert_close(method.get_buffer("prior"), prior)
    batch = make_batch(method, ledger, TRAIN)
    mean = F.softmax(method.networks[1](batch.views["strong"]).logits, -1).mean(0)
    term = method(batch)["prior_b"]
    torch.testing.assert_close(term.total, (prior * (prior / mean).log()).sum())
    assert (term.count.item(), term.weight) == (1, 0.25)


# -- gradients and averages ------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [WARM_UP, TRAIN])
@pytest.mark.parametrize("group", [CORRECT, MIS_H, MIS_L])
def test_whatever_a_batch_holds_every_parameter_has_a_finite_gradient(epoch, group):
    method, ledger = make_qmix()
    for network in range(2):
        judge(ledger, network, group)
    sum(term.total for term in method(make_batch(method, ledger, epoch)).values()).backward()
    for name, parameter in method.networks.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all(p.grad is None and not p.requires_grad for p in method.averages.parameters())


@pytest.mark.parametrize("decay", [0.0, 0.75])
def test_averages_follow_after_each_step(decay):
    method, _ = make_qmix(ema_decay=decay)
    before = [{k: v.clone() for k, v in a.copy.state_dict().items()} for a in method.averages]
    method.after_step()
    for average, network, old in zip(method.averages, method.networks, before, strict=True):
        for name, value in network.state_dict().items():
            new = average.copy.state_dict()[name]
            torch.testing.assert_close(new, decay * old[name] + (1 - decay) * value)
            if decay == 0:
                assert torch.equal(new, value)


def test_predictions_are_those_of_the_averages():
    method, _ = make_qmix()
    images = draw(4, 3, 8, 8, seed=9)
    expected = torch.stack([average(images) for average in method.averages])
    assert torch.equal(method.eval()(images), expected)
    assert (expected[0] - expected[1]).abs().max() > 1e-3


# -- survey and separation -------------------------------------------------------------------------


def survey(method, ledger, probabilities, ids):
    method.observe(ledger, ids, torch.as_tensor(probabilities))
    ledger.synchronise()


def test_statistics_of_surveys_are_averaged_by_hand():
    method, ledger = make_qmix()
    ids = torch.tensor([3, 4])  # of classes 0 and 1
    first = [[[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]]
    survey(method, ledger, first, ids)
    log2 = math.log(2)
    # The first survey is taken as it is; rows are samples, columns are networks.
    expected_loss = torch.tensor([[log2, 0], [0, log2]])
    expected_uncertainty = torch.tensor([[1.5 * log2, 0], [0, log2]])
    torch.testing.assert_close(ledger["loss"][ids], expected_loss)
    torch.testing.assert_close(ledger["uncertainty"][ids], expected_uncertainty)

    second = [[[0.25, 0.25, 0.5], [0.5, 0.5, 0.0]], [[0.5, 0.5, 0.0], [0.5, 0.25, 0.25]]]
    survey(method, ledger, second, ids)
    new_loss = torch.tensor([[2 * log2, log2], [log2, 2 * log2]])
    new_uncertainty = torch.tensor([[1.5 * log2, log2], [log2, 1.5 * log2]])
    torch.testing.assert_close(ledger["loss"][ids], 0.6 * expected_loss + 0.4 * new_loss)
    torch.testing.assert_close(
        ledger["uncertainty"][ids], 0.6 * expected_uncertainty + 0.4 * new_uncertainty
    )
    others = torch.tensor([i for i in range(len(LABELS)) if i not in (3, 4)])
    assert ledger["loss"][others].isnan().all()


def test_a_step_notes_what_a_survey_would_of_the_weak_views_labels():
    method, ledger = make_qmix(statistics="steps")
    batch = make_batch(method, ledger, TRAIN)
    method(batch)
    by_step = {name: batch.updates[name] for name in ("loss", "uncertainty", "predicted")}
    method.observe(ledger, batch.sample_ids, mean_labels(method, batch))
    ledger.synchronise()
    for name, values in by_step.items():
        torch.testing.assert_close(ledger[name][batch.sample_ids], values, check_dtype=False)
    surveying, ledger = make_qmix()
    batch = make_batch(surveying, ledger, TRAIN)
    surveying(batch)
    assert batch.updates == {}


def test_a_probability_of_zero_is_a_finite_loss():
    method, ledger = make_qmix()
    survey(method, ledger, [[[0.0, 1.0, 0.0]]] * 2, torch.tensor([0]))
    assert ledger["loss"][0].isfinite().all() and (ledger["loss"][0] > 80).all()


def predictions(seed=0):
    """Each network is sure of another label for three samples, and unsure of one."""
    labels = LABELS[TRAIN_IDS]
    logits = 4 * F.one_hot(labels, NUM_CLASSES) + 0.3 * draw(2, 10, NUM_CLASSES, seed=seed)
    for network, wrong, unsure in ((0, [0, 1, 2], 3), (1, [3, 4, 5], 0)):
        logits[network, wrong] = 4.0 * F.one_hot((labels[wrong] + 1) % NUM_CLASSES, NUM_CLASSES)
        logits[network, unsure] = 0.1 * draw(NUM_CLASSES)
    return F.softmax(logits, -1)


@pytest.mark.parametrize("relative", [False, True])
def test_separation_is_written_for_training_samples_alone(relative):
    method, ledger = make_qmix(relative_uncertainty=relative)
    probabilities = predictions()
    survey(method, ledger, probabilities, TRAIN_IDS)
    method.separate(ledger, TRAIN)

    losses, uncertainties = (ledger[name][TRAIN_IDS].T for name in ("loss", "uncertainty"))
    if relative:
        uncertainties, predicted = uncertainties.double(), probabilities.argmax(-1)
        for network in range(2):
            for c in range(NUM_CLASSES):
                alike = predicted[network] == c
                uncertainties[network, alike] -= uncertainties[network, alike].mean()
    expected = separate_quality(losses, uncertainties, LABELS[TRAIN_IDS], NUM_CLASSES)
    assert torch.equal(ledger["group"][TRAIN_IDS], expected.groups.T)
    torch.testing.assert_close(
        ledger["posterior"][TRAIN_IDS], expected.posteriors.transpose(0, 1).float()
    )
    assert (ledger["group"][2:5, 0] == MIS_H).all() and (ledger["group"][5:8, 1] == MIS_H).all()
    assert ledger["group"][5, 0] == ledger["group"][2, 1] == MIS_L
    assert ledger["posterior"][:2].eq(0).all() and ledger["group"][:2].eq(CORRECT).all()


def test_a_network_that_tells_nothing_apart_is_named(caplog):
    method, ledger = make_qmix()
    probabilities = predictions()
    survey(method, ledger, probabilities, TRAIN_IDS)
    method.separate(ledger, TRAIN)
    assert not caplog.text
    probabilities[1] = 1 / NUM_CLASSES
    method, ledger = make_qmix()
    survey(method, ledger, probabilities, TRAIN_IDS)
    method.separate(ledger, TRAIN)
    classes = list(range(NUM_CLASSES))
    assert f"epoch {TRAIN + 1}, network B: in classes {classes} the mixture's" in caplog.text
    assert "network A" not in caplog.text and (ledger["group"][TRAIN_IDS, 1] == CORRECT).all()


def test_the_mixture_that_is_drawn_goes_with_its_groups():
    """The last separation; of statistics that are newer than it, the one to come."""
    method, ledger = make_qmix()
    for seed in range(2):
        survey(method, ledger, predictions(seed), TRAIN_IDS)
        drawn = method.fitted_mixture(ledger)
        method.separate(ledger, TRAIN)
        assert torch.equal(drawn.groups.T, ledger["group"][TRAIN_IDS])
        assert torch.equal(method.fitted_mixture(ledger).groups, drawn.groups)
        assert drawn.features.shape == (2, len(TRAIN_IDS), 2)


def test_uncertainty_relative_to_the_predicted_class_by_hand():
    relative = relative_to_class(torch.tensor([[1.0, 3, 5]]), torch.tensor([[0, 0, 1]]), 3)
    assert relative.tolist() == [[-1, 1, 0]]
    uncertainty, predicted = draw(2, 50).abs(), torch.arange(100).view(2, 50) % 3
    relative = relative_to_class(uncertainty, predicted, 3)
    for network in range(2):
        for c in range(3):
            alike = predicted[network] == c
            values = uncertainty[network, alike].double()
            torch.testing.assert_close(relative[network, alike], values - values.mean())


def test_a_survey_that_is_not_finite_names_the_samples():
    method, ledger = make_qmix()
    probabilities = predictions()
    probabilities[1, 6] = math.nan
    survey(method, ledger, probabilities, TRAIN_IDS)
    with pytest.raises(ValueError, match="loss is not finite for network 1: sample_ids 8$"):
        method.separate(ledger, TRAIN)


def test_the_last_epoch_still_weighs_mis_l():
    method, ledger = make_qmix()
    terms = method(make_batch(method, ledger, NUM_EPOCHS - 1))
    assert terms["mis_l_a"].weight == pytest.approx(1 / 4)
