import math

import pytest
import torch
import torch.nn.functional as F
from small_problem import (
    LABELS,
    NUM_CLASSES,
    build_ledger,
    build_method,
    draw,
    make_batch,
)

from methods.elr import running_target
from methods.mixmatch import mixup_coefficient

PARTNER = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])
GIVEN = F.one_hot(LABELS[:8], NUM_CLASSES).float()
OLD = F.softmax(draw(12, 2, NUM_CLASSES, seed=4), -1)


def penalty(logits, targets):
    return (1 - (F.softmax(logits, -1) * targets).sum(-1)).log().sum()


def cross_entropy(logits, targets):
    return -(targets * F.log_softmax(logits, -1)).sum()


# -- the target ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "predicted", "beta", "expected"),
    [
        ([0.5, 0.5], [0.9, 0.1], 0.7, [0.35 + 0.27, 0.35 + 0.03]),
        ([0.0, 0.0], [0.9, 0.1], 0.7, [0.27, 0.03]),
        ([0.5, 0.5], [0.9, 0.1], 0.0, [0.9, 0.1]),
        ([0.0, 0.0], [1.0, 0.0], 0.0, [0.9999, 0.0001]),
        # Within [1e-4, 1 - 1e-4], then of sum 1 again.
        ([0.0] * 3, [1.0, 0.0, 0.0], 0.0, [0.9999 / 1.0001, 0.0001 / 1.0001, 0.0001 / 1.0001]),
    ],
)
def test_the_running_target_by_hand(old, predicted, beta, expected):
    target = running_target(torch.tensor([old]), torch.tensor([predicted]), beta)
    assert target.tolist() == [pytest.approx(expected)]


def test_targets_have_no_gradient_and_single_precision():
    predicted = F.softmax(draw(4, 3), -1).bfloat16().requires_grad_()
    target = running_target(torch.zeros(4, 3), predicted, 0.7)
    assert not target.requires_grad and target.dtype == torch.float32


def test_the_target_of_a_constant_prediction_is_reached_from_below():
    target, predicted = torch.zeros(1, 2), torch.tensor([[0.75, 0.25]])
    for epoch in range(1, 4):
        target = running_target(target, predicted, 0.7)
        torch.testing.assert_close(target, (1 - 0.7**epoch) * predicted)


# -- ELR -------------------------------------------------------------------------------------------


def make_elr(**settings):
    method = build_method("elr", **settings)
    ledger = build_ledger(method)
    ledger.fill("target", OLD[:, 0])
    return method, ledger


def test_elr_is_cross_entropy_and_the_regulariser():
    method, ledger = make_elr(beta=0.6, lambda_elr=2.0)
    batch = make_batch(method, ledger, 1)
    logits = method.network(batch.views["image"]).logits
    targets = 0.6 * OLD[:8, 0] + 0.4 * F.softmax(logits.detach(), -1)
    terms = method(batch)
    assert terms.keys() == {"cross_entropy", "early_learning"}
    expected = F.cross_entropy(logits, LABELS[:8], reduction="sum")
    torch.testing.assert_close(terms["cross_entropy"].total, expected)
    torch.testing.assert_close(terms["early_learning"].total, penalty(logits, targets))
    assert [(t.count.item(), t.weight) for t in terms.values()] == [(8, 1), (8, 2)]


@pytest.mark.parametrize("name", ["elr", "elr_plus"])
@pytest.mark.parametrize(
    ("ramp_up_epochs", "epoch", "share"),
    [(0, 0, 1), (4, 0, math.exp(-5)), (4, 2, math.exp(-1.25)), (4, 4, 1), (4, 9, 1)],
)
def test_the_weight_of_the_regulariser_rises(name, ramp_up_epochs, epoch, share):
    method = build_method(name, lambda_elr=2.0, ramp_up_epochs=ramp_up_epochs)
    terms = method(make_batch(method, build_ledger(method), epoch))
    weights = [t.weight for key, t in terms.items() if "early_learning" in key]
    assert weights == [pytest.approx(2 * share)] * len(weights) and weights


def test_no_gradient_flows_through_elrs_target():
    method, ledger = make_elr()
    batch = make_batch(method, ledger, 1)
    method(batch)["early_learning"].total.backward()
    weight = method.network.classifier.weight
    found, weight.grad = weight.grad, None
    penalty(method.network(batch.views["image"]).logits, batch.updates["target"]).backward()
    torch.testing.assert_close(found, weight.grad)
    assert not batch.updates["target"].requires_grad


def test_elrs_target_goes_by_the_ledger_into_the_next_epoch():
    method, ledger = make_elr(beta=0.5)
    ledger.fill("target", torch.zeros(12, NUM_CLASSES))
    batch = make_batch(method, ledger, 0)
    predicted = F.softmax(method.network(batch.views["image"]).logits.detach(), -1)
    for share in (0.5, 0.75):
        batch = make_batch(method, ledger, 0)
        method(batch)
        assert batch.updates.keys() == {"target"}
        torch.testing.assert_close(batch.updates["target"], share * predicted)
        ledger.write(batch.sample_ids, **batch.updates)
        ledger.synchronise()
    torch.testing.assert_close(ledger["target"][:8], 0.75 * predicted)
    assert ledger["target"][8:].eq(0).all()


@pytest.mark.parametrize("name", ["elr", "elr_plus"])
@pytest.mark.parametrize("view", ["weak", "strong"])
def test_the_view_is_the_one_that_is_asked_for(name, view):
    method = build_method(name, view=view)
    assert {view.kind for view in method.views(0).values()} == {view}


# -- ELR+ ------------------------------------------------------------------------------------------


def make_elr_plus(**settings):
    """ELR+, its ledger, and averages that differ from the networks as they do in a run."""
    method = build_method("elr_plus", **settings)
    for number, average in enumerate(method.averages):
        for parameter in average.parameters():
            parameter += 0.3 * draw(*parameter.shape, seed=number)
    ledger = build_ledger(method)
    ledger.fill("target", OLD)
    return method, ledger


def expected_targets(method, images, beta):
    """(2, B, C): of A by the average of B and the other way round."""
    of_a, of_b = (F.softmax(average.copy(images).logits, -1) for average in method.averages)
    return torch.stack([beta * OLD[:8, 0] + (1 - beta) * of_b,
                        beta * OLD[:8, 1] + (1 - beta) * of_a])  # fmt: skip


def test_targets_of_each_network_come_from_the_others_average_and_the_image_as_it_is():
    method, ledger = make_elr_plus(beta=0.6)
    batch = make_batch(method, ledger, 1, step=5)
    method(batch)
    expected = expected_targets(method, batch.views["image"], 0.6)
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    torch.testing.assert_close(batch.updates["target"], expected.transpose(0, 1))
    assert not batch.updates["target"].requires_grad


@pytest.mark.parametrize("step", [0, 6])
def test_elr_plus_learns_from_mixed_images_labels_and_targets(step):
    method, ledger = make_elr_plus(beta=0.6, lambda_elr=2.0, mixup_alpha=0.8)
    batch = make_batch(method, ledger, 1, step=step)
    share = mixup_coefficient(0.8, method.problem.seed, step)
    # Of two that are mixed with each other either may have the larger share: sums are the same.
    images = batch.views["image"]
    mixed = share * images + (1 - share) * images[PARTNER]
    labels = share * GIVEN + (1 - share) * GIVEN[PARTNER]
    targets = expected_targets(method, images, 0.6)
    targets = share * targets + (1 - share) * targets[:, PARTNER]
    terms = method(batch)
    assert len(terms) == 4
    for index, letter in enumerate("ab"):
        logits = method.networks[index](mixed).logits
        fit, regulariser = terms[f"cross_entropy_{letter}"], terms[f"early_learning_{letter}"]
        torch.testing.assert_close(fit.total, cross_entropy(logits, labels))
        torch.testing.assert_close(regulariser.total, penalty(logits, targets[index]))
        assert (fit.count.item(), fit.weight) == (8, 1)
        assert (regulariser.count.item(), regulariser.weight) == (8, 2)


def test_elr_plus_without_mixup_takes_images_as_they_are():
    method, ledger = make_elr_plus(mixup_alpha=0.0)
    batch = make_batch(method, ledger, 1, ids := [0, 1, 2])  # an odd number will do
    logits = method.networks[0](batch.views["image"]).logits
    expected = F.cross_entropy(logits, LABELS[ids], reduction="sum")
    torch.testing.assert_close(method(batch)["cross_entropy_a"].total, expected)


def test_the_averages_of_elr_plus_get_no_gradient_and_predict():
    method, ledger = make_elr_plus()
    sum(term.total for term in method(make_batch(method, ledger, 1)).values()).backward()
    assert all(p.grad is None and not p.requires_grad for p in method.averages.parameters())
    images = draw(4, 3, 8, 8, seed=9)
    expected = torch.stack([average(images) for average in method.averages])
    assert torch.equal(method.eval()(images), expected)


def test_a_sure_prediction_that_agrees_with_its_target_stays_finite():
    method, ledger = make_elr()
    with torch.no_grad():
        method.network.classifier.weight.mul_(1e4)
    for _ in range(20):
        batch = make_batch(method, ledger, 1)
        terms = method(batch)
        ledger.write(batch.sample_ids, **batch.updates)
        ledger.synchronise()
    assert terms["early_learning"].total.item() >= 8 * math.log(1e-4) * 1.01
    sum(term.total for term in terms.values()).backward()
    assert all(p.grad.isfinite().all() for p in method.parameters())
