"""What the engine remembers of each sample, by hand and in runs."""

import pytest
import torch
from method_settings import METHOD_SETTINGS
from small_problem import build_method, make_batch
from tiny_runs import make_config, make_trainer

from engine.history import NEVER, ledger_columns, note_group_changes, running_prediction
from engine.ledger import Column, Ledger
from methods.method import Batch

NUM_EPOCHS = 3


def batch_of(old, counts):
    rows = {"running_prediction": torch.tensor(old), "num_predictions": torch.tensor(counts)}
    return Batch(torch.arange(len(old)), {}, rows, epoch=0, step=0)


def test_the_running_prediction_is_the_mean_over_epochs_and_networks():
    batch = batch_of([[0.0, 0.0], [0.5, 0.5]], [0, 3])
    # Two networks: (1, 0) and (0.5, 0.5) of the first sample, (0, 1) twice of the second.
    batch.note_probabilities(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    batch.note(torch.tensor([[0.0, 0.0], [-200.0, 0.0]]))
    rows = running_prediction(batch)
    # First seen: their mean (0.75, 0.25). Fourth time: (3 * (0.5, 0.5) + (0, 1)) / 4.
    expected = torch.tensor([[0.75, 0.25], [0.375, 0.625]])
    torch.testing.assert_close(rows["running_prediction"], expected)
    assert rows["num_predictions"].tolist() == [1, 4]


def test_a_step_that_notes_nothing_leaves_the_ledger_alone():
    assert running_prediction(batch_of([[0.5, 0.5]], [1])) == {}


@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_what_methods_note_has_no_gradient(method):
    settings = {key: 0 for key in ("mixup_alpha",) if method == "cross_entropy"}
    small = {"queue_size": 8} if method == "sscl" else {}
    built = build_method(method, **settings, **small)
    ledger = Ledger(12, ledger_columns(built))
    batch = make_batch(built, ledger, epoch=0)
    ledger.fill("label", built.problem.labels)
    batch = Batch(batch.sample_ids, batch.views, ledger.rows(batch.sample_ids, torch.device("cpu")),
                  epoch=0, step=0)  # fmt: skip
    built(batch)
    assert batch.noted and not any(p.requires_grad for p in batch.noted)
    for probabilities in batch.noted:
        assert probabilities.shape == (8, 3)
        torch.testing.assert_close(probabilities.sum(1), torch.ones(8))


def test_groups_that_change_get_the_epoch():
    columns = {
        "group": Column((2,), torch.uint8, 0, "group"),
        "group_since": Column((2,), torch.int32, NEVER, "since"),
    }
    ledger = Ledger(2, columns)
    first = ledger["group"].clone()
    note_group_changes(ledger, first, epoch=4)  # the first separation counts, whatever it says
    assert ledger["group_since"].tolist() == [[4, 4], [4, 4]]
    ledger.fill("group", torch.tensor([[0, 1], [0, 0]]))
    note_group_changes(ledger, first, epoch=5)
    assert ledger["group_since"].tolist() == [[4, 5], [4, 4]]


@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_a_run_counts_epochs_and_follows_groups(fresh_processes, method):
    mixes = {"mixup_alpha": 0.0} if method == "cross_entropy" else {}
    trainer = make_trainer(make_config(method, method=mixes))
    groups = []
    separate = trainer.method.separate

    def watched(ledger, epoch):
        separate(ledger, epoch)
        groups.append((epoch, ledger["group"].clone()))

    trainer.method.separate = watched
    trainer.fit(lambda epoch, metrics: None)
    ids, ledger = trainer.task.train_ids, trainer.ledger
    counts = ledger["num_predictions"]
    # 96 of 128 training images fit into whole batches of 16, and an epoch leaves none twice.
    assert counts.sum() == NUM_EPOCHS * 96 and counts.max() == NUM_EPOCHS
    seen = ledger["running_prediction"][counts > 0]
    torch.testing.assert_close(seen.sum(1), torch.ones(len(seen)), atol=2e-3, rtol=0)
    if not groups:
        assert "group_since" not in ledger.columns
        return
    expected = torch.full_like(groups[0][1], groups[0][0], dtype=torch.int32)
    for (_, before), (epoch, after) in zip(groups, groups[1:], strict=False):
        expected = torch.where(before != after, epoch, expected)
    assert torch.equal(ledger["group_since"], expected)
    assert len(expected[ids].unique()) > 1


def test_images_that_are_mixed_are_not_noted(fresh_processes):
    trainer = make_trainer(make_config("cross_entropy", method={"mixup_alpha": 0.4}))
    trainer.fit(lambda epoch, metrics: None)
    assert not trainer.ledger["num_predictions"].any()
