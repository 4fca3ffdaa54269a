import csv
import math
from dataclasses import replace

import pytest
from made_runs import METRICS, write_run
from scipy import stats

from engine.reports.comparison import compare, contrasts
from engine.reports.comparison_page import comparison_page, write_comparison
from engine.reports.comparison_tables import main_table
from engine.reports.run_folder import RunFacts, read_run

SYMMETRIC = {"kind": "symmetric", "mis_h": 0.4, "mis_l": 0.0}
MIXED = {"kind": "symmetric", "mis_h": 0.4, "mis_l": 0.15}
QMIX, GCE = [0.70, 0.72, 0.77], [0.60, 0.65, 0.68]


@pytest.fixture
def write(tmp_path):
    """Writes a run of three epochs that ends with a value; returns it as it is read."""

    def run(name, last=0.5, method="qmix", seed=0, noise=SYMMETRIC, num_epochs=3, **sections):
        values = [last / 2 + last / 2 * e / (num_epochs - 1) for e in range(num_epochs)]
        sections["run"] = {"seed": seed, **sections.get("run", {})}
        return read_run(write_run(tmp_path / name, values, method, noise=noise, **sections))

    return run


@pytest.fixture
def runs(write):
    """Two methods, two noises, three seeds."""
    return [
        write(f"{noise}-{method}-{seed}", last - drop, method, seed, section)
        for noise, section, drop in (("sym", SYMMETRIC, 0.0), ("mixed", MIXED, 0.1))
        for method, lasts in (("qmix", QMIX), ("gce", GCE))
        for seed, last in enumerate(lasts)
    ]


def ends(table):
    return [row[1:] for row in table.rows]


def test_methods_by_noises_with_mean_deviation_and_number(runs):
    comparison = compare(runs)
    assert comparison.left_out == ()
    (bed,) = comparison.beds
    assert bed.name == "synthetic, 32 px, 3 epochs"
    assert bed.methods == ("gce", "qmix")
    assert bed.noises == ("symmetric 40 %", "symmetric 40 % + spoiled images 15 %")
    table = main_table(bed, "last", "kappa")
    # By hand: means 0.73 and 0.6433; deviations of 0.70, 0.72, 0.77 and of 0.60, 0.65, 0.68.
    assert ends(table) == [
        ["0.643 ± 0.040 (3)", "0.543 ± 0.040 (3)"],
        ["0.730 ± 0.036 (3)", "0.630 ± 0.036 (3)"],
    ]
    assert table.strong == {(1, 1), (1, 2)}
    means = ends(main_table(bed, "mean_last", "kappa"))  # of 1/2, 3/4 and all of the last value
    assert means[1][0].startswith(f"{0.73 * 0.75:.3f} ± ")
    assert ends(main_table(bed, "best", "kappa")) == ends(table)  # validation rises too


def test_a_best_epoch_chosen_on_the_test_set_is_starred(tmp_path):
    runs = [
        read_run(write_run(tmp_path / str(validation), [0.2, 0.9, 0.5], validation=validation,
                           run={"seed": int(validation)}))
        for validation in (True, False)
    ]  # fmt: skip
    (bed,) = compare(runs).beds
    assert ends(main_table(bed, "best", "kappa")) == [["0.900 ± 0.000 (2)*"]]
    assert ends(main_table(bed, "last", "kappa")) == [["0.500 ± 0.000 (2)"]]
    assert "optimistic" in comparison_page(compare(runs), "last", "kappa")


def test_the_highest_mean_stands_out_among_cells_of_the_most_seeds(write):
    runs = [write(f"a{seed}", 0.5, seed=seed) for seed in (0, 1)]
    runs += [write(f"b{seed}", 0.4, "gce", seed=seed) for seed in (0, 1)]
    runs += [write("c", 0.9, "elr")]
    (bed,) = compare(runs).beds
    assert bed.methods == ("elr", "gce", "qmix")
    assert main_table(bed, "last", "kappa").strong == {(2, 1)}


# -- what is not mixed -----------------------------------------------------------------------------


def test_other_data_and_other_numbers_of_epochs_are_shown_apart(write):
    runs = [
        write("a"),
        write("b", num_epochs=4),
        write("c", data={"image_size": 64}),
        write("d", data={"synthetic": {"num_train": 64, "num_test": 24}}),
    ]
    comparison = compare(runs)
    assert [bed.name for bed in comparison.beds] == [
        "synthetic, 32 px, 3 epochs (num_train 128)",
        "synthetic, 32 px, 3 epochs (num_train 64)",
        "synthetic, 32 px, 4 epochs",
        "synthetic, 64 px, 3 epochs",
    ]
    assert all(len(bed.cells) == 1 for bed in comparison.beds)


def test_folders_of_other_images_are_shown_apart(write):
    runs = [
        write(name, data={"source": "folder", "root": f"/data/{name}", "synthetic": {}})
        for name in ("a", "b")
    ]
    # A run may be moved, so the launcher lets data.root change; it is other data all the same.
    assert [bed.name for bed in compare(runs, ["data.root"]).beds] == [
        "folder, 32 px, 3 epochs (root /data/a)",
        "folder, 32 px, 3 epochs (root /data/b)",
    ]


def test_the_same_folder_with_other_contents_is_shown_apart(write):
    runs = []
    for name, num in (("a", 100), ("b", 101)):
        run = write(name, seed=num)
        RunFacts(num_samples={"train": num, "test": 20}, num_test_images=(20,)).write(run.path)
        runs.append(read_run(run.path))
    assert len(compare(runs).beds) == 2


def test_how_a_run_is_executed_does_not_set_it_apart(write):
    runs = [
        write("a", run={"seed": 0, "keep_checkpoints": 5}, data={"num_workers": 4}),
        write("b", run={"seed": 1}, runtime={"device": "cpu"}),
    ]
    ignored = ["data.num_workers", "runtime.device"]
    (bed,) = compare(runs, ignored).beds
    assert [len(cell.runs) for cell in bed.cells.values()] == [2]
    assert len(compare(runs).beds) == 2


def test_settings_of_a_method_make_rows_that_name_them(write):
    runs = [write(f"{lr}", optim={"batch_size": 16, "lr": lr}) for lr in (0.002, 0.004)]
    (bed,) = compare(runs).beds
    assert bed.methods == ("qmix (lr 0.002)", "qmix (lr 0.004)")
    assert bed.notes == (
        "optim.lr is not the same for all methods: 0.002 (qmix (lr 0.002)), "
        "0.004 (qmix (lr 0.004))",
    )


def facts(run, num_train):
    """The run with as many training samples, as it is read."""
    RunFacts(num_samples={"train": num_train, "test": 20}, num_test_images=(20,)).write(run.path)
    return read_run(run.path)


@pytest.mark.parametrize("files", ["a.csv {}", "a.csv"])
def test_corrected_labels_are_a_row_beside_the_others(write, files):
    """Whether one review serves all seeds or each has its own; some leave images out."""
    runs = [facts(write(f"q{seed}", last, seed=seed), 100) for seed, last in enumerate(GCE)]
    for seed, last in enumerate(QMIX):
        data = {"corrections": files.format(seed)}
        runs.append(facts(write(f"c{seed}", last, seed=seed, data=data), 100 - seed))
    (bed,) = compare(runs).beds
    assert bed.methods == ("qmix", "qmix, corrected labels")
    shown = "other files for each seed" if "{}" in files else "a.csv"
    assert bed.notes == (
        "data.corrections is not the same for all methods: unset (qmix), "
        f"{shown} (qmix, corrected labels)",
    )
    (contrast,) = contrasts(bed, "last", "kappa")
    assert (contrast.first, contrast.second) == bed.methods
    assert contrast.test.num_pairs == 3
    assert contrast.test.p_t == pytest.approx(stats.ttest_rel(GCE, QMIX).pvalue)


def test_two_reviews_of_a_seed_are_two_rows(write):
    runs = [write("a")]
    runs += [write(f"{n}", data={"corrections": [*"ab"][:n]}) for n in (1, 2)]
    (bed,) = compare(runs).beds
    assert bed.methods == (
        "qmix",
        'qmix, corrected labels (corrections ["a", "b"])',
        'qmix, corrected labels (corrections ["a"])',
    )


def test_corrected_labels_of_other_images_are_shown_apart(write):
    """Other test images; or which of two sets of samples was corrected is not known."""
    corrected = facts(write("c", data={"corrections": "a.csv"}), 99)
    other = facts(write("b", data={"synthetic": {"num_train": 64, "num_test": 24}}), 100)
    assert len(compare([corrected, other]).beds) == 2
    first, second = (facts(write(f"{num}"), num) for num in (100, 110))
    assert len(compare([corrected, first]).beds) == 1
    assert len(compare([corrected, first, second]).beds) == 3


def test_a_method_set_otherwise_under_each_noise_is_one_row_with_a_note(write):
    method = {"name": "coteaching", "ramp_epochs": 2}
    runs = [
        write("a", method="coteaching", noise=SYMMETRIC),
        write("b", method="coteaching", noise=MIXED),
    ]
    for run, rate in zip(runs, (0.4, 0.55), strict=True):
        run.config["method"] = {**method, "forget_rate": rate}
    (bed,) = compare(runs).beds
    assert bed.methods == ("coteaching",)
    assert bed.notes == (
        "coteaching: method.forget_rate is not the same under all noises: 0.4 (symmetric 40 %), "
        "0.55 (symmetric 40 % + spoiled images 15 %)",
    )


def test_two_spellings_of_a_noise_are_one_column(write):
    runs = [
        write("a", noise={"kind": "none", "mis_h": 0.0, "mis_l": 0.0}),
        write("b", seed=1, noise={"kind": "symmetric", "mis_h": 0, "mis_l": 0, "severity": [0, 1]}),
    ]
    (bed,) = compare(runs).beds
    assert bed.noises == ("none injected",)
    runs = [write(f"c{s}", noise=MIXED | {"severity": [0.0, s]}) for s in (0.5, 1.0)]
    (bed,) = compare(runs).beds
    assert len(bed.noises) == 2 and all("severity" in noise for noise in bed.noises)


def test_seeds_of_the_noise_are_seeds(write):
    runs = [write(f"{s}", seed=0, noise=SYMMETRIC | {"seed": s}) for s in (1, 2)]
    (bed,) = compare(runs).beds
    (cell,) = bed.cells.values()
    assert list(cell.runs) == ["0/1", "0/2"]


def test_a_run_that_was_planned_for_another_length_is_another_row(write):
    """Its learning rate has fallen twice."""
    longer = replace(write("longer", 0.6, seed=1), facts=RunFacts(planned_epochs=(2, 3)))
    straight = write("straight", seed=0)
    straight = replace(straight, facts=RunFacts(planned_epochs=(3,)))
    for runs in ([straight, longer], [longer]):
        (bed,) = compare(runs, ["run"]).beds
        assert "qmix, 2, then 3 epochs" in bed.methods and len(bed.methods) == len(runs)


def test_what_cannot_be_compared_is_left_out_with_a_line_each(write, tmp_path):
    good, twin = write("good"), write("twin")
    short, broken, bare = write("short"), write("broken"), write("bare")
    lines = (short.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (short.path / "metrics.jsonl").write_text("".join(lines[:2]))
    (broken.path / "config.yaml").write_text("run: [")
    (bare.path / "metrics.jsonl").write_text('{"epoch": 0}\n{"epoch": 1}\n{"epoch": 2}\n')
    (tmp_path / "empty").mkdir()
    long = write("long", run={"epochs": 2})
    found = (good, twin, short, broken, bare, long)
    folders = [*(run.path for run in found), tmp_path / "empty"]
    comparison = compare([read_run(folder) for folder in folders])
    (bed,) = comparison.beds
    assert [run.path for cell in bed.cells.values() for run in cell.runs.values()] == [good.path]
    left_out = sorted(comparison.left_out)
    assert [line.partition(": ")[0] for line in left_out] == sorted(map(str, folders[1:]))
    assert all(line.endswith("; left out") and "\n" not in line for line in left_out)
    text = "\n".join(left_out)
    assert "short: not finished, 2 of 3 epochs" in text
    assert "long: its record has 3 epochs, its configuration 2" in text
    assert "broken: config.yaml: damaged, line 1" in text
    assert "bare: its record has no test metrics" in text
    assert f"twin: same settings and seed as {good.path}" in text
    assert "empty: config.yaml: missing; metrics.jsonl: missing" in text
    page = comparison_page(comparison, "last", "kappa")
    assert all(folder.name in page for folder in folders)


def test_nothing_to_compare_is_a_page_too(tmp_path):
    page = comparison_page(compare([read_run(tmp_path)]), "last", "kappa")
    assert "0 finished runs" in page and "config.yaml: missing" in page


# -- tests over seeds ------------------------------------------------------------------------------


def test_differences_are_tested_over_paired_seeds(runs):
    (bed,) = compare(runs).beds
    first, second = contrasts(bed, "last", "kappa")
    assert (first.noise, first.first, first.second) == ("symmetric 40 %", "gce", "qmix")
    assert first.test.difference == pytest.approx(-0.26 / 3)
    expected = stats.ttest_rel(GCE, QMIX).pvalue
    assert first.test.p_t == pytest.approx(expected)
    assert first.test.p_wilcoxon == pytest.approx(0.25)
    # Two tests in all, of equal p-values but for rounding.
    assert first.p_t == pytest.approx(2 * expected) == second.p_t
    assert first.p_wilcoxon == pytest.approx(0.5)
    assert first.test.caution == "Wilcoxon cannot fall below 0.25 with 3 pairs"


def test_pairs_that_share_one_seed_are_in_the_file_and_not_on_the_page(write, tmp_path):
    runs = [write("a"), write("b", method="gce")]
    comparison = compare(runs)
    write_comparison(comparison, tmp_path / "out", "last", "kappa")
    (row,) = csv.DictReader((tmp_path / "out" / "significance.csv").open())
    assert (row["n"], row["p_t"], row["caution"]) == ("1", "", "too few pairs for a test")
    assert "nothing can be tested" in (tmp_path / "out" / "comparison.html").read_text()


# -- files -----------------------------------------------------------------------------------------


def test_the_files_hold_every_figure(runs, tmp_path):
    files = write_comparison(compare(runs), tmp_path / "new" / "out", "last", "auroc")
    assert [file.name for file in files] == [
        "comparison.html", "summary.csv", "runs.csv", "significance.csv", "comparison.md",
        "comparison.tex",
    ]  # fmt: skip
    out = tmp_path / "new" / "out"
    summary = list(csv.DictReader((out / "summary.csv").open()))
    assert len(summary) == 2 * 2 * 3 * len(METRICS)
    row = next(
        r for r in summary
        if (r["method"], r["noise"], r["epoch"], r["metric"])
        == ("qmix", "symmetric 40 %", "last", "auroc")
    )  # fmt: skip
    assert float(row["mean"]) == pytest.approx(0.73) and row["n"] == "3"
    deviation = math.sqrt(sum((v - 0.73) ** 2 for v in QMIX) / 2)
    assert float(row["sd"]) == pytest.approx(deviation)
    by_run = list(csv.DictReader((out / "runs.csv").open()))
    assert {row["run"] for row in by_run} == {str(run.path) for run in runs}
    assert {row["chosen_on"] for row in by_run} == {"validation"}
    markdown, latex = (out / "comparison.md").read_text(), (out / "comparison.tex").read_text()
    assert "| qmix | **0.730 ± 0.036 (3)** | **0.630 ± 0.036 (3)** |" in markdown
    assert r"qmix & \textbf{0.730 $\pm$ 0.036 (3)}" in latex
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 3


def test_undefined_values_are_dashes_and_empty_cells(write, tmp_path):
    run = write("a", last=0.0)
    for line in run.history:
        line["eval/auroc"] = None
    comparison = compare([run])
    assert ends(main_table(comparison.beds[0], "last", "auroc")) == [["- (1)"]]
    write_comparison(comparison, tmp_path / "out", "last", "auroc")
    rows = csv.DictReader((tmp_path / "out" / "summary.csv").open())
    assert {row["mean"] for row in rows if row["metric"] == "auroc"} == {""}


def test_hostile_names_stay_text(write, tmp_path):
    hostile = r"<script>alert(1)</script>&|_%\input{x}"
    runs = [write(f"a{i}", data={"source": hostile}, seed=i) for i in range(2)]
    runs += [write("b", data={"source": hostile}, method="gce")]
    runs[2].config["method"] = {"name": hostile}
    write_comparison(compare(runs), tmp_path / "out", "last", "kappa", [f"{hostile}: no run"])
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in page
    latex = (tmp_path / "out" / "comparison.tex").read_text()
    assert r"\input{x}" not in latex and r"\textbackslash{}input\{x\}" in latex
    markdown = (tmp_path / "out" / "comparison.md").read_text()
    assert all(
        line.replace(r"\|", "").count("|") == 3
        for line in markdown.splitlines()
        if line.startswith("|")
    )
    assert "<script>" not in markdown
