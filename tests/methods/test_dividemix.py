import math

import pytest
import torch
import torch.nn.functional as F
from small_problem import (
    LABELS,
    NUM_CLASSES,
    TRAIN_IDS,
    build_pair,
    draw,
    judge,
    make_batch,
    mean_labels,
)

from methods.losses import sharpen
from methods.mixmatch import mixup_coefficient
from methods.separation import CORRECT, MIS_H, SeparationError, scale_to_unit, separate_loss

WARM_UP, TRAIN = 1, 4  # an epoch of each phase
PARTNER = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])
SETTINGS = {"warmup_epochs": 2, "ramp_up_epochs": 4}
GROUPS_OF_BATCH = [CORRECT, MIS_H, MIS_H, CORRECT, MIS_H, CORRECT, CORRECT, CORRECT]


def make_dividemix(**settings):
    return build_pair("dividemix", **SETTINGS | settings)


def cross_entropy(logits, targets):
    return -(targets * F.log_softmax(logits, -1)).sum()


# -- warm-up ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence_penalty", [0.0, 0.6])
def test_warm_up_is_cross_entropy_less_entropy_on_all_labels(confidence_penalty):
    method, ledger = make_dividemix(confidence_penalty=confidence_penalty)
    judge(ledger, 0, MIS_H)  # which warm-up does not look at
    batch = make_batch(method, ledger, WARM_UP)
    terms = method(batch)
    assert terms.keys() == {"warm_up_a", "confidence_a", "warm_up_b", "confidence_b"}
    for network, letter in zip(method.networks, "ab", strict=True):
        logits = network(batch.views["weak0"]).logits
        fit, confidence = terms[f"warm_up_{letter}"], terms[f"confidence_{letter}"]
        torch.testing.assert_close(fit.total, F.cross_entropy(logits, LABELS[:8], reduction="sum"))
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        torch.testing.assert_close(confidence.total, -entropy.sum())
        assert (fit.count.item(), fit.weight) == (8, 1)
        assert (confidence.count.item(), confidence.weight) == (8, confidence_penalty)


def test_the_confidence_penalty_makes_predictions_less_sure():
    method, ledger = make_dividemix(confidence_penalty=1.0)
    batch = make_batch(method, ledger, WARM_UP)
    before = method(batch)["confidence_a"].total
    before.backward()
    with torch.no_grad():
        for parameter in method.networks[0].parameters():
            parameter -= 0.1 * parameter.grad
    assert method(batch)["confidence_a"].total < before


@pytest.mark.parametrize("epoch", [WARM_UP, TRAIN])
def test_predictions_that_underflow_have_a_finite_gradient(epoch):
    """A weight of zero does not help: zero times infinity is not a number."""
    method, ledger = make_dividemix()
    with torch.no_grad():
        for network in method.networks:
            network.classifier.weight.mul_(1e4)
    batch = make_batch(method, ledger, epoch)
    probabilities = F.softmax(method.networks[0](batch.views["weak0"]).logits, -1)
    assert (probabilities == 0).any()
    sum(term.total * term.weight for term in method(batch).values()).backward()
    assert all(p.grad.isfinite().all() for p in method.networks.parameters())


def test_phases_ask_for_what_they_need():
    method, _ = make_dividemix()
    for epoch, num_views in [(0, 1), (1, 1), (2, 2), (5, 2)]:
        views = list(method.views(epoch).values())
        assert len(set(views)) == num_views and {view.kind for view in views} == {"weak"}
        assert method.needs_survey(epoch) == method.separates(epoch) == (epoch >= 2)


# -- co-divide -------------------------------------------------------------------------------------


def survey(method, ledger, probabilities, ids):
    method.observe(ledger, ids, torch.as_tensor(probabilities))
    ledger.synchronise()


def test_losses_of_surveys_are_kept_newest_first():
    method, ledger = make_dividemix(loss_history=2)
    assert ledger["loss"].shape == (12, 2, 2) and ledger["loss"].isnan().all()
    ids, log2 = torch.tensor([3, 4]), math.log(2)  # of classes 0 and 1
    first = [[[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]]
    survey(method, ledger, first, ids)
    # Rows are samples, then networks, then surveys.
    expected = torch.tensor([[log2, 0], [0, log2]])
    torch.testing.assert_close(ledger["loss"][ids][..., 0], expected)
    assert ledger["loss"][ids][..., 1].isnan().all()
    second = [[[0.25, 0.25, 0.5], [0.5, 0.5, 0.0]], [[0.5, 0.5, 0.0], [0.5, 0.25, 0.25]]]
    survey(method, ledger, second, ids)
    newest = torch.tensor([[2 * log2, log2], [log2, 2 * log2]])
    torch.testing.assert_close(ledger["loss"][ids], torch.stack([newest, expected], -1))
    survey(method, ledger, first, ids)
    torch.testing.assert_close(ledger["loss"][ids], torch.stack([expected, newest], -1))
    others = torch.tensor([i for i in range(12) if i not in (3, 4)])
    assert ledger["loss"][others].isnan().all()


def test_a_history_of_one_survey_forgets_the_others():
    method, ledger = make_dividemix()
    assert ledger["loss"].shape == (12, 2, 1)
    for probability in (0.5, 0.25):
        survey(method, ledger, [[[probability, 0.5, 0.5 - probability]]] * 2, torch.tensor([0]))
    torch.testing.assert_close(ledger["loss"][0], torch.full((2, 1), math.log(4)))


def test_a_probability_of_zero_is_a_finite_loss():
    method, ledger = make_dividemix()
    survey(method, ledger, [[[0.0, 1.0, 0.0]]] * 2, torch.tensor([0]))
    assert ledger["loss"][0].isfinite().all() and (ledger["loss"][0] > 80).all()


def predictions(seed=0):
    """Each network finds other labels unlikely: 0 to 2 of the training samples, or 3 to 5."""
    labels = LABELS[TRAIN_IDS]
    logits = 4 * F.one_hot(labels, NUM_CLASSES) + 0.3 * draw(2, 10, NUM_CLASSES, seed=seed)
    for network, wrong in ((0, [0, 1, 2]), (1, [3, 4, 5])):
        logits[network, wrong] = 4.0 * F.one_hot((labels[wrong] + 1) % NUM_CLASSES, NUM_CLASSES)
    return F.softmax(logits, -1)


def losses_of(probabilities):
    index = LABELS[TRAIN_IDS].view(1, -1, 1).expand(2, -1, 1)
    return -probabilities.gather(2, index).squeeze(2).log()


def test_division_is_written_for_training_samples_alone():
    method, ledger = make_dividemix()
    survey(method, ledger, predictions(), TRAIN_IDS)
    method.separate(ledger, TRAIN)
    clean = separate_loss(losses_of(predictions()))
    posterior = ledger["posterior"][TRAIN_IDS]
    torch.testing.assert_close(posterior[..., 0], clean.T.float())
    torch.testing.assert_close(posterior[..., 1], 1 - clean.T.float())
    assert posterior[..., 2].eq(0).all()
    wrong = torch.zeros(10, 2, dtype=torch.bool)
    wrong[0:3, 0] = wrong[3:6, 1] = True
    assert torch.equal(ledger["group"][TRAIN_IDS] == MIS_H, wrong)
    assert torch.equal(ledger["group"][TRAIN_IDS] == CORRECT, ~wrong)
    assert ledger["posterior"][:2].eq(0).all() and ledger["group"][:2].eq(CORRECT).all()


@pytest.mark.parametrize(("threshold", "num_labelled"), [(0.01, 17), (0.5, 12), (0.95, 8)])
def test_labelled_are_those_above_the_threshold(threshold, num_labelled):
    method, ledger = make_dividemix(p_threshold=threshold)
    probabilities = F.softmax(draw(2, 10, NUM_CLASSES, seed=1), -1)
    survey(method, ledger, probabilities, TRAIN_IDS)
    method.separate(ledger, TRAIN)
    labelled = separate_loss(losses_of(probabilities)).T.gt(threshold)
    assert torch.equal(ledger["group"][TRAIN_IDS] == CORRECT, labelled)
    assert labelled.sum() == num_labelled


def test_division_is_by_the_mean_of_the_surveys_that_are_known():
    method, ledger = make_dividemix(loss_history=3)
    drawn = [F.softmax(draw(2, 10, NUM_CLASSES, seed=seed), -1) for seed in range(4)]
    for number, probabilities in enumerate(drawn):
        survey(method, ledger, probabilities, TRAIN_IDS)
        method.separate(ledger, TRAIN)
        known = drawn[max(number - 2, 0) : number + 1]
        losses = torch.stack([losses_of(p) for p in known])
        if len(known) > 1:  # each survey has the same range then
            losses = torch.stack([scale_to_unit(survey) for survey in losses])
        clean = separate_loss(losses.mean(0))
        torch.testing.assert_close(ledger["posterior"][TRAIN_IDS][..., 0], clean.T.float())


def test_division_within_classes():
    method, ledger = make_dividemix(divide="within_classes")
    survey(method, ledger, predictions(), TRAIN_IDS)
    method.separate(ledger, TRAIN)
    clean = separate_loss(losses_of(predictions()), labels=LABELS[TRAIN_IDS], num_classes=3)
    torch.testing.assert_close(ledger["posterior"][TRAIN_IDS][..., 0], clean.T.float())


@pytest.mark.parametrize("loss_history", [1, 3])
def test_a_survey_that_is_not_finite_names_the_samples(loss_history):
    method, ledger = make_dividemix(loss_history=loss_history)
    survey(method, ledger, predictions(), TRAIN_IDS)
    broken = predictions()
    broken[1, 6] = math.nan
    survey(method, ledger, broken, TRAIN_IDS)
    with pytest.raises(SeparationError, match="network 1: sample_ids 8$"):
        method.separate(ledger, TRAIN)


# -- MixMatch --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "less_than_half"), [(0, False), (4, True)])
@pytest.mark.parametrize("trained", [0, 1])
def test_terms_equal_their_formulas(trained, step, less_than_half):
    method, ledger = make_dividemix(temperature=0.7, lambda_prior=0.3, lambda_u=10.0)
    judge(ledger, 1 - trained, GROUPS_OF_BATCH + [CORRECT] * 4, correct=0.6)
    batch = make_batch(method, ledger, TRAIN, step=step)
    labelled = mean_labels(method, batch)
    given = F.one_hot(LABELS[:8], NUM_CLASSES)
    is_labelled = torch.tensor(GROUPS_OF_BATCH) == CORRECT
    targets = torch.where(
        is_labelled.unsqueeze(1),
        sharpen(0.6 * given + 0.4 * labelled[trained], 0.7),
        sharpen(labelled.mean(0), 0.7),
    )
    share = mixup_coefficient(4.0, method.problem.seed, step)
    assert (share < 0.5) == less_than_half
    share = max(share, 1 - share)
    mixed = share * targets + (1 - share) * targets[PARTNER]
    logits = torch.stack(
        [method.networks[trained](share * view + (1 - share) * view[PARTNER]).logits
         for view in batch.views.values()]
    )  # fmt: skip
    terms = method(batch)
    assert len(terms) == 6
    fit, guess, prior = (terms[f"{n}_{'ab'[trained]}"] for n in ("labelled", "unlabelled", "prior"))

    torch.testing.assert_close(fit.total, cross_entropy(logits[:, is_labelled], mixed[is_labelled]))
    assert (fit.count.item(), fit.weight) == (10, 1)
    difference = F.softmax(logits, -1) - mixed
    # A mean over classes as well as samples.
    torch.testing.assert_close(guess.total, difference[:, ~is_labelled].square().mean(-1).sum())
    # Epoch 4 with two of warm-up: half of a ramp of four epochs.
    assert (guess.count.item(), guess.weight) == (6, 5.0)
    mean = F.softmax(logits, -1).flatten(0, 1).mean(0)
    torch.testing.assert_close(prior.total, -(mean * NUM_CLASSES).log().sum() / NUM_CLASSES)
    assert (prior.count.item(), prior.weight) == (1, 0.3)


@pytest.mark.parametrize("trained", [0, 1])
def test_each_network_is_trained_by_the_others_division(trained):
    method, ledger = make_dividemix()
    before = method(make_batch(method, ledger, TRAIN))
    judge(ledger, 1 - trained, MIS_H, correct=0.1)
    after = method(make_batch(method, ledger, TRAIN))
    own, other = "ab"[trained], "ab"[1 - trained]
    for name in ("labelled", "unlabelled"):
        assert after[f"{name}_{other}"].total == before[f"{name}_{other}"].total
        assert after[f"{name}_{own}"].total != before[f"{name}_{own}"].total
    assert after[f"labelled_{own}"].count.item() == 0
    assert after[f"unlabelled_{own}"].count.item() == 16


@pytest.mark.parametrize("group", [CORRECT, MIS_H])
def test_whatever_a_batch_holds_every_parameter_has_a_finite_gradient(group):
    method, ledger = make_dividemix()
    for network in range(2):
        judge(ledger, network, group)
    sum(term.total for term in method(make_batch(method, ledger, TRAIN)).values()).backward()
    for name, parameter in method.networks.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all(p.grad is None and not p.requires_grad for p in method.averages.parameters())


@pytest.mark.parametrize(
    ("epoch", "expected"), [(2, 0.0), (3, 6.25), (4, 12.5), (6, 25.0), (60, 25.0)]
)
def test_the_unlabelled_weight_rises_linearly_after_warm_up(epoch, expected):
    method, ledger = make_dividemix()
    terms = method(make_batch(method, ledger, epoch))
    assert terms["unlabelled_a"].weight == terms["unlabelled_b"].weight == expected


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_networks_themselves_label_unless_averages_are_asked_for(ema_decay):
    method, _ = make_dividemix(ema_decay=ema_decay)
    method.after_step()
    images = draw(4, 3, 8, 8, seed=9)
    networks = torch.stack([F.softmax(n(images).logits, -1) for n in method.networks])
    by_networks = torch.equal(method.label([images]), networks)
    assert by_networks == (ema_decay == 0)
    assert torch.equal(method.eval()(images), method.label([images]))
