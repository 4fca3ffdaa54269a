"""One process and many take the same steps: the promise the whole project rests on."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from method_settings import METHOD_SETTINGS, write_config
from processes import ROOT, launch

RUN = ROOT / "launcher" / "run.py"
MEAN_OF_MEANS = Path(__file__).with_name("mean_of_means.py")


def train(folder: Path, method: str, num_processes: int, script: Path = RUN):
    """Train the tiny setting to the end; returns its weights, ledger and record."""
    folder.mkdir(parents=True)
    config = write_config(folder, method)
    result = launch(script, ["--config", str(config)], num_processes, folder)
    assert result.returncode == 0, result.stderr[-3000:]
    last = sorted((folder / "run" / "checkpoints").glob("epoch-*"))[-1]
    record = [json.loads(s) for s in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return (
        safetensors.torch.load_file(last / "method.safetensors"),
        safetensors.torch.load_file(last / "ledger.safetensors"),
        record,
    )


def relative_difference(ours, theirs):
    """Largest difference of any weight, relative to the size of the weights of its tensor."""
    assert ours.keys() == theirs.keys()
    return max(
        ((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max()).item()
        for name in ours
        if ours[name].is_floating_point() and theirs[name].abs().max() > 0
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The single process's results by method."""
    folder = tmp_path_factory.mktemp("alone")
    return {method: train(folder / method, method, 1) for method in METHOD_SETTINGS}


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [2, 4])
@pytest.mark.parametrize("method", METHOD_SETTINGS)
def test_any_number_of_processes_takes_the_same_steps(tmp_path, alone, method, num_processes):
    weights, ledger, record = train(tmp_path / "run", method, num_processes)
    expected_weights, expected_ledger, expected_record = alone[method]
    assert relative_difference(weights, expected_weights) < 1e-5
    assert ledger.keys() == expected_ledger.keys()
    for name, column in ledger.items():
        if column.is_floating_point():
            torch.testing.assert_close(
                column, expected_ledger[name], rtol=1e-4, atol=1e-5, equal_nan=True
            )
        else:  # labels and groups of the last separation
            assert torch.equal(column, expected_ledger[name]), name
    counts = [name for name in record[-1] if "num_assigned" in name]
    for line, expected in zip(record, expected_record, strict=True):
        # The groups of every epoch's separation, not only the last one's.
        assert [line.get(name) for name in counts] == [expected.get(name) for name in counts]
        assert line["eval/accuracy"] == expected["eval/accuracy"]


@pytest.mark.slow
def test_the_comparison_notices_a_mean_of_means(tmp_path, alone):
    """Dividing by each rank's own count, as is usual, gives other weights."""
    weights, _, _ = train(tmp_path / "run", "qmix", 2, MEAN_OF_MEANS)
    assert relative_difference(weights, alone["qmix"][0]) > 1e-3
