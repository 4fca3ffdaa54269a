import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_problem import build_method, draw

from methods.losses import sharpen
from methods.method import MethodError
from methods.mixmatch import mix_neighbours, mixup_coefficient, refine_targets
from methods.separation import CORRECT, MIS_H, MIS_L

# -- mixing ----------------------------------------------------------------------------------------


def test_neighbours_are_mixed_by_hand():
    images = torch.tensor([[1.0], [3.0], [10.0], [20.0]])
    assert mix_neighbours(images, 0.75).flatten().tolist() == [1.5, 2.5, 12.5, 17.5]
    assert mix_neighbours(torch.eye(2), 0.75).tolist() == [[0.75, 0.25], [0.25, 0.75]]


@pytest.mark.parametrize("coefficient", [0.0, 1.0])
def test_mixing_nothing_or_all(coefficient):
    mixed = mix_neighbours(torch.arange(4.0), coefficient)
    assert mixed.tolist() == ([0, 1, 2, 3] if coefficient else [1, 0, 3, 2])


@pytest.mark.parametrize("name", ["cross_entropy", "elr_plus", "dividemix", "sscl"])
def test_an_odd_number_of_samples_a_process_is_refused_with_the_keys(name):
    with pytest.raises(MethodError, match=r"method\.mixup_alpha.* got 9; change optim.batch_size"):
        build_method(name, batch_size=9, mixup_alpha=0.5)
    build_method(name, batch_size=9, mixup_alpha=0.0)  # without mixup any number will do


def test_coefficients_follow_the_beta_distribution_of_their_steps():
    drawn = np.array([mixup_coefficient(0.5, seed=1, step=step) for step in range(2000)])
    assert drawn.min() >= 0 and drawn.max() <= 1
    # Beta(a, a) has mean 1/2 and variance 1 / (8 a + 4) = 1/8; standard errors are below 0.01.
    assert drawn.mean() == pytest.approx(0.5, abs=0.03)
    assert drawn.var() == pytest.approx(1 / 8, abs=0.01)
    assert len(np.unique(drawn)) == 2000
    assert mixup_coefficient(0.5, seed=1, step=7) == drawn[7] != mixup_coefficient(0.5, 2, 7)


def test_the_second_parameter_of_the_distribution():
    """Beta(5, 1) has mean 5/6: the sample itself has most of the mixture."""
    drawn = np.array([mixup_coefficient(5.0, 0, step, beta=1.0) for step in range(2000)])
    assert drawn.mean() == pytest.approx(5 / 6, abs=0.01)


# -- refined labels --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (CORRECT, [0.49 / 0.58, 0.09 / 0.58]),
        (MIS_H, [0.16 / 0.52, 0.36 / 0.52]),
        (MIS_L, [0.4, 0.6]),
    ],
)
def test_refined_targets_by_hand(group, expected):
    predicted = torch.tensor([[0.4, 0.6]])
    targets = refine_targets(
        torch.tensor([[1.0, 0.0]]), predicted, predicted, torch.tensor([0.5]),
        torch.tensor([group], dtype=torch.uint8), temperature=0.5, sharpen_mis_l=False,
    )  # fmt: skip
    assert targets.tolist() == [pytest.approx(expected)]


def test_each_group_has_its_own_source():
    """Correct and Mis-L by the partner's prediction, Mis-H by both networks'."""
    given = torch.tensor([[1.0, 0.0]]).expand(3, 2)
    partner, both = (torch.tensor([p]).expand(3, 2) for p in ([0.5, 0.5], [0.9, 0.1]))
    groups = torch.tensor([CORRECT, MIS_H, MIS_L], dtype=torch.uint8)
    arguments = (given, partner, both, torch.tensor([0.2, 1.0, 1.0]), groups)
    targets = refine_targets(*arguments, temperature=1.0, sharpen_mis_l=False)
    # 0.2 * 1 + 0.8 * 0.5; posteriors of Correct do not touch the other groups.
    torch.testing.assert_close(targets, torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.5, 0.5]]))


def test_mis_l_targets_are_sharpened_on_demand():
    predicted = torch.tensor([[0.4, 0.6]])
    targets = refine_targets(
        torch.tensor([[1.0, 0.0]]), predicted, predicted, torch.tensor([0.5]),
        torch.tensor([MIS_L], dtype=torch.uint8), temperature=0.5, sharpen_mis_l=True,
    )  # fmt: skip
    torch.testing.assert_close(targets, sharpen(predicted, 0.5))


def test_targets_are_distributions_without_gradient():
    predicted = F.softmax(draw(9, 3), -1).requires_grad_()
    targets = refine_targets(
        F.one_hot(torch.arange(9) % 3, 3).float(), predicted, predicted, torch.rand(9),
        torch.arange(9).remainder(3).to(torch.uint8), temperature=0.5, sharpen_mis_l=False,
    )  # fmt: skip
    torch.testing.assert_close(targets.sum(-1), torch.ones(9))
    assert not targets.requires_grad


def test_the_mixmatch_target_of_two_samples_by_hand():
    """One labelled and one unlabelled sample, refined, guessed, then mixed with each other.

    Sample 0: given (1, 0), own prediction (0.6, 0.4), w = 0.5: the mix (0.8, 0.2) sharpened at
    T = 0.5 is (0.64, 0.04) / 0.68. Sample 1: the common guess (0.5, 0.5) stays. At lambda 0.75 the
    targets are 0.75 of each and 0.25 of the other.
    """
    own = torch.tensor([[0.6, 0.4], [0.9, 0.1]])
    both = torch.tensor([[0.3, 0.7], [0.5, 0.5]])
    groups = torch.tensor([CORRECT, MIS_H], dtype=torch.uint8)
    targets = refine_targets(
        torch.tensor([[1.0, 0.0], [1.0, 0.0]]), own, both, torch.tensor([0.5, 0.1]), groups,
        temperature=0.5, sharpen_mis_l=False,
    )  # fmt: skip
    mixed = mix_neighbours(targets, 0.75)
    first, second = 0.64 / 0.68, 0.5
    expected = [0.75 * first + 0.25 * second, 0.75 * second + 0.25 * first]
    assert mixed[:, 0].tolist() == pytest.approx(expected)
    assert mixed.sum(1).tolist() == pytest.approx([1, 1])
