"""The command line that reports on runs, and its pages in a real browser."""

import re
import subprocess
import sys

import pytest
from browser import complaints
from made_runs import write_audit, write_figures, write_run
from processes import ROOT

from engine.reports.run_folder import RunFacts
from launcher.report import main

SYMMETRIC = {"kind": "symmetric", "mis_h": 0.4, "mis_l": 0.0}
CLASSES = ("none", "mild", "severe")


@pytest.fixture
def sweep(tmp_path):
    """The folder of a sweep: two methods, two seeds."""
    for method, value in (("qmix", 0.8), ("gce", 0.7)):
        for seed in (0, 1):
            last = value + 0.01 * seed * (method == "qmix")
            write_run(
                tmp_path / "sweep" / f"sym40-{method}-seed{seed}", [0.2, value / 2, last], method,
                noise=SYMMETRIC, run={"seed": seed},
            )  # fmt: skip
    return tmp_path / "sweep"


@pytest.fixture
def whole_run(tmp_path):
    folder = write_run(tmp_path / "run", [0.1, 0.9, 0.5])
    RunFacts(num_processes=1, class_names=CLASSES, versions={"torch": "1"}).write(folder)
    write_figures(folder, 3)
    write_audit(folder, 30, CLASSES)
    return folder


# -- the command line ------------------------------------------------------------------------------


def test_each_run_gets_its_report(sweep, capsys):
    assert main([str(sweep / "sym40-gce-seed0")]) == 0
    assert capsys.readouterr().out == f"{sweep / 'sym40-gce-seed0' / 'report.html'}\n"
    assert main([str(sweep)]) == 0
    assert len(list(sweep.glob("*/report.html"))) == 4


def test_a_folder_of_runs_is_compared(sweep, tmp_path, capsys):
    write_run(sweep / "other", [0.5, 0.5], noise=SYMMETRIC)
    out = tmp_path / "comparison"
    assert main([str(sweep), "--out", str(out), "--metric", "accuracy", "--at", "best"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == str(out / "comparison.html")
    assert captured.err == (
        "shown apart, since data or epochs differ: synthetic, 32 px, 2 epochs; "
        "synthetic, 32 px, 3 epochs\n"
    )
    assert "| qmix | **0.805 ± 0.007 (2)** |" in (out / "comparison.md").read_text()
    assert "Test accuracy, best epoch" in (out / "comparison.html").read_text()
    assert not list(sweep.glob("*/report.html"))


def test_runs_that_are_left_out_are_named(sweep, tmp_path, capsys):
    (sweep / "sym40-gce-seed1" / "metrics.jsonl").unlink()
    assert main([str(sweep / "sym40-*"), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err == (
        f"{sweep / 'sym40-gce-seed1'}: metrics.jsonl: missing; run.json: missing; left out\n"
    )


def test_a_run_made_before_a_setting_existed_is_compared_with_its_default(sweep, tmp_path):
    old = sweep / "sym40-qmix-seed0" / "config.yaml"
    text = old.read_text()
    old.write_text(text + "views: {weak: {horizontal_flip: 0.5}}\n")
    other = sweep / "sym40-qmix-seed1" / "config.yaml"
    other.write_text(other.read_text() + "evaluation_of_the_future: {x: 1}\n")
    assert main([str(sweep), "--out", str(tmp_path / "out")]) == 0
    rows = (tmp_path / "out" / "comparison.md").read_text()
    # The one of the future is not taken for one of now.
    assert "| gce | 0.700 ± 0.000 (2) |" in rows
    assert "| qmix (x unset) | 0.800 (1) |" in rows and "| qmix (x 1) | 0.810 (1) |" in rows
    other.write_text(text)
    assert main([str(sweep), "--out", str(tmp_path / "out")]) == 0
    assert "qmix (" not in (tmp_path / "out" / "comparison.md").read_text()


def test_what_is_no_run_is_an_error_on_one_line(sweep, tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'nowhere'}: does not exist")
    assert error.count("\n") == 1
    # What is a run is reported on even so.
    assert main([str(sweep), str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2
    assert "nowhere: does not exist" in (tmp_path / "out" / "comparison.html").read_text()


def test_a_folder_that_cannot_be_written_is_an_error_on_one_line(sweep, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([str(sweep), "--out", str(tmp_path / "file" / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_it_runs_as_a_script(sweep):
    script = ROOT / "launcher" / "report.py"
    done = subprocess.run(
        [sys.executable, str(script), str(sweep / "sym40-gce-seed0")],
        capture_output=True, text=True, cwd=sweep, env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("report.html\n"), done.stderr


# -- in a browser ----------------------------------------------------------------------------------


def images_of(driver):
    script = "return [...document.images].map(i => [i.complete, i.naturalWidth])"
    return driver.execute_script(script)


def rgb(driver, script):
    """The colour that a script returns, as three numbers."""
    return [float(text) for text in re.findall(r"[\d.]+", driver.execute_script(script))[:3]]


def contrast(one, other):
    """WCAG's ratio of the luminances of two colours, 1 to 21."""

    def luminance(colour):
        linear = [
            c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4
            for c in colour
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_the_page_has_all_its_images_and_nothing_to_complain_about(open_page, whole_run):
    main([str(whole_run)])
    driver = open_page(whole_run / "report.html")
    images = images_of(driver)
    assert len(images) == 3 + 5 + 24  # clouds; posterior, two epochs of two; gallery
    assert all(complete and width > 0 for complete, width in images)
    assert complaints(driver) == []
    assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_a_complaint_is_heard(open_page, tmp_path):
    (tmp_path / "bad.html").write_text("<script>throw new Error('ouch')</script>")
    assert any("ouch" in message for message in complaints(open_page(tmp_path / "bad.html")))


def test_the_slider_moves_the_cloud(open_page, whole_run):
    main([str(whole_run)])
    driver = open_page(whole_run / "report.html")
    shown = (
        "return [...document.querySelectorAll('#cloud img')]"
        ".filter(i => i.offsetWidth > 0).map(i => i.dataset.epoch)"
    )
    said = "return document.querySelector('#cloud output').textContent"
    assert driver.execute_script(shown) == ["3"]
    slider = driver.find_element("css selector", "#cloud input")
    for key, epoch in (("\ue012", "2"), ("\ue012", "1"), ("\ue012", "1"), ("\ue014", "2")):
        slider.send_keys(key)  # left, left, left, right
        assert driver.execute_script(shown) == [epoch]
        assert driver.execute_script(said) == f"epoch {epoch}"
    driver.find_element("css selector", "#cloud button").click()  # plays to the end and stops
    playing = "return document.querySelector('#cloud button').textContent"
    assert driver.execute_script(playing) == "Stop"
    for _ in range(50):
        if driver.execute_script(playing) == "Play":
            break
        driver.execute_async_script("setTimeout(arguments[0], 100)")
    assert driver.execute_script(shown) == ["3"]


def test_a_chart_reads_out_the_values_under_the_pointer(open_page, whole_run):
    main([str(whole_run)])
    driver = open_page(whole_run / "report.html")
    chart = driver.find_element("css selector", ".chart")
    outputs = (
        "return [...document.querySelector('.chart').querySelectorAll('output')]"
        ".slice(0, 2).map(o => o.textContent)"
    )
    assert driver.execute_script(outputs) == ["epoch 3", "0.500"]
    driver.execute_script(
        "const plot = arguments[0].querySelector('.plot'), box = plot.getBoundingClientRect();"
        "plot.dispatchEvent(new PointerEvent('pointermove',"
        " {clientX: box.left + box.width * 0.55, clientY: box.top + 5}))", chart,
    )  # fmt: skip
    assert driver.execute_script(outputs) == ["epoch 2", "0.900"]
    driver.execute_script(
        "arguments[0].querySelector('.plot').dispatchEvent(new PointerEvent('pointerleave'))", chart
    )
    assert driver.execute_script(outputs) == ["epoch 3", "0.500"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_both_pages_are_readable_in_light_and_dark(open_page, whole_run, sweep, tmp_path, dark):
    main([str(whole_run)])
    main([str(sweep), "--out", str(tmp_path / "out")])
    for page in (whole_run / "report.html", tmp_path / "out" / "comparison.html"):
        driver = open_page(page, dark=dark)
        assert complaints(driver) == []
        ground = rgb(driver, "return getComputedStyle(document.body).backgroundColor")
        card = rgb(
            driver, "return getComputedStyle(document.querySelector('.card')).backgroundColor"
        )
        assert (sum(ground) < 200) == dark and (sum(card) < 200) == dark
        for selector in ("body", "h1", "h2", ".soft", "th", "td", "a", ".legend output"):
            colour = rgb(
                driver, f"return getComputedStyle(document.querySelector('{selector}')).color"
            )
            assert contrast(colour, card) >= 4.5, selector
        for selector, attribute in ((".curve", "stroke"), (".chart text", "fill")):
            colour = rgb(
                driver,
                f"return getComputedStyle(document.querySelector('{selector}')).{attribute}",
            )
            assert contrast(colour, card) >= 3, selector


@pytest.mark.parametrize("width", [360, 1280])
def test_the_pages_fit_their_window(open_page, whole_run, sweep, tmp_path, width):
    main([str(whole_run)])
    main([str(sweep), "--out", str(tmp_path / "out")])
    for page in (whole_run / "report.html", tmp_path / "out" / "comparison.html"):
        driver = open_page(page, width=width)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
