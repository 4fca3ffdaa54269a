import pytest
import torch

from engine.ledger import Column, Ledger, LedgerError

COLUMNS = {
    "loss": Column((2,), torch.float32, float("nan"), "loss"),
    "group": Column((), torch.uint8, 0, "group"),
}


def make(num_samples=6):
    return Ledger(num_samples, COLUMNS)


def test_rows_take_effect_at_synchronisation_only():
    ledger = make()
    ledger.write(torch.tensor([4, 1]), loss=torch.tensor([[4.0, 4.5], [1.0, 1.5]]))
    assert ledger["loss"].isnan().all()
    ledger.synchronise()
    assert ledger["loss"][4].tolist() == [4.0, 4.5]
    assert ledger["loss"][1].tolist() == [1.0, 1.5]
    assert ledger["loss"][[0, 2, 3, 5]].isnan().all()


def test_rows_are_given_by_sample_id():
    ledger = make()
    ledger.fill("group", torch.tensor([0, 1, 2, 0, 1, 2]))
    rows = ledger.rows(torch.tensor([5, 0, 4]), torch.device("cpu"))
    assert rows["group"].tolist() == [2, 0, 1]


def test_an_id_that_arrives_twice_is_refused():
    ledger = make()
    ledger.write(torch.tensor([1, 2]), group=torch.tensor([0, 0]))
    ledger.write(torch.tensor([2]), group=torch.tensor([1]))
    with pytest.raises(LedgerError, match=r"'group': 1 sample_ids arrived more than once.*\[2\]"):
        ledger.synchronise(expected_ids=torch.tensor([1, 2]))


def test_of_several_rows_of_a_sample_the_last_steps_stays():
    """By the step's number, not by the order of writing; then by the place in the batch."""
    ledger = make()
    ledger.write(torch.tensor([1, 2, 2]), order=7, group=torch.tensor([1, 3, 4]))
    ledger.write(torch.tensor([1, 2, 3]), order=3, group=torch.tensor([5, 6, 7]))
    ledger.synchronise()
    assert ledger["group"].tolist() == [0, 1, 4, 7, 0, 0]


def test_missing_and_unexpected_ids_are_named():
    ledger = make()
    ledger.write(torch.tensor([0, 5]), group=torch.tensor([1, 1]))
    with pytest.raises(
        LedgerError, match=r"1 sample_ids missing, first \[2\]; 1 unexpected.*\[5\]"
    ):
        ledger.synchronise(expected_ids=torch.tensor([0, 2]))


def test_wrong_shapes_are_refused():
    ledger = make()
    with pytest.raises(ValueError, match="'loss' takes"):
        ledger.write(torch.tensor([0]), loss=torch.zeros(1, 3))
    with pytest.raises(ValueError, match="'group' takes"):
        ledger.fill("group", torch.zeros(5))


def test_state_goes_round_and_the_digest_tells_tables_apart():
    ledger, other = make(), make()
    ledger.fill("group", torch.tensor([0, 1, 2, 0, 1, 2]))
    assert ledger.digest() != other.digest()
    other.load_state_dict(ledger.state_dict())
    assert ledger.digest() == other.digest()
    with pytest.raises(ValueError, match="columns"):
        other.load_state_dict({"loss": ledger["loss"]})
    with pytest.raises(ValueError, match="shape"):
        make(5).load_state_dict(ledger.state_dict())


def test_rows_that_wait_for_the_exchange_can_be_saved():
    """As in a checkpoint in the midst of an epoch; later rows win over them all the same."""
    ledger, other = make(), make()
    ledger.write(torch.tensor([4, 1]), order=3, group=torch.tensor([4, 5]))
    ledger.write(torch.tensor([1]), order=4, loss=torch.tensor([[1.0, 2.0]]))
    other.load_state_dict(ledger.state_dict())
    other.load_pending(ledger.gather_pending())
    for table in (ledger, other):
        table.write(torch.tensor([1, 2]), order=5, group=torch.tensor([7, 8]))
        table.synchronise()
    assert ledger.digest() == other.digest()
    assert other["group"].tolist() == [0, 7, 8, 0, 4, 0]
    assert other.gather_pending() == {}


def test_all_or_nothing():
    ledger = make()
    with pytest.raises(KeyError), ledger.all_or_nothing():
        ledger.write(torch.tensor([1]), group=torch.tensor([1]))
        raise KeyError
    assert ledger.gather_pending() == {}
    with ledger.all_or_nothing():
        ledger.write(torch.tensor([1]), group=torch.tensor([1]))
    ledger.synchronise()
    assert ledger["group"][1] == 1


def test_memory_is_the_columns():
    assert make(10).memory_bytes == 10 * (2 * 4 + 1)
