"""A run that is asked to stop, at any boundary and again and again, ends as one that is not."""

import hashlib
import json
import os
import shutil
import signal

import pytest
import safetensors.torch
import torch
from method_settings import METHOD_SETTINGS, write_config
from run_folders import assert_equal_trees, read_checkpoint, read_record, untimed
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.interrupts import EXIT_INTERRUPTED, SIGNALS, Interrupts, RunInterruptedError
from launcher.ends import EXIT_KEYBOARD
from launcher.run import main

pytestmark = pytest.mark.usefixtures("fresh_processes")


def run(folder, method, *arguments, **sections):
    sections["run"] = {"dir": str(folder / "run"), **sections.get("run", {})}
    return main(["--config", str(write_config(folder, method, **sections)), *arguments])


@pytest.fixture
def ask_at(monkeypatch):
    """Has this process sent a signal before a given boundary, counted from 1; counts them all."""
    look = Interrupts.raise_if_asked

    def arm(boundary, number=signal.SIGUSR1):
        counted = []

        def look_after_asking(self):
            counted.append(self)
            if len(counted) == boundary:
                os.kill(os.getpid(), number)
            look(self)

        monkeypatch.setattr(Interrupts, "raise_if_asked", look_after_asking)
        return counted

    return arm


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run by method, trained when first asked for."""
    known = {}

    def get(method):
        if method not in known:
            known[method] = tmp_path_factory.mktemp(method)
            assert run(known[method], method, run={"keep_checkpoints": 20}) == 0
        return known[method] / "run"

    return get


# Of 96 training images in steps of 16, with 24 for testing and 32 for validation, predicted 16 at a
# time, an epoch has 6 boundaries of steps, 4 of evaluation and, where there is a survey, 6 of it.
IN_STEPS, LAST_STEP, IN_EVALUATION, SECOND_EPOCH = 3, 6, 8, 13


@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_interrupted_runs_end_as_if_they_had_not_been(
    fresh_processes, whole, ask_at, tmp_path, method
):
    whole(method)
    for boundary in (IN_STEPS, LAST_STEP, IN_EVALUATION, SECOND_EPOCH):
        fresh_processes()
        ask_at(boundary)
        assert run(tmp_path, method, "--resume", "auto") == EXIT_INTERRUPTED
    fresh_processes()
    ask_at(None)
    assert run(tmp_path, method, "--resume", "auto") == 0
    assert untimed(read_record(tmp_path / "run")) == untimed(read_record(whole(method)))
    assert_equal_trees(read_checkpoint(tmp_path / "run"), read_checkpoint(whole(method)))


@pytest.mark.parametrize("boundary", range(1, 17, 2))
def test_any_boundary_will_do(fresh_processes, whole, ask_at, tmp_path, boundary):
    """From the second epoch on QMix surveys: its boundaries are those of all phases."""
    shutil.copytree(whole("qmix"), tmp_path / "run")
    for later in ("epoch-0002", "epoch-0003"):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / later)
    fresh_processes()
    ask_at(boundary)
    code = run(tmp_path, "qmix", "--resume", "auto")
    assert code == EXIT_INTERRUPTED
    fresh_processes()
    ask_at(None)
    assert run(tmp_path, "qmix", "--resume", "auto") == 0
    assert untimed(read_record(tmp_path / "run")) == untimed(read_record(whole("qmix")))
    assert_equal_trees(read_checkpoint(tmp_path / "run"), read_checkpoint(whole("qmix")))


def test_what_is_said_and_saved(fresh_processes, ask_at, tmp_path, capsys):
    ask_at(IN_STEPS, signal.SIGTERM)
    assert run(tmp_path, "elr") == EXIT_INTERRUPTED
    error = capsys.readouterr().err
    said = "stopped by SIGTERM in epoch 1, step 3 of 6, all is saved; go on with --resume auto"
    assert said in error and "Traceback" not in error
    names = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert names == ["epoch-0000-step-000003"]


def test_ctrl_c_is_said_at_once_and_loses_no_step(fresh_processes, ask_at, tmp_path, capfd):
    ask_at(IN_STEPS, signal.SIGINT)
    assert run(tmp_path, "elr") == EXIT_INTERRUPTED
    error = capfd.readouterr().err
    assert error.count("Ctrl-C again ends at once") == 1 and "Traceback" not in error
    assert "stopped by SIGINT in epoch 1, step 3 of 6, all is saved" in error
    names = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert names == ["epoch-0000-step-000003"]


@pytest.mark.parametrize(("seconds_between", "ends_at_once"), [(0.1, False), (2.0, True)])
def test_a_second_ctrl_c_ends_at_once(
    fresh_processes, monkeypatch, tmp_path, capfd, seconds_between, ends_at_once
):
    """Unless it is the same one, passed on by what started the processes."""
    times = iter((0.0, seconds_between))
    look = Interrupts.raise_if_asked

    def look_after_two(self):
        with monkeypatch.context() as patched:
            patched.setattr("engine.interrupts.time.monotonic", lambda: next(times))
            for _ in range(2):
                signal.raise_signal(signal.SIGINT)
        look(self)

    monkeypatch.setattr(Interrupts, "raise_if_asked", look_after_two)
    assert run(tmp_path, "gce") == (EXIT_KEYBOARD if ends_at_once else EXIT_INTERRUPTED)
    error = capfd.readouterr().err
    assert ("stopped by the keyboard" in error) == ends_at_once and "Traceback" not in error


def test_handlers_are_those_of_before_afterwards(tmp_path, ask_at):
    before = [signal.getsignal(number) for number in SIGNALS]
    ask_at(1)
    assert run(tmp_path, "gce") == EXIT_INTERRUPTED
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_saving_in_mid_epoch_changes_nothing(fresh_processes, whole, tmp_path):
    assert run(tmp_path, "sscl", run={"save_every_steps": 4, "keep_checkpoints": 20}) == 0
    names = {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {
        "epoch-0000-step-000004", "epoch-0001", "epoch-0001-step-000002", "epoch-0002",
        "epoch-0002-step-000004", "epoch-0003",
    }  # fmt: skip
    fresh_processes()
    assert untimed(read_record(tmp_path / "run")) == untimed(read_record(whole("sscl")))
    assert_equal_trees(read_checkpoint(tmp_path / "run"), read_checkpoint(whole("sscl")))


def test_the_comparison_notices_a_step_that_is_taken_twice(
    fresh_processes, whole, ask_at, tmp_path
):
    """The control: a checkpoint that says one step less than was taken ends elsewhere."""
    ask_at(IN_STEPS)
    assert run(tmp_path, "elr") == EXIT_INTERRUPTED
    state = next((tmp_path / "run" / "checkpoints").iterdir()) / "state.json"
    text = state.read_text()
    assert text.count('"steps_done": 3') == 1
    state.write_text(text.replace('"steps_done": 3', '"steps_done": 2'))
    fresh_processes()
    ask_at(None)
    assert run(tmp_path, "elr", "--resume", "auto") == 0
    with pytest.raises(AssertionError):
        assert_equal_trees(read_checkpoint(tmp_path / "run"), read_checkpoint(whole("elr")))


@pytest.mark.parametrize("part", ["ledger", "pending", "optimizer", "method"])
def test_every_part_of_a_checkpoint_matters(fresh_processes, whole, ask_at, tmp_path, part):
    """The state is complete, and nothing of it idle: without a part the run ends elsewhere."""
    ask_at(IN_STEPS + 10)  # in the second epoch, after rows of the first
    assert run(tmp_path, "elr") == EXIT_INTERRUPTED
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    blank(newest, part)
    fresh_processes()
    ask_at(None)
    assert run(tmp_path, "elr", "--resume", "auto") == 0
    with pytest.raises(AssertionError):
        assert_equal_trees(read_checkpoint(tmp_path / "run"), read_checkpoint(whole("elr")))


def blank(checkpoint, part):
    """Put zeros in the place of a part, and mend its checksum."""
    if part == "optimizer":
        path = checkpoint / "optimizer.pt"
        state = torch.load(path, weights_only=True)
        for moments in state["optimizer"]["state"].values():
            moments["exp_avg"].zero_()
        torch.save(state, path)
    else:
        path = checkpoint / f"{part}.safetensors"
        tensors = safetensors.torch.load_file(path)
        floats = {k: v * 0 if v.is_floating_point() else v for k, v in tensors.items()}
        safetensors.torch.save_file(floats, path)
    mend_checksum(checkpoint, path)


def mend_checksum(checkpoint, path):
    state = json.loads((checkpoint / "state.json").read_text())
    state["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (checkpoint / "state.json").write_text(json.dumps(state))


def test_all_ranks_learn_of_a_signal_to_one(monkeypatch):
    """The flag is summed over ranks, so a rank that was not asked stops as well."""
    interrupts = Interrupts()
    interrupts.raise_if_asked()
    monkeypatch.setattr(
        "engine.collectives.begin_sum", lambda mine: lambda: mine + torch.tensor([1, 2, 0])
    )
    with pytest.raises(RunInterruptedError, match="SIGTERM and SIGUSR1"):
        interrupts.raise_if_asked()


def test_a_signal_is_noted_while_passes_are_compiled():
    """torch.compile traces under this mode, which refuses each tensor that is not its own."""
    interrupts = Interrupts()
    with interrupts.listening(), FakeTensorMode():
        signal.raise_signal(signal.SIGUSR1)
    with pytest.raises(RunInterruptedError, match=r"^SIGUSR1$"):
        interrupts.raise_if_asked()


def test_where_exchanges_wait_for_a_gpu_a_signal_is_seen_a_boundary_later(monkeypatch):
    """By all ranks alike, and without a wait for the step that has just been begun."""
    read = []

    def begin_sum(received):
        total = received.clone()
        return lambda: (read.append(total.tolist()), total)[1]

    monkeypatch.setattr("engine.collectives.exchanges_queue_on_gpu", lambda: True)
    monkeypatch.setattr("engine.collectives.begin_sum", begin_sum)
    interrupts = Interrupts()
    interrupts.raise_if_asked()
    assert read == []
    with interrupts.listening():
        signal.raise_signal(signal.SIGTERM)
    interrupts.raise_if_asked()
    assert read == [[0, 0, 0]]
    with pytest.raises(RunInterruptedError, match=r"^SIGTERM$"):
        interrupts.raise_if_asked()
