"""wandb's files as wandb itself writes them."""

import shutil
import time

import pytest
import wandb

from engine.tracking.wandb_file import last_step, newest_run_id, read_records, run_files


def write_run(folder, run_id, steps, **values):
    settings = wandb.Settings(silent=True, console="off", disable_git=True)
    run = wandb.init(mode="offline", dir=folder, id=run_id, project="p", settings=settings)
    for step in steps:
        run.log({"step/loss": 1 / step, **values}, step=step, commit=True)
    run.finish()


def history(path):
    return [r.history for r in read_records(path) if r.WhichOneof("record_type") == "history"]


def value_of(row, name):
    return next(i.value_json for i in row.item if i.key == name or list(i.nested_key) == [name])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two parts of one run and another run; rows of 20 kB, so that blocks are crossed."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, "1a2b3c4d", range(1, 9), note="x" * 20_000)
    write_run(folder, "other", [90])
    write_run(folder, "1a2b3c4d", [20, 31])
    wandb.teardown()
    return folder


def test_the_rows_are_those_that_were_logged(folder):
    first, second = run_files(folder, "1a2b3c4d")
    rows = history(first)
    assert [row.step.num for row in rows] == list(range(1, 9))
    assert [float(value_of(row, "step/loss")) for row in rows] == [1 / s for s in range(1, 9)]
    assert {len(value_of(row, "note")) for row in rows} == {20_002}
    assert [row.step.num for row in history(second)] == [20, 31]


def test_the_last_step_is_that_of_all_parts(folder, tmp_path):
    assert last_step(folder, "1a2b3c4d") == 31
    assert last_step(folder, "other") == 90
    assert last_step(folder, "unknown") == last_step(tmp_path, "1a2b3c4d") == -1


def test_what_an_online_part_had_yet_to_send_can_be_left_out(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    second = run_files(tmp_path / "run", "1a2b3c4d")[1].parent
    second.rename(second.with_name(second.name.removeprefix("offline-")))
    assert last_step(tmp_path / "run", "1a2b3c4d") == 31
    assert last_step(tmp_path / "run", "1a2b3c4d", "offline-") == 8


def test_a_torn_file_is_read_as_far_as_it_is_whole(folder, tmp_path):
    content = run_files(folder, "1a2b3c4d")[0].read_bytes()
    path, seen = tmp_path / "run-x.wandb", []
    for length in range(0, len(content), 997):
        path.write_bytes(content[:length])
        seen.append(len(history(path)))
    assert seen == sorted(seen) and seen[0] == 0 and seen[-1] >= 7


def test_parts_that_were_begun_within_one_second_are_found_in_order(tmp_path, monkeypatch):
    """wandb names its folders by the second, and numbers those of the same one."""
    assert newest_run_id(tmp_path) is None
    monkeypatch.setattr(time, "time", lambda: 1.7e9)
    for step in range(1, 13):
        write_run(tmp_path, "1a2b3c4d", [step])
    monkeypatch.setattr(time, "time", lambda: 1.7e9 + 1)
    write_run(tmp_path, "newer", [1])
    wandb.teardown()
    files = run_files(tmp_path, "1a2b3c4d")
    assert len({path.parent.name[: len("offline-run-20261126_142404")] for path in files}) == 1
    assert [row.step.num for path in files for row in history(path)] == list(range(1, 13))
    assert newest_run_id(tmp_path) == "newer"
