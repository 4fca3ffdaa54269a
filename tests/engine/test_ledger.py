import pytest
import torch
from safetensors.torch import load_file, save_file

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


def test_columns_written_together_and_apart_are_told_apart():
    """The last step of a sample counts for each column by itself."""
    ledger = make()
    ledger.write(torch.tensor([3, 4]), order=5, group=torch.tensor([1, 2]))
    ledger.write(torch.tensor([4]), order=6, group=torch.tensor([3]), loss=torch.ones(1, 2))
    ledger.write(torch.tensor([3, 4]), order=2, loss=torch.full((2, 2), 7.0))
    ledger.write(torch.tensor([5]), order=9)
    ledger.synchronise()
    assert ledger["group"].tolist() == [0, 0, 0, 1, 3, 0]
    assert ledger["loss"][3:].nan_to_num(-1).tolist() == [[7, 7], [1, 1], [-1, -1]]


def test_narrow_integers_are_handed_out_as_indices():
    ledger = make()
    rows = ledger.rows(torch.tensor([1]), torch.device("cpu"))
    assert ledger["group"].dtype == torch.uint8 and rows["group"].dtype == torch.int64
    assert rows["loss"].dtype == torch.float32


def test_a_column_refuses_what_it_is_too_narrow_for():
    ledger = Ledger(2, {"label": Column((), torch.int16, -1, "label")})
    ledger.fill("label", torch.tensor([0, 32767]))
    with pytest.raises(ValueError, match=r"'label' is torch.int16 and cannot hold 0\.\.32768"):
        ledger.fill("label", torch.tensor([0, 32768]))
    assert ledger["label"].tolist() == [0, 32767]


def test_types_survive_a_checkpoint(tmp_path):
    columns = COLUMNS | {
        "label": Column((), torch.int16, -1, "label"),
        "half": Column((2,), torch.float16, 0.0, "half"),
    }
    ledger, other = Ledger(4, columns), Ledger(4, columns)
    ledger.fill("label", torch.tensor([3, 2, 1, 0]))
    ledger.write(torch.tensor([2, 0]), order=4, group=torch.tensor([7, 8]), half=torch.ones(2, 2))
    state, pending = ledger.state_dict(), ledger.gather_pending()
    for name, tensors in {"state": state, "pending": pending}.items():
        save_file(tensors, tmp_path / name)
    other.load_state_dict(load_file(tmp_path / "state"))
    other.load_pending(load_file(tmp_path / "pending"))
    for table in (ledger, other):
        table.synchronise()
        assert {name: table[name].dtype for name in table} == {
            name: column.dtype for name, column in columns.items()
        }
    assert ledger.digest() == other.digest()
    assert other["group"].tolist() == [8, 0, 7, 0]


def test_checkpoints_with_wider_columns_can_be_gone_on_from():
    """As they were written before: labels of eight bytes, and ids with each column."""
    ledger = Ledger(3, {"label": Column((), torch.int16, -1, "label"), "group": COLUMNS["group"]})
    state = {"label": torch.tensor([2, 0, 1]), "group": torch.zeros(3, dtype=torch.uint8)}
    ledger.load_state_dict(state)
    ids, steps = torch.tensor([1, 2, 1]), torch.tensor([0, 0, 1])
    rows = torch.tensor([5, 6, 7], dtype=torch.uint8)
    ledger.load_pending({"group/ids": ids, "group/steps": steps, "group/rows": rows})
    ledger.synchronise()
    assert ledger["label"].tolist() == [2, 0, 1] and ledger["label"].dtype == torch.int16
    assert ledger["group"].tolist() == [0, 7, 6]
