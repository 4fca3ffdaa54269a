"""The benchmark of robustness: its grid, its tables from made-up records, a tiny grid in full."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import noise_robustness
import pytest
from method_settings import METHOD_SETTINGS, tiny_config
from noise_robustness import Cell, select
from processes import ROOT
from robustness_table import Spread, figures_of, goals_of, report, spreads_of, to_json

from engine.config import differences, dump_config, load_config
from launcher.settings import Config

SCRIPT = ROOT / "benchmarks" / "noise_robustness.py"
METRICS = ("kappa", "accuracy", "balanced_accuracy", "macro_f1", "auroc")


def epoch(number, value, recalls=(1.0, 0.5), **others):
    """A line of a record whose metrics are all one value."""
    line = {"epoch": number} | {f"eval/{name}": value for name in METRICS}
    return line | {f"eval/recall/{c}": recall for c, recall in enumerate(recalls)} | others


def separation(value):
    names = [
        f"{kind}/{g}" for kind in ("precision", "recall") for g in ("correct", "mis_h", "mis_l")
    ]
    return {f"separation/{name}": value for name in ["auc", *names]}


# Rises to 0.9 in its third epoch and falls afterwards.
HISTORY = [epoch(n, v) for n, v in enumerate([0.1, 0.5, 0.9, 0.8, 0.7, 0.6, 0.5])]


def test_words_choose_cells():
    assert len(select([])) == 18
    assert select(["digits", "seed1", "qmix"]) == [Cell("digits", "qmix", 1)]
    assert {cell.setting for cell in select(["digits", "synthetic"])} == {"digits", "synthetic"}
    assert len(select(["seed0"])) == 6
    with pytest.raises(ValueError, match="unknown digit; choose from synthetic, deepdrid, digits"):
        select(["digit"])


@pytest.mark.parametrize("cell", select([]), ids=str)
def test_each_cell_has_a_configuration(cell, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDNOISE_REALDATA", "/packs")
    config = load_config(Config, cell.config, cell.overrides(tmp_path))
    assert (config.data.source, config.method.name, config.run.seed) == cell
    assert config.run.dir == tmp_path / str(cell)
    assert cell.setting != "deepdrid" or config.data.root == Path("/packs/deepdrid")


@pytest.mark.parametrize("setting", noise_robustness.SETTINGS)
def test_the_methods_of_a_setting_share_everything_but_the_method(setting, monkeypatch):
    monkeypatch.setenv("MEDNOISE_REALDATA", "/packs")
    ours, theirs = (
        load_config(Config, cell.config, cell.overrides(Path("out")))
        for cell in select([setting, "seed0"])
    )
    assert ours.run.epochs == theirs.run.epochs  # equal budgets
    assert differences(ours, theirs, ["run.dir", "method"]) == []


def test_figures_are_those_of_the_best_the_last_and_the_last_five_epochs():
    figures = figures_of(HISTORY)
    for name in METRICS:
        assert figures[f"best_on_test/{name}"] == 0.9
        assert figures[f"last/{name}"] == 0.5
        assert figures[f"mean_of_last_5/{name}"] == pytest.approx(0.7)
    assert "best_on_validation/kappa" not in figures
    assert "separation/auc" not in figures


def test_the_best_epoch_is_that_of_the_best_kappa():
    history = [epoch(0, 0.3), epoch(1, 0.8) | {"eval/accuracy": 0.2}, epoch(2, 0.5)]
    assert figures_of(history)["best_on_test/accuracy"] == 0.2


def test_validation_may_choose_another_epoch_than_the_test_set():
    history = [
        line | {"validation/kappa": kappa}
        for line, kappa in zip(HISTORY, [None, 0.9, 0.1, 0.2, 0.3, 0.2, 0.1], strict=True)
    ]
    figures = figures_of(history)
    assert figures["best_on_validation/kappa"] == 0.5
    assert figures["best_on_test/kappa"] == 0.9


def test_classes_count_as_predicted_where_any_image_is_hit():
    figures = figures_of([epoch(0, 0.5, recalls=(0.9, 0.0, 0.01, None))])  # the last is absent
    assert (figures["num_classes"], figures["num_classes_predicted"]) == (3, 2)


def test_what_is_undefined_stays_undefined():
    figures = figures_of([epoch(0, None, **{"separation/auc": None})])
    assert math.isnan(figures["last/kappa"])
    assert math.isnan(figures["separation/auc"])
    assert str(Spread({0: math.nan, 1: 0.5})) == "-"


def test_spreads_are_over_seeds():
    spread = Spread({0: 0.5, 1: 0.7, 2: 0.9})
    assert spread.mean == pytest.approx(0.7)
    assert spread.deviation == pytest.approx(0.2)  # with n - 1
    assert str(spread) == "0.700 ± 0.200"
    assert str(Spread({4: 0.5})) == "0.500"


def make_results(qmix=0.9, cross_entropy=0.7, found=0.96, recalls=(1.0, 0.5)):
    """Two seeds of each method; the second is 0.02 better."""
    return spreads_of(
        (setting, method, seed, figures_of([epoch(0, value + 0.02 * seed, recalls, **extra)]))
        for setting in ("synthetic", "digits")
        for method, value, extra in (
            ("qmix", qmix, separation(found)),
            ("cross_entropy", cross_entropy, {}),
        )
        for seed in (0, 1)
    )


def test_goals_compare_the_means():
    goals = goals_of(make_results(found=0.93))
    assert [goal.measured for goal in goals] == pytest.approx([0.2] * 3 + [0.93] * 3 + [1, 0.2])
    assert [goal.reached for goal in goals] == [True, True, True, False, True, True, True, True]


def test_a_lead_that_is_too_small_is_no_goal_reached():
    goals = goals_of(make_results(qmix=0.73, found=0.5, recalls=(1.0, 0.0)))
    # kappa 0.03 and accuracy 0.03 ahead, last above best, then the separation, a class lost.
    expected = [False, False, True, False, False, False, False, False]
    assert [goal.reached for goal in goals] == expected


def test_being_level_with_the_best_is_not_above_it():
    goals = goals_of(make_results(qmix=0.5, cross_entropy=0.5))
    assert goals[2].text == "last kappa of QMix less cross-entropy's best on test"
    assert goals[2].measured == 0
    assert goals[2].reached is False


def test_goals_without_runs_are_not_measured():
    results = make_results()
    del results["digits"], results["synthetic"]["cross_entropy"]
    reached = [goal.reached for goal in goals_of(results)]
    assert reached == [None, None, None, True, True, True, True, None]


def test_the_report_is_markdown_with_rows_of_equal_length():
    results = make_results()
    lines = report(results, goals_of(results)).splitlines()
    assert "| qmix (n = 2) | last | " + " | ".join(["0.910 ± 0.014"] * 5) + " |" in lines
    assert "| cross_entropy (n = 2) | best on test (optimistic) |" in "\n".join(lines)
    assert "| qmix | " + " | ".join(["0.960 ± 0.000"] * 7) + " | 2 of 2 |" in lines
    assert "| cross_entropy | " + " | ".join(["-"] * 7) + " | 2 of 2 |" in lines
    assert "| synthetic | separation AUC | >= 0.95 | 0.960 | reached |" in lines
    for before, line in zip(lines, lines[1:], strict=False):
        if before.startswith("|") and line.startswith("|"):
            assert before.count("|") == line.count("|")


def test_the_json_holds_every_figure_by_seed():
    results = make_results(found=None)
    found = json.loads(to_json(results, goals_of(results)), parse_constant=pytest.fail)
    kappa = found["results"]["synthetic"]["qmix"]["last/kappa"]
    assert kappa["mean"] == pytest.approx(0.91)
    assert kappa["by_seed"] == pytest.approx({"0": 0.9, "1": 0.92})
    assert found["results"]["synthetic"]["qmix"]["separation/auc"]["mean"] is None
    assert found["goals"][3] == {
        "setting": "synthetic", "goal": "separation AUC", "bound": 0.95,
        "measured": None, "reached": None,
    }  # fmt: skip


def write_record(folder, num_lines, num_epochs=3):
    folder.mkdir()
    (folder / "config.yaml").write_text(f"run:\n  epochs: {num_epochs}\n")
    lines = [json.dumps(epoch(n, 0.5)) + "\n" for n in range(num_lines)]
    (folder / "metrics.jsonl").write_text("".join(lines))


def test_unfinished_runs_stay_out_of_the_table(tmp_path, capsys):
    write_record(tmp_path / "digits-qmix-seed0", 3)
    write_record(tmp_path / "digits-qmix-seed1", 2)
    arguments = ["--out", str(tmp_path), "--only", "digits,qmix", "--table-only"]
    assert noise_robustness.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| qmix (n = 1) | last | " + " | ".join(["0.500"] * 5) + " |" in lines
    missing = [line for line in lines if line.startswith("not in the tables")]
    assert [re.search("seed.", line).group() for line in missing] == ["seed1", "seed2"]
    assert json.loads(lines[-1])["results"]["digits"]["qmix"]["last/kappa"]["by_seed"] == {"0": 0.5}


@pytest.fixture
def tiny_grid(tmp_path, monkeypatch):
    """Two methods on the tiny data set under the names of the real grid."""
    for method in METHOD_SETTINGS:
        text = json.dumps(tiny_config(method, run={"epochs": 2}))
        (tmp_path / f"{method}_synthetic.yaml").write_text(text)
    monkeypatch.setattr(noise_robustness, "CONFIGS", tmp_path)
    out = tmp_path / "out"
    return out, ["--out", str(out), "--only", "synthetic,seed1", "--jobs", "2"]


@pytest.mark.slow
def test_a_grid_runs_skips_what_is_finished_and_resumes_the_rest(tiny_grid, capsys, monkeypatch):
    out, arguments = tiny_grid
    assert noise_robustness.main(arguments) == 0
    first = capsys.readouterr().out.splitlines()[-1]
    by_seed = json.loads(first)["results"]["synthetic"]["qmix"]["last/kappa"]["by_seed"]
    assert list(by_seed) == ["1"]

    # Cut off in the second epoch: its line is gone and so is its checkpoint.
    record = out / "synthetic-cross_entropy-seed1" / "metrics.jsonl"
    record.write_text(record.read_text().splitlines(keepends=True)[0])
    last = record.parent / "checkpoints" / "epoch-0002"
    last.rename(last.with_name(".epoch-0002.tmp"))
    started, really_run = [], subprocess.run

    def noted_run(command, **options):
        started.append(command)
        return really_run(command, **options)

    monkeypatch.setattr(subprocess, "run", noted_run)
    assert noise_robustness.main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1] == first
    assert [f"run.dir={record.parent}" in command for command in started] == [True]
    assert "going on after epoch 1 of 2" in (out / "synthetic-cross_entropy-seed1.log").read_text()


def test_failures_are_named_and_the_others_go_on(tiny_grid, capsys):
    """One cell was made with another learning rate, the other has a faulty configuration."""
    out, arguments = tiny_grid
    folder = out / "synthetic-qmix-seed1"
    folder.parent.mkdir()
    write_record(folder, 2)
    overrides = ["run.dir=elsewhere", "run.seed=1", "optim.lr=0.1"]
    made_with = load_config(Config, out.parent / "qmix_synthetic.yaml", overrides)
    (folder / "config.yaml").write_text(dump_config(made_with))
    (out.parent / "cross_entropy_synthetic.yaml").write_text("run: {epoch: 3}\n")

    assert noise_robustness.main(arguments) == 1
    output = capsys.readouterr().out
    changed = "optim.lr: 0.1 -> 0.002"
    assert f"synthetic-qmix-seed1, made with other settings: {changed}\n" in output
    log = out / "synthetic-cross_entropy-seed1.log"
    assert f"synthetic-cross_entropy-seed1, exit code 2, see {log}\n" in output
    assert "run.epoch" in log.read_text()
    assert json.loads(output.splitlines()[-1])["results"] == {}


def test_the_command_line_explains_itself():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPT), "--help"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    for option in ("--out", "--only", "--jobs", "--table-only"):
        assert option in result.stdout
