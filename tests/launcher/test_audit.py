"""The label audit at the end of a run, by every method."""

import csv
import errno

import numpy as np
import pytest
from method_settings import METHOD_SETTINGS, write_config
from tiny_runs import make_config, noisy_data

from data.manifest import LEFT_OUT, TRAIN, UNKNOWN
from data.noise import MIS_H, MIS_L
from engine.audit import files as audit_files
from engine.config import load_config
from launcher.assemble import load_noisy_data
from launcher.run import main
from launcher.settings import Config
from launcher.show import describe_plan

pytestmark = pytest.mark.usefixtures("fresh_processes")

FILES = ("labels.csv", "transition.csv", "review.html")
SEPARATES = {"dividemix", "sscl", "qmix"}


def write(folder, method, /, **sections):
    sections["run"] = {"dir": str(folder / "run"), **sections.get("run", {})}
    return write_config(folder, method, **sections)


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module", params=METHOD_SETTINGS)
def finished(request, tmp_path_factory):
    """Folder and name of a run by every method in turn."""
    folder = tmp_path_factory.mktemp(request.param)
    assert main(["--config", str(write(folder, request.param))]) == 0
    return folder, request.param


def test_every_training_sample_is_in_the_table_once(finished):
    folder, method = finished
    rows, data = read_csv(folder / "run" / "labels.csv"), noisy_data(make_config(method))
    manifest = data.source.manifest
    ids = [int(row["sample_id"]) for row in rows]
    assert sorted(ids) == manifest.where(TRAIN).tolist()
    for row, index in zip(rows, ids, strict=True):
        assert row["image"] == manifest.names[index]
        assert row["given_label"] == manifest.class_names[data.labels[index]]
        assert row["suggested_label"] == manifest.class_names[int(row["suggested_index"])]
        assert 0 <= float(row["label_quality_score"]) <= 1
        if row["is_label_issue"] == "True":
            assert row["suggested_label"] != row["given_label"]
    issues = [row["is_label_issue"] == "True" for row in rows]
    assert issues == sorted(issues, reverse=True)
    has_groups = {"p_correct_a", "epochs_since_group_change_a"} <= rows[0].keys()
    assert has_groups == (method in SEPARATES)


def test_the_transitions_count_the_table(finished):
    folder, _ = finished
    rows = read_csv(folder / "run" / "labels.csv")
    for line in read_csv(folder / "run" / "transition.csv"):
        given, suggested = line["given_label"], line["suggested_label"]
        expected = sum(
            row["given_label"] == given
            and (row["suggested_label"] if row["is_label_issue"] == "True" else given) == suggested
            for row in rows
        )
        assert int(line["count"]) == expected


def test_a_finished_run_is_audited_again_where_the_files_are_gone(finished):
    folder, _ = finished
    before = {name: (folder / "run" / name).read_bytes() for name in FILES}
    for name in FILES:
        (folder / "run" / name).unlink()
    assert main(["--config", str(folder / "config.yaml"), "--resume", "auto"]) == 0
    assert {name: (folder / "run" / name).read_bytes() for name in FILES} == before
    assert not list((folder / "run").glob(".*"))


def test_without_a_gallery_there_is_no_page(tmp_path, capsys):
    config = write(tmp_path, "gce", audit={"gallery": 0}, run={"epochs": 1})
    assert main(["--config", str(config)]) == 0
    assert not (tmp_path / "run" / "review.html").exists()
    output = capsys.readouterr().out
    num = sum(row["is_label_issue"] == "True" for row in read_csv(tmp_path / "run" / "labels.csv"))
    assert f"labels thought wrong: {num} of 97, see labels.csv" in output


def test_a_full_disk_leaves_the_old_table(tmp_path, capsys, monkeypatch):
    config = write(tmp_path, "gce", run={"epochs": 1})
    assert main(["--config", str(config)]) == 0
    before = (tmp_path / "run" / "labels.csv").read_bytes()

    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(audit_files, "write_text", full)
    assert main(["--config", str(config), "--resume", "auto"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert (tmp_path / "run" / "labels.csv").read_bytes() == before


# -- corrections -----------------------------------------------------------------------------------


def decide(folder, decisions, labels):
    """Write decisions: sample_id -> (decision, new class); returns the section that names them."""
    manifest = load_noisy_data(make_config("gce")).source.manifest
    names = manifest.class_names
    lines = ["sample_id,image,given_label,decision,new_label"]
    for index, (decision, new) in decisions.items():
        new = "" if new is None else names[new]
        lines.append(f"{index},{manifest.names[index]},{names[labels[index]]},{decision},{new}")
    (folder / "decisions.csv").write_text("\n".join(lines) + "\n")
    return {"corrections": str(folder / "decisions.csv")}


def test_corrections_change_exactly_those_labels_among_injected_noise(tmp_path):
    before = load_noisy_data(make_config("gce"))
    truth, train = before.source.manifest.true_labels, before.source.manifest.where(TRAIN)
    mended, spoiled = train[before.groups[train] == MIS_H][0], train[before.groups[train] == 0][0]
    poor = train[before.groups[train] == MIS_L][0]
    wrong = (truth[spoiled] + 1) % 5
    section = decide(tmp_path, {
        mended: ("change", truth[mended]), spoiled: ("change", wrong), poor: ("unusable", None),
        train[-1]: ("keep", None),
    }, before.labels)  # fmt: skip
    config = make_config("gce", data=section)
    after = load_noisy_data(config)
    expected = before.labels.copy()
    expected[[mended, spoiled, poor]] = truth[mended], wrong, UNKNOWN
    assert (after.labels == expected).all()
    split = before.source.manifest.split.copy()
    split[poor] = LEFT_OUT
    assert (after.source.manifest.split == split).all()
    # The noise itself, and which images are spoiled, is as it was.
    changed = np.flatnonzero(after.groups != before.groups)
    assert changed.tolist() == sorted([mended, spoiled])
    assert after.groups[mended] == 0 and after.groups[spoiled] == MIS_H

    from launcher.assemble import build_method

    plan = describe_plan(config, after, build_method(config, after), 1)
    assert "changed by data.corrections: 2" in plan and "left out by data.corrections: 1" in plan
    assert before.num_corrected == 0


@pytest.mark.parametrize("second", [("keep", None), ("unusable", None)])
def test_decisions_edited_before_a_run_goes_on_are_refused(tmp_path, capsys, second):
    data = load_noisy_data(make_config("gce"))
    ids, labels = data.source.manifest.where(TRAIN), data.labels
    changed = {ids[3]: ("change", (labels[ids[3]] + 1) % 5)}
    section = decide(tmp_path, changed, labels)
    config = write(tmp_path, "gce", data=section, run={"epochs": 1})
    assert main(["--config", str(config)]) == 0
    decide(tmp_path, {ids[3]: second}, labels)
    assert main(["--config", str(config), "--resume", "auto"]) == 2
    error = capsys.readouterr().err
    assert f"other labels: 1 samples differ, first sample_id {ids[3]};" in error
    decide(tmp_path, changed, labels)
    assert main(["--config", str(config), "--resume", "auto"]) == 0


@pytest.mark.parametrize(
    ("override", "names"),
    [("null", []), ("one.csv", ["one.csv"]), ("[b.csv, a.csv]", ["b.csv", "a.csv"])],
)
def test_corrections_are_one_file_or_several(tmp_path, override, names):
    config = load_config(Config, write(tmp_path, "gce"), [f"data.corrections={override}"])
    assert [str(path) for path in config.data.correction_files] == names


def test_corrections_of_another_noise_are_refused(tmp_path, capsys):
    data = load_noisy_data(make_config("gce"))
    hit = data.source.manifest.where(TRAIN)[0]
    section = decide(tmp_path, {hit: ("keep", None)}, (data.labels + 1) % 5)
    assert main(["--config", str(write(tmp_path, "gce", data=section))]) == 2
    error = capsys.readouterr().err
    assert "decisions.csv:2" in error and "given_label other than this run's" in error
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()
