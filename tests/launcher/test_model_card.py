"""What the model card says of labels: noise that was injected, and corrections by reviewers."""

import dataclasses
from pathlib import Path

import pytest

from data.noise import NoiseConfig
from launcher.model_card import write_card
from launcher.trained import load_trained

ROWS = ((0.6, 0.4, 0.0, 0.0, 0.0), *((0.0,) * c + (1.0,) + (0.0,) * (4 - c) for c in range(1, 5)))
NONE = NoiseConfig(kind="none")
SYMMETRIC = NoiseConfig(mis_h=0.3, mis_l=0.1)
UNTOUCHED = "labels were taken as given"


@pytest.fixture
def card(trained):
    """The card of a run, as if it had had other noise, corrections or facts."""
    model = load_trained(trained("cross_entropy").run)

    def write(noise, corrections=None, **facts):
        data = model.config.data.model_copy(update={"corrections": corrections})
        config = model.config.model_copy(update={"noise": noise, "data": data})
        known = model.facts.model_copy(update=facts)
        return write_card(dataclasses.replace(model, config=config, facts=known), None, None)

    return write


def test_labels_that_nobody_touched_are_as_given(card):
    said = card(NONE, corrected=0, left_out=0)
    assert f"- No noise was injected; {UNTOUCHED}.\n" in said
    assert "correct" not in said and "left out" not in said
    assert "on the labels as given.\n" in said


@pytest.mark.parametrize(
    ("matrix", "text"),
    [
        # One class of five loses 40 % of its labels.
        (ROWS, "kind matrix, share of changed labels 0.08 averaged over the classes, share of"),
        (Path("/mine/m.csv"), "kind matrix, labels drawn from the rows of m.csv, share of"),
    ],
)
def test_labels_that_a_matrix_changed_are_said_to_be_changed(card, matrix, text):
    said = card(NoiseConfig(kind="matrix", matrix=matrix))
    assert text in said and "changed labels 0," not in said and UNTOUCHED not in said
    assert "/mine" not in said


def test_images_that_were_degraded_alone_leave_the_labels(card):
    said = card(NoiseConfig(kind="none", mis_l=0.1))
    assert "kind none, share of changed labels 0, share of degraded images 0.1" in said


@pytest.mark.parametrize(
    ("noise", "corrected", "validated"),
    [
        (NONE, "Labels were corrected", "with the corrections)"),
        (
            SYMMETRIC,
            "Labels, noise included, were corrected",
            "with the injected noise and the corrections)",
        ),
    ],
)
def test_corrections_are_named(card, noise, corrected, validated):
    said = card(noise, (Path("/mine/first.csv"), Path("second.csv")), corrected=3, left_out=2)
    assert UNTOUCHED not in said and ("- No noise was injected.\n" in said) == (noise is NONE)
    assert (
        f"- {corrected} and unusable images left out as reviewers decided (first.csv, second.csv); "
        "the test set was not reviewed.\n- Labels corrected: 3.\n"
        "- Images left out as unusable: 2.\n"
    ) in said
    assert f"(those of the validation set {validated}" in said
    assert "/mine" not in said


def test_numbers_that_an_earlier_version_did_not_keep_are_not_said(card):
    said = card(NONE, Path("first.csv"), corrected=None, left_out=None)
    assert "(first.csv)" in said
    assert "Images left out" not in said and "Labels corrected" not in said


def test_what_stands_for_the_truth_is_said_of_noise(card):
    stands = "where the source names no true label, the one before the noise stands for it"
    assert f"5 have a wrong label, 1 were degraded; {stands}.\n" in card(
        SYMMETRIC, wrong_labels=5, spoiled_images=1
    )
    assert stands not in card(NONE, wrong_labels=5, spoiled_images=0)
