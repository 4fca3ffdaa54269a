import pytest
import torch

from engine.terms import NonFiniteLossError, TermMeans, global_loss
from methods.method import Term


def test_terms_are_divided_by_their_counts_and_weighted():
    x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    terms = {
        "a": Term(x[:2].sum(), torch.tensor(2)),
        "b": Term(x[2:].sum(), torch.tensor(1), weight=0.5),
        "empty": Term(x.sum() * 0, torch.tensor(0), weight=9.0),
    }
    loss, shares, require_finite = global_loss(terms, torch.arange(3))
    require_finite()
    assert loss.item() == pytest.approx(1.5 + 0.5 * 3)
    loss.backward()
    assert x.grad.tolist() == [0.5, 0.5, 0.5]
    assert {name: share.item() for name, share in shares.items()} == {"a": 1.5, "b": 3, "empty": 0}


def test_a_loss_that_is_not_finite_names_term_rank_and_samples():
    terms = {
        "good": Term(torch.tensor(1.0), torch.tensor(1)),
        "bad": Term(torch.tensor(float("nan")), torch.tensor(1)),
    }
    loss = global_loss(terms, torch.arange(30, 42))
    with pytest.raises(NonFiniteLossError, match=r"rank 0: bad in a batch of 12 .*first \[30, 31,"):
        loss.require_finite()


def test_means_are_over_steps():
    means = TermMeans()
    means.add({"a": torch.tensor(1.0)})
    means.add({"a": torch.tensor(2.0)})
    assert means.reduce() == {"a": 1.5}
    # A phase has begun: of its own terms the mean is over its own steps.
    means.add({"b": torch.tensor(4.0)})
    assert means.reduce() == {"a": 1.5, "b": 4.0}
    assert TermMeans().reduce() == {}


def test_means_go_on_where_they_were_saved():
    means = TermMeans()
    assert means.gather() == {}
    means.add({"a": torch.tensor(1.0), "b": torch.tensor(5.0)})
    restored = TermMeans.scattered(means.gather(), torch.device("cpu"))
    assert restored.reduce() == means.reduce() == {"a": 1.0, "b": 5.0}
    restored.add({"a": torch.tensor(2.0), "b": torch.tensor(0.0)})
    assert restored.reduce() == {"a": 1.5, "b": 2.5}
    # Saved by two processes, gone on with by one.
    state = {"mean/a": torch.tensor([1.0, 3.0]), "num_steps": torch.tensor(2)}
    assert TermMeans.scattered(state, torch.device("cpu")).reduce() == {"a": 2.0}
