"""The benchmark of robustness as it is run: tables of what is there, a tiny grid in full."""

import json
import os
import subprocess
import sys

import noise_robustness
import pytest
import robustness_grid
from method_settings import METHOD_SETTINGS, tiny_config
from prepared_folders import own, prepare, write_own
from processes import ROOT
from robustness_grid import Cell

from data.sources import settle
from engine.config import dump_config, load_config
from launcher.run import parse_arguments
from launcher.settings import Config

SCRIPT = ROOT / "benchmarks" / "noise_robustness.py"


def write_record(folder, num_lines, num_epochs=3):
    folder.mkdir()
    (folder / "config.yaml").write_text(f"run:\n  epochs: {num_epochs}\n")
    names = ("kappa", "accuracy", "balanced_accuracy", "macro_f1", "auroc", "recall/0", "f1/0")
    metrics = {f"eval/{name}": 0.5 for name in names}
    lines = [json.dumps({"epoch": n} | metrics) + "\n" for n in range(num_lines)]
    (folder / "metrics.jsonl").write_text("".join(lines))


def figures(out):
    return json.loads((out / "figures.json").read_text())["results"]


def test_unfinished_runs_stay_out_of_the_table(tmp_path, capsys):
    write_record(tmp_path / "digits-sym40-qmix-seed0", 3)
    write_record(tmp_path / "digits-sym40-qmix-seed1", 2)
    arguments = ["--out", str(tmp_path), "--only", "digits,sym40,qmix", "--table-only"]
    assert noise_robustness.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| qmix | 0.500 (0.500), n = 1 |" in lines
    assert "not in the tables, since not finished: digits 2 of 3 runs" in lines
    by_noise = figures(tmp_path)["digits"]
    assert by_noise["sym40"]["qmix"]["last/kappa"]["by_seed"] == {"0": 0.5}


def test_beds_without_files_are_left_out_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MEDNOISE_REALDATA", raising=False)
    arguments = ["--out", str(tmp_path / "out"), "--only", "busi,deepdrid,qmix"]
    assert noise_robustness.main(arguments) == 0
    captured = capsys.readouterr()
    assert "left out: busi, deepdrid; MEDNOISE_REALDATA names no folder\n" in captured.err
    assert figures(tmp_path / "out") == {}


@pytest.mark.parametrize("setting", ["run.seed=3", "noise.mis_h=0.1", "method={name: qmix}"])
def test_what_a_cell_is_called_after_cannot_be_set(setting, capsys):
    with pytest.raises(SystemExit):
        noise_robustness.main(["--set", setting, "--table-only"])
    assert "decided by the cells of the grid" in capsys.readouterr().err


@pytest.fixture
def tiny_grid(tmp_path, monkeypatch):
    """Two methods on the tiny data set under the names of the real grid."""
    methods = {name: {"all": METHOD_SETTINGS[name]} for name in ("qmix", "cross_entropy")}
    for name, settings in methods.items():
        monkeypatch.setitem(robustness_grid.METHODS, name, settings)
    text = json.dumps(tiny_config("cross_entropy"))
    (tmp_path / "cross_entropy_synthetic.yaml").write_text(text)
    monkeypatch.setattr(robustness_grid, "CONFIGS", tmp_path)
    out = tmp_path / "out"
    words = ",".join(["synthetic", "mixed", "seed1", *methods])
    return out, ["--out", str(out), "--only", words, "--jobs", "2", "--set", "run.epochs=2"]


@pytest.mark.slow
def test_a_grid_runs_skips_what_is_finished_and_resumes_the_rest(tiny_grid, capsys, monkeypatch):
    out, arguments = tiny_grid
    assert noise_robustness.main(arguments) == 0
    first = figures(out)
    by_seed = first["synthetic"]["mixed"]["qmix"]["last/kappa"]["by_seed"]
    assert list(by_seed) == ["1"]

    # Cut off in the second epoch: its line is gone and so is its checkpoint.
    name = "synthetic-mixed-cross_entropy-seed1"
    record = out / name / "metrics.jsonl"
    record.write_text(record.read_text().splitlines(keepends=True)[0])
    last = record.parent / "checkpoints" / "epoch-0002"
    last.rename(last.with_name(".epoch-0002.tmp"))
    started, really_run = [], subprocess.run

    def noted_run(command, **options):
        started.append(command)
        return really_run(command, **options)

    monkeypatch.setattr(subprocess, "run", noted_run)
    # Where a run is executed may change.
    assert noise_robustness.main([*arguments, "--set", "runtime.device=cpu"]) == 0
    assert figures(out) == first
    assert [parse_arguments(command[2:]).config for command in started] == [out / f"{name}.yaml"]
    assert (
        "going on from epoch-0001, 0 steps into epoch 2 of 2" in (out / f"{name}.log").read_text()
    )
    # What lies beside the run is the run's configuration, to be used by hand.
    beside = load_config(Config, out / f"{name}.yaml")
    assert beside == load_config(Config, out / name / "config.yaml")


def test_failures_are_named_and_the_others_go_on(tiny_grid, capsys, monkeypatch):
    """One cell was made with another learning rate, one does not start, one is no configuration."""
    out, arguments = tiny_grid
    out.mkdir()
    write_record(out / "synthetic-mixed-qmix-seed1", 2)
    cell = Cell("synthetic", "mixed", "qmix", 1)
    made_with = cell.compose(out, ["run.epochs=1", "optim.lr=0.1"])
    (out / str(cell) / "config.yaml").write_text(dump_config(made_with))
    (out / "synthetic-mixed-cross_entropy-seed1").write_text("in the way of the folder")
    monkeypatch.setitem(robustness_grid.METHODS, "gce", {"all": {"name": "no method"}})
    arguments[3] += ",gce"

    assert noise_robustness.main(arguments) == 1
    output = capsys.readouterr().out
    changed = "run.epochs: 1 -> 2; optim.lr: 0.1 -> 0.002"
    assert f"{cell}, made with other settings: {changed}\n" in output
    log = out / "synthetic-mixed-cross_entropy-seed1.log"
    assert f"synthetic-mixed-cross_entropy-seed1, exit code 2, see {log}\n" in output
    assert "error: " in log.read_text()
    assert "synthetic-mixed-gce-seed1, command line: method.name: " in output
    assert figures(out) == {}


def test_a_finished_run_on_prepared_images_is_skipped(tmp_path, monkeypatch):
    """Its folder holds what they settle, source and crop, which the bed's file does not say."""
    (tmp_path / "raw").mkdir()
    write_own(tmp_path / "raw")
    prepare(own(tmp_path / "raw"), tmp_path / "prepared", crop="disc")
    tree = tiny_config("cross_entropy")
    tree["data"] = {"prepared": str(tmp_path / "prepared"), "image_size": 32}
    path = tmp_path / "cross_entropy_synthetic.yaml"
    path.write_text(json.dumps(tree))
    monkeypatch.setattr(robustness_grid, "CONFIGS", tmp_path)
    out, cell = tmp_path / "out", Cell("synthetic", "mixed", "cross_entropy", 1)
    out.mkdir()
    write_record(out / str(cell), 3)

    wanted = cell.compose(out)
    data = settle(load_config(Config, path).data)
    assert (data.source, data.crop) == ("csv", "disc")
    kept = wanted.model_copy(update={"data": data})
    (out / str(cell) / "config.yaml").write_text(dump_config(kept))
    assert noise_robustness.run(cell, out, []) == ""
    assert "made with other settings: data.image_size" in noise_robustness.run(
        cell, out, ["data.image_size=16"]
    )
    assert noise_robustness.run(cell, out, ["data.prepared=nowhere"]).startswith("nowhere")


def test_a_failure_of_many_runs_is_named_once(tiny_grid, capsys):
    _, arguments = tiny_grid
    assert noise_robustness.main([*arguments, "--set", "optim.rate=1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    missing = [line for line in lines if line.startswith("not in the tables")]
    assert len(missing) == 1
    assert "synthetic-mixed-cross_entropy-seed1 and 1 more, command line: optim.rate" in missing[0]


def test_the_command_line_explains_itself():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPT), "--help"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    for option in ("--out", "--only", "--jobs", "--set", "--table-only", "--long"):
        assert option in result.stdout
