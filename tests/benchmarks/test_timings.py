"""The benchmarks of time, at a size of seconds; what they measure is not asserted."""

import json

import epoch
import overhead
import profile_epoch
import pytest
import scaling
from timing import Goal, interleaved, median_ratio, print_figures

TINY = ["data.image_size=32", "optim.batch_size=8", "model.backbone=small_resnet",
        "model.width=4", "runtime.device=cpu"]  # fmt: skip


def settings(values):
    return [word for value in values for word in ("--set", value)]


def last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_works_take_turns_and_the_first_round_does_not_count():
    done = []
    works = {"a": lambda: done.append("a"), "b": lambda: done.append("b")}
    timings = interleaved(works, rounds=3)
    assert done == ["a", "b"] * 4
    assert [len(times) for times in timings.values()] == [3, 3]


def test_ratios_are_taken_round_by_round():
    timings = {"a": [2.0, 30.0, 8.0], "b": [1.0, 10.0, 2.0]}
    assert median_ratio(timings, "a", "b") == 3.0


def test_figures_stand_beside_their_goals(capsys):
    print_figures({"less": Goal(1.0, 2.0), "more": Goal(1.0, 2.0, at_most=False), "plain": 0.12345})
    assert last_line(capsys) == {
        "less": {"is": 1.0, "at_most": 2.0, "met": True},
        "more": {"is": 1.0, "at_least": 2.0, "met": False},
        "plain": 0.1235,
    }


@pytest.mark.slow
@pytest.mark.parametrize("program", [overhead, epoch])
def test_a_small_measurement_ends_with_its_figures(program, capsys, fresh_processes):
    assert program.main(["--rounds", "1", "--steps", "2", *settings(TINY)]) == 0
    figures = last_line(capsys)
    assert all(figure["is"] > 0 for figure in figures.values() if isinstance(figure, dict))


@pytest.mark.slow
def test_scaling_starts_one_process_and_two(capsys):
    small = ["data.synthetic={num_train: 32, num_test: 4}", "model.width=4"]
    assert scaling.main(["--rounds", "1", *settings([*TINY, *small])]) == 0
    assert last_line(capsys)["two_processes_over_one"]["is"] > 0


def test_a_part_within_another_one_is_not_counted_twice(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 40.0, 45.0, 63.0])
    monkeypatch.setattr(profile_epoch.time, "perf_counter", lambda: next(clock))
    watches = profile_epoch.Watches()
    with watches.watch("outer"):  # from 1 to 63
        with watches.watch("inner"):  # from 3 to 7
            pass
        # From 15 to 31, and from 40 to 45 to find that there is no other.
        assert list(watches.each("items", iter("a"))) == ["a"]
    assert watches.seconds == {"outer": 62 - 4 - 21, "inner": 4, "items": 21}


@pytest.mark.slow
def test_a_profile_accounts_for_the_whole_epoch(capsys, fresh_processes):
    arguments = ["--methods", "qmix", "--steps", "2", "--side", "48", *settings(TINY)]
    assert profile_epoch.main(arguments) == 0
    shares = last_line(capsys)["qmix"]
    assert shares.pop("seconds") > 0
    assert sum(shares.values()) == pytest.approx(1, abs=1e-2)
    parts = {"read and decode", "views", "backward", "separation", "checkpoint", "other"}
    passes = {"with gradient", "without gradient", "in eval mode"}
    assert shares.keys() >= parts | {f"forward {kind}" for kind in passes}
