import pytest
import torch
import torch.nn.functional as F
from small_problem import LABELS, build_ledger, build_method, make_batch

from methods.mixmatch import mixup_coefficient


def loss_and_logits(ids=None, step=0, **settings):
    """The term of a batch, and what the network says about the images as they are."""
    method = build_method("cross_entropy", **settings)
    batch = make_batch(method, build_ledger(method), 0, ids, step)
    (term,) = method(batch).values()
    return term, method.network(batch.views["image"]).logits


def test_the_loss_is_cross_entropy_on_the_given_labels():
    term, logits = loss_and_logits()
    torch.testing.assert_close(term.total, F.cross_entropy(logits, LABELS[:8], reduction="sum"))
    assert (term.count.item(), term.weight) == (8, 1)


def test_label_smoothing_is_torchs():
    term, logits = loss_and_logits(label_smoothing=0.3)
    expected = F.cross_entropy(logits, LABELS[:8], label_smoothing=0.3, reduction="sum")
    torch.testing.assert_close(term.total, expected)


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_the_view_is_the_one_that_is_asked_for(view):
    method = build_method("cross_entropy", view=view)
    assert {view.kind for view in method.views(0).values()} == {view}


def test_predictions_are_those_of_the_one_network():
    method = build_method("cross_entropy").eval()
    images = torch.ones(2, 3, 8, 8)
    with torch.no_grad():
        expected = F.softmax(method.network(images).logits, -1)
        torch.testing.assert_close(method(images), expected.unsqueeze(0))


# -- mixup -----------------------------------------------------------------------------------------


def test_mixup_is_cross_entropy_of_mixed_images_and_labels():
    method = build_method("cross_entropy", mixup_alpha=0.4)
    batch = make_batch(method, build_ledger(method), 0, step=5)
    (term,) = method(batch).values()
    share = mixup_coefficient(0.4, method.problem.seed, 5)
    images, labels = batch.views["image"], LABELS[:8]
    partner = torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])
    logits = method.network(share * images + (1 - share) * images[partner]).logits
    expected = share * F.cross_entropy(logits, labels, reduction="sum") + (
        1 - share
    ) * F.cross_entropy(logits, labels[partner], reduction="sum")
    torch.testing.assert_close(term.total, expected)


def test_mixup_does_not_depend_on_the_number_of_ranks():
    whole, _ = loss_and_logits(mixup_alpha=0.4)
    parts = [loss_and_logits(ids, mixup_alpha=0.4)[0] for ids in ([0, 1, 2, 3], [4, 5, 6, 7])]
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)
