"""Two and three real processes tell each other what one process would have known by itself."""

from pathlib import Path

import pytest
import torch
from processes import collect

from engine import collectives

SCRIPT = Path(__file__).with_name("collective_values.py")
NUM_ROWS = 12


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return collect(SCRIPT, tmp_path_factory.mktemp("alone"), 1)[0]


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, tmp_path_factory):
    return collect(SCRIPT, tmp_path_factory.mktemp("ranks"), request.param)


def table():
    """The input of the script."""
    return torch.randn(NUM_ROWS, 3, generator=torch.Generator().manual_seed(5))


def test_a_sum_over_ranks_is_the_same_on_each(ranks):
    num = len(ranks)
    total = num * (num + 1) / 2
    for found in ranks:
        assert found["sums"]["float"].tolist() == [total, 10 * total]
        # No detour through floating point, which would round these.
        assert found["sums"]["int64"].item() == num * 2**53 + num * (num - 1) // 2
        assert found["sums"]["argument_kept"]


@pytest.mark.parametrize(
    ("name", "lengths"), [("hole", (3, 0, 2)), ("starts_empty", (0, 2, 1)), ("none", (0, 0, 0))]
)
def test_uneven_rows_arrive_in_rank_order(ranks, name, lengths):
    parts = [10 * rank + torch.arange(lengths[rank]) for rank in range(len(ranks))]
    expected = torch.cat(parts)
    for found in (found["uneven_rows"] for found in ranks):
        assert torch.equal(found[name], expected)
        assert torch.equal(found[f"{name}_pairs"], torch.stack([expected, -expected], 1).float())
        for dtype in (torch.uint8, torch.int16, torch.bool):
            assert found[f"{name}_{dtype}"].dtype == dtype
            assert torch.equal(found[f"{name}_{dtype}"], expected.to(dtype))


def test_equal_rows_arrive_in_rank_order(alone, ranks):
    own = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    for results, num_ranks in [(alone, 1), *((found, len(ranks)) for found in ranks)]:
        expected = torch.cat([own + 10 * rank for rank in range(num_ranks)])
        found = results["equal_rows"]
        assert torch.equal(found["column"], expected[:, 1]) and not found["column"].requires_grad
        for dtype in (torch.float32, torch.int64, torch.bool):
            assert found[str(dtype)].dtype == dtype
            assert torch.equal(found[str(dtype)], expected.to(dtype))


def test_gradients_are_those_of_the_summed_loss(ranks):
    """Differentiated here in one piece, with nothing distributed."""
    rows, weights = table().requires_grad_(), table().flip(0)
    (weights[:, :1] * (rows @ rows.T).square()).sum().backward()
    of_gathered, rows.grad = rows.grad, None
    (weights * rows.sum(0)).square().sum().backward()
    for name, expected in {"of_gathered": of_gathered, "of_sum": rows.grad}.items():
        found = torch.cat([found["gradients"][name] for found in ranks])
        torch.testing.assert_close(found, expected)
    for found in ranks:
        assert torch.equal(found["gradients"]["gathered"], table())


def test_one_process_has_the_same_gradients(alone, ranks):
    for name in ("of_gathered", "of_sum"):
        found = torch.cat([found["gradients"][name] for found in ranks])
        torch.testing.assert_close(found, alone["gradients"][name])


def test_everybody_takes_the_word_of_the_first(ranks):
    for found in (found["agreement"] for found in ranks):
        assert found["broadcast"].tolist() == [1, 7]
        assert found["broadcast_bool"].tolist() == [True, False]
        assert torch.equal(found["broadcast_scalar"], torch.tensor(1, dtype=torch.int16))
        assert found["broadcast_float"].tolist() == [1 / 3, 7 / 3]
        assert found["argument_kept"]


def test_differences_between_ranks_are_seen(ranks):
    for found in (found["agreement"] for found in ranks):
        assert found["objects"] == [{"rank": rank} for rank in range(len(ranks))]
        assert found["equal"] is True
        assert found["different"] is False


def test_what_the_first_does_while_others_wait_asks_nobody(ranks):
    assert ranks[0]["on_main_alone"] == {
        "num_ranks": 1, "sum": torch.tensor([3.0]), "afterwards": torch.tensor([3.0 * len(ranks)])
    }  # fmt: skip
    for found in ranks[1:]:
        assert found["on_main_alone"] == {"afterwards": torch.tensor([3.0 * len(ranks)])}


def test_every_rank_holds_the_ledger_of_a_single_process(alone, ranks):
    expected = alone["ledger_after_exchange"]
    assert torch.equal(expected["loss"], table()[:, :2])
    assert expected["group"].tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0]
    for found in (found["ledger_after_exchange"] for found in ranks):
        assert torch.equal(found["loss"], expected["loss"])
        assert torch.equal(found["group"], expected["group"])
        assert found["digest"] == expected["digest"]


def test_contradictions_in_the_ledger_stop_every_rank(alone, ranks):
    for found in (found["ledger_errors"] for found in [alone, *ranks]):
        assert found["twice"] == ("column 'group': 1 sample_ids arrived more than once, first [11]")
        assert found["missing"] == (
            "column 'group': 11 sample_ids missing, first [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]; "
            "0 unexpected, first []"
        )


def test_batch_statistics_are_averaged_and_nothing_else(ranks):
    mean_rank = (len(ranks) - 1) / 2
    for rank, found in enumerate(found["batch_statistics"] for found in ranks):
        assert found["mean"].tolist() == pytest.approx([mean_rank, 2 * mean_rank])
        assert found["var"].tolist() == pytest.approx([1 + mean_rank] * 2)
        assert found["untouched"].tolist() == [1 + rank] * 2
        assert found["num_batches"] == 0


def test_unequal_counts_make_the_loss_and_gradient_of_the_global_batch(alone, ranks):
    """Means over the samples of each term, computed here from the whole table."""
    weight = torch.tensor([0.5, -1.0, 2.0], requires_grad=True)
    errors = (table() @ weight - 1).square()
    expected = errors[:5].mean() + 0.5 * errors[7]
    expected.backward()
    mean_loss = torch.stack([found["loss_of_uneven_counts"]["loss"] for found in ranks]).mean()
    torch.testing.assert_close(mean_loss, expected.detach())
    torch.testing.assert_close(alone["loss_of_uneven_counts"]["loss"], expected.detach())
    means = {"early": errors[:5].mean().item(), "single": errors[7].item(), "nobody": 0.0}
    for found in (found["loss_of_uneven_counts"] for found in [alone, *ranks]):
        torch.testing.assert_close(found["gradient"], weight.grad)
        assert found["means"] == pytest.approx(means)


def test_a_loss_that_is_not_finite_on_one_rank_stops_every_rank(ranks):
    last = len(ranks) - 1
    ids = list(range(NUM_ROWS))[-NUM_ROWS // len(ranks) :]
    for found in ranks:
        assert found["loss_that_is_not_finite"]["message"] == (
            f"the loss is not finite on rank {last}: bad in a batch of {len(ids)} samples, "
            f"first {ids[:10]}"
        )


def test_a_copy_that_is_taken_later_is_of_now():
    table = torch.zeros(2)
    copy = collectives.to_cpu_later(table)
    table.add_(1)
    assert copy().tolist() == [0, 0]
