"""The audit's benchmark: its figures by hand, and a tiny bed in full."""

import json

import audit
import numpy as np
import pytest

from data.errors import DataError
from engine.config import ConfigError


def test_figures_by_hand():
    wrong = np.array([True, True, False, False])
    found = audit.figures(wrong, np.array([True, False, True, True]),
                          np.array([0.1, 0.4, 0.3, 0.9]), 5.0)  # fmt: skip
    # Of the four pairs of a wrong and a right label, three are in order.
    assert found == {
        "auroc": 0.75, "precision": pytest.approx(1 / 3), "recall": 0.5, "f1": pytest.approx(0.4),
        "seconds": 5.0,
    }  # fmt: skip


@pytest.mark.parametrize("bed", audit.BEDS)
def test_both_ways_have_the_same_samples_labels_and_budget(bed, monkeypatch):
    monkeypatch.setenv("MEDNOISE_REALDATA", "/data")
    qmix, baseline = (audit.configure(bed, name, []) for name in ("qmix", "cross_entropy"))
    assert qmix.model_dump(exclude={"run": {"dir"}, "method": True}) == baseline.model_dump(
        exclude={"run": {"dir"}, "method": True}
    )
    assert (qmix.method.name, baseline.method.name) == ("qmix", "cross_entropy")
    assert qmix.data.validation_fraction == 0
    shares = {"synthetic": (0.4, 0.15)}.get(bed, (0.2, 0.0))
    assert (qmix.noise.kind, qmix.noise.mis_h, qmix.noise.mis_l) == ("symmetric", *shares)


@pytest.fixture
def run(tmp_path, capsys, fresh_processes):
    def run(*arguments):
        fresh_processes()
        tiny = ["data.image_size=32", "data.synthetic.num_train=120", "run.epochs=2",
                "model.width=4", "optim.batch_size=8", "data.num_workers=0"]  # fmt: skip
        settings = [part for setting in tiny for part in ("--set", setting)]
        assert audit.main(["--out", str(tmp_path), *settings, *arguments]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def test_predictions_are_out_of_sample_and_kept(run, tmp_path, monkeypatch):
    pytest.importorskip("cleanlab", reason="the extra benchmark is not installed")
    # Two epochs end in warm-up: the audit needs no separation.
    first = run("--only", "synthetic")
    arrays = np.load(tmp_path / "synthetic-cross_entropy.npz")
    assert arrays["probabilities"].shape == (120, 5)
    np.testing.assert_allclose(arrays["probabilities"].sum(1), 1, rtol=1e-4)
    assert np.load(tmp_path / "synthetic-qmix.npz")["is_wrong"].sum() == 48
    monkeypatch.setattr(audit, "load_noisy_data", pytest.fail)
    assert run("--only", "synthetic") == first
    assert first["benchmark"] == "audit" and set(first["results"]) == {"synthetic"}
    for goal, found in first["goals"].items():
        bed, name = goal.split("/")
        assert found["found"] == first["results"][bed]["audit"][name]
        assert found["met"] == (found["found"] > found["above"])


@pytest.fixture
def ways(monkeypatch):
    """Puts made-up results in the place of training; returns the methods that were "trained"."""
    trained = []

    def result(name, given):
        def compute(config):
            trained.append((name, config.run.epochs))
            return {"sample_ids": np.arange(3), "given": np.array(given), "is_wrong": np.zeros(3)}

        return compute

    def replace(qmix=(0, 1, 2), cross_entropy=(0, 1, 2)):
        monkeypatch.setitem(audit.WAYS, "qmix", result("qmix", qmix))
        monkeypatch.setitem(audit.WAYS, "cross_entropy", result("cross_entropy", cross_entropy))
        return trained

    return replace


def test_results_of_other_settings_are_refused(ways, tmp_path, capsys):
    trained = ways()
    audit.results_of("synthetic", tmp_path, ["run.epochs=2"])
    assert trained == [("qmix", 2), ("cross_entropy", 2)]
    # Where it is executed may change.
    audit.results_of("synthetic", tmp_path, ["run.epochs=2", "runtime.device=cpu"])
    file = tmp_path / "synthetic-cross_entropy.npz"
    (tmp_path / "synthetic-qmix.npz").unlink()
    # Said before anything is trained.
    assert audit.main(["--out", str(tmp_path), "--only", "synthetic"]) == 2
    assert len(trained) == 2
    assert capsys.readouterr().err == (
        f"error: {file}: made with other settings: run.epochs: 2 -> 36; remove it, or give "
        "another --out\n"
    )


def test_results_without_settings_are_refused(tmp_path):
    path = tmp_path / "synthetic-qmix.npz"
    np.savez(path, seconds=1.0)
    config = audit.configure("synthetic", "qmix", [])
    with pytest.raises(ConfigError, match="holds no settings, being of an earlier version"):
        audit.remembered(path, config, pytest.fail)


def test_results_of_other_labels_are_not_compared(ways, tmp_path):
    ways(cross_entropy=(0, 1, 1))
    with pytest.raises(DataError, match=r"synthetic-cross_entropy\.npz: differ in given; remove"):
        audit.results_of("synthetic", tmp_path, [])


def test_beds_without_files_are_left_out(run, monkeypatch):
    pytest.importorskip("cleanlab", reason="the extra benchmark is not installed")
    monkeypatch.delenv("MEDNOISE_REALDATA", raising=False)
    assert run("--only", "ham10000", "deepdrid")["results"] == {}
