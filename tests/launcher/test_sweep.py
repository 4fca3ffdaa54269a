"""Sweeps: the file, its cells, running one of them, and the table."""

import io
import json
import re
import subprocess

import pytest
import yaml
from method_settings import tiny_config
from prepared_folders import own, prepare, write_own
from processes import ROOT
from run_folders import read_record

from engine.config import ConfigError, load_config
from engine.interrupts import EXIT_INTERRUPTED
from engine.run_lock import RunLock
from launcher import sweep as module
from launcher.sweep import Sweep, cells_of, main, state_of

SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    """Writes a sweep of tiny runs, 2 methods x 1 noise x 2 seeds, with keys replaced."""

    def write_sweep(**replaced):
        base = tmp_path / "base.yaml"
        base.write_text(yaml.safe_dump(tiny_config("cross_entropy", run={"epochs": 2})))
        tree = {
            "base": str(base),
            "out": str(tmp_path / "out"),
            "methods": {"ce": {"name": "cross_entropy"}, "gce": {"name": "gce", "q": 0.5}},
            "noises": {"sym20": {"kind": "symmetric", "mis_h": 0.2}},
            "seeds": [3, 5],
        }
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({**tree, **replaced}))
        return path

    return write_sweep


@pytest.fixture
def launched(monkeypatch):
    """Has the launcher note what it was started with and end with ``codes``, in turn."""
    calls, codes = [], [0]

    def run(arguments):
        calls.append(arguments)
        return codes.pop(0)

    monkeypatch.setattr(module.run, "main", run)
    monkeypatch.setattr(module, "queued_jobs", lambda: None)
    return calls, codes


def first_cell(path):
    return cells_of(load_config(Sweep, path))[0]


# -- the file --------------------------------------------------------------------------------------


def test_cells_come_seed_by_seed_and_differ_in_what_their_names_say(write):
    cells = cells_of(load_config(Sweep, write(settings=["optim.lr=0.5"])))
    assert [str(cell) for cell in cells] == [
        "sym20-ce-seed3", "sym20-gce-seed3", "sym20-ce-seed5", "sym20-gce-seed5",
    ]  # fmt: skip
    config = cells[3].compose(["optim.batch_size=8"])
    assert config.method.name == "gce" and config.method.q == 0.5
    assert config.noise.mis_h == 0.2 and config.noise.mis_l == 0.0  # not the base's
    assert config.run.seed == 5 and config.run.dir == cells[3].folder
    assert config.run.epochs == 2 and config.optim.lr == 0.5 and config.optim.batch_size == 8


def test_one_method_may_be_tried_with_several_settings(write):
    methods = {"mild": {"name": "gce", "q": 0.3}, "strong": {"name": "gce", "q": 0.9}}
    cells = cells_of(load_config(Sweep, write(methods=methods)))
    assert [cell.compose().method.q for cell in cells[:2]] == [0.3, 0.9]


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"methods": {"a": {"name": "qmx"}}}, "methods.a.name: found 'qmx', expected"),
        ({"methods": {"a": {"name": "gce", "qq": 1}}}, "methods.a.qq: unknown key; did you mean"),
        ({"methods": {"a": {}}}, "methods.a.name: missing"),
        ({"methods": {}}, "methods: empty; expected one or more"),
        ({"noises": {}}, "noises: empty; expected one or more"),
        ({"noises": {"a": {"mis_h": 2}}}, "noises.a.mis_h: found 2, expected"),
        ({"noises": {"a/b": {}}}, "noises: found name 'a/b', expected letters"),
        ({"seeds": []}, "seeds: found [], expected a list of at least 1 items"),
        ({"seeds": [1, 2, 1]}, "seeds: 1 is given twice"),
        ({"seeds": [0.5]}, "seeds[0]: found 0.5 (a number)"),
        ({"settings": ["run.seed=1"]}, "run.seed: decided by the cells"),
        ({"seed": [1]}, "seed: unknown key; did you mean 'seeds'?"),
    ],
)
def test_a_faulty_file_is_refused(write, capsys, replaced, message):
    path = write(**replaced)
    assert main(["count", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(f"error: {path}: {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "4"], "cell 4: {path} has 4 cells, 0 to 3; sbatch --array=0-3"),
        (["run", "-1"], "cell -1: {path} has 4 cells, 0 to 3; sbatch --array=0-3"),
        (["run", "0", "optim.lrr=1"], "command line: optim.lrr: unknown key; did you mean 'lr'?"),
        (["status", "noise={}"], "command line: noise: decided by the cells of the sweep"),
    ],
)
def test_a_faulty_command_line_is_refused(write, capsys, arguments, message):
    path = write()
    command, *rest = arguments
    assert main([command, str(path), *rest]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message.format(path=path)}")


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [(["status"], "file"), (["run"], "file, index"), (["run", "a.yaml"], "index")],
)
def test_what_is_missing_of_a_command_line_is_only_what_is_needed(capsys, arguments, missing):
    with pytest.raises(SystemExit):
        main(arguments)
    assert capsys.readouterr().err.endswith(f"arguments are required: {missing}\n")


def test_a_missing_base_is_said_before_anything_runs(write, capsys):
    assert main(["count", str(write(base="nowhere.yaml"))]) == 2
    assert (
        capsys.readouterr().err
        == "error: nowhere.yaml: cannot be read: No such file or directory\n"
    )


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.name)
def test_every_cell_of_the_sweeps_here_is_a_configuration(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    cells = cells_of(load_config(Sweep, path))
    assert len({cell.compose().run.dir for cell in cells}) == len(cells)


def test_the_arrays_have_the_sizes_of_their_sweeps(monkeypatch):
    monkeypatch.chdir(ROOT)
    array = re.search(r"^#SBATCH --array=0-(\d+)$", (ROOT / "slurm/sweep.sh").read_text(), re.M)
    assert array and int(array[1]) == len(cells_of(load_config(Sweep, SWEEPS[0]))) - 1
    assert SWEEPS[0].name == "default.yaml"
    demo = (ROOT / "configs" / "sweeps" / "demo.yaml").read_text()
    num_cells = len(cells_of(load_config(Sweep, ROOT / "configs" / "sweeps" / "demo.yaml")))
    assert f"--array=0-{num_cells - 1} " in demo


# -- a cell ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fresh_processes")
def test_a_cell_trains_and_a_finished_one_is_left_alone(write, capsys):
    path = write()
    assert main(["run", str(path), "1"]) == 0
    folder = path.parent / "out" / "sym20-gce-seed3"
    assert len(read_record(folder)) == 2
    assert "quadratic weighted kappa" in capsys.readouterr().out

    before = (folder / "metrics.jsonl").stat().st_mtime_ns
    assert main(["run", str(path), "1"]) == 0
    assert "finished already, 2 epochs" in capsys.readouterr().out
    assert (folder / "metrics.jsonl").stat().st_mtime_ns == before

    assert main(["run", str(path), "1", "optim.lr=0.25"]) == 2
    assert "made with other settings; optim.lr: 0.002 -> 0.25" in capsys.readouterr().err
    table = module.describe(path, cells_of(load_config(Sweep, path)), [], None)
    assert "4 cells: 3 not begun, 1 finished" in table
    assert "sbatch --array=0,2,3 slurm/sweep.sh" in table
    row = table.splitlines()[3].split()
    assert row[:4] == ["1", "sym20-gce-seed3", "finished", "2/2"]
    assert row[4] == f"{read_record(folder)[-1]['eval/accuracy']:.4f}"


@pytest.fixture
def write_prepared(write, tmp_path):
    """Writes a sweep on prepared images, whose source and crop the base leaves to their folder."""
    (tmp_path / "raw").mkdir()
    write_own(tmp_path / "raw")
    prepare(own(tmp_path / "raw"), tmp_path / "prepared", crop="disc")
    tree = tiny_config("cross_entropy", run={"epochs": 1}, optim={"batch_size": 4})
    data = {"image_size": 32, "num_workers": 0, "validation_fraction": 0.0}
    tree["data"] = data | {"prepared": str(tmp_path / "prepared")}
    base = tmp_path / "on-prepared.yaml"
    base.write_text(yaml.safe_dump(tree))
    return lambda: write(base=str(base))


def test_a_cell_on_prepared_images_is_finished_and_goes_on(write_prepared, capsys, fresh_processes):
    path = write_prepared()
    assert main(["run", str(path), "0"]) == 0
    cell = first_cell(path)
    kept = yaml.safe_load((cell.folder / "config.yaml").read_text())["data"]
    assert (kept["source"], kept["crop"]) == ("csv", "disc")
    assert state_of(cell).name == "finished"
    assert main(["run", str(path), "0"]) == 0
    assert "finished already" in capsys.readouterr().out
    # As a job that was put back into the queue does.
    fresh_processes()
    assert main(["run", str(path), "0", "run.epochs=2"]) == 0, capsys.readouterr().err
    assert len(read_record(cell.folder)) == 2


def test_prepared_images_that_are_not_there_are_one_line(write_prepared, capsys):
    assert main(["count", str(write_prepared()), "data.prepared=nowhere"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: nowhere") and error.count("\n") == 1


def test_the_launcher_gets_the_cells_settings_and_goes_on(write, launched):
    path = write()
    assert main(["run", str(path), "2", "run.epochs=9", "--job", "8_2"]) == 0
    base, (arguments,) = path.parent / "base.yaml", launched[0]
    assert arguments[:4] == ["--config", str(base), "--resume", "auto"]
    config = load_config(module.Config, base, arguments[4:])
    assert config == cells_of(load_config(Sweep, path))[2].compose(["run.epochs=9"])


@pytest.mark.parametrize(
    ("code", "state"),
    [(0, "finished"), (EXIT_INTERRUPTED, "stopped"), (2, "failed"), (3, "failed")],
)
def test_a_cell_notes_how_its_run_ended(write, launched, code, state):
    path = write()
    launched[1][:] = [code]
    assert main(["run", str(path), "0", "--job", "8_0"]) == code
    assert json.loads(first_cell(path).note.read_text()) == {"state": state, "job": "8_0"}


def test_a_crash_is_noted_and_passed_on(write, launched):
    path = write()
    launched[1][:] = []
    with pytest.raises(IndexError):
        main(["run", str(path), "0"])
    assert state_of(first_cell(path)).name == "failed"


# -- the table -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noted", "jobs", "state"),
    [
        ("running", None, "running"),
        ("running", {"8_0": "RUNNING"}, "running"),
        ("running", {"8_0": "PENDING"}, "waiting"),
        ("running", {"9_0": "RUNNING"}, "cut off"),
        ("stopped", {"8_0": "PENDING"}, "waiting"),
        ("stopped", {"8_0": "COMPLETING"}, "stopped"),
        ("stopped", {}, "stopped"),
        ("failed", {}, "failed"),
    ],
)
def test_a_state_is_what_was_noted_and_what_the_queue_knows(write, noted, jobs, state):
    cell = first_cell(write())
    cell.folder.mkdir(parents=True)
    (cell.folder / "metrics.jsonl").write_text('{"epoch": 0, "eval/kappa": 0.5}\n')
    cell.note.write_text(json.dumps({"state": noted, "job": "8_0"}))
    assert state_of(cell, (), jobs) == (state, 1, 2, {"epoch": 0, "eval/kappa": 0.5})


def test_a_damaged_record_of_a_cell_is_one_line(write, capsys):
    path = write()
    record = first_cell(path).folder / "metrics.jsonl"
    record.parent.mkdir(parents=True)
    record.write_text("nonsense\n")
    assert main(["status", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {record}, line 1: damaged") and error.count("\n") == 1


def test_a_run_without_a_note_is_not_finished(write):
    cell = first_cell(write())
    assert state_of(cell).name == "not begun"
    cell.folder.mkdir(parents=True)
    (cell.folder / "metrics.jsonl").write_text('{"epoch": 0}\n')
    assert state_of(cell).name == "stopped"


@pytest.mark.parametrize(
    ("noted", "has_report", "state"),
    [
        (None, False, "stopped"),  # cut off between its last line and its report
        (None, True, "finished"),
        ("stopped", False, "stopped"),  # in its audit
        ("stopped", True, "stopped"),  # in that of more epochs than it was reported with
        ("finished", True, "finished"),
    ],
)
def test_all_epochs_are_not_all_of_a_run(write, noted, has_report, state):
    cell = first_cell(write())
    cell.folder.mkdir(parents=True)
    (cell.folder / "metrics.jsonl").write_text('{"epoch": 0}\n{"epoch": 1}\n')
    if has_report:
        (cell.folder / "report.html").touch()
    if noted is not None:
        cell.note.write_text(json.dumps({"state": noted, "job": None}))
    assert state_of(cell).name == state
    if noted == "finished":
        assert state_of(cell, ["run.epochs=3"]).name == "stopped"


def test_a_cell_that_runs_is_left_to_it(write, launched, capsys):
    path = write()
    cell = first_cell(path)
    lock = RunLock(cell.folder)
    lock.take()
    cell.note.write_text(json.dumps({"state": "running", "job": None}))
    assert state_of(cell).name == "running"
    assert main(["run", str(path), "0"]) == 2
    assert f"runs already, in {cell.folder}: process " in capsys.readouterr().err
    assert launched[0] == [] and json.loads(cell.note.read_text())["state"] == "running"
    lock.release()
    assert state_of(cell).name == "cut off"


def test_the_queue_is_read_where_there_is_one(monkeypatch):
    def squeue(command, **options):
        return subprocess.CompletedProcess(command, 0, "8_0 RUNNING\n7_N/A PENDING\n", "")

    monkeypatch.setattr(module.subprocess, "run", squeue)
    assert module.queued_jobs() == {"8_0": "RUNNING", "7_N/A": "PENDING"}

    def missing(command, **options):
        raise FileNotFoundError

    monkeypatch.setattr(module.subprocess, "run", missing)
    assert module.queued_jobs() is None


@pytest.mark.parametrize(
    ("queue", "state"),
    [("8_0 RUNNING\n8_1 PENDING\n", "running"), ("9_0 RUNNING\n", "cut off"), ("\n", "cut off")],
)
def test_a_queue_that_is_handed_over_is_not_asked_for(write, capsys, monkeypatch, queue, state):
    path = write()
    cell = first_cell(path)
    cell.note.parent.mkdir()
    cell.note.write_text(json.dumps({"state": "running", "job": "8_0"}))
    monkeypatch.setattr(module, "queued_jobs", pytest.fail)
    monkeypatch.setattr("sys.stdin", io.StringIO(queue))
    assert main(["status", "--queue-from-stdin", str(path), "optim.lr=0.5"]) == 0
    table = capsys.readouterr().out
    assert f"4 cells: 1 {state}, 3 not begun" in table and "the queue of SLURM" not in table
    assert ("--array=0-3 " in table) == (state == "cut off")


def test_what_is_no_queue_is_refused(write, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("8_0 RUNNING\nslurm is down\n"))
    assert main(["status", "--queue-from-stdin", str(write())]) == 2
    assert "squeue: found 'slurm is down', expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("noted", "job", "is_said"),
    [("running", "8_0", True), ("stopped", "8_0", True), ("failed", "8_0", False),
     ("stopped", None, False), (None, None, False)],
)  # fmt: skip
def test_a_queue_that_nobody_knows_is_said_where_it_matters(
    write, launched, capsys, noted, job, is_said
):
    path = write()
    if noted is not None:
        note = first_cell(path).note
        note.parent.mkdir()
        note.write_text(json.dumps({"state": noted, "job": job}))
    assert main(["status", str(path)]) == 0
    table = capsys.readouterr().out
    line = "\nthe queue of SLURM is not known here (squeue gives no answer): cells of its jobs that"
    assert (line in table) == ("SLURM" in table) == is_said
    assert noted is None or f"4 cells: 1 {noted}, 3 not begun" in table


def test_what_a_cell_decides_cannot_be_set(write):
    with pytest.raises(ConfigError, match=r"run\.dir: decided by the cells"):
        first_cell(write()).compose(["run.dir=elsewhere"])


def test_seeds_of_a_setting_are_a_group_in_wandb(write):
    cells = cells_of(load_config(Sweep, write()))
    tracking = [cell.compose().tracking for cell in cells]
    assert [t.group for t in tracking] == ["sym20-ce", "sym20-gce"] * 2
    assert {t.job_type for t in tracking} == {"out"}
    assert tracking[1].tags == ["sym20", "gce", "seed3"]
    assert cells[0].compose(["tracking.group=mine"]).tracking.group == "mine"
