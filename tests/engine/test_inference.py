import pytest
import torch

from engine.inference import combine


def test_members_that_agree_are_unsure_together():
    members = torch.tensor([[[0.25, 0.75]], [[0.25, 0.75]]])
    mean, entropy, disagreement = combine(members)
    assert mean.tolist() == [[0.25, 0.75]]
    # -(1/4 log2(1/4) + 3/4 log2(3/4))
    assert entropy.tolist() == pytest.approx([0.8112781])
    assert disagreement.tolist() == pytest.approx([0], abs=1e-12)


def test_members_that_are_sure_of_different_classes_disagree_entirely():
    mean, entropy, disagreement = combine(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
    assert mean.tolist() == [[0.5, 0.5]]
    assert entropy.tolist() == disagreement.tolist() == [1]


def test_uncertainty_lies_between_none_and_one():
    members = torch.softmax(5 * torch.randn(6, 1000, 7), dim=-1)
    _, entropy, disagreement = combine(members)
    assert bool((entropy <= 1).all()) and bool((disagreement <= entropy).all())
    assert bool((disagreement > 0).all())


def test_one_member_does_not_disagree():
    assert combine(torch.tensor([[[0.1, 0.9]]]))[2].tolist() == [0]
