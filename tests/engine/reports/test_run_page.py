"""The page of a run from its folder, whatever of it is there."""

import html
import json
import re
import shutil

import pytest
from made_runs import HEADER, image_bytes, write_audit, write_figures, write_run

from engine.reports.embedded import MAX_CLOUDS, NUM_GALLERY, read_audit, thumbnails
from engine.reports.run_folder import RunFacts, read_run
from engine.reports.run_page import report, write_report

CLASSES = ("none", "mild", "severe")
VALUES = [0.1, 0.875, 0.5]


@pytest.fixture
def run(tmp_path):
    """A run that has everything; its second epoch is the best."""
    folder = write_run(tmp_path / "my run", VALUES)
    RunFacts(
        num_processes=4,
        class_names=CLASSES,
        num_samples={"train": 90, "validation": 10, "test": 24},
        num_test_images=(10, 8, 6),
        versions={"torch": "9.8.7"},
    ).write(folder)
    write_figures(folder, len(VALUES))
    write_audit(folder, 30, CLASSES)
    return folder


def page_of(folder):
    return report(read_run(folder))


def text_of(page):
    """What a reader sees, on one line."""
    body = re.sub(r"<(script|style)>.*?</\1>", "", page.partition("<body>")[2], flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def missing_of(page):
    """The lines about what is missing."""
    part = page.partition('<section id="missing">')[2].partition("</section>")[0]
    return [html.unescape(line) for line in re.findall(r"<li[^>]*>(.*?)</li>", part)]


def test_a_whole_run_lacks_nothing(run):
    page = page_of(run)
    text = text_of(page)
    assert missing_of(page) == [] and "What is missing" not in text
    assert page.startswith("<!doctype html>") and "<h1>my run</h1>" in page
    for fact in (
        "Method qmix", "Data synthetic, 32 px", "Noise symmetric 30 % + spoiled images 10 %",
        "Processes 4", "Images 90 train, 10 validation, 24 test", "Epochs 3 of 3",
        "Time in epochs 1 min 32 s", "Classes none, mild, severe", "torch 9.8.7",
    ):  # fmt: skip
        assert fact in text, fact
    mean = sum(VALUES) / 3
    assert f"kappa 0.875 0.500 {mean:.3f}" in text
    assert "Best: epoch 2, the best by validation kappa" in text
    assert "none 10 0.500 0.500 0.500 0.500" in text  # the table of the classes, last epoch
    assert "warmup_epochs: 1" in html.unescape(page)
    assert page.count('class="card chart"') == 4  # test, validation, recall, loss


def test_it_needs_nothing_but_itself(run):
    page = page_of(run)
    addresses = re.findall(r'(?:src|href|action)="([^"]*)"', page)
    assert addresses
    for address in addresses:
        assert address.startswith(("data:", "#")) or address == "review.html"
    assert (
        "url(" not in page
        and "@import" not in page
        and "http" not in page.replace("http-equiv", "")
    )
    assert "default-src 'none'" in page


def test_clouds_of_every_epoch_and_the_last_and_best_of_the_others(run):
    page = page_of(run)
    assert re.findall(r'data-epoch="(\d+)"', page) == ["1", "2", "3"]
    assert page.count(" hidden>") == 2
    text = text_of(page)
    for title in ("Confusion matrix", "Calibration"):
        assert f"{title}, test set, epoch 2 (best)" in text
        assert f"{title}, test set, epoch 3 (last)" in text
    assert "Posteriors of the groups, epoch 3" in text


def test_very_many_clouds_are_thinned_and_it_says_so(run):
    shutil.rmtree(run / "figures")
    write_figures(run, 100, names=("cloud", "confusion-eval"))
    page = page_of(run)
    epochs = [int(text) for text in re.findall(r'data-epoch="(\d+)"', page)]
    assert len(epochs) == MAX_CLOUDS and epochs[0] == 1 and epochs[-1] == 100
    assert epochs == sorted(set(epochs))
    assert f"{MAX_CLOUDS} of 100 epochs, evenly spaced" in text_of(page)


def test_the_audit_has_its_images_and_a_link(run):
    page = page_of(run)
    assert page.count("data:image/jpeg") == NUM_GALLERY == 24
    text = text_of(page)
    assert "2 of 30 training labels (6.7 %) are thought wrong" in text
    assert "mild → none" in text and '<a href="review.html">' in page


def test_the_epoch_that_is_best_on_the_test_set_is_called_optimistic(tmp_path):
    text = text_of(page_of(write_run(tmp_path / "run", VALUES, validation=False)))
    assert "chosen on the test set, which is optimistic" in text
    assert "Best: epoch 2, the best by test kappa" in text


def test_an_unfinished_run_says_so(run):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:2]))
    assert "Not finished: 2 of 3 epochs." in text_of(page_of(run))


def test_a_separation_is_drawn_and_tabulated(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines[1:]:
        line |= {"separation/auc": 0.96, "separation/recall/mis_l": None}
        line |= {f"separation/num_assigned/{g}": 30 for g in ("correct", "mis_h", "mis_l")}
        line |= {"separation/precision/mis_h": 0.75, "separation/num_true/mis_h": 28}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(run)
    assert page.count('class="card chart"') == 6
    text = text_of(page)
    assert "0.960 AUC of the separation" in text
    assert "Mis-H 30 28 0.750 - Mis-L 30 - - -" in text


# -- whatever is missing ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("config.yaml", ["config.yaml: missing"]),
        ("metrics.jsonl", ["metrics.jsonl: missing"]),
        (
            "run.json",
            ["run.json: missing", "versions: neither run.json nor a checkpoint tells them"],
        ),
        ("figures", ["figures: none, so no cloud, confusion matrices and calibration"]),
        ("labels.csv", ["labels.csv: missing; it is written when training ends"]),
        ("review.html", ["review.html: missing, so the audit has no images"]),
    ],
)
def test_a_missing_file_is_named_and_the_rest_is_shown(run, name, lines):
    gone = run / name
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    page = page_of(run)
    assert missing_of(page) == lines
    text = text_of(page)
    assert ("kappa 0.875" in text) == (name != "metrics.jsonl")
    assert ("Method qmix" in text) == (name != "config.yaml")
    assert ("Processes 4" in text) == (name != "run.json")
    assert ('id="cloud"' in page) == (name != "figures")
    assert ("Label audit" in text) == (name != "labels.csv")
    if name == "review.html":
        assert "review.html" not in re.findall(r'href="([^"]*)"', page)
        assert "image-0.png none none 0.000" in text  # a table in place of the gallery
    if name == "run.json":
        assert "class 0 - 0.500" in text


def test_an_empty_folder_has_a_page_that_names_everything(tmp_path):
    page = page_of(tmp_path)
    assert [line.partition(":")[0] for line in missing_of(page)] == [
        "config.yaml", "metrics.jsonl", "run.json", "figures", "labels.csv", "versions",
    ]  # fmt: skip
    assert "unknown on unknown" in text_of(page)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("figures/epoch-0002/cloud.png", b"", "figures/epoch-0002/cloud.png: "),
        ("figures/epoch-0002/cloud.png", image_bytes("PNG")[:60], "figures/epoch-0002/cloud.png: "),
        ("figures/epoch-0002/cloud.png", image_bytes("JPEG"), "figures/epoch-0002/cloud.png: "),
        ("labels.csv", b"sample_id,image\n1,a\n", "labels.csv: damaged (lacks the columns given_"),
        ("labels.csv", b"", "labels.csv: damaged (lacks the columns sample_id"),
        ("labels.csv", f"{HEADER}\n1,a.png,x".encode(), "labels.csv: damaged (line 2 is cut off)"),
        ("labels.csv", b"\xff\xfe\xfa", "labels.csv: damaged ('utf-8' codec"),
        ("review.html", b"\xff\xfe\xfa", "review.html: cannot be read"),
        ("metrics.jsonl", b"{]\n", "metrics.jsonl: damaged"),
        ("config.yaml", b"a: [", "config.yaml: damaged"),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_is_shown(run, name, content, problem):
    (run / name).write_bytes(content)
    (line,) = missing_of(page_of(run))
    assert line.startswith(problem)


def test_a_damaged_cloud_leaves_the_others(run):
    (run / "figures" / "epoch-0003" / "cloud.png").write_bytes(b"")
    page = page_of(run)
    assert re.findall(r'data-epoch="(\d+)"', page) == ["1", "2"]
    assert 'max="1" value="1"' in page


def test_an_audit_without_doubts_or_rows(run):
    (run / "labels.csv").write_text(HEADER + "\n")
    assert "0 of 0 training labels are thought wrong" in text_of(page_of(run))
    assert read_audit(run / "labels.csv", 5).pairs == ()


def test_other_files_in_the_folder_of_figures_are_no_epochs(run):
    shutil.copytree(run / "figures" / "epoch-0001", run / "figures" / "epoch-old")
    (run / "figures" / "epoch-0001" / "note.txt").write_text("x")
    assert re.findall(r'data-epoch="(\d+)"', page_of(run)) == ["1", "2", "3"]


# -- escaping --------------------------------------------------------------------------------------

HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>&'


def test_hostile_names_are_text(tmp_path):
    folder = write_run(tmp_path / "<b>run", VALUES, data={"source": HOSTILE})
    RunFacts(
        class_names=(HOSTILE, "b", "c"), versions={HOSTILE: HOSTILE}, num_samples={HOSTILE: 1}
    ).write(folder)
    quoted = HOSTILE.replace('"', '""')
    row = f'0,"{quoted}","{quoted}",b,"{quoted}",True'
    (folder / "labels.csv").write_text(f"{HEADER}\n{row}\n")
    page = page_of(folder)
    assert HOSTILE not in page and "<script>alert" not in page and "<img src=x" not in page
    assert "<b>run" not in page.replace("&lt;b>run", "")
    assert html.escape(HOSTILE, quote=False).replace('"', "&#34;") in page
    assert HOSTILE in text_of(page)


def test_only_embedded_images_are_taken_from_the_review_page(tmp_path):
    review = tmp_path / "review.html"
    good = "data:image/png;base64,AAAA"
    review.write_text(
        f'<img src="{good}" alt="a"><img src="{good}AA" alt="a"><img alt="b">'
        '<img src="https://example.org/x.png" alt="c"><img src="data:text/html,x" alt="d">'
        '<img src="data:image/svg+xml;base64,AAAA" alt="e">'
        f'<img src="data:image/png;base64,AA&quot; onerror=x" alt="f"><img src="{good}">'
    )
    assert thumbnails(review) == {"a": good}


def test_it_is_written_into_the_folder_and_again(run):
    assert write_report(run) == run / "report.html"
    first = (run / "report.html").read_text()
    assert write_report(run).read_text() == first == page_of(run)
