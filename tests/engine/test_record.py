import json
import math
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.record import Record, summarise, write_text


def test_one_strict_json_line_an_epoch(tmp_path):
    record = Record(tmp_path / "metrics.jsonl")
    record.open(0)
    record.append(0, {"eval/kappa": 0.5, "eval/auroc": math.nan})
    record.append(1, {"eval/kappa": math.inf})
    lines = [json.loads(line) for line in record.path.read_text().splitlines()]
    assert lines == [
        {"epoch": 0, "eval/kappa": 0.5, "eval/auroc": None},
        {"epoch": 1, "eval/kappa": None},
    ]
    assert Record.read(record.path) == lines


def test_going_on_removes_later_lines_and_a_torn_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 0}\n{"epoch": 1}\n{"epoch": 2}\n{"epo')
    record = Record(path)
    record.open(2)
    assert [line["epoch"] for line in record.history] == [0, 1]
    record.append(2, {"new": 1})
    assert path.read_text() == '{"epoch": 0}\n{"epoch": 1}\n{"epoch": 2, "new": 1}\n'


def test_lines_may_be_numbered_by_something_else(tmp_path):
    record = Record(tmp_path / "steps.jsonl", "global_step")
    record.open(0)
    for step in (10, 20, 30):
        record.append(step, {"step/learning_rate": 0.1})
    again = Record(record.path, "global_step")
    again.open(21)
    assert [line["global_step"] for line in again.history] == [10, 20]


def make_history(kappas, validation=None):
    history = [
        {"epoch": e, "eval/kappa": k, "eval/accuracy": (k or 0) / 2} for e, k in enumerate(kappas)
    ]
    for line, value in zip(history, validation or [], strict=bool(validation)):
        line["validation/kappa"] = value
    return history


def test_the_best_epoch_is_chosen_by_validation_not_by_test():
    kappas = [0.1, 0.9, 0.5, 0.6, 0.7, 0.8, 0.2]
    summary = summarise(make_history(kappas, [0, 0.1, 0.9, 0.2, 0, 0, 0]), ["kappa", "accuracy"])
    assert (summary.best_epoch, summary.selected_on) == (2, "validation")
    assert summary.best == {"kappa": 0.5, "accuracy": 0.25}
    assert summary.last["kappa"] == 0.2
    assert summary.mean_last["kappa"] == pytest.approx((0.5 + 0.6 + 0.7 + 0.8 + 0.2) / 5)


def test_without_validation_the_choice_on_test_is_owned_up_to():
    summary = summarise(make_history([0.1, None, 0.4]), ["kappa"])
    assert (summary.best_epoch, summary.selected_on) == (2, "test")
    assert math.isnan(summary.mean_last["kappa"])


def test_writers_of_one_file_do_not_get_into_each_others_way(tmp_path):
    """Such as a run that ends while somebody asks for its report."""
    path, texts = tmp_path / "report.html", ["a" * 200_000, "b" * 200_000]
    write_text(path, texts[0])
    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(lambda t=t: [write_text(path, t) for _ in range(30)]) for t in texts]
        while not all(writer.done() for writer in writers):
            assert path.read_text() in texts
        for writer in writers:
            writer.result()
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "config.yaml"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \udce9")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_validation_metric_that_is_undefined_at_last_is_there_all_the_same():
    history = [
        {"epoch": epoch, "validation/kappa": kappa, "eval/kappa": epoch / 10}
        for epoch, kappa in enumerate([0.1, 0.3, None])
    ]
    summary = summarise(history, ["kappa"])
    assert (summary.best_epoch, summary.selected_on) == (1, "validation")
