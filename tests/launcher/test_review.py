"""The review page in a real browser, and its decisions applied to a second run."""

import csv
import time

import numpy as np
import pytest
from browser import broken_images, complaints
from method_settings import write_config
from tiny_runs import make_config

from data.manifest import LEFT_OUT
from engine.audit.findings import Evidence, Samples, examine
from engine.audit.review import render_review
from launcher.assemble import load_noisy_data
from launcher.run import main

pytestmark = pytest.mark.usefixtures("fresh_processes")

GALLERY = 12


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """The folder of a finished run with injected noise."""
    folder = tmp_path_factory.mktemp("audited")
    sections = {"run": {"dir": str(folder / "run")}, "audit": {"gallery": GALLERY}}
    assert main(["--config", str(write_config(folder, "coteaching", **sections))]) == 0
    return folder / "run"


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def press(driver, keys):
    body = driver.find_element("css selector", "body")
    for key in keys:
        body.send_keys(key)


def decisions(driver):
    return [e.text for e in driver.find_elements("css selector", "#gallery .decision")]


def current(driver):
    script = "return document.querySelector('[aria-current]').dataset.place"
    return int(driver.execute_script(script))


def text(driver, element):
    return driver.find_element("id", element).text


def download(driver):
    """Press D; returns the path of the file that arrives."""
    press(driver, "d")
    path = driver.downloads / "decisions.csv"
    for _ in range(100):
        if path.exists():
            return path
        time.sleep(0.1)
    raise AssertionError("nothing was downloaded")


def test_the_page_shows_the_most_doubtful_samples(audited, open_page):
    driver = open_page(audited / "review.html")
    rows = read_csv(audited / "labels.csv")[:GALLERY]
    assert broken_images(driver) == []
    images = driver.find_elements("css selector", "#gallery img")
    assert [image.get_attribute("alt") for image in images] == [row["image"] for row in rows]
    labels = [e.text for e in driver.find_elements("css selector", "#gallery .labels")]
    assert labels == [f"{row['given_label']} → {row['suggested_label']}" for row in rows]
    assert text(driver, "score") == f"{float(rows[0]['label_quality_score']):.3f}"
    # Nothing is asked of any server.
    entries = "return performance.getEntriesByType('resource').map(e => e.name)"
    assert [e for e in driver.execute_script(entries) if not e.startswith("data:")] == []
    assert complaints(driver) == []


def test_keys_move_decide_and_undo(audited, open_page):
    from selenium.webdriver import Keys

    driver = open_page(audited / "review.html")
    assert current(driver) == 0
    press(driver, [Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT])
    assert current(driver) == 1
    in_row = driver.execute_script("return perRow()")
    assert 1 < in_row < GALLERY - 1
    press(driver, [Keys.ARROW_DOWN])
    assert current(driver) == 1 + in_row
    press(driver, [Keys.ARROW_UP, Keys.ARROW_LEFT, Keys.ARROW_LEFT])
    assert current(driver) == 0  # and no further
    press(driver, "ku")
    assert current(driver) == 2
    assert decisions(driver)[:3] == ["keep", "unusable", ""]
    assert text(driver, "count") == f"2 of {GALLERY} decided"
    press(driver, "z")
    assert current(driver) == 1 and decisions(driver)[:2] == ["keep", ""]
    press(driver, "zz")
    assert decisions(driver)[0] == "" and complaints(driver) == []


def test_numbers_and_the_list_choose_any_class(audited, open_page):
    from selenium.webdriver.support.ui import Select

    driver = open_page(audited / "review.html")
    given, next_given = (int(row["given_index"]) for row in read_csv(audited / "labels.csv")[:2])
    names = [o.text.partition(": ")[2] for o in driver.find_elements("css selector", "option")[1:]]
    other = (given + 1) % len(names)
    press(driver, str(other))
    assert decisions(driver)[0] == f"change to {names[other]}"
    press(driver, ["z", str(given)])  # the given class is no change
    assert decisions(driver)[0] == "keep"
    press(driver, "9")  # there is no such class
    assert current(driver) == 1
    another = (next_given + 2) % len(names)
    Select(driver.find_element("id", "class")).select_by_value(str(another))
    assert decisions(driver)[1] == f"change to {names[another]}"
    assert complaints(driver) == []


def page_of(folder, class_names):
    """A page of one image that was given the second class."""
    probabilities = np.full((1, 1, len(class_names)), 1 / len(class_names), np.float32)
    evidence = Evidence(
        sample_ids=np.array([0]), given=np.array([1]), final=probabilities,
        running=probabilities[0], posterior=np.empty((1, 0, 3)), epochs_in_group=np.empty((1, 0)),
    )  # fmt: skip
    page = render_review(
        examine(evidence), Samples(["a.png"], class_names, np.array([-1])),
        lambda ids: np.zeros((len(ids), 8, 8, 3), np.uint8), gallery=1, thumbnail=8, title="made",
    )  # fmt: skip
    (folder / "review.html").write_text(page, encoding="utf-8")
    return folder / "review.html"


@pytest.mark.parametrize(
    ("class_names", "expected"),
    [
        (("2", "3", "4"), {"2": "change to 2", "3": "keep", "4": "change to 4", "0": "", "1": ""}),
        (("1", "0"), {"0": "keep", "1": "change to 1"}),
        (("2", "3", "4a", "4b"), {"2": "change to 2", "4": "", "0": ""}),
        (("9", "10"), {"9": "change to 9", "0": "", "1": ""}),
        (("none", "mild", "severe"), {"0": "change to none", "1": "keep", "2": "change to severe"}),
    ],
)
def test_a_digit_is_a_class_of_that_name_where_there_are_such(
    open_page, tmp_path, class_names, expected
):
    driver = open_page(page_of(tmp_path, class_names))
    found = {}
    for key in expected:
        press(driver, key)
        found[key] = decisions(driver)[0]
        press(driver, "z")
    assert found == expected
    options = [o.text for o in driver.find_elements("css selector", "option")[1:]]
    meaning = driver.find_element("id", "digits").get_attribute("textContent")
    if "none" in class_names:
        assert options == ["0: none", "1: mild", "2: severe"] and "in the list" in meaning
    else:
        assert options == list(class_names) and "of that name" in meaning
    assert complaints(driver) == []


def test_progress_survives_a_reload(audited, open_page):
    driver = open_page(audited / "review.html")
    press(driver, "kcu")
    before = decisions(driver)
    driver.refresh()
    assert decisions(driver) == before and sum(map(bool, before)) == 3
    assert current(driver) == 3
    press(driver, "z")  # undo goes back beyond the reload
    assert decisions(driver)[2] == "" and complaints(driver) == []


def test_downloaded_decisions_change_exactly_those_labels(audited, open_page, tmp_path):
    rows = read_csv(audited / "labels.csv")[:GALLERY]
    assert rows[0]["given_label"] != rows[0]["suggested_label"]
    driver = open_page(audited / "review.html")
    press(driver, "ckuc")
    path = download(driver)
    assert complaints(driver) == []
    found = read_csv(path)
    assert [row["sample_id"] for row in found] == [row["sample_id"] for row in rows[:4]]
    assert [row["decision"] for row in found] == ["change", "keep", "unusable", "change"]

    run = {"dir": str(tmp_path / "second")}
    second = write_config(tmp_path, "coteaching", run=run, data={"corrections": str(path)})
    assert main(["--config", str(second)]) == 0
    before = load_noisy_data(make_config("coteaching"))
    after = load_noisy_data(make_config("coteaching", data={"corrections": str(path)}))
    dropped = np.flatnonzero(after.source.manifest.split == LEFT_OUT)
    assert dropped.tolist() == [int(rows[2]["sample_id"])]
    changed = np.setdiff1d(np.flatnonzero(before.labels != after.labels), dropped)
    assert set(changed) == {int(rows[0]["sample_id"]), int(rows[3]["sample_id"])}
    names = after.source.manifest.class_names
    for row in (rows[0], rows[3]):
        assert names[after.labels[int(row["sample_id"])]] == row["suggested_label"]
    # The second run trained and was audited without the image, and with the new labels.
    audited_again = {row["image"]: row for row in read_csv(tmp_path / "second" / "labels.csv")}
    assert rows[2]["image"] not in audited_again
    for row in (rows[0], rows[3]):
        assert audited_again[row["image"]]["given_label"] == row["suggested_label"]
    assert audited_again[rows[1]["image"]]["given_label"] == rows[1]["given_label"]
    assert len(audited_again) == len(read_csv(audited / "labels.csv")) - 1
