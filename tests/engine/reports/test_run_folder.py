import json
import os

import pytest
from made_runs import write_run

from engine.reports.run_folder import (
    RunFacts,
    describe_noise,
    find_runs,
    read_run,
    recorded_versions,
)


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", [0.1, 0.5])


def test_a_finished_run(run):
    RunFacts(num_processes=2, class_names=("a", "b", "c")).write(run)
    found = read_run(run)
    assert found.problems == () and found.is_finished
    assert (found.method, found.data) == ("qmix", "synthetic, 32 px")
    assert found.noise == "symmetric 30 % + spoiled images 10 %"
    assert found.setting("optim.lr") == 0.002
    assert found.setting("optim.nothing.here") is None and found.setting("run.epochs.x") is None
    assert found.facts.num_processes == 2 and len(found.history) == 2


def test_a_folder_that_is_empty_or_not_there_is_all_problems(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        found = read_run(folder)
        assert found.problems == (
            "config.yaml: missing", "metrics.jsonl: missing", "run.json: missing"
        )  # fmt: skip
        assert (found.method, found.data, found.noise) == ("unknown",) * 3
        assert not found.is_finished and found.num_epochs is None


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("config.yaml", b"run: {epochs: [", "config.yaml: damaged, line 1: "),
        ("config.yaml", b"just text", "config.yaml: damaged, line 1: not a mapping of sections"),
        ("config.yaml", b"a: 1\na: 2\n", "config.yaml: damaged, line 2: key 'a' is given twice"),
        ("config.yaml", b"\xff\xfe", "config.yaml: damaged, not UTF-8 text"),
        ("metrics.jsonl", b'{"epoch": 0}\nnonsense\n', "metrics.jsonl: damaged ("),
        ("metrics.jsonl", b"[1, 2]\n", "line 1: damaged (no object with its epoch)"),
        ("metrics.jsonl", b'{"epoch": 0, "x": "y"}\n', "line 1: x is not a number"),
        ("metrics.jsonl", b"\xff\n", "metrics.jsonl: damaged, not UTF-8 text"),
        ("metrics.jsonl", b"", "metrics.jsonl: holds no epoch"),
        ("run.json", b"{", "run.json: damaged ("),
        ("run.json", b'{"num_processes": "two"}', "run.json: damaged ("),
    ],
)
def test_what_is_damaged_is_named(run, name, content, problem):
    RunFacts().write(run)
    (run / name).write_bytes(content)
    found = read_run(run)
    assert len(found.problems) == 1 and problem in found.problems[0]
    if name != "run.json":
        assert not found.is_finished


def test_a_file_that_is_a_folder_is_named(run):
    (run / "run.json").mkdir()
    assert read_run(run).problems == ("run.json: cannot be read (Is a directory)",)


def test_a_torn_last_line_does_not_count(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "eval')
    assert len(read_run(run).history) == 2


@pytest.mark.parametrize(
    ("noise", "text"),
    [
        ({}, "none injected"),
        ({"kind": "symmetric", "mis_h": 0.0, "mis_l": 0.0}, "none injected"),
        ({"kind": "instance", "mis_h": 0.125}, "instance 12.5 %"),
        ({"kind": "none", "mis_l": 0.1}, "spoiled images 10 %"),
        ({"kind": "matrix", "matrix": [[0.6, 0.4], [0.2, 0.8]]}, "matrix 30 %"),
        ({"kind": "matrix", "matrix": "/some/where/p.csv"}, "matrix p.csv"),
    ],
)
def test_noise_in_a_few_words(noise, text):
    assert describe_noise(noise) == text


@pytest.mark.parametrize("noise", ["{matrix: [[1]], kind: 3}", "{matrix: [a]}", "{mis_h: much}"])
def test_noise_that_the_launcher_would_not_write_does_not_stop_a_report(run, noise):
    (run / "config.yaml").write_text(f"noise: {noise}\n")
    assert read_run(run).noise in ("unknown", "matrix 0 %")


def test_versions_are_those_of_the_last_attempt_else_of_the_newest_checkpoint(run):
    assert recorded_versions(read_run(run)) == {}
    for epoch, text in enumerate(
        ['{"versions": {"torch": "1"}}', '{"versions": {"torch": "2"}}', "{"]
    ):
        folder = run / "checkpoints" / f"epoch-{epoch:04}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(text)
    assert recorded_versions(read_run(run)) == {"torch": "2"}
    RunFacts(versions={"torch": "3"}).write(run)
    assert recorded_versions(read_run(run)) == {"torch": "3"}


# -- finding runs ----------------------------------------------------------------------------------


@pytest.fixture
def sweep(tmp_path):
    for name in ("b-seed0", "a-seed0", "a-seed1"):
        write_run(tmp_path / "sweep" / name, [0.5])
    # A run has folders below it that are none.
    (tmp_path / "sweep" / "a-seed0" / "checkpoints" / "epoch-0001").mkdir(parents=True)
    (tmp_path / "sweep" / ".hidden").mkdir()
    (tmp_path / "sweep" / ".hidden" / "config.yaml").write_text("{}")
    (tmp_path / "sweep" / "notes.json").write_text(json.dumps({}))
    return tmp_path / "sweep"


def test_runs_are_found_below_a_folder_at_any_depth_and_by_pattern(sweep):
    wanted = [sweep / name for name in ("a-seed0", "a-seed1", "b-seed0")]
    assert find_runs([str(sweep)]) == (wanted, [])
    assert find_runs([str(sweep.parent)]) == (wanted, [])
    assert find_runs([str(sweep / "a-*")]) == (wanted[:2], [])
    assert find_runs([str(wanted[1]), str(sweep)])[0] == [wanted[1], wanted[0], wanted[2]]


def test_a_run_counts_once_however_it_is_spelled(sweep, monkeypatch):
    monkeypatch.chdir(sweep)
    link = sweep.parent / "link"
    os.symlink(sweep / "a-seed0", link)
    found, problems = find_runs(["a-seed0", str(sweep / "a-seed0"), str(link), "./a-seed0"])
    assert [str(path) for path in found] == ["a-seed0"] and problems == []


def test_what_holds_no_run_is_named(sweep):
    (sweep.parent / "empty").mkdir()
    found, problems = find_runs(
        [str(sweep.parent / "empty"), "/no/where/*", str(sweep / "b-seed0")]
    )
    assert found == [sweep / "b-seed0"]
    advice = "a run's folder holds config.yaml and metrics.jsonl"
    assert problems == [
        f"{sweep.parent / 'empty'}: holds no run; {advice}",
        f"/no/where/*: does not exist; {advice}",
    ]
