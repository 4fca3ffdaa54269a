import pytest
import torch
import torch.nn.functional as F
from small_problem import LABELS, build_ledger, build_method, make_batch


@pytest.mark.parametrize("q", [0.3, 1.0])
def test_the_loss_is_bounded_cross_entropy_on_the_given_labels(q):
    method = build_method("gce", q=q)
    batch = make_batch(method, build_ledger(method), 0)
    terms = method(batch)
    assert terms.keys() == {"gce"}
    probabilities = F.softmax(method.network(batch.views["image"]).logits, -1)
    of_label = probabilities[torch.arange(8), LABELS[:8]]
    torch.testing.assert_close(terms["gce"].total, ((1 - of_label**q) / q).sum())
    assert (terms["gce"].count.item(), terms["gce"].weight) == (8, 1)


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_the_view_is_the_one_that_is_asked_for(view):
    method = build_method("gce", view=view)
    assert {view.kind for view in method.views(0).values()} == {view}


def test_a_network_that_is_surely_wrong_has_a_finite_gradient():
    method = build_method("gce")
    with torch.no_grad():
        method.network.classifier.weight.mul_(1e4)
    batch = make_batch(method, build_ledger(method), 0)
    probabilities = F.softmax(method.network(batch.views["image"]).logits, -1)
    assert (probabilities[torch.arange(8), LABELS[:8]] == 0).any()
    term = method(batch)["gce"]
    term.total.backward()
    assert term.total.isfinite()
    assert all(p.grad.isfinite().all() for p in method.parameters())
