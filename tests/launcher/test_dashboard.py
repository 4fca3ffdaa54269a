"""The layout of wandb's charts, as far as it goes without a server."""

import json
import re
import shutil

import pytest
from method_settings import write_config
from run_folders import read_record

from launcher import dashboard
from launcher.dashboard import FIGURES, SECTIONS, build_workspace, main
from launcher.run import main as train

workspaces = pytest.importorskip("wandb_workspaces.workspaces")


def charts():
    return [chart for section in SECTIONS.values() for chart in section]


def test_the_layout_can_be_built_and_holds_every_chart():
    tree = json.loads(build_workspace("me", "mine")._to_model().model_dump_json(by_alias=True))
    assert (tree["entity"], tree["project"], tree["displayName"]) == ("me", "mine", "mednoise")
    sections = tree["spec"]["section"]["panelBankConfig"]["sections"]
    names = ["Results", "Figures", "Most suspicious labels", *list(SECTIONS)[1:]]
    assert [section["name"] for section in sections] == names
    shown = {s["name"]: [panel["config"] for panel in s["panels"]] for s in sections}
    for name, section in SECTIONS.items():
        assert [c["chartTitle"] for c in shown[name]] == [chart.title for chart in section]
        assert [c["metricRegex"] for c in shown[name]] == [f"^{c.pattern}$" for c in section]
        assert [c["xAxis"] for c in shown[name]] == [chart.axis for chart in section]
    assert [c["mediaKeys"] for c in shown["Figures"]] == [[f"figures/{name}"] for name in FIGURES]


def test_every_chart_and_figure_finds_something_in_a_run(tmp_path, fresh_processes):
    tracking = {"wandb": "off", "figures_every_epochs": 2, "every_steps": 2}
    run = {"dir": str(tmp_path / "run"), "epochs": 2}
    path = write_config(tmp_path, "qmix", run=run, tracking=tracking)
    assert train(["--config", str(path)]) == 0
    steps = (tmp_path / "run" / "steps.jsonl").read_text().splitlines()
    known = {
        "epoch": set(read_record(tmp_path / "run")[-1]),
        # Of the kinds of machines one has no GPU.
        "global_step": set(json.loads(steps[-1])) | {"step/gpu_memory_gib"},
    }
    for chart in charts():
        found = [name for name in known[chart.axis] if re.fullmatch(chart.pattern, name)]
        assert found, chart
    drawn = {path.stem for path in (tmp_path / "run" / "figures" / "epoch-0002").iterdir()}
    assert drawn == set(FIGURES)
    shutil.rmtree(tmp_path / "run")


def test_without_a_key_one_line_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert main([]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: wandb has no API key") and error.count("\n") == 1


def test_without_the_extra_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(dashboard.importlib.util, "find_spec", lambda name: None)
    assert main([]) == 2
    assert "pip install 'mednoise[dashboard]'" in capsys.readouterr().err


def test_what_is_saved_is_the_layout_of_the_project(monkeypatch, capsys):
    saved = []

    def save(workspace):
        saved.append(workspace)
        workspace._internal_name = "abc"
        return workspace

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(workspaces.Workspace, "save", save)
    monkeypatch.setattr(workspaces.Workspace, "url", "https://wandb.ai/me/mine?nw=abc")
    assert main(["--project", "mine", "--entity", "me"]) == 0
    assert [(w.entity, w.project) for w in saved] == [("me", "mine")]
    assert capsys.readouterr().out == "https://wandb.ai/me/mine?nw=abc\n"


def test_a_server_that_refuses_is_said_in_a_line(monkeypatch, capsys):
    def refuse(workspace):
        raise RuntimeError("permission denied")

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(workspaces.Workspace, "save", refuse)
    assert main(["--entity", "me"]) == 2
    assert capsys.readouterr().err == ("error: wandb did not save the layout: permission denied\n")
