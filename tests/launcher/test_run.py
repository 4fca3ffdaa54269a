import json
import math
import shutil

import pytest
import torch
import yaml
from method_settings import METHOD_SETTINGS, write_config
from run_folders import assert_equal_trees, read_checkpoint, read_record, untimed

from engine.checkpoint import Checkpoints
from engine.config import load_config
from launcher.run import main
from launcher.settings import Config

pytestmark = pytest.mark.usefixtures("fresh_processes")


@pytest.fixture
def launch(tmp_path, fresh_processes):
    """Runs the command line on a tiny configuration with ``run.dir`` in the test's folder."""

    def run(*arguments, method="qmix", folder="run", **sections):
        fresh_processes()
        sections["run"] = {"dir": str(tmp_path / folder), **sections.get("run", {})}
        path = write_config(tmp_path, method, **sections)
        return main(["--config", str(path), *arguments])

    return run


@pytest.fixture(scope="module", params=METHOD_SETTINGS)
def finished(request, tmp_path_factory):
    """The folder of a run to the end, by every method in turn; tests only read it."""
    folder = tmp_path_factory.mktemp(request.param)
    path = write_config(folder, request.param, run={"dir": str(folder / "run")})
    assert main(["--config", str(path)]) == 0
    return folder / "run", request.param


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of a finished run in the folder that ``launch`` uses."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def contents(folder):
    """Every file below a folder with its bytes."""
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- a whole run -----------------------------------------------------------------------------------


def test_the_run_folder_holds_config_record_and_newest_checkpoints(finished):
    folder, _ = finished
    assert sorted(p.name for p in folder.iterdir()) == [
        "checkpoints", "config.yaml", "labels.csv", "metrics.jsonl", "report.html", "review.html",
        "run.json", "steps.jsonl", "transition.csv",
    ]  # fmt: skip
    names = {p.name for p in (folder / "checkpoints").iterdir()}
    kappas = [line["validation/kappa"] for line in read_record(folder)]
    best = f"epoch-{kappas.index(max(kappas)) + 1:04}"
    assert names == {"epoch-0002", "epoch-0003", best}


def test_the_resolved_config_loads_back_equal(finished):
    folder, _ = finished
    config = load_config(Config, folder / "config.yaml")
    assert config == load_config(Config, folder.parent / "config.yaml")
    written = yaml.safe_load((folder / "config.yaml").read_text())
    # Defaults are written out too.
    assert written["optim"]["schedule"] == "cosine" and "views" in written


def test_the_record_has_a_line_an_epoch(finished):
    folder, method = finished
    lines = read_record(folder)
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    for line in lines:
        assert {"eval/kappa", "eval/accuracy", "validation/kappa"} <= line.keys()
        assert {"eval/balanced_accuracy", "eval/macro_f1", "eval/auroc"} <= line.keys()
        assert line["time/epoch_seconds"] > 0
        losses = [value for name, value in line.items() if name.startswith("train/")]
        assert losses and all(math.isfinite(loss) for loss in losses)
    if method == "qmix":  # which separates after one epoch of warm-up
        assert not any(name.startswith("separation/") for name in lines[0])
        for line in lines[1:]:
            assert {f"separation/recall/{g}" for g in ("correct", "mis_h", "mis_l")} <= line.keys()
            assert 0 <= line["separation/auc"] <= 1


def test_the_same_setting_gives_the_same_run_and_table(launch, finished, capsys, tmp_path):
    folder, method = finished
    torch.manual_seed(12345)  # the global generator has no say
    assert launch(method=method) == 0
    assert untimed(read_record(tmp_path / "run")) == untimed(read_record(folder))
    assert_equal_trees(read_checkpoint(tmp_path / "run"), read_checkpoint(folder))

    output, last = capsys.readouterr().out, read_record(folder)[-1]
    kappas = next(s for s in output.splitlines() if s.startswith("quadratic weighted kappa"))
    assert f"{last['eval/kappa']:.4f}" in kappas.split()
    for title in ("accuracy", "balanced accuracy", "macro F1", "macro one-vs-rest AUROC"):
        assert f"\n{title}" in output
    # The table of the five classes has the counts of the 24 test images and the record's values.
    table = output.partition("test metrics by class in the last epoch:\n")[2].splitlines()[2:7]
    numbers = [line.split()[-5:] for line in table]
    assert sum(int(cells[0]) for cells in numbers) == 24
    for c, cells in enumerate(numbers):
        values = [last[f"eval/{name}/{c}"] for name in ("precision", "recall", "f1", "auroc")]
        assert cells[1:] == ["-" if value is None else f"{value:.3f}" for value in values]
    if "separation/auc" in last:
        assert f"separation in the last epoch: AUC {last['separation/auc']:.3f}" in output
        assert all(f"\n{group} " in output for group in ("Correct", "Mis-H", "Mis-L"))
    assert output.rstrip().endswith(f"run folder: {tmp_path / 'run'}")


def test_overrides_win_over_the_file(launch, tmp_path):
    overrides = ["optim.lr=5e-4", "run.epochs=1", "noise.mis_h=0.5"]
    assert launch(*overrides, method="cross_entropy") == 0
    config = load_config(Config, tmp_path / "run" / "config.yaml")
    assert (config.optim.lr, config.run.epochs, config.noise.mis_h) == (5e-4, 1, 0.5)
    assert len(read_record(tmp_path / "run")) == 1


@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_half_precision_trains(launch, tmp_path, method):
    assert launch("runtime.precision=bf16", method=method, run={"epochs": 2}) == 0
    weights = read_checkpoint(tmp_path / "run", 2)["method"].values()
    assert all(w.dtype == torch.float32 and w.isfinite().all() for w in weights if w.ndim)


# -- check -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_check_prints_the_plan_and_leaves_nothing(launch, capsys, tmp_path, method):
    assert launch("--check", method=method) == 0
    output = capsys.readouterr().out
    # 128 drawn training images, a quarter of them (class by class) for validation; 24 for testing.
    assert "data: synthetic, 152 images of 5 classes" in output
    assert "processes: 1; global batch 16, 16 a process; 6 steps an epoch, 18 in 3 epochs" in output
    assert output.count("network passes per training image in epoch") == 2
    assert "train Correct  train Mis-H  train Mis-L" in output
    assert "ledger: " in output and "trained parameters: " in output
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_check_of_a_run_that_exists_changes_nothing(launch, finished):
    folder, method = finished
    before = contents(folder)
    assert launch("--check", method=method, run={"dir": str(folder)}) == 0
    assert contents(folder) == before


# -- going on --------------------------------------------------------------------------------------


def test_a_second_run_in_the_same_folder_is_refused(launch, finished, capsys):
    folder, method = finished
    before = contents(folder)
    assert launch(method=method, run={"dir": str(folder)}) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: run.dir: ") and "--resume auto" in error
    assert contents(folder) == before


@pytest.fixture
def interrupt(monkeypatch):
    """Makes the next run end while it saves the checkpoint of an epoch."""
    save = Checkpoints.save

    def arm(epochs_done):
        def stop(self, snapshot, protected=()):
            if snapshot.epochs_done == epochs_done:
                raise SystemExit
            return save(self, snapshot, protected)

        monkeypatch.setattr(Checkpoints, "save", stop)

    yield arm


def test_an_interrupted_run_ends_as_if_it_had_not_been(launch, finished, interrupt, tmp_path):
    """It starts afresh at first, and is then cut off at each epoch's end."""
    folder, method = finished
    for stop in (1, 2, 3):
        interrupt(stop)
        with pytest.raises(SystemExit):
            launch("--resume", "auto", method=method)
        # The record was a line ahead of the checkpoints.
        assert len(read_record(tmp_path / "run")) == stop
    interrupt(None)
    assert launch("--resume", "auto", method=method) == 0
    assert untimed(read_record(tmp_path / "run")) == untimed(read_record(folder))
    assert_equal_trees(read_checkpoint(tmp_path / "run"), read_checkpoint(folder))


def test_a_run_that_has_all_its_epochs_says_so(launch, finished, copied, caplog, tmp_path):
    _, method = finished
    caplog.set_level("INFO")
    record = read_record(tmp_path / "run")
    assert launch("--resume", "auto", method=method) == 0
    assert f"run.epochs {len(record)} are done already" in caplog.text
    assert read_record(tmp_path / "run") == record


def test_a_run_is_not_made_younger(launch, finished, copied, capsys):
    before = contents(copied)
    assert launch("--resume", "auto", method=finished[1], run={"epochs": 2}) == 2
    error = capsys.readouterr().err
    assert error == (
        "error: run.epochs: 2, but the run is 3 epochs and 0 steps old; at least 3, or begin "
        "another run in another folder\n"
    )
    assert contents(copied) == before


def test_a_run_that_goes_on_for_longer_says_what_it_was_planned_for(
    launch, finished, copied, caplog
):
    """Its learning rate fell to nothing once already: it is no run of four epochs."""
    for _ in range(2):  # what it was planned for outlives a restart
        assert launch("--resume", "auto", method=finished[1], run={"epochs": 4}) == 0
        assert "run.epochs: 4, after steps that were planned for 3" in caplog.text
        assert len(read_record(copied)) == 4
        assert json.loads((copied / "run.json").read_text())["planned_epochs"] == [3, 4]


def test_a_damaged_checkpoint_is_passed_over(launch, finished, copied, caplog):
    folder, method = finished
    weights = copied / "checkpoints" / "epoch-0003" / "method.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert launch("--resume", "auto", method=method) == 0
    assert "skipping a checkpoint" in caplog.text
    assert untimed(read_record(copied)) == untimed(read_record(folder))
    assert_equal_trees(read_checkpoint(copied), read_checkpoint(folder))


def test_the_comparison_of_runs_notices_another_run(launch, finished, tmp_path):
    """The control of the tests above: one step at half the rate is seen."""
    folder, method = finished
    assert launch("optim.lr_warmup_steps=2", method=method) == 0
    with pytest.raises(AssertionError):
        assert_equal_trees(read_checkpoint(tmp_path / "run"), read_checkpoint(folder))


def test_resuming_a_finished_run_prints_its_table_again(launch, finished, copied, capsys):
    before = contents(copied)
    assert launch("--resume", "auto", method=finished[1]) == 0
    assert f"{read_record(copied)[-1]['eval/accuracy']:.4f}" in capsys.readouterr().out
    after = contents(copied)
    changed = {path.name for path in before | after if before.get(path) != after.get(path)}
    # Where the folder of the copy is named.
    assert changed == {"config.yaml", "report.html"}


def test_resuming_with_other_settings_is_refused_with_the_differences(
    launch, finished, copied, capsys
):
    before = contents(copied)
    overrides = ["optim.lr=0.5", "run.seed=8", "noise.mis_h=0.25"]
    assert launch("--resume", "auto", *overrides, method=finished[1]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    for difference in ("optim.lr: 0.002 -> 0.5", "run.seed: 7 -> 8", "noise.mis_h: 0.3 -> 0.25"):
        assert difference in error
    assert contents(copied) == before


def test_resuming_may_change_how_a_run_is_carried_out(launch, finished, copied, tmp_path):
    folder, method = finished
    shutil.rmtree(copied / "checkpoints" / "epoch-0003")
    copied.rename(tmp_path / "moved")
    overrides = [
        "data.cache=memory",
        "runtime.device=cpu",
        "run.keep_checkpoints=1",
        "run.keep_best=false",
    ]
    assert launch("--resume", "auto", *overrides, method=method, folder="moved") == 0
    assert_equal_trees(read_checkpoint(tmp_path / "moved"), read_checkpoint(folder))
    assert len(list((tmp_path / "moved" / "checkpoints").iterdir())) == 1
