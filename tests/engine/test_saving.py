"""Which checkpoint all processes go on from; each process is played in turn."""

import shutil

import pytest
from made_checkpoints import make

from engine import collectives, saving
from engine.checkpoint import CheckpointError, Checkpoints
from engine.record import RecordError
from engine.saving import agreed_checkpoint


@pytest.fixture
def as_rank(monkeypatch):
    """Looks for the checkpoint as one of two ranks; ``said`` is what the other one tells."""

    def look(rank, folder, *said):
        answers = iter(said)

        def gather(mine):
            other = next(answers)
            return [mine, other] if rank == 0 else [other, mine]

        monkeypatch.setattr(saving.collectives, "rank", lambda: rank)
        monkeypatch.setattr(saving.collectives, "gather_objects", gather)
        return agreed_checkpoint(Checkpoints(folder, keep=3))

    return look


@pytest.fixture
def chosen(tmp_path):
    """A folder with three checkpoints and what rank 0 tells that it chose the second."""
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=3)
    for epoch in (1, 2, 3):
        checkpoints.save(make(epoch))
    name = "epoch-0002"
    return checkpoints.folder, (name, saving.state_digest(checkpoints.folder / name), "")


def test_the_others_read_what_rank_0_has_chosen(as_rank, chosen):
    folder, choice = chosen
    assert as_rank(1, folder, choice, "").epochs_done == 2
    assert as_rank(0, folder, ("", "", ""), "").epochs_done == 3
    assert as_rank(1, folder.parent / "none", ("", "", ""), "") is None


def test_a_folder_that_is_not_the_same_on_all_nodes_ends_all(as_rank, chosen):
    folder, choice = chosen
    message = "run must be on a file system that all nodes see; rank 0 goes on from epoch-000"
    with pytest.raises(CheckpointError, match=r"from no checkpoint, rank 1: finds epoch-0003"):
        as_rank(1, folder, ("", "", ""), "")
    with pytest.raises(CheckpointError, match=f"{message}3, rank 1: cannot be read"):
        as_rank(0, folder, ("", "", ""), "cannot be read")
    (folder / "epoch-0002" / "state.json").write_text(
        (folder / "epoch-0001/state.json").read_text()
    )
    with pytest.raises(CheckpointError, match=f"{message}2, rank 1: .*missing or damaged"):
        as_rank(1, folder, choice, "")
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match=f"{message}2, rank 1: .*state.json cannot be read"):
        as_rank(1, folder, choice, "")


def test_what_rank_0_cannot_use_is_said_by_all(as_rank, chosen):
    with pytest.raises(CheckpointError, match="written in format 7"):
        as_rank(1, chosen[0], ("", "", "written in format 7"))


@pytest.mark.parametrize("error", [RecordError("line 2"), OSError()])
def test_whatever_stops_rank_0_alone_ends_the_others(monkeypatch, error):
    told = []

    def action():
        raise error

    def gather(mine):
        told.append(mine)
        return [mine]

    monkeypatch.setattr(collectives, "gather_objects", gather)
    with pytest.raises(type(error)):
        collectives.on_main(action)
    monkeypatch.setattr(collectives, "rank", lambda: 1)
    monkeypatch.setattr(collectives, "gather_objects", lambda mine: told)
    with pytest.raises(collectives.MainProcessError):
        collectives.on_main(action)
