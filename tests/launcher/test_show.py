import math
from pathlib import Path

import numpy as np
import pytest
from method_settings import METHOD_SETTINGS
from tiny_runs import make_config, noisy_data

from launcher.assemble import build_method
from launcher.show import describe_plan, describe_result

NAMES = ("kappa", "accuracy", "balanced_accuracy", "macro_f1", "auroc")
# Names of the classes, and how many test images each has.
CLASSES = (["healthy", "severe grade", "absent"], [7, 12, 0])


def history(kappas, validation=None, **last):
    lines = [{"epoch": e} | {f"eval/{n}": k for n in NAMES} for e, k in enumerate(kappas)]
    for line, value in zip(lines, validation or [None] * len(lines), strict=True):
        line["validation/kappa"] = value
    lines[-1] |= last
    return lines


def row(text, title):
    """The numbers of a table's row."""
    return next(s for s in text.splitlines() if s.startswith(title))[len(title) :].split()


def test_best_last_and_mean_by_hand():
    kappas = [0.9, 0.1, 0.2, 0.3, 0.4, 0.5]
    text = describe_result(history(kappas, [0, 0, 0.8, 0, 0, 0]), Path("runs/x"), *CLASSES)
    # Validation chose epoch 3; the last five are 0.1 to 0.5.
    assert row(text, "quadratic weighted kappa") == ["0.2000", "0.5000", "0.3000"]
    assert "best: epoch 3 by validation kappa" in text and "optimistic" not in text
    assert text.endswith("run folder: runs/x")


def test_a_choice_made_on_the_test_set_is_marked():
    text = describe_result(history([0.2, 0.9, 0.4]), Path("x"), *CLASSES)
    assert row(text, "accuracy") == ["0.9000", "0.4000", "0.5000"]
    assert "best: epoch 2 by test kappa (chosen on test: optimistic)" in text


def test_a_run_without_a_test_set_has_no_table():
    lines = [{"epoch": 0, "train/loss": 1.0}]
    assert describe_result(lines, Path("x"), *CLASSES) == "run folder: x"


def test_what_is_undefined_is_shown_as_such():
    last = {"separation/auc": None, "separation/num_assigned/mis_h": 12.5,
            "separation/precision/mis_h": 0.25, "separation/recall/mis_h": None}  # fmt: skip
    text = describe_result(history([None, None], **last), Path("x"), *CLASSES)
    assert row(text, "quadratic weighted kappa") == ["nan"] * 3
    assert "separation in the last epoch: AUC -" in text
    assert row(text, "Mis-H") == ["12", "0.250", "-"]
    assert row(text, "Mis-L") == ["-", "-", "-"]


def test_every_class_of_the_last_epoch_is_shown():
    lines = history([0.1, 0.2], **{
        "eval/precision/0": 0.1, "eval/recall/0": 0.2, "eval/f1/0": 0.3, "eval/auroc/0": 0.4,
        "eval/precision/1": 0.0, "eval/recall/1": 1.0, "eval/f1/1": 0.12345, "eval/auroc/1": None,
        "eval/precision/2": None, "eval/recall/2": None, "eval/f1/2": None, "eval/auroc/2": None,
    })  # fmt: skip
    lines[0] |= {"eval/precision/0": 0.9}
    text = describe_result(lines, Path("x"), *CLASSES)
    table = text.partition("\ntest metrics by class in the last epoch:\n")[2]
    header = table.splitlines()[0].split("  ")
    assert [cell.strip() for cell in header if cell] == [
        "class", "test images", "precision", "recall", "F1", "AUROC"
    ]  # fmt: skip
    assert row(table, "healthy") == ["7", "0.100", "0.200", "0.300", "0.400"]
    assert row(table, "severe grade") == ["12", "0.000", "1.000", "0.123", "-"]
    assert row(table, "absent") == ["0", "-", "-", "-", "-"]


@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_the_plan_counts_what_there_is(method):
    config = make_config(method, run={"epochs": 4})
    data = noisy_data(config)
    built = build_method(config, data)
    text = describe_plan(config, data, built, num_ranks=4)
    manifest = data.source.manifest
    train = manifest.split == 0
    for c, name in enumerate(manifest.class_names):
        given = data.labels == c
        counts = [int(((manifest.split == s) & given).sum()) for s in range(3)]
        counts += [int((train & given & (data.groups == g)).sum()) for g in range(3)]
        assert row(text, name) == [str(count) for count in counts]
    groups = np.bincount(data.groups[manifest.where(0)], minlength=3)
    splits = np.bincount(manifest.split, minlength=3)
    assert row(text, "all") == [str(count) for count in (*splits, *groups)]
    assert "processes: 4; global batch 16, 4 a process; 6 steps an epoch, 24 in 4 epochs" in text
    num_trained = sum(p.numel() for p in built.parameters() if p.requires_grad)
    assert f"trained parameters: {num_trained / 1e6:.2f} million" in text
    # The given label takes 8 bytes a sample, five mean probabilities 4 each and their number 4;
    # where there are groups, the epoch of each one's last change takes 4.
    columns = built.columns().values()
    row_bytes = 32 + 4 * sum(math.prod(c.shape) for name, c in built.columns().items()
                             if name == "group")  # fmt: skip
    row_bytes += sum(math.prod(c.shape) * c.dtype.itemsize for c in columns)
    assert f"ledger: {row_bytes * len(manifest) / 1e6:.2f} MB" in text


def test_the_plan_of_qmix_tells_warm_up_from_training():
    config = make_config("qmix")
    data = noisy_data(config)
    lines = describe_plan(config, data, build_method(config, data), 1).splitlines()
    passes = [line.partition(": ")[2] for line in lines if line.startswith("network passes")]
    assert passes == [
        "2 with gradient, 0 without, 0 in the survey",
        "2 with gradient, 4 without, 2 in the survey",
    ]


def test_the_plan_says_how_balanced_classes_share_an_epoch():
    config = make_config(
        "cross_entropy", data={"sampler": "class_balanced"}, optim={"batch_size": 40}
    )
    data = noisy_data(config)
    lines = describe_plan(config, data, build_method(config, data), 1).splitlines()
    # Two steps of 40 for five classes, though there are more images.
    assert "sampler: class_balanced, about 16 images of each class an epoch" in lines
    plain = make_config("cross_entropy")
    text = describe_plan(plain, noisy_data(plain), build_method(plain, noisy_data(plain)), 1)
    assert "sampler" not in text
