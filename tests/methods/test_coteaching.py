import pytest
import torch
import torch.nn.functional as F
from small_problem import LABELS, build_ledger, build_method, draw, make_batch

from engine import collectives
from methods.coteaching import keep_rate, smallest_losses

# -- how many are kept -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epoch", "exponent", "expected"),
    [
        (0, 1.0, 1.0),
        (1, 1.0, 0.96),
        (5, 1.0, 0.8),
        (10, 1.0, 0.6),
        (200, 1.0, 0.6),
        (2, 2.0, 1 - 0.4 * 4 / 10),
        (4, 2.0, 0.6),  # 16 / 10 is more than all
        (4, 0.5, 1 - 0.4 * 2 / 10),
        (99, 0.5, 1 - 0.4 * 99**0.5 / 10),
    ],
)
def test_the_share_that_is_kept_by_hand(epoch, exponent, expected):
    assert keep_rate(epoch, 0.4, 10, exponent) == pytest.approx(expected)


def test_the_smallest_losses_by_hand():
    chosen = smallest_losses(torch.tensor([3.0, 1.0, 2.0]), 2 / 3)
    assert chosen.tolist() == [False, True, True]


def test_of_equal_losses_the_first_are_smaller():
    chosen = smallest_losses(torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0]), 0.6)
    assert chosen.tolist() == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("rate", "num_losses", "num_kept"),
    [
        (1.0, 8, 8),
        (0.5, 5, 2),  # rounded down
        (1 - 0.8, 10, 2),  # 1.9999999999999996
        (0.01, 8, 1),  # never none
    ],
)
def test_the_number_that_is_kept(rate, num_losses, num_kept):
    assert smallest_losses(draw(num_losses), rate).sum() == num_kept


def test_the_choice_is_made_in_the_global_batch(monkeypatch):
    """Of two ranks' losses (3, 1) and (0.5, 2) the half is 1 and 0.5."""
    parts = [torch.tensor([3.0, 1.0]), torch.tensor([0.5, 2.0])]
    monkeypatch.setattr(collectives, "gather_equal_rows", lambda mine: torch.cat(parts))
    for rank, expected in enumerate([[False, True], [True, False]]):
        monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
        assert smallest_losses(parts[rank], 0.5).tolist() == expected


# -- training --------------------------------------------------------------------------------------


def losses_of(method, batch):
    """(2, B) cross-entropies of both networks."""
    return torch.stack(
        [
            F.cross_entropy(network(batch.views["image"]).logits, LABELS[:8], reduction="none")
            for network in method.networks
        ]
    )


def test_each_network_learns_from_the_others_choice():
    method = build_method("coteaching", forget_rate=0.5, ramp_epochs=2)
    batch = make_batch(method, build_ledger(method), 3)
    losses = losses_of(method, batch)
    easiest = losses.topk(4, largest=False).indices
    assert set(easiest[0].tolist()) != set(easiest[1].tolist())
    terms = method(batch)
    assert terms.keys() == {"cross_entropy_a", "cross_entropy_b"}
    for index, term in enumerate(terms.values()):
        torch.testing.assert_close(term.total, losses[index, easiest[1 - index]].sum())
        assert (term.count.item(), term.weight) == (4, 1)


def test_what_is_left_out_has_no_part_in_the_gradient():
    method = build_method("coteaching", forget_rate=0.5, ramp_epochs=2)
    batch = make_batch(method, build_ledger(method), 3)
    images = batch.views["image"].requires_grad_()
    easiest_for_b = losses_of(method, batch)[1].topk(4, largest=False).indices
    method(batch)["cross_entropy_a"].total.backward()
    has_gradient = images.grad.flatten(1).abs().sum(1) > 0
    assert has_gradient.nonzero().flatten().tolist() == sorted(easiest_for_b.tolist())


@pytest.mark.parametrize(("epoch", "num_kept"), [(0, 8), (1, 6), (2, 4), (5, 4)])
def test_the_share_falls_with_the_epochs(epoch, num_kept):
    method = build_method("coteaching", forget_rate=0.5, ramp_epochs=2)
    batch = make_batch(method, build_ledger(method), epoch)
    assert [term.count.item() for term in method(batch).values()] == [num_kept] * 2


def test_the_first_epoch_is_cross_entropy_on_all_samples():
    method = build_method("coteaching")
    batch = make_batch(method, build_ledger(method), 0)
    totals = torch.stack([term.total for term in method(batch).values()])
    torch.testing.assert_close(totals, losses_of(method, batch).sum(1))


def test_the_exponent_bends_the_ramp():
    counts = []
    for exponent in (1.0, 2.0):
        method = build_method("coteaching", forget_rate=0.5, ramp_epochs=4, exponent=exponent)
        batch = make_batch(method, build_ledger(method), 2)
        counts.append(method(batch)["cross_entropy_a"].count.item())
    # 1 - 0.5 * 2 / 4 and 1 - 0.5 * 4 / 4 of eight.
    assert counts == [6, 4]


def test_predictions_are_those_of_both_networks():
    method = build_method("coteaching").eval()
    images = draw(4, 3, 8, 8, seed=9)
    expected = [F.softmax(network(images).logits, -1) for network in method.networks]
    torch.testing.assert_close(method(images), torch.stack(expected))
    assert (expected[0] - expected[1]).abs().max() > 1e-3
