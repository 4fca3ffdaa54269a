"""The audit's arithmetic on evidence made by hand; its runs are in tests/launcher/test_audit.py."""

import csv
import io

import numpy as np
import pytest
import torch
from tiny_runs import make_config, make_trainer

from engine.audit.files import labels_table, transition_table
from engine.audit.findings import Evidence, Samples, examine, find_issues, gather_evidence

CLASSES = ("cat", "dog, small", "emu")


def softmax(logits):
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


def evidence(given, final, running=None, posterior=None, epochs_in_group=None):
    given, final = np.asarray(given), np.asarray(final, np.float32)
    n = len(given)
    return Evidence(
        sample_ids=np.arange(n) * 10,
        given=given,
        final=final,
        running=final.mean(0) if running is None else np.asarray(running, np.float32),
        posterior=np.empty((n, 0, 3), np.float32) if posterior is None else np.asarray(posterior),
        epochs_in_group=np.empty((n, 0), int) if epochs_in_group is None else epochs_in_group,
    )


# Of class 0: two sure, one that is class 1; of class 1: two sure; of class 2: one unsure.
GIVEN = np.array([0, 0, 0, 1, 1, 2])
PROBABILITIES = np.array([
    [0.9, 0.1, 0.0], [0.8, 0.1, 0.1], [0.1, 0.9, 0.0],
    [0.1, 0.8, 0.1], [0.2, 0.8, 0.0], [0.3, 0.3, 0.4],
])  # fmt: skip


def test_issues_by_hand():
    # Thresholds 0.6, 0.8, 0.4: of class 0 two count for 0 and one for 1, so one label is wrong.
    assert find_issues(GIVEN, PROBABILITIES).tolist() == [False, False, True, False, False, False]


def test_a_label_that_is_predicted_is_no_issue():
    """One of class 0 counts for class 1, whose threshold is low, though 0 is likelier."""
    given = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.95, 0.05], [0.6, 0.4], [0.7, 0.3], [0.65, 0.35]])
    # Thresholds 0.775 and 0.325: the second counts for class 1.
    found = find_issues(given, probabilities)
    assert not found[:2].any()


def test_a_class_without_samples_or_certainty_is_no_error():
    assert not find_issues(np.array([0, 0]), np.array([[0.9, 0.1], [0.8, 0.2]])).any()
    even = np.full((4, 3), 1 / 3)
    assert find_issues(np.array([0, 1, 2, 2]), even).sum() <= 4


def test_wrong_labels_are_found_and_put_right():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 4, 400)
    wrong = rng.random(400) < 0.3
    given = np.where(wrong, (true + 1) % 4, true)
    probabilities = softmax(3 * np.eye(4)[true] + rng.normal(size=(400, 4)))
    findings = examine(evidence(given, [probabilities]))
    assert (findings.is_issue == wrong).mean() > 0.9
    assert (findings.suggested[wrong] == true[wrong]).mean() > 0.8
    worst = findings.order[: wrong.sum()]
    assert wrong[worst].mean() > 0.9
    assert (np.sort(findings.order) == np.arange(400)).all()
    counts = findings.counts
    assert counts.sum() == 400 and counts[1, 0] > counts[0, 1] + 10
    assert ((findings.score >= 0) & (findings.score <= 1)).all()


def test_what_was_predicted_earlier_outweighs_a_label_learned_by_heart():
    final = np.array([[0.9, 0.1, 0.0]] * 6)
    final[3:5] = [0.1, 0.9, 0.0]
    final[5] = [0.0, 0.1, 0.9]
    findings = examine(evidence(GIVEN, [final], running=PROBABILITIES))
    assert findings.order[0] == 2
    assert not examine(evidence(GIVEN, [final])).is_issue.any()


def test_statistics_of_each_network_by_hand():
    final = np.array([[[0.5, 0.5], [1.0, 0.0]], [[0.25, 0.75], [1.0, 0.0]]])
    findings = examine(evidence([0, 1], final))
    np.testing.assert_allclose(findings.loss[:, 0], [np.log(2), np.log(4)], rtol=1e-6)
    assert np.isfinite(findings.loss).all() and findings.loss[0, 1] > 80
    np.testing.assert_allclose(findings.uncertainty[0], [np.log(2), 0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(findings.agreement, [0.75, 1.0])


def test_poor_images_are_told_from_wrong_labels():
    posterior = np.zeros((6, 2, 3))
    posterior[:, :, 0] = 1
    posterior[[2, 5]] = [[0, 0.2, 0.8], [0.3, 0, 0.7]]
    findings = examine(evidence(GIVEN, [PROBABILITIES], posterior=posterior,
                                epochs_in_group=np.zeros((6, 2), int)))  # fmt: skip
    kinds = [findings.describe(place) for place in range(6)]
    assert kinds == ["ok", "ok", "mislabelled", "ok", "ok", "low quality"]


# -- tables ----------------------------------------------------------------------------------------


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def samples(num=60):
    quality = np.full(num, -1)
    quality[0] = 1
    return Samples([f"image {n}, left.png" for n in range(num)], CLASSES, quality)


def test_labels_csv_of_a_pair_that_separates():
    posterior = np.tile([0.7, 0.2, 0.1], (6, 2, 1))
    found = evidence(GIVEN, [PROBABILITIES, PROBABILITIES], posterior=posterior,
                     epochs_in_group=np.arange(12).reshape(6, 2))  # fmt: skip
    rows = rows_of(labels_table(examine(found), samples()))
    assert list(rows[0]) == [
        "sample_id", "image", "given_label", "suggested_label", "label_quality_score",
        "is_label_issue", "finding", "given_index", "suggested_index",
        "p_correct_a", "p_mis_h_a", "p_mis_l_a", "p_correct_b", "p_mis_h_b", "p_mis_l_b",
        "loss_a", "uncertainty_a", "loss_b", "uncertainty_b", "quality",
        "epochs_since_group_change_a", "epochs_since_group_change_b", "agreement",
    ]  # fmt: skip
    assert rows[0]["sample_id"] == "20" and rows[0]["image"] == "image 20, left.png"
    assert (rows[0]["given_label"], rows[0]["suggested_label"]) == ("cat", "dog, small")
    assert rows[0]["is_label_issue"] == "True" and float(rows[0]["label_quality_score"]) == 0.1
    assert [row["is_label_issue"] for row in rows[1:]] == ["False"] * 5
    scores = [float(row["label_quality_score"]) for row in rows[1:]]
    assert scores == sorted(scores)
    assert rows[0]["epochs_since_group_change_b"] == "5" and rows[0]["p_mis_h_a"] == "0.2"
    quality = {row["sample_id"]: row["quality"] for row in rows}
    assert quality["0"] == "1" and quality["10"] == "" and rows[0]["agreement"] == "1"


def test_labels_csv_of_one_network_has_no_columns_of_groups():
    (row, *_) = rows_of(labels_table(examine(evidence(GIVEN, [PROBABILITIES])), samples()))
    assert not [name for name in row if name.startswith(("p_", "epochs_", "loss_b"))]
    assert row["agreement"] == ""


def test_transition_csv_counts_and_normalises():
    rows = rows_of(transition_table(examine(evidence(GIVEN, [PROBABILITIES])), CLASSES))
    assert len(rows) == 9
    table = {(row["given_label"], row["suggested_label"]): row for row in rows}
    assert sum(int(row["count"]) for row in rows) == 6
    moved = table["cat", "dog, small"]
    # One of three given cat; of three thought to be dogs, one is given cat.
    assert moved["count"] == "1"
    assert float(moved["share_of_given"]) == pytest.approx(1 / 3, abs=1e-5)
    assert float(moved["share_of_suggested"]) == pytest.approx(1 / 3, abs=1e-5)
    for name in CLASSES:
        shares = [
            float(row["share_of_suggested"]) for row in rows if row["suggested_label"] == name
        ]
        assert sum(shares) == pytest.approx(1, abs=1e-4)


# -- evidence --------------------------------------------------------------------------------------


def test_evidence_of_a_run_without_notes_is_the_final_prediction(fresh_processes):
    trainer = make_trainer(make_config("cross_entropy"))  # with mixup
    found = gather_evidence(trainer)
    np.testing.assert_array_equal(found.running, found.final.mean(0))
    assert found.posterior.shape == (len(found.given), 0, 3)
    np.testing.assert_array_equal(found.final[0], trainer.predict(trainer.task.train_ids))
    assert torch.equal(torch.from_numpy(found.given), trainer.task.labels[found.sample_ids])


def test_a_run_that_ends_in_warm_up_has_no_groups(fresh_processes):
    trainer = make_trainer(make_config("qmix", method={"warmup_epochs": 3}))
    trainer.fit(lambda epoch, metrics: None)
    assert gather_evidence(trainer).posterior.shape[1] == 0
