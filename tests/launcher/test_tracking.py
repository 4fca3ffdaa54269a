"""What wandb is given of a run is what the run folder holds, once, whatever happens in between."""

import json
import logging
import os
import re
import shutil
import signal
import time

import pytest
import wandb
from method_settings import write_config
from PIL import Image
from processes import ROOT, launch
from run_folders import read_record

from engine.interrupts import EXIT_INTERRUPTED, Interrupts
from engine.tracking import mirror
from engine.tracking.tracker import Tracker
from engine.tracking.wandb_file import read_records, run_files
from launcher.run import main

pytestmark = pytest.mark.usefixtures("fresh_processes")

# Of tiny_config: three epochs of six steps, with a row after every second one. An epoch has six
# boundaries of steps and four of evaluation, and from the second one on seven of the survey before.
STEPS = list(range(2, 19, 2))
OFFLINE = {"wandb": "offline", "every_steps": 2}


@pytest.fixture
def start(tmp_path, fresh_processes, monkeypatch):
    """Runs the command line, going on with what is in the run's folder."""
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "run" / "wandb"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)

    def run(*overrides, method="qmix", tracking=OFFLINE, **sections):
        fresh_processes()
        sections["run"] = {"dir": str(tmp_path / "run"), **sections.get("run", {})}
        path = write_config(tmp_path, method, tracking=tracking, **sections)
        return main(["--config", str(path), "--resume", "auto", *overrides])

    return run


@pytest.fixture
def ask_at(monkeypatch):
    """Has the run sent SIGUSR1 before a given boundary, counted from 1."""
    look = Interrupts.raise_if_asked

    def arm(boundary):
        seen = []

        def look_after_asking(self):
            seen.append(self)
            if len(seen) == boundary:
                os.kill(os.getpid(), signal.SIGUSR1)
            look(self)

        monkeypatch.setattr(Interrupts, "raise_if_asked", look_after_asking)

    return arm


def run_id(folder):
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    return json.loads((newest / "state.json").read_text())["wandb_id"]


def messages(folder, kind):
    """All messages of a kind in wandb's files, in order."""
    return [
        getattr(record, kind)
        for path in run_files(folder, run_id(folder))
        for record in read_records(path)
        if record.WhichOneof("record_type") == kind
    ]


def rows(folder):
    """Rows as (place, name -> value), without wandb's own values."""
    found = []
    for row in messages(folder, "history"):
        items = {item.key or "/".join(item.nested_key): item.value_json for item in row.item}
        values = {key: json.loads(text) for key, text in items.items() if key[0] != "_"}
        found.append((row.step.num, values))
    return found


def defined(line):
    return {name: value for name, value in line.items() if value is not None}


def assert_shown_once(folder, num_epochs=3, steps=STEPS):
    """The files together hold the records' lines: each once, in order, and nothing else."""
    shown = rows(folder)
    places = [place for place, _ in shown]
    assert places == sorted(set(places))
    scalars = [
        {k: v for k, v in row.items() if not k.startswith(("figures/", "separation/suspects"))}
        for _, row in shown
    ]
    epochs = [row for row in scalars if "epoch" in row]
    assert epochs == [defined(line) for line in read_record(folder)]
    assert [row["epoch"] for row in epochs] == list(range(num_epochs))
    lines = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    of_steps = [row for row in scalars if "global_step" in row]
    assert of_steps == [defined(line) for line in lines]
    assert [row["global_step"] for row in of_steps] == steps
    assert len(of_steps) + len(epochs) == len(shown)
    # One run, and each of its parts knows it.
    assert {path.parent.parent for path in run_files(folder, run_id(folder))} == {folder / "wandb"}
    files = (folder / "wandb").glob("*run-*/*.wandb")
    assert {path.name for path in files} == {f"run-{run_id(folder)}.wandb"}


# -- the copy --------------------------------------------------------------------------------------


def test_a_run_is_shown_as_it_is_recorded(start, tmp_path):
    assert start() == 0
    folder = tmp_path / "run"
    assert_shown_once(folder)
    (_, step), *_ = rows(folder)
    assert {"step/learning_rate", "step/images_per_second", "step/data_wait_share"} <= step.keys()
    assert step["step/loss/warm_up_a"] > 0 and 0 <= step["step/data_wait_share"] <= 1
    last = rows(folder)[-1][1]
    assert {"separation/auc", "separation/assigned/mis_l/4", "eval/recall/0"} <= last.keys()
    assert [exit.exit_code for exit in messages(folder, "exit")] == [0]
    axes = {m.glob_name: m.step_metric for m in messages(folder, "metric") if m.glob_name}
    assert axes.pop("step/*") == "global_step"
    assert axes.keys() == {"eval/*", "validation/*", "train/*", "separation/*", "time/*"}
    assert set(axes.values()) == {"epoch"}


def test_cut_off_twice_the_parts_hold_each_row_once(start, ask_at, monkeypatch, tmp_path):
    """In mid-epoch by a signal; then without a word, between a checkpoint and its showing."""
    folder = tmp_path / "run"
    ask_at(4)  # a step of which a row is due
    assert start() == EXIT_INTERRUPTED
    ask_at(None)
    show = Tracker.show_epoch

    def cut_off(tracker, epochs):
        if len(epochs) == 2:
            raise SystemExit
        show(tracker, epochs)

    monkeypatch.setattr(Tracker, "show_epoch", cut_off)
    with pytest.raises(SystemExit):
        start()
    monkeypatch.setattr(Tracker, "show_epoch", show)
    assert start() == 0
    assert_shown_once(folder)
    assert len(run_files(folder, run_id(folder))) == 3
    assert [exit.exit_code for exit in messages(folder, "exit")] == [EXIT_INTERRUPTED, 1, 0]
    assert len(messages(folder, "preempting")) == 1


@pytest.mark.parametrize("kept", [7, 0.3, 0.7])
def test_rows_that_died_in_wandbs_memory_are_shown_by_the_next_attempt(
    start, ask_at, tmp_path, kept
):
    """wandb holds rows back; SIGKILL leaves its file cut off anywhere."""
    folder = tmp_path / "run"
    ask_at(6 + 4 + 7 + 3)  # of the second epoch, after its survey
    assert start() == EXIT_INTERRUPTED
    (file,) = run_files(folder, run_id(folder))
    content = file.read_bytes()
    file.write_bytes(content[: kept if kept == 7 else int(kept * len(content))])
    before = len(rows(folder))
    ask_at(None)
    assert before < 5 and start() == 0
    assert_shown_once(folder)


def test_steps_that_are_taken_again_are_not_shown_again(start, ask_at, tmp_path):
    """The newest checkpoint is older than what wandb has: there was no time to save."""
    folder = tmp_path / "run"
    ask_at(6 + 4 + 7 + 5)
    assert start() == EXIT_INTERRUPTED
    shutil.rmtree(folder / "checkpoints" / "epoch-0001-step-000005")
    before = [place for place, _ in rows(folder)]
    ask_at(None)
    assert start() == 0
    shown = rows(folder)
    assert [place for place, _ in shown[: len(before)]] == before
    assert [row["global_step"] for _, row in shown if "global_step" in row] == STEPS
    assert [row["epoch"] for _, row in shown if "epoch" in row] == [0, 1, 2]


def test_what_was_not_followed_is_shown_later(start, ask_at, tmp_path):
    ask_at(6 + 4 + 2)
    assert start(tracking={"wandb": "off", "every_steps": 2}) == EXIT_INTERRUPTED
    assert not (tmp_path / "run" / "wandb").exists()
    ask_at(None)
    assert start() == 0
    assert_shown_once(tmp_path / "run")


@pytest.fixture
def cut_off(start, monkeypatch):
    """Begins a run that ends before its first checkpoint."""

    def end(tracker, epoch):
        raise SystemExit

    def run(*overrides):
        with monkeypatch.context() as patch:
            patch.setattr(Tracker, "draw", end)
            with pytest.raises(SystemExit):
                start(*overrides)

    return run


def test_a_run_without_a_checkpoint_keeps_its_id(start, cut_off, tmp_path):
    cut_off()
    assert start() == 0
    shown = rows(tmp_path / "run")
    assert [row["global_step"] for _, row in shown if "global_step" in row] == STEPS
    assert [row["epoch"] for _, row in shown if "epoch" in row] == [0, 1, 2]
    assert len(run_files(tmp_path / "run", run_id(tmp_path / "run"))) == 2


def test_what_an_attempt_with_other_settings_left_is_another_run(start, cut_off, tmp_path):
    """Such as one whose loss was not finite, after which the rate was lowered."""
    cut_off("optim.lr=0.5")
    assert start() == 0
    assert len(run_files(tmp_path / "run", run_id(tmp_path / "run"))) == 1
    steps = [row for _, row in rows(tmp_path / "run") if "global_step" in row]
    assert [row["global_step"] for row in steps] == STEPS
    assert max(row["step/learning_rate"] for row in steps) < 0.5


@pytest.mark.slow
def test_two_processes_make_one_run(tmp_path):
    run = {"dir": str(tmp_path / "run"), "epochs": 2}
    path = write_config(tmp_path, "elr", run=run, tracking=OFFLINE)
    done = launch(ROOT / "launcher" / "run.py", ["--config", str(path)], 2, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_shown_once(tmp_path / "run", num_epochs=2, steps=STEPS[:6])
    assert len(run_files(tmp_path / "run", run_id(tmp_path / "run"))) == 1
    assert done.stderr.count("wandb is offline") == 1
    assert re.search(r"\[rank 0, evaluation after epoch 2\] epoch 2/2", done.stderr)


def test_name_group_and_tags_arrive(start, tmp_path):
    overrides = ["tracking.group=g", "tracking.job_type=j", "tracking.tags=[a, b]"]
    assert start(*overrides, method="gce", run={"epochs": 1}) == 0
    (run,) = messages(tmp_path / "run", "run")
    assert (run.display_name, run.project) == ("run", "mednoise")
    assert (run.run_group, run.job_type, list(run.tags)) == ("g", "j", ["a", "b"])
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["method"]["name"] == "gce" and config["run"]["seed"] == 7


# -- wandb fails -----------------------------------------------------------------------------------


def complaints(caplog):
    """Ours: wandb's own messages go to its files, and to nobody else but this fixture."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and not record.name.startswith("wandb")
    ]


def fail(*arguments, **settings):
    raise RuntimeError("wandb is on fire")


@pytest.mark.parametrize("place", ["wandb.init", "wandb.Run.log", "wandb.Run.define_metric"])
def test_wandb_may_fail_anywhere(start, monkeypatch, caplog, capsys, tmp_path, place):
    monkeypatch.setattr(place, fail)
    assert start(method="gce") == 0
    (complaint,) = complaints(caplog)
    assert "RuntimeError: wandb is on fire" in complaint and "goes on without it" in complaint
    assert len(read_record(tmp_path / "run")) == 3
    assert "run folder: " in capsys.readouterr().out


def test_an_end_that_fails_is_no_failure_of_the_run(start, monkeypatch, caplog):
    monkeypatch.setattr("wandb.Run.finish", fail)
    assert start(method="gce", run={"epochs": 1}) == 0
    assert len(complaints(caplog)) == 1


def test_a_run_goes_on_offline_where_the_server_does_not_answer(
    start, monkeypatch, caplog, tmp_path
):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(mirror, "INIT_TIMEOUT_SECONDS", 2.0)
    caplog.set_level(logging.INFO)
    began = time.monotonic()
    assert start(method="gce", tracking={"wandb": "auto", "every_steps": 2}) == 0
    assert time.monotonic() - began < 60
    (complaint,) = complaints(caplog)
    assert complaint.startswith("wandb does not answer, so the run is kept for later: ")
    assert f"wandb sync {tmp_path / 'run' / 'wandb'}" in caplog.text
    assert_shown_once(tmp_path / "run")


def test_without_a_key_it_is_offline_and_one_line_says_so(start, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    tracking = {"wandb": "auto", "every_steps": 6}
    assert start(method="gce", tracking=tracking, run={"epochs": 1}) == 0
    ours = [record for record in caplog.records if not record.name.startswith("wandb")]
    lines = [r.getMessage() for r in ours if "wandb" in r.getMessage()]
    said = f"wandb is offline; to show this run: wandb sync {tmp_path / 'run' / 'wandb'}"
    assert lines == [said]
    assert_shown_once(tmp_path / "run", num_epochs=1, steps=[6])


def test_off_is_off(start, monkeypatch, tmp_path):
    monkeypatch.setattr(wandb, "init", fail)
    assert start(method="gce", tracking={"wandb": "off"}, run={"epochs": 1}) == 0
    assert not (tmp_path / "run" / "wandb").exists()


# -- figures ---------------------------------------------------------------------------------------

JUDGED = {"confusion-eval", "calibration-eval"}
SEPARATED = {"posterior", "suggested"}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("gce", JUDGED),
        ("sscl", JUDGED | SEPARATED),
        ("dividemix", JUDGED | SEPARATED),
        ("qmix", JUDGED | SEPARATED | {"cloud"}),
    ],
)
def test_figures_are_drawn_when_it_is_their_turn(start, tmp_path, method, expected):
    tracking = {"wandb": "off", "figures_every_epochs": 2}
    assert start(method=method, tracking=tracking) == 0
    folders = sorted((tmp_path / "run" / "figures").iterdir())
    assert [folder.name for folder in folders] == ["epoch-0002", "epoch-0003"]
    for folder in folders:
        assert {path.name for path in folder.iterdir()} == {f"{name}.png" for name in expected}
        for path in folder.iterdir():
            with Image.open(path) as image:
                assert min(image.size) > 300


def test_before_a_separation_and_without_a_test_set_there_are_fewer(start, tmp_path):
    tracking = {"wandb": "off", "figures_every_epochs": 1}
    assert start(method="qmix", tracking=tracking, run={"epochs": 1}) == 0
    (folder,) = (tmp_path / "run" / "figures").iterdir()
    assert {path.stem for path in folder.iterdir()} == JUDGED


def test_figures_and_suspects_are_shown(start, tmp_path):
    tracking = OFFLINE | {"figures_every_epochs": 3, "num_suspects": 5}
    assert start(tracking=tracking) == 0
    folder = tmp_path / "run"
    assert_shown_once(folder)
    last = rows(folder)[-1][1]
    pictures = {name.split("/")[1] for name in last if name.startswith("figures/")}
    assert pictures == JUDGED | SEPARATED | {"cloud"}
    files = run_files(folder, run_id(folder))[0].parent / "files"
    for name in pictures:
        original = folder / "figures" / "epoch-0003" / f"{name}.png"
        assert (files / last[f"figures/{name}/path"]).read_bytes() == original.read_bytes()
    table = json.loads((files / last["separation/suspects/path"]).read_text())
    assert table["columns"][:4] == ["image", "sample_id", "given", "suggested"]
    assert len(table["data"]) == 5
    correct = [row[table["columns"].index("p correct")] for row in table["data"]]
    assert correct == sorted(correct) and correct[0] < 0.5
    # The thumbnails are in the artifact that goes with the table, and wait to be sent.
    (artifact,) = messages(folder, "artifact")
    waiting = [c.local_path for c in artifact.manifest.contents if c.path.endswith(".png")]
    assert len(waiting) == 5
    for path in waiting:
        with Image.open(path) as image:
            assert image.size == (32, 32)


def test_no_image_leaves_the_folder_where_none_is_wanted(start, tmp_path):
    assert start(tracking=OFFLINE | {"figures_every_epochs": 3, "num_suspects": 0}) == 0
    assert not any(name.startswith("separation/suspects") for name in rows(tmp_path / "run")[-1][1])
