import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gradients import assert_gradient
from small_problem import draw

from methods.losses import early_learning_penalty, generalised_cross_entropy

LOGITS = 2 * draw(6, 4)
TARGETS = F.softmax(3 * draw(6, 4, seed=1), -1)
ONE_HOT = F.one_hot(torch.tensor([0, 3, 1, 1, 2, 0]), 4).float()


def gce(q):
    return lambda logits, targets: generalised_cross_entropy(logits, targets, q)


LOSSES = [pytest.param(gce(0.7), id="gce"), early_learning_penalty]


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients(loss):
    assert_gradient(lambda logits: loss(logits, TARGETS).sum(), LOGITS)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_sample_does_not_depend_on_the_others(loss):
    torch.testing.assert_close(loss(LOGITS[:1], TARGETS[:1]), loss(LOGITS, TARGETS)[:1])
    assert loss(LOGITS[:0], TARGETS[:0]).shape == (0,)


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_computed_in_single(loss):
    logits, targets = LOGITS.bfloat16(), TARGETS.bfloat16()
    losses = loss(logits, targets)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, loss(logits.float(), targets.float()))


# -- generalised cross-entropy ---------------------------------------------------------------------


@pytest.mark.parametrize("target", [(1.0, 0.0), (0.25, 0.75)])
def test_generalised_cross_entropy_by_hand(target):
    loss = generalised_cross_entropy(torch.zeros(1, 2), torch.tensor([target]), 0.5)
    assert loss.tolist() == pytest.approx([2 * (1 - math.sqrt(0.5))])


def test_generalised_cross_entropy_of_an_unlikely_label_by_hand():
    # p = (15/16, 1/16), whose root is 1/4.
    logits = torch.tensor([[math.log(15), 0.0]])
    loss = generalised_cross_entropy(logits, torch.tensor([[0.0, 1.0]]), 0.5)
    assert loss.tolist() == pytest.approx([1.5])


@pytest.mark.parametrize("targets", [ONE_HOT, TARGETS])
@pytest.mark.parametrize("q", [0.1, 0.6, 1.0])
def test_generalised_cross_entropy_equals_its_formula(targets, q):
    agreement = (F.softmax(LOGITS.double(), -1) * targets.double()).sum(-1).numpy()
    losses = generalised_cross_entropy(LOGITS, targets, q).numpy()
    np.testing.assert_allclose(losses, (1 - agreement**q) / q, rtol=1e-5)
    assert (losses > 0).all() and (losses < 1 / q).all()


def test_generalised_cross_entropy_lies_between_cross_entropy_and_one_minus_p():
    cross_entropy = -(ONE_HOT * F.log_softmax(LOGITS, -1)).sum(-1)
    nearly = generalised_cross_entropy(LOGITS, ONE_HOT, 1e-6)
    torch.testing.assert_close(nearly, cross_entropy, rtol=1e-4, atol=1e-6)
    one_minus_p = 1 - (ONE_HOT * F.softmax(LOGITS, -1)).sum(-1)
    torch.testing.assert_close(generalised_cross_entropy(LOGITS, ONE_HOT, 1.0), one_minus_p)


def test_gradient_of_a_hard_label_is_that_of_cross_entropy_times_a_power_of_p():
    """Zhang and Sabuncu, eq. 7: samples whose label is unlikely weigh less."""
    logits, q = LOGITS.clone().requires_grad_(), 0.7
    generalised_cross_entropy(logits, ONE_HOT, q).sum().backward()
    p = F.softmax(LOGITS, -1)
    power = (p * ONE_HOT).sum(-1, keepdim=True) ** q
    torch.testing.assert_close(logits.grad, power * (p - ONE_HOT))


@pytest.mark.parametrize("targets", [[[1.0, 0.0]], [[0.5, 0.5]]])
@pytest.mark.parametrize("q", [0.1, 0.7, 1.0])
def test_generalised_cross_entropy_where_probabilities_underflow(targets, q):
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    targets = torch.tensor(targets)
    losses = generalised_cross_entropy(logits, targets.expand(2, 2), q)
    agreement = (targets * torch.tensor([[1.0, 0.0], [0.0, 1.0]])).sum(-1)
    assert losses.tolist() == pytest.approx(((1 - agreement**q) / q).tolist())
    losses.sum().backward()
    assert logits.grad.tolist() == [[0, 0], [0, 0]]


def test_generalised_cross_entropy_of_one_class():
    losses = generalised_cross_entropy(torch.tensor([[3.0], [-2.0]]), torch.ones(2, 1), 0.7)
    assert losses.tolist() == [0, 0]


# -- early-learning penalty ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "target", "inside"),
    [
        ((0.0, 0.0), (1.0, 0.0), 1 / 2),
        # p = (3/4, 1/4); a target that does not sum to 1 yet: 1 - 3/8 - 1/16.
        ((math.log(3), 0.0), (0.5, 0.25), 9 / 16),
        ((math.log(3), 0.0), (0.0, 0.0), 1),
    ],
)
def test_early_learning_penalty_by_hand(logits, target, inside):
    penalty = early_learning_penalty(torch.tensor([logits]), torch.tensor([target]))
    assert penalty.tolist() == pytest.approx([math.log(inside)])


def test_early_learning_penalty_equals_its_formula():
    agreement = (F.softmax(LOGITS.double(), -1) * TARGETS.double()).sum(-1)
    penalty = early_learning_penalty(LOGITS, TARGETS)
    torch.testing.assert_close(penalty, (1 - agreement).log().float())


def test_early_learning_penalty_pulls_towards_the_target():
    """Liu et al., eq. 7: one step down raises the logits where the target is above average."""
    logits = LOGITS.clone().requires_grad_()
    early_learning_penalty(logits, TARGETS).sum().backward()
    p = F.softmax(LOGITS, -1)
    agreement = (p * TARGETS).sum(-1, keepdim=True)
    torch.testing.assert_close(-logits.grad, p * (TARGETS - agreement) / (1 - agreement))


def test_early_learning_penalty_of_full_agreement_is_clamped():
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    penalty = early_learning_penalty(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    # Within [1e-4, 1 - 1e-4]; 1 - (1 - 1e-4) has three digits in single precision.
    assert penalty.tolist() == pytest.approx([math.log(1e-4), math.log(1 - 1e-4)], rel=1e-3)
    penalty.sum().backward()
    assert logits.grad.tolist() == [[0, 0], [0, 0]]
