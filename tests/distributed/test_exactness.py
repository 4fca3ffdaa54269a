"""One process and many take the same steps: the promise the whole project rests on."""

import csv
import functools
import json
from pathlib import Path
from typing import NamedTuple

import pytest
import safetensors.torch
import torch
from exactness_cases import CASES, write_cases
from processes import launch
from torch import Tensor

RECORD_RUN = Path(__file__).with_name("record_run.py")
MEAN_OF_MEANS = Path(__file__).with_name("mean_of_means.py")
INTERRUPTED_RUNS = Path(__file__).with_name("interrupted_runs.py")
SAME_SLICE = Path(__file__).with_name("same_slice.py")

# Of tiny_config: 96 of 128 images are trained on, 16 at a time, for three epochs.
NUM_EPOCHS, NUM_STEPS, BATCH_SIZE = 3, 18, 16
# Weights are in float64 here; record_run.py says why. Wrong arithmetic shows in the third digit.
TOLERANCE = 1e-9


class Run(NamedTuple):
    """A finished run: last weights and ledger, metrics, what each rank noted, the label audit."""

    weights: dict[str, Tensor]
    ledger: dict[str, Tensor]
    metrics: list[dict]
    ranks: list[list[dict]]
    labels: list[dict[str, str]]

    def steps(self):
        """The notes of all ranks on each step, in rank order."""
        steps = [[line for line in rank if "step" in line] for rank in self.ranks]
        return list(zip(*steps, strict=True))

    def exchanges(self):
        """The notes of all ranks on each epoch's ledger."""
        epochs = [[line for line in rank if "epoch" in line] for rank in self.ranks]
        return list(zip(*epochs, strict=True))


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def train(folder, num_processes, script=RECORD_RUN, cases=tuple(CASES)):
    """Train the tiny setting of each case to the end; case -> its run."""
    folders = write_cases(folder, cases)
    result = launch(script, [str(f) for f in folders], num_processes, folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return {case: read_run(of_case) for case, of_case in zip(cases, folders, strict=True)}


def read_run(folder):
    last = sorted((folder / "run" / "checkpoints").glob("epoch-*"))[-1]
    return Run(
        safetensors.torch.load_file(last / "method.safetensors"),
        safetensors.torch.load_file(last / "ledger.safetensors"),
        read_lines(folder / "run" / "metrics.jsonl"),
        [read_lines(path) for path in sorted(folder.glob("rank-*.jsonl"))],
        list(csv.DictReader((folder / "run" / "labels.csv").read_text().splitlines())),
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of all cases by number of processes, each made once."""
    return functools.cache(
        lambda num_processes: train(tmp_path_factory.mktemp(f"on-{num_processes}"), num_processes)
    )


@pytest.fixture
def run(runs):
    return lambda case, num_processes: runs(num_processes)[case]


def relative_difference(ours, theirs):
    """Largest difference of any weight, relative to the size of the weights of its tensor."""
    assert ours.keys() == theirs.keys()
    return max(
        ((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max()).item()
        for name in ours
        if ours[name].is_floating_point() and theirs[name].abs().max() > 0
    )


def for_each_run(test):
    """Every case on 2 and on 4 processes."""
    on_several = pytest.mark.parametrize("num_processes", [2, 4])
    of_each = pytest.mark.parametrize("case", CASES)
    return pytest.mark.slow(of_each(on_several(test)))


@for_each_run
def test_global_batches_and_views_are_identical(run, case, num_processes):
    alone, together = run(case, 1), run(case, num_processes)
    assert len(together.ranks) == num_processes
    assert len(together.steps()) == len(alone.steps()) == NUM_STEPS
    for (expected,), parts in zip(alone.steps(), together.steps(), strict=True):
        assert {len(part["sample_ids"]) for part in parts} == {BATCH_SIZE // num_processes}
        assert sum((part["sample_ids"] for part in parts), []) == expected["sample_ids"]
        for name, hashes in expected["views"].items():
            assert sum((part["views"][name] for part in parts), []) == hashes, name
            assert len(set(hashes)) == BATCH_SIZE  # also where a sample comes up again
        assert all(part["step"] == expected["step"] for part in parts)
        assert all(part["views"].keys() == expected["views"].keys() for part in parts)


@for_each_run
def test_each_rank_holds_the_ledger_of_a_single_process(run, case, num_processes):
    alone, together = run(case, 1), run(case, num_processes)
    assert len(together.exchanges()) == len(alone.exchanges()) == NUM_EPOCHS
    for (expected,), notes in zip(alone.exchanges(), together.exchanges(), strict=True):
        assert len({note["ledger"] for note in notes}) == 1
        for note in notes:  # labels and, where there is a separation, groups
            assert note["integers"] == expected["integers"]


@for_each_run
def test_weights_and_statistics_agree(run, case, num_processes):
    alone, together = run(case, 1), run(case, num_processes)
    assert relative_difference(together.weights, alone.weights) < TOLERANCE
    assert together.ledger.keys() == alone.ledger.keys()
    for name, column in together.ledger.items():
        torch.testing.assert_close(column, alone.ledger[name], rtol=1e-6, atol=0, equal_nan=True)
    for line, expected in zip(together.metrics, alone.metrics, strict=True):
        assert line["eval/accuracy"] == expected["eval/accuracy"]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """Runs cut off in step 3 on two processes, in step 9 on one, and ended on four."""
    folder = tmp_path_factory.mktemp("resumed")
    folders = write_cases(folder)
    for num_processes, asked_in in ((2, 3), (1, 9), (4, NUM_STEPS)):
        arguments = [str(asked_in), *(str(f) for f in folders)]
        result = launch(INTERRUPTED_RUNS, arguments, num_processes, folder)
        assert result.returncode == 0, result.stderr[-3000:]
    return {case: of_case for case, of_case in zip(CASES, folders, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_resuming_in_mid_epoch_on_other_numbers_of_processes(run, resumed, case):
    whole, cut = run(case, 1), read_run(resumed[case])
    first = [line["sample_ids"] for line in cut.ranks[0] if "step" in line]
    # Two processes took steps 0 to 3, one 4 to 9, four the rest: no step was lost or taken twice.
    assert [len(ids) for ids in first] == [8] * 4 + [16] * 6 + [4] * 8
    assert relative_difference(cut.weights, whole.weights) < TOLERANCE
    for name, column in cut.ledger.items():
        torch.testing.assert_close(column, whole.ledger[name], rtol=1e-6, atol=0, equal_nan=True)
    for line, expected in zip(cut.metrics, whole.metrics, strict=True):
        assert line.keys() == expected.keys()
        assert line["eval/accuracy"] == expected["eval/accuracy"]
        for name in (name for name in line if name.startswith("train/")):
            assert line[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_a_cut_in_mid_epoch_leaves_no_trace_in_batch_statistics(tmp_path):
    """On the same number of processes, since plain BatchNorm sees each one's samples alone."""
    folders = []
    for name in ("whole", "cut"):
        folder = tmp_path / name
        folder.mkdir()
        folders += write_cases(folder, ("qmix",), model={"norm": "batch"})
    for asked_in, of_run in ((NUM_STEPS, folders[0]), (9, folders[1]), (NUM_STEPS, folders[1])):
        result = launch(INTERRUPTED_RUNS, [str(asked_in), str(of_run)], 2, tmp_path)
        assert result.returncode == 0, result.stderr[-3000:]
    whole, cut = (read_run(folder) for folder in folders)
    assert [len(cut.ranks), len(cut.steps())] == [2, NUM_STEPS]
    assert relative_difference(cut.weights, whole.weights) < TOLERANCE


@for_each_run
def test_label_audits_agree(run, case, num_processes):
    ours, theirs = run(case, num_processes).labels, run(case, 1).labels
    assert len(ours) == len(theirs) > 90
    for row, expected in zip(ours, theirs, strict=True):
        assert row.keys() == expected.keys()
        for name, value in row.items():
            try:
                assert float(value) == pytest.approx(float(expected[name]), rel=1e-4, abs=1e-6)
            except ValueError:  # no number
                assert value == expected[name], name


@pytest.mark.slow
@pytest.mark.parametrize("case", ["qmix", "dividemix", "sscl"])
def test_groups_change_from_epoch_to_epoch(run, case):
    """Equal ledgers would say little if the separation never moved a sample."""
    groups = [note["integers"]["group"] for (note,) in run(case, 1).exchanges()]
    assert len(set(groups)) == NUM_EPOCHS


@pytest.mark.slow
def test_the_comparison_notices_a_mean_of_means(tmp_path, run):
    """Dividing by each rank's own count, as is usual, gives other weights."""
    # Of the other methods each rank has as many samples in each term.
    wrong = train(tmp_path, 2, MEAN_OF_MEANS, ("coteaching", "dividemix", "qmix"))
    for case, found in wrong.items():
        assert relative_difference(found.weights, run(case, 1).weights) > 1e-3, case


@pytest.mark.slow
def test_the_comparison_notices_ranks_that_train_on_the_same_slice(tmp_path, run):
    """The control of every case: a batch that is not shared out gives other weights."""
    for case, wrong in train(tmp_path, 2, SAME_SLICE).items():
        assert relative_difference(wrong.weights, run(case, 1).weights) > 1e-3, case
