import io
import logging
import sys

import torch

from engine.progress import PhaseFormatter, progress_bar
from engine.throughput import Meter, Throughput


class Terminal(io.StringIO):
    def isatty(self):
        return True


def batches(*sizes):
    return [(torch.arange(size), torch.zeros(size)) for size in sizes]


def show(stream, monkeypatch, num_images=7):
    monkeypatch.setattr(sys, "stderr", stream)
    given = batches(4, 3)
    assert list(progress_bar(given, num_images, "epoch 2, training")) == given
    return stream.getvalue()


def test_a_terminal_gets_a_bar_that_counts_images(monkeypatch):
    text = show(Terminal(), monkeypatch)
    assert "epoch 2, training" in text and "/7 " in text and "images" in text


def test_anything_else_stays_quiet(monkeypatch):
    assert show(io.StringIO(), monkeypatch) == ""


def test_other_ranks_stay_quiet(monkeypatch):
    monkeypatch.setattr("engine.collectives.rank", lambda: 1)
    assert show(Terminal(), monkeypatch) == ""


def test_the_bar_counts_the_images_of_all_ranks_and_not_more(monkeypatch):
    monkeypatch.setattr("engine.collectives.num_ranks", lambda: 2)
    bars = []

    class Bar:
        n = 0

        def __init__(self, total, **settings):
            bars.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def update(self, num):
            self.n += num

    monkeypatch.setattr("engine.progress.tqdm", Bar)
    list(progress_bar(batches(4, 3), 13, "survey"))
    assert bars[0].n == 13


def test_lines_of_the_log_name_rank_and_phase():
    formatter = PhaseFormatter(3)
    record = logging.LogRecord("mednoise", logging.INFO, "", 0, "saved %s", ("it",), None)
    assert formatter.format(record).endswith(" [rank 3, the start] saved it")
    formatter.phase = lambda: "survey before epoch 2"
    assert formatter.format(record).endswith(" [rank 3, survey before epoch 2] saved it")


def test_throughput_by_a_clock_of_ones(monkeypatch):
    """A batch takes 1 s to wait for and 2 s to train on."""
    now = [0.0]
    monkeypatch.setattr("engine.throughput.time.perf_counter", lambda: now[0])
    throughput = Throughput()

    def slowly():
        for number in range(4):
            now[0] += 1
            yield number

    for number in throughput.time_waits(slowly()):
        now[0] += 2
        throughput.end_step(30)
        now[0] += 50  # saving, say: no part of a step
        if number == 1:
            assert throughput.window.rates() == {
                "images_per_second": 10, "data_wait_share": 1 / 3
            }  # fmt: skip
            throughput.window = Meter()
    assert throughput.epoch == Meter(num_images=120, seconds=12, waited=4)
    assert throughput.window == Meter(num_images=60, seconds=6, waited=2)


def test_without_a_step_there_is_no_rate():
    assert all(rate != rate for rate in Meter().rates().values())
