import errno
import json
import os
import resource
import stat
from dataclasses import replace

import pytest
import torch
from made_checkpoints import make

from engine.checkpoint import (
    CheckpointError,
    Checkpoints,
    is_checkpoint,
    load,
    load_weights,
)


def test_what_is_saved_comes_back(tmp_path):
    folder = Checkpoints(tmp_path, keep=2).save(make(3))
    snapshot = load(folder)
    assert snapshot.epochs_done == 3
    assert snapshot.method["weight"].tolist() == [3, 3, 3]
    assert snapshot.ledger["label"].tolist() == [0, 1, 2, 3]
    assert snapshot.optimizer["optimizer"]["state"][0]["step"] == 2
    assert snapshot.config == {"run": {"seed": 1}}
    assert snapshot.facts == {"class_names": ["a", "b"]}
    assert snapshot.wandb_id == "3f9c01ab"


def test_weights_come_alone_with_what_is_known_of_them(tmp_path):
    folder = Checkpoints(tmp_path, keep=2).save(make(3, 5))
    (folder / "optimizer.pt").unlink()  # neither needed nor read
    weights = load_weights(folder)
    assert (weights.epochs_done, weights.steps_done, weights.folder) == (3, 5, folder)
    assert weights.method["weight"].tolist() == [3, 3, 3]
    assert (weights.config, weights.versions) == ({"run": {"seed": 1}}, {"torch": "1"})
    assert weights.facts == {"class_names": ["a", "b"]}
    assert is_checkpoint(folder) and not is_checkpoint(tmp_path)


def test_torn_weights_are_skipped_and_said_so(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(make(1))
    (checkpoints.save(make(2)) / "method.safetensors").write_bytes(b"torn")
    assert checkpoints.latest_weights().epochs_done == 1
    assert "epoch-0002: method.safetensors is missing or damaged" in caplog.text
    assert Checkpoints(tmp_path / "none", keep=1).latest_weights() is None


def test_a_checkpoint_in_the_midst_of_an_epoch_comes_after_that_of_its_start(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for epochs_done, steps_done in ((2, 0), (2, 9), (2, 10)):
        checkpoints.save(make(epochs_done, steps_done))
    names = ["epoch-0002", "epoch-0002-step-000009", "epoch-0002-step-000010"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    newest = checkpoints.latest()
    assert (newest.epochs_done, newest.steps_done, newest.seconds) == (2, 10, 1.5)
    assert newest.pending["group/ids"].tolist() == [3]
    assert newest.metrics == {"separation/auc": 0.5}
    checkpoints.save(make(3))
    assert checkpoints.latest().epochs_done == 3


def test_protected_ones_are_kept_however_old(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for epoch in (1, 2, 3):
        checkpoints.save(make(epoch), protected={"epoch-0001"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch-0001", "epoch-0003"]


def test_only_the_newest_are_kept_and_the_newest_is_found(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for epoch in (1, 2, 3):
        checkpoints.save(make(epoch))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch-0002", "epoch-0003"]
    assert checkpoints.latest().epochs_done == 3
    assert Checkpoints(tmp_path / "none", keep=1).latest() is None


@pytest.mark.parametrize("number", [None, 0, 2])
def test_a_checkpoint_of_another_version_is_refused_and_never_skipped(tmp_path, number):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(make(1))
    path = checkpoints.save(make(2)) / "state.json"
    state = json.loads(path.read_text())
    assert state.pop("format") == 1
    path.write_text(json.dumps(state | ({} if number is None else {"format": number})))
    for read in (checkpoints.latest, checkpoints.latest_weights):
        with pytest.raises(CheckpointError, match=r"epoch-0002: .* reads format 1$"):
            read()


@pytest.mark.parametrize("damage", ["method.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("how", ["truncated", "missing"])
def test_a_torn_checkpoint_is_skipped_and_said_so(tmp_path, caplog, damage, how):
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(make(1))
    torn = checkpoints.save(make(2)) / damage
    if how == "missing":
        torn.unlink()
    else:
        torn.write_bytes(torn.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=damage):
        load(torn.parent)
    assert checkpoints.latest().epochs_done == 1
    assert "skipping" in caplog.text
    assert "epoch-0002" in caplog.text


@pytest.fixture
def small_files():
    """No file may grow beyond 20 kB, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("part", "file"), [("method", "method.safetensors"), ("optimizer", "optimizer.pt")]
)
def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, small_files, part, file):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(make(1))
    large = replace(make(2), **{part: {"large": torch.zeros(50_000)}})
    with pytest.raises(OSError, match=rf"epoch-0002.tmp/{file}: cannot be written: "):
        checkpoints.save(large)
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-0001"]
    assert checkpoints.latest().epochs_done == 1


def test_files_may_be_read_by_whom_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    folder = Checkpoints(tmp_path, keep=1).save(make(1))
    os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o640}


def test_a_new_checkpoint_is_kept_beside_torn_later_ones(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(make(3))
    (checkpoints.save(make(6)) / "method.safetensors").write_bytes(b"torn")
    checkpoints.save(make(3))
    checkpoints.save(make(3, 4))
    assert checkpoints.latest().name == "epoch-0003-step-000004"
    checkpoints.save(make(6))  # now whole
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-0006"]
    assert checkpoints.latest().epochs_done == 6


def test_the_ten_thousandth_epoch_comes_after_the_one_before(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for epoch in (9_998, 9_999, 10_000, 10_001):
        checkpoints.save(make(epoch))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch-10000", "epoch-10001"]
    assert checkpoints.latest().epochs_done == 10_001


def test_a_whole_checkpoint_is_never_taken_away_to_be_written_again(tmp_path):
    """A stop in a survey is saved under the name of the epoch's start."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    folder = checkpoints.save(make(3))
    before = (folder.stat().st_ino, (folder / "state.json").stat().st_mtime_ns)
    assert checkpoints.save(make(3)) == folder
    assert (folder.stat().st_ino, (folder / "state.json").stat().st_mtime_ns) == before


def test_a_state_that_lacks_something_is_skipped(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(make(1))
    path = checkpoints.save(make(2)) / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({key: state[key] for key in state if key != "wandb_id"}))
    assert checkpoints.latest().epochs_done == 1
    assert "state.json has no wandb_id" in caplog.text


def test_leftovers_of_a_killed_save_do_no_harm(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for name in (".epoch-0001.tmp", ".epoch-0000-step-000007.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "method.safetensors").write_text("half")
    assert checkpoints.latest() is None
    assert json.loads((checkpoints.save(make(1)) / "state.json").read_text())["epochs_done"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-0001"]


def test_a_checkpoint_that_cannot_be_removed_ends_no_run(tmp_path, monkeypatch, caplog):
    """On NFS a file that some process reads leaves its folder behind."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(make(1))

    def held(folder):
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    with monkeypatch.context() as patch:
        patch.setattr("engine.checkpoint.shutil.rmtree", held)
        checkpoints.save(make(2))
    assert "epoch-0001: cannot be removed for now: Directory not empty" in caplog.text
    checkpoints.save(make(3))
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0003"]
